"""Bodies of requests: their size, their type, and nothing of their content."""

from starlette.requests import Request

from app.errors import BadRequest, TooLarge


class ClientGone(Exception):
    """The client closed the connection before its request was complete."""


JSON = "application/json"


async def read_json_body(request: Request, bytes_max: int) -> bytes:
    """The whole body. TooLarge above `bytes_max`, chunked or not; BadRequest when it is not application/json."""
    body, media_type = await read_body(request, bytes_max)
    if media_type != JSON:
        raise wrong_type(media_type, JSON)
    return body


async def read_body(request: Request, bytes_max: int) -> tuple[bytes, str]:
    """The whole body, and what its Content-Type calls it, without parameters. TooLarge above `bytes_max`, chunked or not."""
    refuse_large(request, bytes_max)
    body = await _read(request, bytes_max)
    return body, request.headers.get("content-type", "").partition(";")[0].strip()


def wrong_type(media_type: str, expected: str) -> BadRequest:
    """The refusal of a body by what its Content-Type says."""
    return BadRequest(f"Content-Type: expected {expected}, got {media_type[:60] or 'none'}")


def refuse_large(request: Request, bytes_max: int) -> None:
    """TooLarge if Content-Length says so already."""
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > bytes_max:
        raise TooLarge(f"The body has {length} bytes; this route takes at most {bytes_max}.")


async def _read(request: Request, bytes_max: int) -> bytes:
    chunks: list[bytes] = []
    size = 0
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        chunk = message.get("body", b"")
        size += len(chunk)
        if size > bytes_max:
            raise TooLarge(f"The body has more than the {bytes_max} bytes that this route takes.")
        if not message.get("more_body", False):
            return b"".join((*chunks, chunk)) if chunks else chunk
        chunks.append(chunk)
