"""Content-Encoding: how a body that arrives with gzip is unpacked, and which encodings are refused."""

import zlib
from collections.abc import Iterator, Sequence

from app.errors import BadRequest, UnsupportedEncoding

PART_BYTES = 256 * 1024
_INPUT_BYTES = 16 * 1024  # zlib copies what is left of its input once for each part
_GZIP = zlib.MAX_WBITS | 16

Headers = Sequence[tuple[bytes, bytes]]


def encoding_of(headers: Headers) -> str:
    """How the body of a request with these headers is encoded: `gzip` or `identity`. UnsupportedEncoding for any other way."""
    sent = [value for name, value in headers if name == b"content-encoding"]
    if not sent:
        return "identity"
    encodings = [name for one in b",".join(sent).decode("latin-1").split(",") if (name := one.strip().lower())]
    applied = [name for name in encodings if name != "identity"]
    if not applied:
        return "identity"
    if applied in (["gzip"], ["x-gzip"]):
        return "gzip"
    shown = ", ".join(encodings)[:60]
    raise UnsupportedEncoding(f"Content-Encoding: expected gzip or none, got {shown}: send the body as one of these")


class GzipStream:
    """Unpacks one gzip stream in parts of at most PART_BYTES, however much its bytes would become."""

    def __init__(self) -> None:
        self._stream = zlib.decompressobj(_GZIP)

    def unpack(self, packed: bytes) -> Iterator[bytes]:
        """What the next bytes of the stream become. BadRequest if they are not gzip, or come after its end."""
        for start in range(0, len(packed), _INPUT_BYTES):
            rest = packed[start : start + _INPUT_BYTES]
            if self._stream.eof:
                raise _bad_gzip("bytes after its end")
            # Output may be left over when the input is used up: the last part was full then.
            part = b""
            while rest or len(part) == PART_BYTES:
                try:
                    part = self._stream.decompress(rest, PART_BYTES)
                except zlib.error as error:
                    raise _bad_gzip(str(error)) from None
                if self._stream.unused_data:
                    raise _bad_gzip("bytes after its end")
                rest = self._stream.unconsumed_tail
                if part:
                    yield part

    def check_end(self) -> None:
        """BadRequest if the stream is not complete."""
        if not self._stream.eof:
            raise _bad_gzip("its end is missing")


def _bad_gzip(reason: str) -> BadRequest:
    return BadRequest(f"body: expected one gzip stream, as Content-Encoding says: {reason}")
