"""How much memory clients can make a service use: each kind of client against a fresh service, in a group with the chart's limit."""

import asyncio
import contextlib
import itertools
import json
import socket
import sys
import tempfile
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import uvloop

from app.embedded import EmbeddedPostgres
from bench import bodies
from bench.cgroup import MemoryGroup, memory_group
from bench.client import drive
from bench.processes import service

LIMIT_BYTES = 1024**3
"""Of the chart (values.yaml, resources)."""
_WIDE, _WIDE_BYTES, _WIDE_EVENTS = "wide", 250_000, 1_000
_SINGLE_BYTES, _BATCH_BYTES = 5 * 1024**2, 50 * 1024**2
_SAMPLE_SECONDS = 0.05
_SLOW_BUFFER_BYTES, _SLOW_SECONDS = 16 * 1024, 0.1
_PATIENCE_SECONDS = 60.0

Clients = Callable[[int, float], Awaitable[Counter[str]]]
"""Acts on a port for some seconds; returns how often there was which answer."""


@dataclass
class Peak:
    """What one kind of client made the service use, in MB, and which answers it got."""

    name: str
    most: int
    charged: float
    anonymous: float
    kills: int
    answers: Counter[str]


def measure(*, quick: bool, seconds: float, tree: Path) -> bool:
    """Print the table; whether every peak stays below what is promised."""
    with tempfile.TemporaryDirectory(prefix="datastorage-bench-", ignore_cleanup_errors=True) as name:
        Path(name).chmod(0o711)
        with EmbeddedPostgres.start(Path(name) / "data") as postgres:
            with service(tree=tree, database_url=postgres.url, migrate=True) as server:
                drive(server.port, itertools.islice(_wide_events(), _WIDE_EVENTS // (10 if quick else 1)), 4, 600)
            peaks = [_peak(kind, tree, postgres.url, seconds) for kind in _KINDS]
    return _report(peaks)


def _wide_events() -> Iterator[bytes]:
    while True:
        event = bodies.event("wide", _WIDE_BYTES) | {"correlation_id": _WIDE}
        yield bodies.request("/api/v1/audit/events", json.dumps(event).encode())


def _peak(kind: str, tree: Path, url: str, seconds: float) -> Peak:
    most, act = _KINDS[kind]
    with memory_group(LIMIT_BYTES) as group, contextlib.ExitStack() as stack:
        with group.joined():
            server = stack.enter_context(service(tree=tree, database_url=url))
        answers, anonymous = uvloop.run(_observed(group, act(server.port, seconds)))
        peak = Peak(kind, most, group.peak_mb(), anonymous, group.kills(), answers)
    print(f"{kind}: {peak.anonymous:.0f} MB", file=sys.stderr, flush=True)
    return peak


async def _observed(group: MemoryGroup, acting: Awaitable[Counter[str]]) -> tuple[Counter[str], float]:
    task, most = asyncio.ensure_future(acting), 0.0
    while not task.done():
        most = max(most, group.anonymous_mb())
        await asyncio.wait({task}, timeout=_SAMPLE_SECONDS)
    return task.result(), most


async def _idle(port: int, seconds: float) -> Counter[str]:
    opened = [await asyncio.open_connection("127.0.0.1", port) for _ in range(1_000)]
    await asyncio.sleep(seconds)
    for _, writer in opened:
        writer.close()
    return Counter({"idle": len(opened)})


async def _withheld(port: int, seconds: float) -> Counter[str]:
    head = _head("/api/v1/audit/events", _SINGLE_BYTES)
    return await _together(300, lambda: _send(port, head, _SINGLE_BYTES - 1, seconds))


async def _batches(port: int, seconds: float) -> Counter[str]:
    del seconds
    count = itertools.count()
    items = b",".join(json.dumps(bodies.event("batch", 4_800)).encode() for _ in range(9_000))
    body = b"[" + items + b" " * (_BATCH_BYTES - len(items) - 2) + b"]"
    request = _head("/api/v1/audit/events/batch", _BATCH_BYTES)

    async def post() -> str:
        await asyncio.sleep(next(count) * 0.01)
        return await _send(port, request, _BATCH_BYTES, _PATIENCE_SECONDS, body)

    return await _together(64, post)


def _head(path: str, length: int) -> bytes:
    return f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n".encode()


async def _send(port: int, head: bytes, size: int, seconds: float, body: bytes | None = None) -> str:
    """Send the head and `size` bytes of a body; the status, `withheld` if there is no answer within the time."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(head)
    answer = asyncio.ensure_future(reader.read(12))
    sending = asyncio.ensure_future(_pump(writer, size, body))
    await asyncio.wait({answer}, timeout=seconds)
    sending.cancel()
    answer.cancel()
    writer.close()
    with contextlib.suppress(OSError, asyncio.CancelledError):
        return (await answer)[9:].decode() or "closed"
    return "withheld"


async def _pump(writer: asyncio.StreamWriter, size: int, body: bytes | None) -> None:
    piece = 1 << 16
    with contextlib.suppress(OSError):
        for start in range(0, size, piece):
            end = min(start + piece, size)
            writer.write(b" " * (end - start) if body is None else body[start:end])
            await writer.drain()


async def _pages(port: int, seconds: float) -> Counter[str]:
    path = f"/api/v1/audit/events?correlation_id={_WIDE}&limit=1000&total=none"
    return await _together(64, lambda: _read(port, path, seconds))


async def _slow_pages(port: int, seconds: float) -> Counter[str]:
    path = f"/api/v1/audit/events?correlation_id={_WIDE}&limit=1000&total=none"
    return await _together(64, lambda: _read(port, path, 2 * seconds, _SLOW_SECONDS))


async def _slow_exports(port: int, seconds: float) -> Counter[str]:
    paths = itertools.cycle(
        [f"/api/v1/audit/export?format={name}&correlation_id={_WIDE}" for name in ("ndjson", "csv", "json")]
    )
    return await _together(64, lambda: _read(port, next(paths), 2 * seconds, _SLOW_SECONDS))


async def _read(port: int, path: str, seconds: float, pause: float = 0.0) -> str:
    """Read as much of one answer as arrives within the time, slowly with a pause; the status, `cut` if it ended before its end."""
    sock = socket.socket()
    sock.setblocking(False)
    if pause:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SLOW_BUFFER_BYTES)
    await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
    reader, writer = await asyncio.open_connection(sock=sock, limit=_SLOW_BUFFER_BYTES)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    status = "none"
    with contextlib.suppress(OSError, TimeoutError):
        status = (await reader.read(12))[9:].decode() or "closed"
        async with asyncio.timeout(seconds):
            while piece := await reader.read(_SLOW_BUFFER_BYTES if pause else 1 << 20):
                del piece
                await asyncio.sleep(pause)
    writer.close()
    return status


async def _together(number: int, act: Callable[[], Awaitable[str]]) -> Counter[str]:
    return Counter(await asyncio.gather(*(act() for _ in range(number))))


_KINDS: dict[str, tuple[int, Clients]] = {
    "1,000 idle connections": (300, _idle),
    "300 withheld bodies of 5 MiB": (300, _withheld),
    "64 batches of 50 MiB at once": (450, _batches),
    "64 readers of 1,000 payloads of 250 kB": (300, _pages),
    "64 slow readers of such pages": (300, _slow_pages),
    "64 slow readers of exports": (300, _slow_exports),
}
"""Each kind of client, with the megabytes that it may make one process use."""


def _report(peaks: list[Peak]) -> bool:
    print(f"\nPeaks of memory of one process in a group of {LIMIT_BYTES / 2**20:.0f} MiB, MB\n")
    print("| clients | wanted below | process | all that is charged | killed | answers |\n|---|---|---|---|---|---|")
    for peak in peaks:
        answers = ", ".join(f"{count} of {status}" for status, count in peak.answers.most_common())
        print(f"| {peak.name} | {peak.most} | {peak.anonymous:.0f} | {peak.charged:.0f} | {peak.kills} | {answers} |")
    broken = [peak.name for peak in peaks if peak.charged >= peak.most or peak.kills]
    print("\n" + ("\n".join(f"NOT MET  {name}" for name in broken) or "met: everything"))
    return not broken
