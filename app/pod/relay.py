"""Has a request answered by another process of the pod: ASGI messages over a local socket, one request at a time on each.

Back pressure goes through: while the client does not read, nothing is read from the process that answers, and that waits. When
the client is gone, the connection is closed, and the application that answers gets http.disconnect.

From this process come the scope and the messages of the body; from the other one the messages of the answer, and at its end
whether the connection can be used for another request.

Who waits for a slot for too long is refused here: the process that has the slots has a lower priority, and may be late with it, or with
reading the request at all. It tells from when on a read waits for nothing that has to be in time (WORKS), and when it waits again (WAITS).
"""

import asyncio
import logging
from asyncio import IncompleteReadError, StreamReader, StreamWriter
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any
from zlib import crc32

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.reading import WAIT_SECONDS, WAITS, WORKS, needs_slot, refusal
from app.errors import AuditError
from app.pod.messages import connect, is_own_peer, listen, pack, read

_IDLE_MAX = 32
_PIECE_BYTES = 64 * 1024
_PATIENCE_SECONDS = 0.8  # for a process that starts again
_PAUSE_SECONDS = 0.05
_SEND_SECONDS_MAX = 150.0
"""For a client to receive one piece; longer than who answers waits for it."""
_LATE_SECONDS = 0.1
"""After which a read is refused here, if the process with the slots has not done it."""
_LOOK_SECONDS = 0.02
_MEMBERS = (
    *("type", "asgi", "http_version", "scheme", "method", "path", "raw_path", "query_string", "root_path", "headers"),
    *("client", "server"),
)
_BROKEN = (OSError, IncompleteReadError)
_SAFE = frozenset({"GET", "HEAD"})
_OF_A_BODY = frozenset({b"content-length", b"transfer-encoding"})

log = logging.getLogger(__name__)


class NobodyAnswers(Exception):
    """No process took the request, or it ended before it began to answer."""


class _NotRead(NobodyAnswers):
    """The other process had closed the connection before it read the request, which can be sent again."""


class _Connection:
    """One connection to a process that answers requests."""

    def __init__(self, name: str, reader: StreamReader, writer: StreamWriter) -> None:
        self.name = name
        self.reader = reader
        self.writer = writer

    async def send(self, message: object) -> None:
        await _write(self.writer, message)


async def _write(writer: StreamWriter, message: object) -> None:
    """Send one message, and wait while the other end does not read. Raises OSError when it is gone."""
    if writer.is_closing():
        raise ConnectionResetError
    writer.write(pack(message))
    await writer.drain()


class Relay:
    """The ASGI application that has each request answered by one of the processes that listen under `names`."""

    def __init__(self, names: Sequence[str], *, by_caller: bool) -> None:
        """`by_caller`: all requests of one caller go to one process as long as it is there, since it counts them."""
        self._names = list(names)
        self._by_caller = by_caller
        self._idle: list[_Connection] = []
        self._running = dict.fromkeys(names, 0)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Raises NobodyAnswers, and what `receive` raises for a body that is not HTTP."""
        preferred, again = self._preferred(scope), _Again(receive)
        if (connection := self._idle_connection(preferred)) is not None:
            try:
                await self._exchange(connection, scope, again, send)
            except _NotRead:
                if not again.can_repeat:
                    raise
            else:
                return
        await self._exchange(await self._new_connection(preferred), scope, again.rest, send)

    async def _exchange(self, connection: _Connection, scope: Scope, receive: Receive, send: Send) -> None:
        """Have the process at the other end answer the request. Raises as __call__."""
        self._running[connection.name] += 1
        try:
            reusable = await _Exchange(connection, receive, send).run(scope)
        except BaseException:
            connection.writer.close()
            raise
        finally:
            self._running[connection.name] -= 1
        if reusable and len(self._idle) < _IDLE_MAX:
            self._idle.append(connection)
        else:
            connection.writer.close()

    def close(self) -> None:
        """Close the connections that nothing uses."""
        for connection in self._idle:
            connection.writer.close()
        self._idle.clear()

    def _preferred(self, scope: Scope) -> str:
        if not self._by_caller:
            return min(self._names, key=self._running.__getitem__)
        sent = dict(scope["headers"]).get(b"authorization") or (scope.get("client") or ("",))[0].encode()
        return self._names[crc32(sent) % len(self._names)]

    def _idle_connection(self, preferred: str) -> _Connection | None:
        """A connection to the preferred process that was used before. Its end is seen here only once the event loop has seen it."""
        for index in range(len(self._idle) - 1, -1, -1):
            if self._idle[index].name == preferred:
                connection = self._idle.pop(index)
                if not (connection.reader.at_eof() or connection.writer.is_closing()):
                    return connection
        return None

    async def _new_connection(self, preferred: str) -> _Connection:
        """A connection to the preferred process, else to another one. Waits a little for one that starts again."""
        deadline = asyncio.get_running_loop().time() + _PATIENCE_SECONDS
        while True:
            for name in sorted(self._names, key=lambda one: one != preferred):
                with suppress(OSError):
                    reader, writer = await asyncio.open_unix_connection(sock=connect(name), limit=_PIECE_BYTES)
                    return _Connection(name, reader, writer)
            if asyncio.get_running_loop().time() > deadline:
                raise NobodyAnswers
            await asyncio.sleep(_PAUSE_SECONDS)


class _Again:
    """The `receive` of a request, whose first message can be received once more as long as there was no second one."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._first: Message | None = None
        self._received = 0

    @property
    def can_repeat(self) -> bool:
        return self._received <= 1

    async def __call__(self) -> Message:
        message = await self._receive()
        self._received += 1
        self._first = message if self.can_repeat else None
        return message

    async def rest(self) -> Message:
        """What can be repeated, then what was not received yet."""
        message, self._first = self._first, None
        return await self._receive() if message is None else message


