"""What one connection bears: heads and bodies that never end."""

import asyncio

import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from tests.connections import Connection, serving
from tests.without_waiting import without_waiting

HEAD = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n"


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    body = await Request(scope, receive).body()
    await PlainTextResponse(body)(scope, receive, send)


async def refuse(scope: Scope, receive: Receive, send: Send) -> None:
    """As a caller is refused whose body is not read; others as echo()."""
    if scope["path"] == "/refused":
        await PlainTextResponse("no", 403)(scope, receive, send)
    else:
        await echo(scope, receive, send)


LARGE = b"POST /refused HTTP/1.1\r\nHost: x\r\nContent-Length: 200000\r\n\r\n"
MANY = b"GET /refused HTTP/1.1\r\nHost: x\r\nCookie: " + b"c" * 1000 + b"\r\n\r\n"


@pytest.mark.parametrize(("first", "piece"), [(LARGE + bytes(50_000), bytes(150_000)), (b"", MANY * 100)])
@pytest.mark.parametrize("cut", [10, len(HEAD), len(HEAD) + 2])
async def test_a_request_behind_much_of_others(first: bytes, piece: bytes, cut: int) -> None:
    """What came before a request in the same piece counts as its head, which is then refused as too large."""
    async with serving(refuse) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        try:
            writer.write(MANY)  # so that the connection is there
            await reader.readuntil(b"no")
            last = HEAD + b"12345"
            for part in (first, piece + last[:cut], last[cut:]):
                server.taken[0].data_received(part)
            answers = await reader.readuntil(b"12345")
        finally:
            writer.close()
            await writer.wait_closed()
    assert answers.count(b"HTTP/1.1 ") == answers.count(b"HTTP/1.1 403") + 1


class Stopping(Connection):
    @staticmethod
    def is_stopping() -> bool:
        return True


@pytest.mark.parametrize("count", [1, 3])
async def test_a_server_that_stops_says_so(count: int) -> None:
    """Clients send their next request on a connection that is about to be closed, or one that was sent already is not answered."""
    async with serving(echo, Stopping) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        try:
            writer.write((HEAD + b"12345") * count)
            answers = await asyncio.wait_for(reader.read(), 20)
        finally:
            writer.close()
            await writer.wait_closed()
    assert answers.count(b"12345") == count
    assert answers.count(b"connection: close") == 1
    assert answers.index(b"connection: close") > answers.rindex(b"HTTP/1.1 200")


@pytest.mark.parametrize("cut", [0, 10, len(HEAD), len(HEAD) + 5])
async def test_a_request_that_has_arrived_when_the_server_stops(cut: int) -> None:
    """A connection is reset that looks idle, although a request has reached this machine."""
    async with serving(echo) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        try:
            writer.write(HEAD + b"12345")
            await reader.readuntil(b"12345")
            request = HEAD + b"abcde"
            writer.write(request[:cut])
            if cut % 2:
                await asyncio.sleep(0.05)  # so that it is read; else it is only on the socket
            server.taken[0].shutdown()
            if cut:
                writer.write(request[cut:])
            answer = await asyncio.wait_for(reader.read(), 20)
        finally:
            writer.close()
            await writer.wait_closed()
    assert (b"abcde" in answer, b"connection: close" in answer) == (cut > 0, cut > 0)


async def test_an_answer_that_goes_on_when_the_server_stops() -> None:
    """A server waits for a connection that is idle after its last answer."""

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        del scope, receive
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"first", "more_body": True})
        await stopped.wait()
        await send({"type": "http.response.body", "body": b"last"})

    stopped = asyncio.Event()
    async with serving(slow) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        try:
            writer.write(HEAD + b"12345")
            await reader.readuntil(b"first")
            server.taken[0].shutdown()
            stopped.set()
            assert (await asyncio.wait_for(reader.read(), 20)).endswith(b"0\r\n\r\n")
        finally:
            writer.close()
            await writer.wait_closed()


@pytest.mark.parametrize("left", [HEAD[:20], HEAD + b"12"])
@without_waiting
async def test_a_request_that_never_ends(left: bytes) -> None:
    """A connection is held for ever by a part of a request, or one whose requests are complete is closed."""
    async with serving(echo) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        try:
            for _ in range(3):
                writer.write(HEAD + b"12")
                await asyncio.sleep(20)
                writer.write(b"345")
                assert (await reader.readuntil(b"12345")).startswith(b"HTTP/1.1 200")
            await asyncio.sleep(40)  # idle, which is not what is bounded here
            writer.write(left)
            assert await asyncio.wait_for(reader.read(), 31) == b""
        finally:
            writer.close()
            await writer.wait_closed()
