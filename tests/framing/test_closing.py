"""How a connection ends whose client does not receive, or whose answer was cut."""

import asyncio
import socket
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import uvloop
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from app import connection
from app.api.body import ClientDisconnected
from app.connection import HttpConnection
from tests.connections import serving
from tests.waiting import eventually

GET = "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


@pytest.mark.parametrize("sent", [GET, GET.replace("close", "keep-alive") * 2], ids=["the last", "the one before"])
async def test_who_never_receives_an_answer(sent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that does not read keeps its connection for ever, although the service has closed it or more answers wait."""
    monkeypatch.setattr(connection, "_READ_SECONDS", 0.05)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await PlainTextResponse(b"x" * 50_000_000)(scope, receive, send)

    async with serving(app) as server:
        with socket.create_connection(("127.0.0.1", server.port)) as client:
            client.sendall(sent.encode())

            async def is_over() -> bool | None:
                return True if server.state.total_requests == 1 and not server.state.connections else None

            assert await eventually(is_over)


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_what_is_cut_is_never_whole(loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    """To a client of HTTP/1.0 (nginx is one, unless it is told) a page that was cut looks complete."""

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"half of it", "more_body": True})
        raise ClientDisconnected

    def receive_all(port: int) -> None:
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(b"GET / HTTP/1.0\r\n\r\n")
            while client.recv(4096):
                pass

    async def test() -> None:
        async with serving(app) as server:
            with pytest.raises(ConnectionResetError):
                await asyncio.to_thread(receive_all, server.port)

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(test())


def test_who_receives_slowly() -> None:
    """A client that receives a little between two looks is taken for one that does not, or the other way round."""
    sizes = iter([9, 8, 7, 7])
    flow, transport = SimpleNamespace(write_paused=True), SimpleNamespace(get_write_buffer_size=lambda: next(sizes))
    looked_at: Any = SimpleNamespace(_flow=flow, _transport=transport, _stalled_bytes=0)
    assert [HttpConnection._is_stalled(looked_at) for _ in range(4)] == [False, False, False, True]
