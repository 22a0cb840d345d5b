"""Bodies: the size and type of those of requests, the bytes that all of them may use together, and JSON in responses."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response

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
    """The whole body, and the media type of its Content-Type without parameters.

    TooLarge when it grows above `bytes_max` (the front has checked its Content-Length already); InboxFull when
    `reservation` cannot grow.
    """
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
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnected
        chunk = message.get("body", b"")
        size += len(chunk)
        if size > bytes_max:
            raise TooLarge(f"The body has more than the {bytes_max} bytes that this route accepts.")
        if reservation is not None:
            reservation.add(len(chunk))
        if not message.get("more_body", False):
            return b"".join((*chunks, chunk)) if chunks else chunk
        chunks.append(chunk)


def json_response(
    value: Any, status: int = 200, headers: Mapping[str, str] | None = None, *, options: int = orjson.OPT_APPEND_NEWLINE
) -> Response:
    """`value` as JSON with a newline at its end. `options` are orjson's."""
    return Response(orjson.dumps(value, option=options), status, headers, JSON)
