"""Streams: how long after its commit an event is received, and what those cost who wait."""

import asyncio
import json
import statistics
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import islice
from pathlib import Path
from time import perf_counter

import uvloop

from app.embedded import EmbeddedPostgres
from bench import bodies, sinks
from bench.processes import Running, postgres_cpu_seconds, service

_PER_SECOND = 1_000
_WRITERS = 16
_SUBSCRIBERS = 500
_P99_MS_MAX = 250.0
_BEHIND = 1_000_000
_NOTHING = "/api/v1/audit/stream?correlation_id=nothing"


def measure(*, quick: bool, seconds: float) -> bool:
    """Print the figures; whether the latency is what is promised."""
    subscribers = 100 if quick else _SUBSCRIBERS
    with tempfile.TemporaryDirectory(prefix="datastorage-bench-", ignore_cleanup_errors=True) as name:
        Path(name).chmod(0o711)
        with EmbeddedPostgres.start(Path(name) / "data") as postgres:
            most = 3 * _SUBSCRIBERS  # of which one caller has half
            file = sinks.Sinks(Path(name))
            with service(
                database_url=postgres.url, migrate=True, streams_max=most, sinks=file.path, access_log=False
            ) as server:
                fast = uvloop.run(_measure(server, postgres.pid, seconds, subscribers))

                async def write() -> int:
                    return len(await _write(server.port, seconds))

                uvloop.run(sinks.measure(server, postgres.pid, file, write, _BEHIND // 100 if quick else _BEHIND))
                return fast


async def _measure(server: Running, postgres: int, seconds: float, subscribers: int) -> bool:
    await _write(server.port, seconds)  # warm
    latencies = await _latencies(server.port, seconds)
    p50, p99 = (statistics.quantiles(latencies, n=1000, method="inclusive")[at - 1] * 1e3 for at in (500, 990))
    print(
        f"from the answer 201 to the receipt, {_PER_SECOND}/s: p50 {p50:.1f} ms, p99 {p99:.1f} ms, {len(latencies)} events"
    )
    for number in (0, subscribers):
        async with _waiting(server.port, number):
            idle = await _cost(server, postgres, asyncio.sleep(seconds), seconds)
            writing = await _cost(server, postgres, _write(server.port, seconds), seconds * _PER_SECOND / 1e6)
            print(
                f"{number:4} who wait: service {idle[0] * 100:.2f} %, Postgres {idle[1] * 100:.2f} % of a core while nothing "
                f"comes, {server.resident_mb():.0f} MB; an event costs {writing[0]:.0f} µs and {writing[1]:.0f} µs"
            )
    return p99 <= _P99_MS_MAX


async def _cost(server: Running, postgres: int, work: object, unit: float) -> tuple[float, float]:
    """CPU time of the service and of Postgres during `work`, divided by `unit`."""
    before = server.cpu_seconds(), postgres_cpu_seconds(postgres)
    await work  # type: ignore[misc]  # a coroutine
    return (server.cpu_seconds() - before[0]) / unit, (postgres_cpu_seconds(postgres) - before[1]) / unit


async def _latencies(port: int, seconds: float) -> list[float]:
    received: dict[str, float] = {}
    reader, writer = await _ask(port, "/api/v1/audit/stream")
    await reader.readuntil(b"event: position")

    async def receive() -> None:
        while line := await reader.readline():
            if line.startswith(b"data: ") and (at := line.find(b'"event_id":"')) >= 0:
                received[line[at + 12 : at + 48].decode()] = perf_counter()

    receiving = asyncio.create_task(receive())
    committed = await _write(port, seconds)
    await asyncio.sleep(1.0)
    receiving.cancel()
    writer.close()
    missing = committed.keys() - received.keys()
    assert not missing, f"{len(missing)} of {len(committed)} events were not received"
    return [received[one] - at for one, at in committed.items()]


async def _write(port: int, seconds: float) -> dict[str, float]:
    """Post events at a steady rate. When each was answered, by its id."""
    committed: dict[str, float] = {}
    requests = iter(list(islice(bodies.singles("stream"), int(_PER_SECOND * seconds) + 2 * _WRITERS)))

    async def post() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        due, end = perf_counter(), perf_counter() + seconds
        while due < end:
            writer.write(next(requests))
            head = await reader.readuntil(b"\r\n\r\n")
            at = head.lower().index(b"content-length: ")
            answer = json.loads(await reader.readexactly(int(head[at + 16 : head.index(b"\r", at)])))
            committed[answer["event_id"]] = perf_counter()
            due += _WRITERS / _PER_SECOND
            await asyncio.sleep(max(0.0, due - perf_counter()))
        writer.close()

    await asyncio.gather(*(post() for _ in range(_WRITERS)))
    return committed


@asynccontextmanager
async def _waiting(port: int, number: int) -> AsyncIterator[None]:
    """Subscribers for whom nothing comes."""
    opened = [await _ask(port, _NOTHING) for _ in range(number)]
    await asyncio.gather(*(reader.readuntil(b"event: position") for reader, _ in opened))
    discarding = [asyncio.create_task(reader.read()) for reader, _ in opened]
    try:
        yield
    finally:
        for task in discarding:
            task.cancel()
        for _, writer in opened:
            writer.close()


async def _ask(port: int, path: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    return reader, writer
