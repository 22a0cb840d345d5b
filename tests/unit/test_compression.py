"""Answers with gzip: for whom, and that neither a large answer nor a stream is held up."""

import asyncio
import gzip
import os
import zlib
from typing import Any

import pytest
from starlette.responses import Response, StreamingResponse
from starlette.types import ASGIApp

from app.api.compression import CompressedAnswers, bytes_min

LARGE = b'{"event_outcome":"success"},' * 100_000


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        *(("", None), ("identity", None), ("br", None), ("gzip;q=0", None), ("gzip;q=0.000, *", None)),
        *(("gzip;q=0.5, identity", None), ("gzip;q=0.5, *;q=0.8", None), ("*;q=0", None), ("gzip;q=2", None)),
        *(("gzip", 1024), ("GZIP", 1024), ("x-gzip", 1024), ("*", 1024), ("br, zstd , gzip ;q=0.2", 1024)),
        *(("deflate, gzip;q=1.0, *;q=0.5", 1024), ("identity;q=0.5, gzip;q=1.0", 1024), ("!, ;q=1,gzip", 1024)),
        *(("gzip, identity;q=0", 0), ("gzip, *;q=0", 0), ("identity;q=0, *", 0), ("identity;q=0", None)),
    ],
)
def test_what_a_client_accepts(sent: str, expected: int | None) -> None:
    """A client gets an encoding that it refuses or likes less, or not the one that it asks for."""
    assert bytes_min(sent) == expected


async def ask(app: ASGIApp, accept_encoding: str = "gzip") -> tuple[dict[str, str], list[bytes]]:
    """Headers and pieces of the answer of `app`."""
    messages: list[Any] = []

    async def send(message: Any) -> None:
        messages.append(message)

    async def receive() -> Any:
        await asyncio.Event().wait()  # the client stays

    scope = {"type": "http", "headers": [(b"accept-encoding", accept_encoding.encode())]}
    await CompressedAnswers(app)(scope, receive, send)
    assert [m["type"] for m in messages[:2]] == ["http.response.start", "http.response.body"]
    assert [m.get("more_body", False) for m in messages[1:]] == [True] * (len(messages) - 2) + [False]
    names = [name for name, _ in messages[0]["headers"]]
    assert len(names) == len(set(names))
    headers = {name.decode(): value.decode() for name, value in messages[0]["headers"]}
    return headers, [m.get("body", b"") for m in messages[1:]]


async def test_whole_answers() -> None:
    """A compressed answer has the length of another one, or one that is not worth it is compressed."""
    for size in (1024, 65536, 65537, len(LARGE)):
        body = LARGE[:size]
        headers, [sent] = await ask(Response(body, media_type="application/json"))
        assert gzip.decompress(sent) == body
        assert (headers["content-encoding"], headers["content-length"]) == ("gzip", str(len(sent)))
        assert headers["vary"] == "Origin, Accept-Encoding"
    for answer in (
        Response(LARGE[:1023], media_type="application/json"),
        Response(LARGE, 500, media_type="application/json"),
        Response(os.urandom(8192), media_type="application/octet-stream"),
    ):
        headers, [sent] = await ask(answer)
        assert (sent, headers["content-length"]) == (answer.body, str(len(answer.body)))
        assert "content-encoding" not in headers
    headers, [sent] = await ask(Response(b"{}", media_type="application/json"), "gzip, identity;q=0")
    assert (headers["content-encoding"], gzip.decompress(sent)) == ("gzip", b"{}")
    assert (await ask(Response(LARGE), "identity"))[0].get("content-encoding") is None


async def test_streams_stay_streams() -> None:
    """A stream is collected before it is sent, its end is lost, or it says a length."""
    unpacker, read = zlib.decompressobj(wbits=31), 0
    chunks = [os.urandom(100_000) for _ in range(20)]

    async def produce() -> Any:
        for chunk in chunks:
            yield chunk

    answer = StreamingResponse(produce(), headers={"Content-Length": "2000000"}, media_type="text/csv")
    headers, pieces = await ask(answer)
    assert (headers["content-encoding"], "content-length" in headers) == ("gzip", False)
    assert max(map(len, pieces)) < 250_000
    for piece in pieces:
        read += len(unpacker.decompress(piece))
    assert (read, unpacker.eof) == (2_000_000, True)


async def test_nothing_waits_for_a_large_answer() -> None:
    """Everybody waits while one answer of many megabytes is compressed."""
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(others())
    await ask(Response(LARGE, media_type="application/json"))
    task.cancel()
    assert turns >= len(LARGE) // 65536
