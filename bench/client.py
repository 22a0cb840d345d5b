"""The load: keep-alive connections that post requests made beforehand, and the latency of each.

A raw protocol instead of an HTTP library: client and service share the machine, and what the client burns is missing there.
"""

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import cast

HOST = "127.0.0.1"
_DRAIN_SECONDS = 30.0


class Refused(Exception):
    """The service answered something else than was expected: a measurement of it means nothing."""


def post(path: str, body: bytes) -> bytes:
    """A request, ready to be sent."""
    head = f"POST {path} HTTP/1.1\r\nHost: {HOST}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def get(path: str) -> bytes:
    """A request, ready to be sent."""
    return f"GET {path} HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode()


@dataclass
class Load:
    """What one run is doing, shared by its connections."""

    requests: Iterator[bytes]
    status: bytes
    stop_at: float = float("inf")
    closed: bool = True
    """Whether an answered connection sends again by itself."""
    latencies: list[float] = field(default_factory=list)
    busy: int = 0
    idle: asyncio.Event = field(default_factory=asyncio.Event)
    error: Exception | None = None
    last_answer: float = 0.0


class Connection(asyncio.Protocol):
    """One keep-alive connection, one request at a time. It takes the next one as soon as the last is answered."""

    def __init__(self, load: Load) -> None:
        self.load = load
        self.body = b""
        self.waiting = False
        self._received = b""
        self._sent = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def next(self) -> bool:
        """Send the next request of the load; False when there is none or time is up."""
        load = self.load
        now = perf_counter()
        request = next(load.requests, None) if now < load.stop_at else None
        if request is None:
            return False
        self.waiting = True
        load.busy += 1
        self._sent = now
        self.transport.write(request)
        return True

    def data_received(self, data: bytes) -> None:
        received = self._received + data if self._received else data
        end = received.find(b"\r\n\r\n") + 4
        if end < 4 or len(received) < end + _length(received[:end]):
            self._received = received
            return
        self._received = b""
        self._answered(received[9:12], received[end:])

    def _answered(self, status: bytes, body: bytes) -> None:
        load = self.load
        load.last_answer = perf_counter()
        load.latencies.append(load.last_answer - self._sent)
        load.busy -= 1
        self.waiting = False
        self.body = body
        if status != load.status:
            self._fail(Refused(f"expected {load.status.decode()}, got {status.decode()}: {body[:600].decode()}"))
        elif load.closed and load.error is None:
            self.next()
        if load.busy == 0:
            load.idle.set()

    def connection_lost(self, exc: Exception | None) -> None:
        if self.waiting:
            self._fail(exc or ConnectionResetError("the service closed the connection before it answered"))

    def _fail(self, error: Exception) -> None:
        self.load.error = self.load.error or error
        self.load.idle.set()


def _length(head: bytes) -> int:
    """Value of Content-Length; the service always sends it."""
    start = head.find(b"content-length:") + 15
    return int(head[start : head.find(b"\r", start)]) if start > 14 else 0


@dataclass(frozen=True)
class Run:
    """What a load came to."""

    requests: int
    seconds: float
    latencies: Sequence[float]
    """Sorted, seconds."""
    last_body: bytes

    def percentile_ms(self, share: float) -> float:
        """The latency that `share` of all requests stayed within."""
        return self.latencies[min(int(len(self.latencies) * share), len(self.latencies) - 1)] * 1000


async def run(port: int, requests: Sequence[bytes], connections: int, seconds: float, status: int = 201) -> Run:
    """Send `requests` over so many connections until they or the seconds run out; what is under way then is waited for."""
    load = Load(iter(requests), b"%d" % status)
    opened = await _open(port, load, connections)
    try:
        started = perf_counter()
        load.stop_at = started + seconds
        for connection in opened:
            connection.next()
        if load.busy:
            await asyncio.wait_for(load.idle.wait(), seconds + _DRAIN_SECONDS)
    finally:
        for connection in opened:
            connection.waiting = False
            connection.transport.abort()
    if load.error is not None:
        raise load.error
    return Run(len(load.latencies), load.last_answer - started, sorted(load.latencies), opened[0].body)


async def request(port: int, message: bytes, status: int = 200) -> bytes:
    """The body of the answer to one request. Refused when it has another status, OSError when nobody listens."""
    return (await run(port, [message], 1, _DRAIN_SECONDS, status)).last_body


async def paced(port: int, requests: Iterator[bytes], per_second: int, connections: int = 16) -> None:
    """Send requests at that rate until cancelled, whether or not earlier ones are answered.

    A request that finds every connection waiting is late, not lost: it is made up for as soon as one is free.
    """
    load = Load(requests, b"201", closed=False)
    opened = await _open(port, load, connections)
    started = perf_counter()
    sent = 0
    try:
        while load.error is None:
            due = int((perf_counter() - started) * per_second) - sent
            for connection in [c for c in opened if not c.waiting][:due]:
                sent += 1
                connection.next()
            await asyncio.sleep(0.5 / per_second)
    finally:
        for connection in opened:
            connection.waiting = False
            connection.transport.abort()
    raise load.error


async def _open(port: int, load: Load, number: int) -> list[Connection]:
    """So many connections, open and idle."""
    loop = asyncio.get_running_loop()
    return [(await loop.create_connection(lambda: Connection(load), HOST, port))[1] for _ in range(number)]
