"""A load client that costs little: prepared requests, open connections, and on each one request at a time."""

import asyncio
import itertools
import statistics
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from time import perf_counter
from typing import cast

import uvloop


@dataclass
class Load:
    """The result of one measurement. Latencies in seconds."""

    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    errors: dict[str, int] = field(default_factory=dict)

    @property
    def rate(self) -> float:
        return len(self.latencies) / self.seconds if self.seconds else 0.0

    def percentile_ms(self, percent: float) -> float:
        if len(self.latencies) < 2:
            return float("nan")
        return statistics.quantiles(self.latencies, n=1000, method="inclusive")[int(percent * 10) - 1] * 1000


class _Connection(asyncio.Protocol):
    """Sends the next request as soon as the answer to the last one is complete, or so long after it."""

    def __init__(self, requests: Iterator[bytes], load: Load, end: float, pause_seconds: float) -> None:
        self.requests, self.load, self.end, self.pause_seconds = requests, load, end, pause_seconds
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.buffer = bytearray()
        self.expected = 0
        """Bytes of the answer that is arriving; 0 until its head is complete."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's has its methods, but not its class
        self._send()

    def _send(self) -> None:
        request = next(self.requests, None)
        self.sent_at = perf_counter()
        if request is None or self.sent_at > self.end:
            self._finish()
        else:
            self.transport.write(request)

    def data_received(self, received: bytes) -> None:
        self.buffer += received
        if not self.expected:
            head = self.buffer.find(b"\r\n\r\n")
            if head < 0:
                return
            at = self.buffer[:head].lower().find(b"content-length: ")
            length = int(self.buffer[at + 16 : self.buffer.find(b"\r", at)]) if at >= 0 else 0
            self.expected = head + 4 + length
        if len(self.buffer) < self.expected:
            return
        status = bytes(self.buffer[9:12])
        self.buffer.clear()
        self.expected = 0
        if status in (b"201", b"200", b"202"):
            self.load.latencies.append(perf_counter() - self.sent_at)
        else:
            self.load.errors[status.decode()] = self.load.errors.get(status.decode(), 0) + 1
        if self.pause_seconds:
            asyncio.get_running_loop().call_later(self.pause_seconds, self._send)
        else:
            self._send()

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        if not self.done.done():
            self.load.errors["connection lost"] = self.load.errors.get("connection lost", 0) + 1
            self._finish()

    def _finish(self) -> None:
        if not self.done.done():
            self.done.set_result(None)
        self.transport.close()


async def _drive(
    port: int, requests: Iterator[bytes], connections: int, seconds: float, pause_seconds: float = 0.0
) -> Load:
    load = Load()
    loop = asyncio.get_running_loop()
    started = perf_counter()
    opened = [
        await loop.create_connection(
            lambda: _Connection(requests, load, started + seconds, pause_seconds), "127.0.0.1", port
        )
        for _ in range(connections)
    ]
    await asyncio.gather(*(protocol.done for _, protocol in opened))
    load.seconds = perf_counter() - started
    return load


def drive(port: int, requests: Iterable[bytes], connections: int, seconds: float) -> Load:
    """Send requests on `connections` for `seconds`, or until `requests` end."""
    return uvloop.run(_drive(port, iter(requests), connections, seconds))


async def _drive_while_writing(
    port: int, requests: Iterator[bytes], writes: Iterator[bytes], writes_per_second: int, pause_seconds: float
) -> Load:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)

    async def write() -> None:
        due = perf_counter()
        for request in writes:
            writer.write(request)
            due += 1 / writes_per_second
            await asyncio.sleep(max(0.0, due - perf_counter()))

    async def discard_answers() -> None:
        while await reader.read(1 << 16):
            pass

    writing = [asyncio.create_task(write()), asyncio.create_task(discard_answers())]
    await asyncio.sleep(0.2)
    load = await _drive(port, requests, 1, 60, pause_seconds)
    for task in writing:
        task.cancel()
    await asyncio.gather(*writing, return_exceptions=True)
    writer.close()
    return load


def drive_while_writing(
    port: int, requests: Iterable[bytes], writes: Iterator[bytes], *, writes_per_second: int, pause_seconds: float = 0.0
) -> Load:
    """Send `requests` one after another on one connection, each so long after the last answer, while another one writes events at a
    steady rate.
    """
    return uvloop.run(_drive_while_writing(port, iter(requests), writes, writes_per_second, pause_seconds))


async def _drive_steadily(
    port: int, requests: Iterator[bytes], per_second: int, until: Callable[[], bool], connections: int
) -> Load:
    load, started, numbers = Load(), perf_counter(), itertools.count()

    async def client() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while not until():
            due = started + next(numbers) / per_second
            await asyncio.sleep(due - perf_counter())
            writer.write(next(requests))
            head = await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(int(head.lower().partition(b"content-length: ")[2].partition(b"\r")[0]))
            if head[9:12] == b"201":
                load.latencies.append(perf_counter() - due)
            else:
                load.errors[head[9:12].decode()] = load.errors.get(head[9:12].decode(), 0) + 1
        writer.close()

    await asyncio.gather(*(client() for _ in range(connections)))
    load.seconds = perf_counter() - started
    return load


def drive_steadily(
    port: int, requests: Iterable[bytes], per_second: int, until: Callable[[], bool], connections: int = 16
) -> Load:
    """Send so many requests a second until `until` is true. A latency begins when its request was due, whatever the ones before it took."""
    return uvloop.run(_drive_steadily(port, iter(requests), per_second, until, connections))


async def _drive_beside(port: int, request: bytes, requests: Iterator[bytes], connections: int) -> tuple[Load, Load]:
    beside = asyncio.create_task(_drive(port, requests, connections, 60))
    alone = await _drive(port, iter([request]), 1, 60)
    return alone, await beside


def drive_beside(port: int, request: bytes, requests: Iterable[bytes], connections: int) -> tuple[Load, Load]:
    """One `request`, and at the same time `requests` on other connections."""
    return uvloop.run(_drive_beside(port, request, iter(requests), connections))


def prepared(requests: Iterator[bytes], number: int) -> Iterator[bytes]:
    """`number` requests, created now, so that their creation is not measured."""
    return iter(list(itertools.islice(requests, number)))
