"""Sinks: what idle ones cost a write, and how fast one is that begins far behind."""

import asyncio
import json
import statistics
from base64 import b64encode
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from time import perf_counter

from bench import bodies
from bench.client import drive, prepared
from bench.processes import Running, postgres_cpu_seconds

IDLE = 3
_TURNS = 5
_READ_SECONDS = 2.0
"""The file is read once a second."""

Write = Callable[[], Awaitable[int]]
"""Posts events at a steady rate; how many."""


class Sinks:
    """The file of sinks of a service."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "sinks.yaml"
        self._secret = directory / "secret"
        self._secret.write_text("whsec_" + b64encode(bytes(32)).decode())
        self.set()

    def set(self, *names: str, port: int = 0, **fields: object) -> None:
        """Have webhooks of these names, all alike, and no others."""
        alike = {"type": "webhook", "url": f"http://127.0.0.1:{port}/", "secret_files": [str(self._secret)], **fields}
        self.path.write_text(json.dumps({"sinks": [{"name": name, **alike} for name in names]}))


class Receiver:
    """A receiver of webhooks that stores nothing."""

    def __init__(self) -> None:
        self.received = 0
        """Events."""
        self._more = asyncio.Event()
        self._connections: dict[asyncio.StreamWriter, asyncio.Task[None] | None] = {}

    async def wait_for(self, number: int) -> None:
        """Return when it has received that many."""
        while self.received < number:
            self._more.clear()
            await self._more.wait()

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """The requests of one connection."""
        self._connections[writer] = asyncio.current_task()
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                at = head.lower().index(b"content-length: ")
                body = await reader.readexactly(int(head[at + 16 : head.index(b"\r", at)]))
                self.received += body.count(b'{"event_id":')
                self._more.set()
                writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")

    async def close(self) -> None:
        """End all connections."""
        for writer in self._connections:
            writer.close()
        await asyncio.gather(*filter(None, self._connections.values()))


@asynccontextmanager
async def receiver() -> AsyncIterator[tuple[int, Receiver]]:
    """Its port, and the receiver."""
    one = Receiver()
    server = await asyncio.start_server(one.answer, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1], one
        await one.close()


async def measure(server: Running, postgres: int, sinks: Sinks, write: Write, behind: int) -> None:
    """Print the figures; the one that follows up begins at least `behind` events before the end."""
    async with receiver() as (port, one):
        await _idle(server, postgres, sinks, write, port)
        sinks.set()
        await asyncio.to_thread(drive, server.port, prepared(bodies.batches("behind"), behind // 100), 4, 900.0)
        before, started = _cpu(server, postgres), perf_counter()
        sinks.set("behind", port=port, **{"from": "start"})
        await one.wait_for(behind)
        took, (of_service, of_postgres) = perf_counter() - started, _since(before, server, postgres, one.received)
        print(
            f"a webhook {one.received} events behind: {took:.1f} s, {one.received / took:.0f} events/s; an event costs "
            f"{of_service:.0f} µs and {of_postgres:.0f} µs"
        )


async def _idle(server: Running, postgres: int, sinks: Sinks, write: Write, port: int) -> None:
    costs: dict[int, list[tuple[float, float]]] = {0: [], IDLE: []}
    for _ in range(_TURNS):
        for number, of_number in costs.items():
            names = [f"idle-{n}" for n in range(number)]
            sinks.set(*names, port=port, filter={"correlation_id": "nothing"})
            await asyncio.sleep(_READ_SECONDS)
            before = _cpu(server, postgres)
            of_number.append(_since(before, server, postgres, await write()))
    for number, of_number in costs.items():
        of_service, of_postgres = (statistics.median(one) for one in zip(*of_number, strict=True))
        print(f"{number} sinks that take nothing: an event costs {of_service:.0f} µs and {of_postgres:.0f} µs")


def _cpu(server: Running, postgres: int) -> tuple[float, float]:
    return server.cpu_seconds(), postgres_cpu_seconds(postgres)


def _since(before: tuple[float, float], server: Running, postgres: int, events: int) -> tuple[float, float]:
    """CPU time of the service and of Postgres since, in µs an event."""
    of_service, of_postgres = _cpu(server, postgres)
    return (of_service - before[0]) * 1e6 / events, (of_postgres - before[1]) * 1e6 / events
