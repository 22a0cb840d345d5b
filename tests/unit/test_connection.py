"""What one connection bears: heads and bodies that never end."""

import asyncio

import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send
from uvicorn import Config
from uvicorn.server import ServerState

from app import connection

HEAD = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n"


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    body = await Request(scope, receive).body()
    await PlainTextResponse(body)(scope, receive, send)


@pytest.mark.parametrize("left", [HEAD[:20], HEAD + b"12"])
async def test_a_request_that_never_ends(monkeypatch: pytest.MonkeyPatch, left: bytes) -> None:
    """A connection is held for ever by a part of a request, or one whose requests are complete is closed."""
    monkeypatch.setattr(connection, "_READ_SECONDS", 2)
    config, state = Config(echo, lifespan="off"), ServerState()
    config.load()
    kind = type("Connection", (connection.HttpConnection,), {"head_bytes_max": 65536})
    server = await asyncio.get_running_loop().create_server(lambda: kind(config, state, {}), "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    for _ in range(3):
        writer.write(HEAD + b"12")
        await asyncio.sleep(0.8)
        writer.write(b"345")
        assert (await reader.readuntil(b"12345")).startswith(b"HTTP/1.1 200")
    await asyncio.sleep(3)  # idle, which is not what is bounded here
    writer.write(left)
    assert await asyncio.wait_for(reader.read(), 20) == b""
    writer.close()
    server.close()
