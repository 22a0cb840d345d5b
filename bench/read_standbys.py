"""What readers cost writers where a standby answers them, beside the same readers on the primary."""

import asyncio
import itertools
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

from bench import bodies
from bench.client import drive, prepared
from bench.crowd import Asked, Crowd, read
from bench.processes import Running, descendants, postgres_cpu_seconds, service
from tests.torture.postgres import LOG_NAME, Postgres, binaries

_READERS, _WRITERS, _PER_SECOND_MAX = 8, 16, 6_000
_QUESTIONS = (
    "/api/v1/audit/events?limit=1000&total=none",
    "/api/v1/audit/events?limit=50&event_category=orchestration&total=exact",
    "/api/v1/audit/correlations?limit=100",
)
_WHO = {"nobody": None, "the primary": "", "a standby": "DataStorage-Bookmark: now\r\n"}
"""Who answers the readers, and the header for which he does."""


@dataclass
class Round:
    """One measurement: writes and reads a second, and microseconds of CPU for each event, of whom."""

    writes: float
    reads: float
    service: float
    primary: float
    standby: float


def measure(*, quick: bool, seconds: float, rows: int, rounds: int) -> bool:
    """Print the medians of alternating rounds."""
    with (
        tempfile.TemporaryDirectory(prefix="datastorage-bench-", ignore_cleanup_errors=True) as name,
        pair(Path(name)) as (primary, standby),
        service(
            database_url=primary.url,
            read_database_url=standby.url,
            log_name=LOG_NAME,
            processes=None,
            access_log=False,
            verifier_events_per_second=0,
        ) as server,
        ProcessPoolExecutor(1, get_context("spawn")) as reader,
    ):
        drive(server.port, itertools.islice(bodies.batches("fill"), rows // 100), 8, 600)
        time.sleep(3.0)  # until the standby has it, and is in use
        found: dict[str, list[Round]] = {who: [] for who in _WHO}
        for number, who in itertools.product(range(3 if quick else rounds), _WHO):
            crowd = Crowd(_questions(who), _READERS)
            reading = reader.submit(read, server.port, crowd, seconds) if crowd.requests else None
            found[who].append(_round((server, primary, standby), reading, seconds))
            print(f"round {number + 1}, {who}: {found[who][-1]}", file=sys.stderr, flush=True)
        answered = server.metric('datastorage_standby_reads_total{outcome="answered"}')
    print(
        f"{_WRITERS} writers of single events, {_READERS} readers, {len(found['nobody'])} rounds of {seconds:g} s, medians\n"
    )
    print("| readers are answered by | events/s | reads/s | CPU µs per event: service | primary | standby |")
    print("|---|---|---|---|---|---|")
    for who, rounds_of in found.items():
        columns = [statistics.median(getattr(one, name) for one in rounds_of) for name in Round.__dataclass_fields__]
        writes, reads, *cpu = columns
        print(f"| {who} | {writes:,.0f} | {reads:,.1f} | " + " | ".join(f"{one:.0f}" for one in cpu) + " |")
    return answered > 0


@contextmanager
def pair(directory: Path) -> Iterator[tuple[Postgres, Postgres]]:
    """A new primary with the schema, and its standby; both run."""
    directory.chmod(0o755)
    primary = Postgres(binaries(18), directory / "primary")
    asyncio.run(primary.initialise())
    asyncio.run(primary.start())
    standby = primary.standby(directory / "standby")
    try:
        asyncio.run(standby.start())
        yield primary, standby
    finally:
        standby.close()
        primary.close()


def _questions(who: str) -> list[bytes]:
    header = _WHO[who]
    return (
        []
        if header is None
        else [f"GET {path} HTTP/1.1\r\nHost: bench\r\n{header}\r\n".encode() for path in _QUESTIONS]
    )


def _round(servers: tuple[Running, Postgres, Postgres], reading: "Future[list[Asked]] | None", seconds: float) -> Round:
    before = cpu(*servers)
    sent = prepared(bodies.singles("read"), int(seconds * _PER_SECOND_MAX))
    done = drive(servers[0].port, sent, _WRITERS, seconds)
    asked = [] if reading is None else [one for one in reading.result() if one.status == "200"]
    after = cpu(*servers)
    events = len(done.latencies)
    costs = [(end - begin) / events * 1e6 for begin, end in zip(before, after, strict=True)]
    return Round(events / seconds, len(asked) / seconds, *costs)


def cpu(server: Running, *servers: Postgres) -> list[float]:
    """Seconds of CPU that a service and each Postgres have used."""
    own = server.cpu_seconds() + sum(Running(0, pid).cpu_seconds() for pid in descendants(server.pid))
    return [own, *(postgres_cpu_seconds(one.pid) for one in servers)]
