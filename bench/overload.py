"""What readers cost writers: eight writers and the probes, without readers and with crowds of them on every route."""

import asyncio
import gc
import itertools
import json
import os
import statistics
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from time import perf_counter
from urllib.request import urlopen

import asyncpg
import uvloop

from app.embedded import EmbeddedPostgres
from bench import bodies, export
from bench.client import drive, prepared
from bench.crowd import Asked, Connection, Crowd, ask_again, read
from bench.processes import Running, service

WRITERS = 8
DEADLINE_SECONDS = 5.0
_GRACE_SECONDS = 0.25
"""What the deadline's own answer may take."""
_PATIENCE_SECONDS = 60.0
_HEAD_START_SECONDS = 0.3
_SINGLES_PER_SECOND = 4_000
_PROBES = ("/healthz", "/readyz", "/metrics")
_PROBE_INTERVAL_SECONDS = 0.1
_LARGE, _LARGE_EVENTS, _LARGE_BYTES = "large-answer", 200, 250_000
_LONG_SECONDS = 12.0
"""Longer than a query's deadline."""
_MODEST, _GREEDY = "127.0.0.3", "127.0.0.2"
_PROBE_MS_MAX = 100
_POOL = 8


@dataclass(frozen=True)
class Phase:
    """One crowd of readers, and what writers are promised beside it."""

    name: str
    crowd: Crowd
    rate_min: float = 0.7
    """Least share of the writers' rate without readers."""
    p99_ms_max: float = 250.0
    seconds: float | None = None
    """If it has to be longer than others."""
    modest: bool = False
    """Whether another caller reads one small thing after the other beside the crowd."""


@dataclass
class Measured:
    """What writers, probes and readers saw in one phase. Times in seconds."""

    phase: Phase
    alone: float
    """Writes a second without readers, right before."""
    seconds: float = 0.0
    writes: list[Asked] = field(default_factory=list)
    probes: dict[str, list[Asked]] = field(default_factory=dict)
    reads: list[Asked] = field(default_factory=list)
    modest: list[Asked] = field(default_factory=list)
    settled: float = 0.0
    """From the end of the phase until small reads are answered well."""

    @property
    def rate(self) -> float:
        return sum(1 for one in self.writes if one.status == "201" and one.at < self.seconds) / self.seconds


