"""One HTTP/1.1 connection: from bytes to requests, each of which is answered once, in order.

A request means what its bytes say. An offer to upgrade is ignored: its body belongs to it, and the connection goes on. What
is not HTTP is answered once, by a problem, and closes the connection: what follows is not read as requests. Head and body
are limited in time, and the head, which is in memory until it is complete, in bytes.
"""

import asyncio
import logging
import select
from collections import deque
from math import inf
from typing import Any, ClassVar
from urllib.parse import unquote

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser
from uvicorn import Config
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.utils import get_local_addr, get_remote_addr, is_ssl
from uvicorn.server import ServerState

from app.errors import AuditError, HeadTooLarge
from app.exchange import Exchange, Headers
from app.framing import (
    Malformed,
    check_coding,
    check_host,
    check_length,
    expects_continue,
    fields_by_name,
    read_target,
    replayed_head,
)

_READ_SECONDS = 30.0  # as in the reference: for the head, and again for the body
_LINGER_SECONDS, _LINGER_BYTES = 1.0, 1024 * 1024

log = logging.getLogger(__name__)


class HttpConnection(asyncio.Protocol):
    """What uvicorn calls a protocol class; it calls `shutdown`, and the parser the callbacks `on_…`.

    A request that arrives in one piece, as nearly all do, costs no timer and is not copied.
    """

    head_bytes_max: ClassVar[int]

    @staticmethod
    def is_stopping() -> bool:
        """Whether the server takes its last requests: the next answer on each connection says that it is closed then."""
        return False

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self._app = config.loaded_app
        self._idle_seconds = config.timeout_keep_alive
        self._server_state = server_state
        self._connections: set[Any] = server_state.connections
        self._app_state = app_state
        self._loop = _loop or asyncio.get_running_loop()
        self._parser = _parser(self)
        self._running: Exchange | None = None
        self._latest: Exchange | None = None
        self._waiting: deque[Exchange] = deque()  # pipelined
        self._in_head = self._in_body = False
        self._is_offer = False
        self._is_stopped = False  # by the server, which waits until all connections are closed
        self._is_over = False  # nothing that arrives from now on is a request
        self._has_eof = False
        self._unused_bytes = 0  # since the head began, or since the last part of the body
        self._has_ended = False  # a request, within the latest piece
        self._host: bytes | None = None  # the last one that was checked
        self._url = b""
        self._headers: Headers = []
        self._deadline = inf
        self._stalled_bytes = 0  # that the client has not received, at the last look of the timer

    # What the transport calls

    def connection_made(self, transport: Any) -> None:  # an asyncio.Transport, which uvloop's is in all but name
        self._transport: asyncio.Transport = transport
        self._flow = FlowControl(transport)
        self._scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "server": get_local_addr(transport),
            "client": get_remote_addr(transport),
            "scheme": "https" if is_ssl(transport) else "http",
            "root_path": "",
        }
        self._connections.add(self)
        self._deadline = self._loop.time() + _READ_SECONDS
        self._timer = self._loop.call_later(_READ_SECONDS, self._watch)

    def connection_lost(self, exc: Exception | None) -> None:
        del exc, self._parser  # which refers to this connection
        self._timer.cancel()
        self._connections.discard(self)
        for exchange in (self._running, *self._waiting):
            if exchange is not None:
                exchange.disconnect()
        self._running = self._latest = None  # they refer to this connection
        self._waiting.clear()
        self._flow.resume_writing()

    def data_received(self, data: bytes) -> None:
        if self._is_over:
            self._unused_bytes += len(data)
            if self._unused_bytes > _LINGER_BYTES:
                self._transport.close()
            return
        self._has_ended = False
        rest: bytes | memoryview = data
        while True:
            try:
                self._parser.feed_data(rest)
            except HttpParserUpgrade as offer:  # raised at the end of the head, with its position
                self._parser = _parser_after_offer(self, self._offered_head)
                rest = memoryview(rest)[offer.args[0] :]
                continue
            except HttpParserError as error:
                self._refuse(_reason(error))
            break
        if (self._in_head or self._in_body) and not self._is_over:
            self._bound(0 if self._has_ended else len(data))  # what came before this request does not count as its head

    def eof_received(self) -> bool:
        """The client sends nothing more, but may still read: what it has sent whole is answered."""
        self._has_eof = self._is_over = True
        self._deadline = inf
        if self._in_body and self._latest is not None:
            self._latest.disconnect()
        if self._running is None or self._scope["scheme"] == "https":  # TLS cannot be closed by half here
            return False
        assert self._latest is not None
        self._latest.is_persistent = False
        self._latest.end_input()
        return True

    def pause_writing(self) -> None:
        self._flow.pause_writing()

    def resume_writing(self) -> None:
        self._stalled_bytes = 0
        self._flow.resume_writing()

    # What uvicorn calls

    def shutdown(self) -> None:
        """Close the connection, after the last answer if one is due: also to a request that has arrived, if only in part."""
        self._is_stopped = True
        if self._running is not None:
            return
        if self._in_head or self._has_unread():
            self._loop.call_later(_LINGER_SECONDS, self._close_unless_running)
        else:
            self._transport.close()

    def _close_unless_running(self) -> None:
        if self._running is None:
            self._transport.close()

    def _has_unread(self) -> bool:
        """Whether the client has sent something that was not read yet, or has closed the connection."""
        if self._transport.is_closing():
            return False
        unread = select.poll()
        unread.register(self._transport.get_extra_info("socket").fileno(), select.POLLIN)
        return bool(unread.poll(0))

    # What the parser calls

    def on_message_begin(self) -> None:
        if self._latest is not None and not self._latest.is_persistent:
            self._is_over = True
            raise Malformed  # not answered: the request before was the last one
        self._url, self._headers = b"", []
        self._in_head, self._unused_bytes = True, 0
        self._deadline = inf

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:  # what comes after the body is not part of the head
            self._headers.append((name.lower(), value.rstrip()))

    def on_headers_complete(self) -> None:
        parser, headers = self._parser, self._headers
        version, method = parser.get_http_version(), parser.get_method()
        if version not in {"1.1", "1.0"}:
            raise Malformed(f"HTTP/{version}: expected HTTP/1.1 or 1.0.")
        path, query = read_target(method, self._url)
        fields = fields_by_name(headers)
        host = fields.get(b"host")
        if host is None or host != self._host:
            check_host(host, version)
            self._host = host
        if b"content-length" in fields:
            check_length(fields[b"content-length"])
        if b"transfer-encoding" in fields:
            check_coding(fields[b"transfer-encoding"], version)
        self._is_offer = parser.should_upgrade()
        if self._is_offer:
            self._offered_head = replayed_head(fields)
        self._add(
            method.decode(),
            version,
            path,
            query,
            is_persistent=version == "1.1" and parser.should_keep_alive(),
            expects_continue=b"expect" in fields and expects_continue(fields, version),
        )
        self._in_head, self._in_body, self._unused_bytes = False, True, 0
        self._deadline = inf

    def on_body(self, body: bytes) -> None:
        assert self._latest is not None
        self._unused_bytes = -1
        self._latest.add(body)

    def on_message_complete(self) -> None:
        if self._is_offer:  # the parser takes it for complete with its head; _parser_after_offer reads its body
            self._is_offer = False
            return
        assert self._latest is not None
        self._in_body, self._has_ended = False, True
        self._latest.end()
        self._deadline = inf if self._running else self._loop.time() + self._idle_seconds

    # Requests and answers

    def _add(self, method: str, version: str, path: bytes, query: bytes, **options: bool) -> None:
        """A request, from now on answered in its turn."""
        decoded = path.decode("latin-1")
        scope: dict[str, Any] = {
            **self._scope,
            "http_version": version,
            "method": method,
            "path": unquote(decoded) if "%" in decoded else decoded,
            "raw_path": path,
            "query_string": query,
            "headers": self._headers,
            "state": self._app_state.copy(),
        }
        self._latest = Exchange(
            scope,
            self._transport,
            self._flow,
            self._server_state.default_headers,
            self._on_response,
            is_last=self._is_last,
            **options,
        )
        if self._running is None:
            self._start(self._latest)
        else:
            self._flow.pause_reading()
            self._waiting.append(self._latest)

    def _is_last(self) -> bool:
        """Whether the answer that begins is the last one, since the server stops. One that is sent without waiting for it is answered too."""
        return (self._is_stopped or self.is_stopping()) and not self._waiting and not self._in_head

    def _start(self, exchange: Exchange) -> None:
        self._running = exchange
        task = self._loop.create_task(exchange.run(self._app))
        self._server_state.tasks.add(task)
        task.add_done_callback(self._server_state.tasks.discard)

    def _on_response(self, exchange: Exchange) -> None:
        self._server_state.total_requests += 1
        self._running = None
        if self._transport.is_closing():
            return
        if not exchange.is_persistent:
            self._close()
            return
        if self._waiting:
            self._start(self._waiting.popleft())
        elif not (self._in_head or self._in_body):
            self._deadline = self._loop.time() + self._idle_seconds
            if self._is_stopped:
                self.shutdown()
        if not self._waiting and not self._has_eof:
            self._flow.resume_reading()

    def _refuse(self, error: AuditError) -> None:
        """Answer what is not HTTP, after what came before it, and then close the connection."""
        if self._is_over:
            return
        self._is_over, self._deadline = True, inf
        if self._in_body:
            assert self._latest is not None
            self._latest.refuse(error)
            if self._running is None:  # it is answered already
                self._close()
            return
        path, _, query = self._url.partition(b"?")
        self._add("", "1.1", path, query, is_persistent=False, expects_continue=False)
        assert self._latest is not None
        self._latest.scope["state"]["refusal"] = error

    def _close(self) -> None:
        """Close the connection; where the client may still be sending, once it had the time to read its answer.

        With unread bytes the system would reset the connection, and the client lose the answer.
        """
        is_incomplete = self._in_head or self._in_body or self._is_over
        if self._has_eof or not is_incomplete:
            self._transport.close()
            return
        self._is_over = True
        if self._transport.can_write_eof():
            self._transport.write_eof()
        self._flow.resume_reading()
        self._loop.call_later(_LINGER_SECONDS, self._transport.close)

    # Limits

    def _bound(self, size: int) -> None:
        """Bound what arrives of a request that is not complete: a head, and what a body has between its parts and after them."""
        if self._unused_bytes < 0:
            self._unused_bytes = 0
        else:
            self._unused_bytes += size
        if self._unused_bytes > self.head_bytes_max:
            self._refuse(HeadTooLarge())
        elif self._deadline == inf:
            self._deadline = self._loop.time() + _READ_SECONDS

    def _watch(self) -> None:
        """The one timer of a connection: closes it at its deadline, which is never nearer than the next look.

        One that is closing waits until the client has received what is on its way, but not for ever; and none waits for a client
        that receives nothing.
        """
        if self._is_stalled():
            self._transport.abort()
            return
        now, is_closing = self._loop.time(), self._transport.is_closing()
        if is_closing and self._deadline == inf:
            self._deadline = now + _READ_SECONDS
        left = self._deadline - now
        if left <= 0 and is_closing:
            self._transport.abort()
            return
        if left <= 0 and self._flow.read_paused:  # the client cannot go on
            left = _READ_SECONDS
        if left <= 0:
            self._transport.close()
            self._deadline, left = inf, _READ_SECONDS
        self._timer = self._loop.call_later(min(left, _READ_SECONDS), self._watch)

    def _is_stalled(self) -> bool:
        """Whether the client has received nothing since the last look, although an answer waits for it."""
        last, self._stalled_bytes = self._stalled_bytes, 0
        if self._flow.write_paused:
            self._stalled_bytes = self._transport.get_write_buffer_size()
        return 0 < last <= self._stalled_bytes


