"""Bodies: the size and type of those of requests, the bytes that all of them may use together, and JSON in responses."""

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response

from app.api.content_encoding import PART_BYTES, GzipStream, encoding_of
from app.errors import BadRequest, InboxFull, TooLarge


class ClientDisconnected(Exception):
    """The client closed the connection before its request was complete."""


JSON = "application/json"


class ByteBudget:
    """Bounds the bytes of all request bodies in memory, each from its first byte until its request is answered."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._bytes_reserved = 0

    @contextmanager
    def reserve(self) -> Iterator["Reservation"]:
        """A reservation for one body. It grows as the body arrives, and ends with the block."""
        reservation = Reservation(self)
        try:
            yield reservation
        finally:
            self._bytes_reserved -= reservation.bytes

    def add(self, size: int, body_bytes: int) -> None:
        """Reserve `size` bytes more for a body that has `body_bytes` now. InboxFull above the budget, except for a lone body."""
        self._bytes_reserved += size
        if self._bytes_reserved > self._bytes_max and self._bytes_reserved > body_bytes:
            raise InboxFull


class Reservation:
    """The bytes that one body uses of the budget."""

    def __init__(self, budget: ByteBudget) -> None:
        self._budget = budget
        self.bytes = 0

    def add(self, size: int) -> None:
        """Reserve `size` bytes more. Raises InboxFull."""
        self.bytes += size
        self._budget.add(size, self.bytes)


async def read_json_body(request: Request, bytes_max: int) -> bytes:
    """The whole body. TooLarge when it grows above `bytes_max`; BadRequest when it is not application/json."""
    body, media_type = await read_body(request, bytes_max)
    if media_type != JSON:
        raise wrong_type(media_type, JSON)
    return body


async def read_body(request: Request, bytes_max: int, reservation: Reservation | None = None) -> tuple[bytes, str]:
    """The whole body, unpacked, and the media type of its Content-Type without parameters.

    TooLarge when it grows above `bytes_max` (the front has checked its Content-Length already); InboxFull when
    `reservation` cannot grow; UnsupportedEncoding, before it is read, for a Content-Encoding other than gzip.
    """
    if encoding_of(request.scope["headers"]) == "gzip":
        body = await _read_gzip(request, bytes_max, reservation)
    else:
        length = request.headers.get("content-length", "")
        if reservation is not None and length.isdecimal():
            reservation.add(int(length))
            reservation = None
        body = await _read(request, bytes_max, reservation)
    return body, request.headers.get("content-type", "").partition(";")[0].strip()


def wrong_type(media_type: str, expected: str) -> BadRequest:
    """The refusal of a body for its Content-Type."""
    return BadRequest(f"Content-Type: expected {expected}, got {media_type[:60] or 'none'}")


def too_large(request: Request, bytes_max: int) -> TooLarge:
    """The refusal of a body for its Content-Length."""
    return TooLarge(f"The body has {request.headers['content-length']} bytes; this route accepts at most {bytes_max}.")


async def _read(request: Request, bytes_max: int, reservation: Reservation | None) -> bytes:
    chunks: list[bytes] = []
    size = 0
    while True:
        chunk, more = await _next_chunk(request)
        size += len(chunk)
        _check_size(size, bytes_max)
        if reservation is not None:
            reservation.add(len(chunk))
        if not more:
            return b"".join((*chunks, chunk)) if chunks else chunk
        chunks.append(chunk)


async def _read_gzip(request: Request, bytes_max: int, reservation: Reservation | None) -> bytes:
    """The unpacked body. Only what it has become so far is in memory, and the limits are checked for each part of it."""
    stream, parts = GzipStream(), list[bytes]()
    packed_size = size = 0
    more = True
    while more:
        packed, more = await _next_chunk(request)
        packed_size += len(packed)
        _check_size(packed_size, bytes_max)
        for part in stream.unpack(packed):
            size += len(part)
            _check_size(size, bytes_max)
            if reservation is not None:
                reservation.add(len(part))
            parts.append(part)
            if len(part) == PART_BYTES:
                await asyncio.sleep(0)  # other requests are answered meanwhile
    stream.check_end()
    return b"".join(parts)


async def _next_chunk(request: Request) -> tuple[bytes, bool]:
    """The next bytes of the body, and whether more follow."""
    message = await request.receive()
    if message["type"] == "http.disconnect":
        raise ClientDisconnected
    return message.get("body", b""), message.get("more_body", False)


def _check_size(size: int, bytes_max: int) -> None:
    if size > bytes_max:
        raise TooLarge(f"The body has more than the {bytes_max} bytes that this route accepts.")


def json_response(
    value: Any, status: int = 200, headers: Mapping[str, str] | None = None, *, options: int = orjson.OPT_APPEND_NEWLINE
) -> Response:
    """`value` as JSON with a newline at its end. `options` are orjson's."""
    return Response(orjson.dumps(value, option=options), status, headers, JSON)