def measure(*, quick: bool, seconds: float, rows: int, tree: Path, settings: dict[str, object]) -> bool:
    """Run every phase against the service of the checkout at `tree` and print the tables; whether all promises hold."""
    with tempfile.TemporaryDirectory(prefix="datastorage-bench-", ignore_cleanup_errors=True) as name:
        directory = Path(name)
        directory.chmod(0o711)
        export.make_key(directory / "key.pem")
        common: dict[str, object] = {
            "migrate": True,
            "checkpoint_key_file": directory / "key.pem",
            "processes": None,  # as the service starts by itself
        }
        with (
            EmbeddedPostgres.start(directory / "data") as postgres,
            service(tree=tree, **common | {"database_url": postgres.url} | settings) as server,
            ProcessPoolExecutor(1, get_context("spawn")) as reader,
        ):
            drive(server.port, bodies.stories(), 4, 600)
            drive(server.port, itertools.islice(bodies.batches("fill"), rows // 100), 8, 600)
            drive(server.port, itertools.islice(_large_events(), _LARGE_EVENTS), 4, 600)
            uvloop.run(_analyze(postgres.url))
            phases = _phases(_an_event(server), quick=quick)
            gc.disable()  # a collection of what was recorded takes 0.1 s, in which nothing is sent or read
            return report(uvloop.run(_run(server, phases, seconds, reader)))


async def _analyze(url: str) -> None:
    """What Postgres does by itself within two minutes."""
    connection = await asyncpg.connect(url)
    await connection.execute("ANALYZE audit_events")
    await connection.close()


def _large_events() -> Iterator[bytes]:
    while True:
        item = bodies.event("large") | {"correlation_id": _LARGE, "error_message": "x" * _LARGE_BYTES}
        yield bodies.request("/api/v1/audit/events", json.dumps(item).encode())


def _an_event(server: Running) -> str:
    with urlopen(f"http://127.0.0.1:{server.port}/api/v1/audit/events?limit=1&total=none", timeout=60) as answer:
        return str(json.load(answer)["data"][0]["event_id"])


def _phases(event_id: str, *, quick: bool) -> Iterator[Phase]:
    main, others = _routes(event_id)
    for name, requests in main.items():
        for readers in (20,) if quick else (1, 20):
            yield Phase(f"{readers} of {name}", Crowd(requests, readers))
    everything = [request for requests in (main | others).values() for request in requests]
    for name, requests in () if quick else others.items():
        yield Phase(f"20 of {name}", Crowd(requests, 20))
    yield Phase("20 of every route", Crowd(everything, 20))
    if not quick:
        large = _gets(f"/api/v1/audit/events?correlation_id={_LARGE}&limit=1000&total=none")
        yield Phase("20 of lists of 50 MB", Crowd(large, 20), seconds=_LONG_SECONDS)
    pages = main["lists of 1,000"]
    yield Phase("20 of lists of 1,000 that never wait", Crowd(pages, 20, wait=0))
    yield Phase("20 of lists of 1,000, and one modest caller", Crowd(pages, 20, source=_GREEDY), modest=True)
    for name in ("lists of 1,000", "exports"):
        yield Phase(f"256 slow of {name}", Crowd(main[name], 256, pause=0.1, wait=1), 0.5, 500.0, _LONG_SECONDS)


def _routes(event_id: str) -> tuple[dict[str, list[bytes]], dict[str, list[bytes]]]:
    """Requests by name: those that cost much, and all others that read."""
    audit, long = "/api/v1/audit", bodies.LONG
    story, target = "story-7", "targetKind=Deployment&targetName=story-7&targetNamespace=payments"
    chain = bodies.request(f"{audit}/verify-chain", json.dumps({"correlation_id": long}).encode())
    main = {
        "lists of 1,000": _gets(f"{audit}/events?limit=1000&total=none"),
        "lists with total": _gets(f"{audit}/events?limit=50&event_category=orchestration&total=exact"),
        "exports": _gets(f"{audit}/export?format=ndjson"),
        "verify-chain of 5,000": [chain],
        "timelines of 5,000": _gets(f"{audit}/correlations/{long}?limit=5000"),
        "lists of correlations": _gets(f"{audit}/correlations?limit=100"),
    }
    others = {
        "signed exports": _gets(f"{audit}/export?format=json&limit=1000"),
        "exports as CSV": _gets(f"{audit}/export?format=csv"),
        "reconstructions": _gets(f"{audit}/remediation-requests/{story}/reconstruct"),
        "remediation history": _gets(
            f"/api/v1/remediation-history/context?{target}&currentSpecHash=sha256:after-7",
        ),
        "effectiveness": _gets(f"/api/v1/effectiveness/{story}"),
        "events by id": _gets(f"{audit}/events/{event_id}"),
        "proofs, checkpoints": _gets(f"{audit}/events/{event_id}/proof", "/tlog/checkpoint", "/tlog/tile/0/000"),
        "event types, notifications, holds": _gets(
            f"{audit}/event-types", f"{audit}/notifications?limit=100", f"{audit}/legal-hold"
        ),
    }
    return main, others


def _gets(*paths: str) -> list[bytes]:
    return list(bodies.gets(iter(paths)))


async def _run(server: Running, phases: Iterable[Phase], seconds: float, reader: ProcessPoolExecutor) -> list[Measured]:
    """Each phase after a while without readers; its rate is compared with the mean of the whiles before and after it."""
    measured: list[Measured] = []
    for phase in phases:
        one = Measured(phase, await _alone(server, seconds))
        await _one_phase(server, one, phase.seconds or seconds, reader)
        one.settled = await _settled(server)
        measured.append(one)
        progress(f"{phase.name}: {one.alone:.0f} alone, {one.rate:.0f} writes/s, settled after {one.settled:.1f} s")
    after = [one.alone for one in measured[1:]] + [await _alone(server, seconds)]
    for one, next_alone in zip(measured, after, strict=True):
        one.alone = statistics.mean((one.alone, next_alone))
    return measured


def progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


async def _alone(server: Running, seconds: float) -> float:
    """Writes a second without readers; probes come all the time, in the phases too."""
    writes, *_ = await asyncio.gather(
        _write(server, seconds / 2), *(_probe(server, path, seconds / 2) for path in _PROBES)
    )
    return len(writes) / (seconds / 2)


async def _one_phase(server: Running, one: Measured, seconds: float, reader: ProcessPoolExecutor) -> None:
    """Readers for the whole time, writers and probes from soon after their begin."""
    loop = asyncio.get_running_loop()
    reading = loop.run_in_executor(reader, read, server.port, one.phase.crowd, seconds + _HEAD_START_SECONDS)
    await asyncio.sleep(_HEAD_START_SECONDS)
    one.seconds = seconds
    probing = [asyncio.create_task(_probe(server, path, seconds)) for path in _PROBES]
    modest = asyncio.create_task(_read_modestly(server, seconds if one.phase.modest else 0.0))
    one.writes = await _write(server, seconds)
    one.probes = dict(zip(_PROBES, await asyncio.gather(*probing), strict=True))
    one.modest = await modest
    one.reads = await reading


async def _write(server: Running, seconds: float) -> list[Asked]:
    requests = prepared(bodies.singles("overload"), int(seconds * _SINGLES_PER_SECOND))
    begin = perf_counter()
    clients = [ask_again(Connection(server.port), requests, begin, seconds) for _ in range(WRITERS)]
    return [one for asked in await asyncio.gather(*clients) for one in asked]


async def _probe(server: Running, path: str, seconds: float) -> list[Asked]:
    """As a kubelet and Prometheus do, on a new connection each time."""
    asked = []
    begin = perf_counter()
    while perf_counter() < begin + seconds:
        connection = Connection(server.port)
        asked.append(await connection.ask(_get(path), begin))
        connection.close()
        await asyncio.sleep(_PROBE_INTERVAL_SECONDS)
    return asked


async def _read_modestly(server: Running, seconds: float) -> list[Asked]:
    asked = []
    begin = perf_counter()
    connection = Connection(server.port, _MODEST)
    while perf_counter() < begin + seconds:
        asked.append(await connection.ask(_get("/api/v1/audit/events?correlation_id=story-7&total=none"), begin))
        await asyncio.sleep(_PROBE_INTERVAL_SECONDS)
    connection.close()
    return asked


async def _settled(server: Running) -> float:
    """Seconds until small reads on all connections of the pool are answered well, at most _PATIENCE_SECONDS."""
    begin = perf_counter()
    while perf_counter() < begin + _PATIENCE_SECONDS:
        clients = [Connection(server.port) for _ in range(_POOL)]
        small = _get("/api/v1/audit/events?correlation_id=story-7&total=none")
        asked = await asyncio.gather(*(client.ask(small, begin) for client in clients))
        for client in clients:
            client.close()
        if all(one.status == "200" for one in asked):
            break
        await asyncio.sleep(_PROBE_INTERVAL_SECONDS)
    return perf_counter() - begin


def _get(path: str) -> bytes:
    return next(bodies.gets(iter([path])))


def report(measured: list[Measured]) -> bool:
    """Print the tables; whether everything holds that is promised."""
    print(f"\n{os.cpu_count()} cores, {WRITERS} writers, {measured[0].seconds:g} s a line, clients on the same cores\n")
    _print_table(
        ("readers", "alone/s", "writes/s", "share", "p50 ms", "p99 ms", "max ms", "late", "not 201", "settled s"),
        [_writers(one) for one in measured],
    )
    _print_table(
        ("readers", "200", "503", "other", "p50 ms", "max ms", "slowest 503 ms", *_PROBES),
        [_readers(one) for one in measured],
    )
    broken = [f"{one.phase.name}: {what}" for one in measured for what in _broken(one)]
    print("\n".join(f"NOT MET  {one}" for one in broken) or "met: everything")
    return not broken


def _writers(one: Measured) -> tuple[str, ...]:
    p50, p99, longest = _milliseconds(one.writes)
    refused = sum(asked.status != "201" for asked in one.writes)
    share = f"{one.rate / one.alone:.2f}"
    shown = (f"{one.alone:.0f}", f"{one.rate:.0f}", share, p50, p99, longest, str(_late(one)), str(refused))
    return (one.phase.name, *shown, f"{one.settled:.1f}")


def _readers(one: Measured) -> tuple[str, ...]:
    statuses = Counter(asked.status if asked.status in {"200", "503"} else "other" for asked in one.reads)
    p50, _, longest = _milliseconds([asked for asked in one.reads if asked.status == "200"])
    slowest = max((asked.begun for asked in _refused(one)), default=None)
    refused = "-" if slowest is None else f"{slowest * 1000:.0f}"
    probes = (_milliseconds(one.probes[path])[2] for path in _PROBES)
    counts = (str(statuses[status]) for status in ("200", "503", "other"))
    return (one.phase.name, *counts, p50, longest, refused, *probes)


def _refused(one: Measured) -> list[Asked]:
    return [asked for asked in one.reads if asked.status == "503"]


def _broken(one: Measured) -> Iterator[str]:
    """Which promises this phase breaks."""
    phase = one.phase
    if one.rate < phase.rate_min * one.alone:
        yield f"{one.rate / one.alone:.2f} of the writers' rate, at least {phase.rate_min} wanted"
    if (p99 := _percentile_ms(one.writes, 99)) > phase.p99_ms_max:
        yield f"writers' p99 is {p99:.0f} ms, at most {phase.p99_ms_max:.0f} wanted"
    if late := _late(one):
        yield f"{late} posts were answered after their deadline"
    yield from _unwanted("posts", one.writes, "201")
    yield from _unwanted("reads", one.reads, "200", "503")
    if slow := sum(asked.begun > 1 or not asked.retry_after for asked in _refused(one)):
        yield f"{slow} of {len(_refused(one))} refusals took more than a second or had no Retry-After"
    for path, asked in one.probes.items():
        if (longest := _percentile_ms(asked, 100)) > _PROBE_MS_MAX:
            yield f"{path} took {longest:.0f} ms"
        yield from _unwanted(path, asked, "200")
    if one.settled > 1:
        yield f"reads were well again only {one.settled:.1f} s afterwards"
    yield from _unwanted("reads of a modest caller", one.modest, "200")


def _unwanted(what: str, asked: list[Asked], *wanted: str) -> Iterator[str]:
    if wrong := Counter(one.status for one in asked if one.status not in wanted):
        yield f"{what} were answered {dict(wrong)} of {len(asked)}"


def _late(one: Measured) -> int:
    return sum(asked.seconds > DEADLINE_SECONDS + _GRACE_SECONDS for asked in one.writes)


def _milliseconds(asked: list[Asked]) -> tuple[str, str, str]:
    """p50, p99 and the longest."""
    p50, p99, longest = (f"{_percentile_ms(asked, percent):.0f}" if asked else "-" for percent in (50, 99, 100))
    return p50, p99, longest


def _percentile_ms(asked: list[Asked], percent: int) -> float:
    times = sorted(one.seconds for one in asked)
    return times[min(len(times) * percent // 100, len(times) - 1)] * 1000 if times else float("nan")


def _print_table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    for row in (head, tuple("-" * width for width in widths), *rows):
        print("| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |")
    print()