class _Exchange:
    """One request and its answer."""

    def __init__(self, connection: _Connection, receive: Receive, send: Send) -> None:
        self._connection = connection
        self._receive = receive
        self._send = send
        self._body_is_sent = False
        self._client_is_gone = False
        self._is_complete = False
        self._refusal: AuditError | None = None
        self._patience = _Patience()

    async def run(self, scope: Scope) -> bool:
        """Returns whether the connection can be used for another request. Raises, before the answer has begun, NobodyAnswers, ReadsBusy, and
        what `receive` raises for a body that is not HTTP. An answer that breaks off stays incomplete: the server closes the client's
        connection then.
        """
        begin: dict[str, Any] = {}
        begun = is_reset = False
        sending = None
        message: Any = False
        try:
            await self._connection.send({name: scope[name] for name in _MEMBERS if name in scope})
            sending = asyncio.create_task(self._send_body())
            if needs_slot(scope["method"], scope["path"]):
                self._patience.begin(self._refuse)
            while isinstance(message := await self._next(), dict):
                if message["type"] == "http.response.start":
                    begin = message  # nothing is said to the client until it is sure that there is an answer
                    continue
                self._is_complete = message["type"] == "http.response.body" and not message.get("more_body", False)
                async with asyncio.timeout(_SEND_SECONDS_MAX):
                    if not begun:
                        begun = True
                        await self._send(begin)
                    await self._send(message)
        except (
            TimeoutError
        ):  # who answers has given up long ago, and cannot say so past what the client has not received
            message, self._client_is_gone = False, True
        except _BROKEN as error:
            message, is_reset = False, isinstance(error, OSError)
        finally:
            self._patience.end()
            if sending is not None:
                sending.cancel()
        try:
            if not (begun or self._client_is_gone):
                # A reset, not an end, says that the other process closed the connection before it had read all that was sent.
                not_read = is_reset and (sending is None or scope["method"] in _SAFE)
                raise self._refusal or (_NotRead if not_read else NobodyAnswers)
            if not (self._is_complete or self._client_is_gone or self._refusal):
                log.warning(
                    "an answer was cut by the process that gave it, or by its end", extra={"path": scope["path"]}
                )
            return bool(message) and self._is_complete and self._body_is_sent
        finally:
            self._refusal = None  # which has the frames that it went through, and they this

    async def _next(self) -> Any:
        """The next message of the answer, or what follows it."""
        while True:
            message = await read(self._connection.reader)
            kind = message["type"] if isinstance(message, dict) else ""
            if kind == WAITS:
                self._patience.begin(self._refuse)
                continue
            self._patience.end()
            if kind != WORKS:
                return message

    async def _send_body(self) -> None:
        """Send the body as it arrives, then wait for the end of the client's connection, which ends the exchange.

        Servers say http.disconnect when the answer is complete too.
        """
        try:
            while (message := await self._receive())["type"] != "http.disconnect":
                await self._connection.send(message)
                self._body_is_sent = self._body_is_sent or not message.get("more_body", False)
        except _BROKEN:
            return  # the other process is gone, not the client: who reads its answer sees that
        except AuditError as error:  # the connection's: what follows is not HTTP
            self._refusal = error
        else:
            self._client_is_gone = not self._is_complete
        if not (self._is_complete and self._body_is_sent):
            self._connection.writer.transport.abort()

    def _refuse(self) -> None:
        self._refusal = refusal()
        self._connection.writer.transport.abort()


