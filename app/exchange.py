"""One request and its response, as the application sees them: ASGI's scope, receive and send, over one connection."""

import asyncio
import logging
import socket
import struct
from collections.abc import Callable

from starlette.types import ASGIApp, Message, Scope
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT, FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE

Headers = list[tuple[bytes, bytes]]

_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_FAILED = b"HTTP/1.1 500 Internal Server Error\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
_WITHOUT_BODY = frozenset({204, 304})
_RESET = struct.pack("ii", 1, 0)  # to linger for no time: what is not sent yet is dropped

log = logging.getLogger(__name__)


class Exchange:
    """The connection adds what arrives of the request; the application receives it, and sends the response.

    `expects_continue`: the client sends the body once it is asked for, by an answer 100. `on_response` is called when the
    response is complete, `is_last` when it begins: whether the connection is closed after it.
    """

    def __init__(
        self,
        scope: Scope,
        transport: asyncio.Transport,
        flow: FlowControl,
        default_headers: Headers,
        on_response: Callable[["Exchange"], None],
        *,
        is_last: Callable[[], bool],
        is_persistent: bool,
        expects_continue: bool,
    ) -> None:
        self.scope = scope
        self.is_persistent = is_persistent
        self.response_complete = False
        self._transport = transport
        self._flow = flow
        self._default_headers = default_headers
        self._on_response = on_response
        self._is_last = is_last
        self._expects_continue = expects_continue
        self._chunks: list[bytes] = []
        self._size = 0
        self._has_ended = False
        self._was_received = False
        self._is_disconnected = False
        self._has_eof = False
        self._refusal: Exception | None = None
        self._change: asyncio.Event | None = None
        self._start: Message | None = None
        self._is_started = False
        self._is_chunked = False
        self._bytes_left: int | None = None

    def add(self, chunk: bytes) -> None:
        """A part of the body. Once much of it waits to be received, the connection stops reading."""
        if self.response_complete:
            return
        self._chunks.append(chunk)
        self._size += len(chunk)
        if self._size > HIGH_WATER_LIMIT:
            self._flow.pause_reading()
        self._wake()

    def end(self) -> None:
        """The body is complete."""
        self._has_ended = True
        self._wake()

    def refuse(self, error: Exception) -> None:
        """The body is not what its head promised: whoever receives it gets `error`, and the connection is closed after the answer."""
        self._refusal, self.is_persistent = error, False
        self._wake()

    def disconnect(self) -> None:
        """The client is gone, or will not send the rest of its request."""
        self._is_disconnected = True
        self._wake()

    def end_input(self) -> None:
        """The client sends nothing more. It may wait for its answer, but not for one without end: nobody can know whether it is there."""
        self._has_eof = True
        self._wake()

    async def run(self, app: ASGIApp) -> None:
        """Have `app` answer."""
        try:
            await app(self.scope, self._receive, self._send)
        except BaseException:  # uvicorn cancels what is not answered in time when it stops
            log.exception("a request failed unexpectedly")
        if self.response_complete:
            return
        if not self._is_started and not self._is_disconnected:
            self._transport.write(_FAILED)
        has_frame = self._is_chunked or self._bytes_left is not None
        if self._is_started and not has_frame and not self._transport.is_closing():
            self._reset()
        else:
            self._transport.close()

    def _reset(self) -> None:
        """End the connection by a reset: to a client of HTTP/1.0, as proxies are, a body that simply ends would be whole."""
        self._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self._transport.abort()

    async def _receive(self) -> Message:
        if self._expects_continue and not self._is_disconnected:
            self._expects_continue = False
            self._transport.write(_CONTINUE)
        while True:
            is_left = self._has_eof and self._was_received and self.scope.get("state", {}).get("is_endless", False)
            if self._is_disconnected or self.response_complete or is_left:
                return {"type": "http.disconnect"}
            if self._chunks or (self._has_ended and not self._was_received):
                body = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
                self._chunks, self._size, self._was_received = [], 0, self._has_ended
                return {"type": "http.request", "body": body, "more_body": not self._has_ended}
            if self._refusal is not None:
                raise self._refusal
            if not self._has_ended:
                self._flow.resume_reading()
            self._change = self._change or asyncio.Event()
            self._change.clear()
            await self._change.wait()

    def _wake(self) -> None:
        if self._change is not None:
            self._change.set()

    async def _send(self, message: Message) -> None:
        if self._flow.write_paused and not self._is_disconnected:
            await self._flow.drain()
        if self._is_disconnected:
            return
        if self.response_complete:
            raise RuntimeError("The response is complete already.")
        if message["type"] == "http.response.start":
            self._start = message  # written together with the first part of the body
            return
        body, has_more = message.get("body", b""), message.get("more_body", False)
        head = b""
        if not self._is_started:
            assert self._start is not None
            head = self._head(self._start["status"], [*self._default_headers, *self._start["headers"]])
            self._is_started = True
        self._transport.write(head + self._framed(body, has_more=has_more))
        if not has_more:
            self.response_complete = True
            self._wake()
            self._on_response(self)

    def _head(self, status: int, headers: Headers) -> bytes:
        """Status line and headers, and how the body ends: after Content-Length, by its chunks, or with the connection."""
        if self._expects_continue:  # whether the client sends the body now is its choice
            self._expects_continue = self.is_persistent = False
        lines = [STATUS_LINE[status]]
        for name, value in headers:
            if name == b"content-length":
                self._bytes_left = int(value)
            elif name == b"connection":
                self.is_persistent = self.is_persistent and b"close" not in value.lower()
                continue
            lines.append(name + b": " + value + b"\r\n")
        self.is_persistent = self.is_persistent and not self._is_last()
        if not self.is_persistent:
            lines.append(b"connection: close\r\n")
        if self.scope["method"] == "HEAD" or status in _WITHOUT_BODY:
            self._bytes_left = None
        elif self._bytes_left is None and self.scope["http_version"] == "1.1":
            self._is_chunked = True
            lines.append(b"transfer-encoding: chunked\r\n")
        lines.append(b"\r\n")
        head = b"".join(lines)
        if not head.count(b"\r\n") == head.count(b"\r") == head.count(b"\n") == len(lines):
            raise RuntimeError("A header of the response contains a line break.")
        return head

    def _framed(self, body: bytes, *, has_more: bool) -> bytes:
        if self.scope["method"] == "HEAD":
            return b""
        if self._is_chunked:
            chunk = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
            return chunk if has_more else chunk + b"0\r\n\r\n"
        if self._bytes_left is not None:
            self._bytes_left -= len(body)
            if self._bytes_left < 0 or (self._bytes_left and not has_more):
                raise RuntimeError("The response's body has another size than its Content-Length.")
        return body
