"""Clients that ask again and again, each on a connection of its own, and record every answer."""

import asyncio
import contextlib
import math
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from time import perf_counter

import uvloop

_SLOW_BUFFER_BYTES = 16 * 1024
_PIECE_BYTES = 1 << 16
_LOST = (OSError, EOFError, ValueError, asyncio.IncompleteReadError)


@dataclass(frozen=True, slots=True)
class Asked:
    """One request and what came of it."""

    at: float
    """Seconds from the begin of the measurement to the answer's end."""
    seconds: float
    """From the request to the answer's end, which a slow client reads late."""
    begun: float
    """From the request to the end of the answer's head."""
    status: str
    """`cut` where the connection ended before the answer did."""
    retry_after: bool = False


@dataclass(frozen=True)
class Crowd:
    """`clients` that send `requests` in turn, each as soon as it has the last answer."""

    requests: Sequence[bytes]
    clients: int
    pause: float = 0.0
    """Seconds between two pieces of 16 KiB that a slow client reads; 0: it reads as fast as it can."""
    wait: float = 0.1
    """Seconds until one that was refused asks again, whatever Retry-After says."""
    source: str = "127.0.0.1"


class Connection:
    """One persistent connection for one request at a time; opened again after it ended."""

    def __init__(self, port: int, source: str = "127.0.0.1", pause: float = 0.0, *, host: str = "127.0.0.1") -> None:
        self._address, self._source, self._pause = (host, port), source, pause
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, request: bytes, begin: float) -> Asked:
        """Send `request` and read its whole answer."""
        sent = perf_counter()
        begun, status, retry_after = math.inf, "cut", False
        try:
            reader, writer = self._streams or await self._open()
            writer.write(request)
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            begun = perf_counter() - sent
            await self._read_body(reader, head)
            status, retry_after = head[9:12].decode(), b"\r\nretry-after:" in head
            if b"\r\nconnection: close\r\n" in head:
                self.close()
        except _LOST:
            self.close()
        now = perf_counter()
        return Asked(now - begin, now - sent, begun, status, retry_after)

    async def _open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        sock = socket.socket()
        sock.setblocking(False)
        if self._pause:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SLOW_BUFFER_BYTES)
        sock.bind((self._source, 0))
        await asyncio.get_running_loop().sock_connect(sock, self._address)
        limit = _SLOW_BUFFER_BYTES if self._pause else _PIECE_BYTES
        self._streams = await asyncio.open_connection(sock=sock, limit=limit)
        return self._streams

    async def _read_body(self, reader: asyncio.StreamReader, head: bytes) -> None:
        if b"\r\ntransfer-encoding: chunked\r\n" in head:
            while size := int(await reader.readline(), 16):
                await self._discard(reader, size + 2)
            await reader.readline()
        else:
            await self._discard(reader, int(head.partition(b"\r\ncontent-length: ")[2].partition(b"\r")[0]))

    async def _discard(self, reader: asyncio.StreamReader, number: int) -> None:
        while number:
            if self._pause:
                await asyncio.sleep(self._pause)
            piece = await reader.read(min(number, _SLOW_BUFFER_BYTES if self._pause else _PIECE_BYTES))
            if not piece:
                raise EOFError
            number -= len(piece)

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


async def ask_again(connection: Connection, requests: Iterator[bytes], begin: float, seconds: float) -> list[Asked]:
    """One client: sends until `seconds` after `begin`, and waits for its last answer."""
    asked = []
    while perf_counter() < begin + seconds and (request := next(requests, None)) is not None:
        asked.append(await connection.ask(request, begin))
    connection.close()
    return asked


def read(port: int, crowd: Crowd, seconds: float) -> list[Asked]:
    """What the crowd got in `seconds`. Runs in a process of its own."""
    return uvloop.run(_read(port, crowd, seconds))


async def _read(port: int, crowd: Crowd, seconds: float) -> list[Asked]:
    asked: list[Asked] = []
    begin = perf_counter()

    async def one(number: int) -> None:
        connection = Connection(port, crowd.source, crowd.pause)
        requests = islice(cycle(crowd.requests), number % len(crowd.requests), None)
        with contextlib.closing(connection):
            while True:
                asked.append(await connection.ask(next(requests), begin))
                if asked[-1].status != "200":
                    await asyncio.sleep(crowd.wait)

    clients = [asyncio.create_task(one(number)) for number in range(crowd.clients)]
    await asyncio.wait(clients, timeout=seconds)
    for client in clients:
        client.cancel()
    ended = await asyncio.gather(*clients, return_exceptions=True)
    if failed := [one for one in ended if isinstance(one, Exception)]:
        raise failed[0]
    return asked
