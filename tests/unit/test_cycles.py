"""What a request leaves behind is freed at once. Garbage that waits for the collector stops a process for 0.1 s when it comes, and every post and probe."""

import asyncio
import gc
import socket
import struct
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from secrets import token_hex
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from app.api.reading import WAITS
from app.api.reads import reads_of
from app.api.service import Service
from app.bookmark import HEADER
from app.errors import AuditError
from app.pod.relay import NobodyAnswers, Relay, RelayServer
from tests.connections import serving

REQUESTS = 5
SLOW = b"GET /api/v1/audit/events HTTP/1.1\r\nHost: a\r\n\r\n"


async def answer(scope: Scope, receive: Receive, send: Send) -> None:
    """As the service's processes that read: some answers never come, and some never end."""
    if scope["method"] == "POST":
        while (await receive()).get("more_body"):
            pass
    if scope["path"] == "/api/v1/audit/events":
        if WAITS in scope.get("extensions", {}):
            await send({"type": WAITS})
        while (await receive())["type"] != "http.disconnect":
            pass
        return
    is_endless = scope["path"] == "/endless"
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"x", "more_body": is_endless})
    while is_endless and (await receive())["type"] != "http.disconnect":
        pass


def refusing(app: ASGIApp) -> ASGIApp:
    """As the service's front: what is refused has an answer."""

    async def front(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await app(scope, receive, send)
        except (AuditError, NobodyAnswers):
            await send({"type": "http.response.start", "status": 503, "headers": []})
            await send({"type": "http.response.body", "body": b""})

    return front


def reset(writer: asyncio.StreamWriter) -> None:
    """A client that closes its connection may still read; one that resets it does not."""
    linger = struct.pack("ii", 1, 0)
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)


async def asks(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    for _ in range(REQUESTS):
        writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert await reader.readuntil(b"\r\n0\r\n\r\n")


async def posts(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    for _ in range(REQUESTS):
        writer.write(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n{")
        await asyncio.sleep(0)
        writer.write(b"}")
        assert await reader.readuntil(b"\r\n0\r\n\r\n")


async def is_refused(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    for _ in range(2):
        writer.write(SLOW)
        assert b"503" in await reader.readuntil(b"\r\n0\r\n\r\n")


async def leaves(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"GET /endless HTTP/1.1\r\nHost: a\r\n\r\n")
    await reader.readuntil(b"x\r\n")
    reset(writer)


async def leaves_before_the_answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    del reader
    writer.write(SLOW)
    await asyncio.sleep(0.05)
    reset(writer)


async def sends_no_http(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"what is this?\r\n\r\n")
    await reader.read()


@contextmanager
def nothing_left() -> Iterator[None]:
    """Within it no object of the service is freed by the collector of garbage alone."""
    gc.collect()
    gc.disable()
    try:
        yield
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        left = sorted({type(one).__qualname__ for one in gc.garbage if type(one).__module__.startswith("app.")})
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
    assert left == []


EVERYWHERE = (asks, posts, leaves, leaves_before_the_answer, sends_no_http)


@pytest.mark.parametrize(
    ("does", "is_relayed"),
    [*((one, False) for one in EVERYWHERE), *((one, True) for one in EVERYWHERE), (is_refused, True)],
)
async def test_request(
    does: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
    is_relayed: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A request or its connection stays until it is collected."""
    monkeypatch.setattr("app.pod.relay.WAIT_SECONDS", 0.05)
    name = f"test-{token_hex(8)}"
    server = RelayServer(answer, name)
    await server.start()
    relay = Relay([name], by_caller=False)
    try:
        with nothing_left():
            async with serving(refusing(relay if is_relayed else answer)) as front:
                reader, writer = await asyncio.open_connection("127.0.0.1", front.port)
                await does(reader, writer)
                writer.close()
                with suppress(OSError):
                    await writer.wait_closed()
                while front.state.connections or front.state.tasks:  # noqa: ASYNC110 -- of the server
                    await asyncio.sleep(0.01)
                front.taken.clear()
            relay.close()
            while server._connections:  # noqa: ASYNC110 -- of another task
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.01)
            del reader, writer, front
    finally:
        await server.close()


def test_reads() -> None:
    """What a request has read by stays until it is collected."""
    with nothing_left():
        headers = [(HEADER.lower().encode(), b"0.1.0011223344556677")]
        service = Mock(
            Service, presence=SimpleNamespace(database_seen=True), standbys=SimpleNamespace(standbys=["one"])
        )
        state: dict[str, Any] = {}
        scope = {"type": "http", "method": "GET", "path": "/", "headers": headers, "state": state}
        request = Request(scope | {"app": SimpleNamespace(service=service)})
        reads_of(request)
        del request, scope, state