class _Patience:
    """A clock that runs while a read waits for a slot, or for somebody to look at it."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._seconds_left = WAIT_SECONDS + _LATE_SECONDS
        self._began = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, on_end: Callable[[], None]) -> None:
        """From now on it waits. `on_end` is called when that takes too long."""
        if self._timer is None:
            self._began = self._loop.time()
            self._timer = self._loop.call_later(self._seconds_left, self._look_again, on_end)

    def end(self) -> None:
        """From now on it does not wait."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            self._seconds_left = max(0.0, self._seconds_left - (self._loop.time() - self._began))

    def _look_again(self, on_end: Callable[[], None]) -> None:
        """What has arrived while this process was busy, which the event loop reads after its timers, counts."""
        self._timer = self._loop.call_later(_LOOK_SECONDS, on_end)


class RelayServer:
    """Answers the requests that other processes of the pod relay to this one."""

    def __init__(self, app: ASGIApp, name: str) -> None:
        self._app = app
        self._name = name
        self._server: asyncio.Server | None = None
        self._connections: dict[StreamWriter, asyncio.Task[None] | None] = {}

    async def start(self) -> None:
        """Begin to take requests."""
        self._server = await asyncio.start_unix_server(self._serve, sock=listen(self._name), limit=_PIECE_BYTES)

    async def close(self) -> None:
        """End every connection. Nobody uses them any more, or he is not answered."""
        if self._server is not None:
            self._server.close()
        for writer in self._connections:
            writer.close()
        await asyncio.gather(*filter(None, self._connections.values()))

    async def _serve(self, reader: StreamReader, writer: StreamWriter) -> None:
        self._connections[writer] = asyncio.current_task()
        incoming = _Incoming(reader)
        with suppress(*_BROKEN):
            while is_own_peer(writer.transport):
                request = _Relayed(await incoming.next(), incoming, writer)
                if not await request.answer(self._app):
                    break
        incoming.close()
        writer.close()
        self._connections.pop(writer)


class _Incoming:
    """The messages of one connection. Who waits for the next one may be cancelled: it goes to whoever asks after him."""

    def __init__(self, reader: StreamReader) -> None:
        self._reader = reader
        self._next: asyncio.Task[Any] | None = None

    async def next(self) -> Any:
        """Raises OSError or IncompleteReadError when the other end is gone."""
        if self._next is None:
            self._next = asyncio.create_task(read(self._reader))
        try:
            message = await asyncio.shield(self._next)
        except _BROKEN:
            self._next = None  # whose error would keep this alive
            raise
        self._next = None
        return message

    def close(self) -> None:
        """Nobody asks any more."""
        if self._next is not None and not (self._next.cancel() or self._next.cancelled()):
            self._next.exception()


class _Relayed:
    """One relayed request, as the application that answers it sees it."""

    def __init__(self, scope: dict[str, Any], incoming: _Incoming, writer: StreamWriter) -> None:
        self._scope = scope
        self._incoming = incoming
        self._writer = writer
        self._body_is_read = False
        self._is_complete = False
        self._is_gone = False

    async def answer(self, app: ASGIApp) -> bool:
        """Returns whether the connection can be used for another request."""
        scope = self._scope
        if needs_slot(scope["method"], scope["path"]):
            await self._send({"type": WORKS})
            scope["extensions"] = {WAITS: {}}
        try:
            await app(scope, self._receive, self._send)
        except Exception:  # the top of a request, as in the server
            log.exception("a relayed request failed unexpectedly")
            return False
        if not self._is_complete:  # a client that receives nothing could not be told either
            return False
        if not (self._body_is_read or _has_body(scope)):
            await self._receive()  # the empty one, which follows a request at once
        reusable = self._body_is_read and not self._is_gone
        await _write(self._writer, reusable)
        return reusable

    async def _receive(self) -> Message:
        """The next part of the body; after the body this returns only when the client is gone."""
        if not self._is_gone:
            try:
                message: Message = await self._incoming.next()
            except _BROKEN:
                self._is_gone = True
            else:
                self._body_is_read = not message.get("more_body", False)
                return message
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        """As a server does it, nothing happens once the client is gone."""
        body = message.get("body", b"")
        self._is_complete = message["type"] == "http.response.body" and not message.get("more_body", False)
        try:
            for start in range(0, max(len(body), 1), _PIECE_BYTES):
                await _write(self._writer, message if len(body) <= _PIECE_BYTES else _piece(message, body, start))
        except OSError:
            self._is_gone = True
            await asyncio.sleep(
                0
            )  # an application that only sends would keep out the task that waits for the disconnect


def _has_body(scope: Scope) -> bool:
    return any(name in _OF_A_BODY for name, _ in scope["headers"])


def _piece(message: Message, body: bytes, start: int) -> Message:
    end = start + _PIECE_BYTES
    more = end < len(body) or message.get("more_body", False)
    return {"type": "http.response.body", "body": body[start:end], "more_body": more}
