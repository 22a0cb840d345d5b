"""How a connection ends whose client does not receive."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn import Config
from uvicorn.server import ServerState

from app import connection
from app.connection import HttpConnection
from tests.waiting import eventually

GET = "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


class Connection(HttpConnection):
    head_bytes_max = 65536


@asynccontextmanager
async def serving(app: ASGIApp) -> AsyncIterator[tuple[int, ServerState]]:
    config, state = Config(app, lifespan="off"), ServerState()
    config.load()
    server = await asyncio.get_running_loop().create_server(lambda: Connection(config, state, {}), "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1], state
    server.close()


async def test_who_never_receives_the_last_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that does not read keeps its connection for ever, although the service has closed it."""
    monkeypatch.setattr(connection, "_READ_SECONDS", 0.05)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await PlainTextResponse(b"x" * 50_000_000)(scope, receive, send)

    async with serving(app) as (port, state):
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(GET.encode())

            async def is_over() -> bool | None:
                return True if state.total_requests == 1 and not state.connections else None

            assert await eventually(is_over)
