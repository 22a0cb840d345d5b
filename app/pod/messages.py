"""Local sockets between the processes of a pod, and messages over them: pickled, behind their length in four bytes.

The sockets have a name and no file (Linux: abstract), so that a read-only file system is enough. Pickle can do anything to who
reads it: a connection counts only if it comes from a process of the same user and container, which could do anything anyway.
"""

import asyncio
import os
import pickle
import socket
import struct
from collections.abc import Callable
from typing import Any

_BACKLOG = 1024
_LENGTH = struct.Struct("<I")
_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid

OnMessage = Callable[["Messages", Any], None]


def listen(name: str) -> socket.socket:
    """A listening socket under this name."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.bind("\0" + name)
    sock.listen(_BACKLOG)
    sock.setblocking(False)
    return sock


def connect(name: str) -> socket.socket:
    """A connection to the process that listens under this name. OSError if none does, or if it is a stranger."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.setblocking(False)
    try:
        sock.connect("\0" + name)
        if not _is_own(sock):
            raise PermissionError(name)
    except OSError:
        sock.close()
        raise
    return sock


def is_own_peer(transport: asyncio.BaseTransport) -> bool:
    """Whether the other end of `transport` is a process of this user and container."""
    with socket.socket(fileno=os.dup(transport.get_extra_info("socket").fileno())) as sock:
        return _is_own(sock)


def _is_own(sock: socket.socket) -> bool:
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, user, _ = _CREDENTIALS.unpack(credentials)
    # Without a number it is a process of another container that has this one's network.
    return bool(pid and user == os.geteuid())


def pack(message: object) -> bytes:
    """The message as it is sent."""
    body = pickle.dumps(message, 5)
    return _LENGTH.pack(len(body)) + body


async def read(reader: asyncio.StreamReader) -> Any:
    """The next message. Raises OSError or IncompleteReadError when the other end is gone."""
    (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
    return pickle.loads(await reader.readexactly(length))  # noqa: S301 -- of this container, see above


class Messages(asyncio.Protocol):
    """One end of a connection on which many messages are under way. Those of one turn of the event loop are sent together."""

    def __init__(self, on_message: OnMessage, on_lost: Callable[["Messages"], None]) -> None:
        self._on_message = on_message
        self._on_lost = on_lost
        self._received = bytearray()
        self._unsent: list[Any] = []
        self._writable = asyncio.Event()
        self._writable.set()
        self._transport: asyncio.Transport | None = None

    def send(self, message: object) -> None:
        """Send `message`; nothing happens if the other end is gone."""
        if not self._unsent:
            asyncio.get_running_loop().call_soon(self._send_all)
        self._unsent.append(message)

    @property
    def is_writable(self) -> bool:
        """Whether the other end has read most of what was sent."""
        return self._writable.is_set()

    async def sent(self) -> None:
        """Return when the other end has read most of what was sent."""
        await asyncio.sleep(0)
        await self._writable.wait()

    def close(self) -> None:
        """Send what is unsent, and close."""
        self._send_all()
        if self._transport is not None:
            self._transport.close()

    def _send_all(self) -> None:
        unsent, self._unsent = self._unsent, []
        if unsent and self._transport is not None and not self._transport.is_closing():
            self._transport.write(pack(unsent))

    def connection_made(self, transport: Any) -> None:
        if not is_own_peer(transport):
            transport.abort()
            return
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self._writable.set()
        self._on_lost(self)

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def data_received(self, data: bytes) -> None:
        if self._transport is None:
            return
        received = self._received
        received += data
        while len(received) >= _LENGTH.size:
            end = _LENGTH.size + _LENGTH.unpack_from(received)[0]
            if len(received) < end:
                break
            with memoryview(received) as view:
                messages = pickle.loads(view[_LENGTH.size : end])  # noqa: S301 -- of this container, see above
            del received[:end]
            for message in messages:
                self._on_message(self, message)