def _parser(callbacks: object) -> HttpRequestParser:
    parser = HttpRequestParser(callbacks)
    parser.set_dangerous_leniencies(
        lenient_data_after_close=True
    )  # else such bytes would be an error of the last request
    return parser


def _reason(error: HttpParserError) -> AuditError:
    """What a request is refused with: what a callback raised, else the parser's own words."""
    cause = error.__context__
    if isinstance(cause, AuditError):
        return cause
    if cause is not None:
        log.error("a request failed unexpectedly", exc_info=cause)
        return AuditError()
    return Malformed(f"This is not HTTP/1.1: {error}.")


def _parser_after_offer(connection: HttpConnection, head: bytes) -> HttpRequestParser:
    """A parser for what follows the head of a request that offered to upgrade.

    After such a head the parser takes all for another protocol. This one has been fed a head with the same framing and no
    offer, of which the connection hears nothing.
    """
    parser = _parser(_AfterHead(connection))
    parser.feed_data(head)
    return parser


class _AfterHead:
    """Callbacks that pass on to the connection what comes after the first head."""

    def __init__(self, connection: HttpConnection) -> None:
        self._connection = connection
        self._is_past_head = False
        self.on_body = connection.on_body
        self.on_message_complete = connection.on_message_complete

    def on_message_begin(self) -> None:
        if self._is_past_head:
            self._connection.on_message_begin()

    def on_url(self, url: bytes) -> None:
        if self._is_past_head:
            self._connection.on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._is_past_head:
            self._connection.on_header(name, value)

    def on_headers_complete(self) -> None:
        if self._is_past_head:
            self._connection.on_headers_complete()
        self._is_past_head = True
