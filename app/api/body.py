"""Bodies of requests: their size, their type, and nothing of their content."""

from collections.abc import Iterator
from contextlib import contextmanager

from starlette.requests import Request

from app.errors import BadRequest, InboxFull, TooLarge


class ClientDisconnected(Exception):
    """The client closed the connection before its request was complete."""


JSON = "application/json"


class ByteBudget:
    """Bounds the bytes of the bodies that are being taken, each from its first byte until its request is answered."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._taken = 0

    @contextmanager
    def taking(self) -> Iterator["Reservation"]:
        """ByteBudget for one body, to be asked for as it comes."""
        taking = Reservation(self)
        try:
            yield taking
        finally:
            self._taken -= taking.bytes

    def add(self, size: int, alone: int) -> None:
        """InboxFull when there is none left. A body that is alone, as `alone` says, may be larger."""
        self._taken += size
        if self._taken > self._bytes_max and self._taken > alone:
            raise InboxFull


class Reservation:
    """What one body takes of the room."""

    def __init__(self, room: ByteBudget) -> None:
        self._room = room
        self.bytes = 0

    def add(self, size: int) -> None:
        """Take `size` bytes more. Raises InboxFull."""
        self.bytes += size
        self._room.add(size, self.bytes)


async def read_json_body(request: Request, bytes_max: int) -> bytes:
    """The whole body. TooLarge when it grows above `bytes_max`; BadRequest when it is not application/json."""
    body, media_type = await read_body(request, bytes_max)
    if media_type != JSON:
        raise wrong_type(media_type, JSON)
    return body


async def read_body(request: Request, bytes_max: int, taking: Reservation | None = None) -> tuple[bytes, str]:
    """The whole body, and what its Content-Type calls it, without parameters. TooLarge when it grows above `bytes_max`,
    which the front has held its Content-Length against; InboxFull when there is no room to take.
    """
    length = request.headers.get("content-length", "")
    if taking is not None and length.isdecimal():
        taking.add(int(length))
        taking = None
    body = await _read(request, bytes_max, taking)
    return body, request.headers.get("content-type", "").partition(";")[0].strip()


def wrong_type(media_type: str, expected: str) -> BadRequest:
    """The refusal of a body by what its Content-Type says."""
    return BadRequest(f"Content-Type: expected {expected}, got {media_type[:60] or 'none'}")


def too_large(request: Request, bytes_max: int) -> TooLarge:
    """The refusal of a body by what its Content-Length says."""
    return TooLarge(f"The body has {request.headers['content-length']} bytes; this route takes at most {bytes_max}.")


async def _read(request: Request, bytes_max: int, taking: Reservation | None) -> bytes:
    chunks: list[bytes] = []
    size = 0
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnected
        chunk = message.get("body", b"")
        size += len(chunk)
        if size > bytes_max:
            raise TooLarge(f"The body has more than the {bytes_max} bytes that this route takes.")
        if taking is not None:
            taking.add(len(chunk))
        if not message.get("more_body", False):
            return b"".join((*chunks, chunk)) if chunks else chunk
        chunks.append(chunk)
