"""Takes connections from a listening socket that several processes share, so that all of them have about as many."""

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable, Coroutine

_COURTESY_SECONDS = 0.002

log = logging.getLogger(__name__)


class Acceptor:
    """Instead of a server of the event loop, which would take all connections that wait before another process wakes up."""

    def __init__(
        self,
        sock: socket.socket,
        create_protocol: Callable[[], asyncio.Protocol],
        context: ssl.SSLContext | None,
        has_most: Callable[[], bool],
    ) -> None:
        """`has_most`: whether another process has fewer connections than this one; then it goes first."""
        self._sock = sock
        self._create_protocol = create_protocol
        self._context = context
        self._has_most = has_most
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_closed = False
        sock.setblocking(False)
        self._wait()

    def close(self) -> None:
        """Take no further connections."""
        self._is_closed = True
        self._loop.remove_reader(self._sock)

    async def wait_closed(self) -> None:
        """As of the event loop's servers."""

    def _wait(self) -> None:
        if not self._is_closed:
            self._loop.add_reader(self._sock, self._on_connection)

    def _on_connection(self) -> None:
        self._loop.remove_reader(self._sock)
        self._start(self._accept())

    def _start(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accept(self) -> None:
        """Take one connection, if it is still there."""
        if self._has_most():
            await asyncio.sleep(_COURTESY_SECONDS)
        try:
            if not self._is_closed:
                self._start(self._begin(self._sock.accept()[0]))
        except BlockingIOError:
            pass  # another process has taken it
        except OSError as error:  # too many open files, or a client that is gone already
            log.warning("a connection could not be taken", extra={"error": repr(error)})
            await asyncio.sleep(_COURTESY_SECONDS)
        self._wait()

    async def _begin(self, connection: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(self._create_protocol, connection, ssl=self._context)
        except OSError:  # a TLS handshake that failed is the client's affair
            connection.close()
