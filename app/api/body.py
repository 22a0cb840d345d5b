"""Bodies: the size and type of those of requests, the bytes that all of them may use together, and JSON in responses."""

import asyncio
from collections.abc import Mapping
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response

from app.api.content_encoding import PART_BYTES, GzipStream, encoding_of
from app.errors import BadRequest, BodiesFull, TooLarge


class ClientDisconnected(Exception):
    """The client closed the connection before its request was complete."""


JSON = "application/json"


SMALL_BYTES = 64 * 1024
"""Up to this size a body is small: it is read before its permission is asked, and finds space when larger ones find none."""


class ByteBudget:
    """Bounds the bytes of all request bodies in memory, each from its first byte until its request is answered.

    A part is reserved for small bodies. Whatever the budget, one body that is not small is accepted at a time.
    """

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._reserve = bytes_max // 8
        self._small = self._large = 0

    def resize(self, old: int, new: int) -> None:
        """Let a body use `new` bytes instead of `old`; 0: it does not exist. BodiesFull if there is no space for it."""
        if old > SMALL_BYTES:
            self._large -= old
        else:
            self._small -= old
        if new and not self._fits(new):
            raise BodiesFull
        if new > SMALL_BYTES:
            self._large += new
        else:
            self._small += new

    def _fits(self, size: int) -> bool:
        total = self._small + self._large + size
        if size <= SMALL_BYTES:
            return self._small + size <= self._reserve or total <= self._bytes_max
        return not self._large or total <= self._bytes_max - self._reserve


class Reservation:
    """The bytes that one body uses of the budget, until they are released."""

    __slots__ = ("_budget", "bytes")

    def __init__(self, budget: ByteBudget) -> None:
        self._budget = budget
        self.bytes = 0

    def add(self, size: int) -> None:
        """Reserve `size` bytes more. After BodiesFull nothing is reserved."""
        old, self.bytes = self.bytes, 0
        self._budget.resize(old, old + size)
        self.bytes = old + size

    def release(self) -> None:
        self._budget.resize(self.bytes, 0)
        self.bytes = 0


async def read_json_body(request: Request, bytes_max: int) -> bytes:
    """The whole body. TooLarge when it grows above `bytes_max`; BadRequest when it is not application/json."""
    body, media_type = await read_body(request, bytes_max)
    if media_type != JSON:
        raise wrong_type(media_type, JSON)
    return body


async def read_body(request: Request, bytes_max: int) -> tuple[bytes, str]:
    """The whole body, unpacked, and the media type of its Content-Type without parameters.

    TooLarge when it grows above `bytes_max` (the front has checked its Content-Length already); BodiesFull, before it is read
    where its length is known, when the budget has no space for it; UnsupportedEncoding, before it is read, for a
    Content-Encoding other than gzip.
    """
    reservation: Reservation = request.scope["state"]["reservation"]
    if encoding_of(request.scope["headers"]) == "gzip":
        body = await _read_gzip(request, bytes_max, reservation)
    elif (length := _announced_bytes(request)) is not None:
        reservation.add(length)
        body = await _read(request, bytes_max, None)
    else:
        body = await _read(request, bytes_max, reservation)
    return body, request.headers.get("content-type", "").partition(";")[0].strip()


def is_small(request: Request) -> bool:
    """Whether the body that is announced is small: not one of unknown length, nor one that grows when it is unpacked."""
    length = _announced_bytes(request)
    return length is not None and length <= SMALL_BYTES


def _announced_bytes(request: Request) -> int | None:
    """The body's size by the request's head; None if that does not say what it will be in memory."""
    length = b"0"
    for name, value in request.scope["headers"]:
        if name == b"content-length":
            length = value
        elif name in {b"transfer-encoding", b"content-encoding"}:
            return None
    return int(length) if length.isdigit() else None


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


async def _read_gzip(request: Request, bytes_max: int, reservation: Reservation) -> bytes:
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


UTC_Z = orjson.OPT_APPEND_NEWLINE | orjson.OPT_UTC_Z
"""Options of json_response() for an answer with times in UTC."""


def json_response(
    value: Any, status: int = 200, headers: Mapping[str, str] | None = None, *, options: int = orjson.OPT_APPEND_NEWLINE
) -> Response:
    """`value` as JSON with a newline at its end. `options` are orjson's."""
    return Response(orjson.dumps(value, option=options), status, headers, JSON)
