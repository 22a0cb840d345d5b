"""What a write costs that waits for a synchronous standby on the same machine, beside one that a standby follows, and one that none does."""

import asyncio
import itertools
import statistics
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench import bodies
from bench.client import drive, prepared
from bench.processes import Running, service
from bench.read_standbys import cpu, pair
from tests.torture.postgres import LOG_NAME, Postgres

_CONNECTIONS, _PER_SECOND_MAX = (16, 64), 6_000
_KINDS = ("no standby", "a standby follows", "a synchronous standby, and the service asks")


@dataclass
class Round:
    """One measurement: events a second, milliseconds of an answer, and microseconds of CPU for each event, of whom."""

    events: float
    p50: float
    p99: float
    service: float
    primary: float
    standby: float


def measure(*, seconds: float, rounds: int) -> bool:
    """Print the medians of alternating rounds."""
    with (
        tempfile.TemporaryDirectory(prefix="datastorage-bench-", ignore_cleanup_errors=True) as name,
        ExitStack() as running,
    ):
        Path(name).chmod(0o755)
        sides = {kind: running.enter_context(_side(Path(name) / f"side-{at}", kind)) for at, kind in enumerate(_KINDS)}
        for server, _ in sides.values():
            drive(server.port, bodies.singles("warm"), 16, 1)
        found: dict[tuple[str, int], list[Round]] = {}
        for number, connections, kind in itertools.product(range(rounds), _CONNECTIONS, _KINDS):
            one = _round(*sides[kind], connections, seconds)
            found.setdefault((kind, connections), []).append(one)
            print(f"round {number + 1}, {kind}, {connections}: {one}", file=sys.stderr, flush=True)
    print(f"single events, {rounds} rounds of {seconds:g} s, medians\n")
    print("| | connections | events/s | p50, p99 ms | CPU µs per event: service | primary | standby |")
    print("|---|---|---|---|---|---|---|")
    for (kind, connections), seen in found.items():
        middle = [statistics.median(getattr(one, name) for one in seen) for name in Round.__dataclass_fields__]
        events, p50, p99, *costs = middle
        shown = " | ".join(f"{one:.0f}" for one in costs)
        print(f"| {kind} | {connections} | {events:,.0f} | {p50:.1f}, {p99:.1f} | {shown} |")
    return True


@contextmanager
def _side(directory: Path, kind: str) -> Iterator[tuple[Running, list[Postgres]]]:
    """A service, and the servers behind it: the primary, and its standby if there is one."""
    directory.mkdir()
    asks = kind == _KINDS[2]
    with pair(directory) as (primary, standby):
        if kind == _KINDS[0]:
            standby.close()
        if asks:
            asyncio.run(primary.set_standbys("*"))
        with service(
            database_url=primary.url,
            log_name=LOG_NAME,
            access_log=False,
            verifier_events_per_second=0,
            require_synchronous_standby=asks,
        ) as server:
            yield server, [primary] if kind == _KINDS[0] else [primary, standby]


def _round(server: Running, servers: list[Postgres], connections: int, seconds: float) -> Round:
    sent = prepared(bodies.singles("synchronous"), int(seconds * _PER_SECOND_MAX))
    before = cpu(server, *servers)
    done = drive(server.port, sent, connections, seconds)
    used = [end - begin for begin, end in zip(before, cpu(server, *servers), strict=True)]
    events = len(done.latencies)
    costs = [one / events * 1e6 for one in (*used, 0.0)][:3]
    return Round(done.rate, done.percentile_ms(50), done.percentile_ms(99), *costs)
