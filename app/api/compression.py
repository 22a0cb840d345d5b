"""Answers that leave with gzip: where the client asks for it and it is worth it, in portions, and streams as streams.

Starlette's middleware is not used: it ignores the weights of an Accept-Encoding, and compresses a large answer without
letting other requests be answered meanwhile.
"""

import asyncio
import re
import zlib

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_WORTH_BYTES = 1024  # what is smaller fits into one packet anyway
_PORTION_BYTES = 64 * 1024  # half a millisecond
_LEVEL = 1
_GZIP = zlib.MAX_WBITS | 16
_WEIGHTED = re.compile(r"([\w*.+-]+)(?:\s*;\s*q=(0(?:\.\d{0,3})?|1(?:\.0{0,3})?))?", re.ASCII)


class CompressedAnswers:
    """Wraps an application, and compresses its answers of status 200 for clients that ask for it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sent = b",".join(value for name, value in scope["headers"] if name == b"accept-encoding")
        await self._app(scope, receive, _Answer(send, bytes_min(sent.decode("latin-1"))).send)


def bytes_min(accept_encoding: str) -> int | None:
    """The size from which on an answer is compressed for a client that sent this Accept-Encoding; None for never."""
    matches = (_WEIGHTED.fullmatch(part.strip()) for part in accept_encoding.lower().split(","))
    weights = {match[1]: float(match[2] or 1) for match in matches if match is not None}
    others = weights.get("*")
    gzip = weights.get("gzip", weights.get("x-gzip", others))
    identity = weights.get("identity", others)
    if not gzip or gzip < (identity or 0):
        return None
    return 0 if identity == 0 else _WORTH_BYTES


class _Answer:
    """One answer on its way to the client. Its start waits for the first message of its body, which decides."""

    def __init__(self, send: Send, bytes_min: int | None) -> None:
        self._send = send
        self._bytes_min = bytes_min
        self._start: Message | None = None
        self._packer: zlib._Compress | None = None

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start" and _can_be_compressed(message):
            self._start = message
            return
        start, self._start = self._start, None
        if start is not None and self._is_worth_it(message):
            self._packer = zlib.compressobj(_LEVEL, wbits=_GZIP)
        if self._packer is not None:
            message = {**message, "body": await _pack(self._packer, message)}
        if start is not None:
            _set_headers(start, message, is_packed=self._packer is not None)
            await self._send(start)
        if self._packer is None or message["body"] or not message.get("more_body", False):
            await self._send(message)

    def _is_worth_it(self, message: Message) -> bool:
        is_stream = message.get("more_body", False)
        return self._bytes_min is not None and (is_stream or len(message.get("body", b"")) >= self._bytes_min)


def _can_be_compressed(start: Message) -> bool:
    """Not the hashes of a tile, which are random, nor errors, which are small, nor a stream, whose records nobody may hold back."""
    others = {(b"content-type", b"application/octet-stream"), (b"x-accel-buffering", b"no")}
    return start["status"] == 200 and others.isdisjoint(start["headers"])


async def _pack(packer: "zlib._Compress", message: Message) -> bytes:
    """What leaves of this message's body now; the rest leaves with the next one. Other requests are answered meanwhile."""
    body, packed = memoryview(message.get("body", b"")), []
    for start in range(0, len(body), _PORTION_BYTES):
        if start:
            await asyncio.sleep(0)
        packed.append(packer.compress(body[start : start + _PORTION_BYTES]))
    if not message.get("more_body", False):
        packed.append(packer.flush())
    return b"".join(packed)


def _set_headers(start: Message, first: Message, *, is_packed: bool) -> None:
    headers = MutableHeaders(scope=start)
    headers["Vary"] = "Origin, Accept-Encoding"  # the front adds no Origin of its own to a Vary that is there
    if is_packed:
        headers["Content-Encoding"] = "gzip"
        del headers["Content-Length"]
        if not first.get("more_body", False):
            headers["Content-Length"] = str(len(first["body"]))
