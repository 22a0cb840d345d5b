"""Readers of the costly routes that ask without pause, half of whom hang up before they have their answer."""

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from time import perf_counter
from urllib.parse import urlsplit

from bench.bodies import gets, request
from bench.crowd import Asked, Connection
from tests.torture.world import World

_READERS = 40
_ANSWERS = {"200", "404", "503", "cut"}
"""404: nothing was stored yet about what is asked for."""
_AT_ONCE = 16
"""More than a replica has connections for reads."""
_REFUSED_SECONDS = 0.05
_PATIENCE_SECONDS = 30.0


@dataclass
class Storm:
    """What the readers got."""

    statuses: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def add(self, path: str, asked: Asked) -> None:
        self.statuses[asked.status] += 1
        if asked.status not in _ANSWERS:
            self.wrong.append(f"a reader of {path} was answered {asked.status} after {asked.seconds:.1f} s")
        if asked.status == "503" and not asked.retry_after:
            self.wrong.append(f"a reader of {path} was answered 503 without Retry-After")


@contextlib.asynccontextmanager
async def storm(world: World, chance: random.Random) -> AsyncIterator[Storm]:
    """Readers until the block ends; whether replicas answer well then is the caller's to ask."""
    seen = Storm()
    routes = _routes(world)
    readers = [asyncio.create_task(_read(world, routes, seen, random.Random(chance.random()))) for _ in range(_READERS)]
    try:
        yield seen
    finally:
        for reader in readers:
            reader.cancel()
        await asyncio.gather(*readers, return_exceptions=True)


async def failing_reads(url: str) -> list[str]:
    """Of small reads on all of a replica's connections at once, the answers that are not 200 even when asked patiently."""
    begin = perf_counter()
    small = next(gets(iter(["/api/v1/audit/events?limit=1&total=none"])))

    async def read_patiently() -> str:
        with contextlib.closing(_connection(url)) as connection:
            while (asked := await connection.ask(small, begin)).status == "503" and asked.at < _PATIENCE_SECONDS:
                await asyncio.sleep(_REFUSED_SECONDS)
        return asked.status

    statuses = await asyncio.gather(*(read_patiently() for _ in range(_AT_ONCE)))
    return [status for status in statuses if status != "200"]


def _routes(world: World) -> dict[str, bytes]:
    audit = "/api/v1/audit"
    correlation = world.load.ordered_correlation
    paths = (
        f"{audit}/events?limit=1000&total=none",
        f"{audit}/events?limit=50&total=exact",
        f"{audit}/export?format=ndjson",
        f"{audit}/export?format=json&limit=1000",
        f"{audit}/correlations?limit=100",
        f"{audit}/correlations/{correlation}?limit=5000&verify=true",
    )
    verify_chain = request(f"{audit}/verify-chain", f'{{"correlation_id": "{correlation}"}}'.encode())
    return dict(zip(paths, gets(iter(paths)), strict=True)) | {"verify-chain": verify_chain}


async def _read(world: World, routes: dict[str, bytes], seen: Storm, chance: random.Random) -> None:
    begin = perf_counter()
    while True:
        replica = chance.choice(world.replicas)
        path, question = chance.choice(list(routes.items()))
        assert replica.url is not None
        with contextlib.closing(_connection(replica.url)) as connection:
            patience = chance.uniform(0, 0.5) if chance.random() < 0.5 else 60.0
            try:
                async with asyncio.timeout(patience):
                    asked = await connection.ask(question, begin)
            except TimeoutError:
                continue
        seen.add(path, asked)
        if asked.status != "200":
            await asyncio.sleep(_REFUSED_SECONDS)


def _connection(url: str) -> Connection:
    parts = urlsplit(url)
    assert parts.port is not None
    assert parts.hostname is not None
    return Connection(parts.port, host=parts.hostname)
