"""Measures the service in one run, in alternating rounds, and prints medians beside the targets."""

import argparse
import asyncio
import itertools
import json
import math
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic, perf_counter, sleep

import asyncpg

from app.embedded import EmbeddedPostgres
from app.events.canonical import parse
from app.events.catalog import Catalog
from app.events.envelope import check_envelope
from bench import bodies, copy, export, filters, memory, overload, proofs, read_standbys, stream, synchronous
from bench.client import Load, drive, drive_beside, drive_while_writing, prepared
from bench.processes import ROOT, Running, create_databases, database_url, postgres_cpu_seconds, service

CONNECTIONS = (1, 16, 64, 256)
BATCH_CONNECTIONS = (8, 16)
_SINGLES_PER_SECOND, _BATCHES_PER_SECOND, _COPY_ROWS = 9_000, 220, 30_000
_VERIFICATIONS_MAX = 3
_VALIDATED = 5_000  # events, in one measurement of their validation
_BESIDE = 4_000  # single events, sent while one batch of 50 MiB is taken
_REPORTS = (
    *("reconstruction", "effectiveness", "remediation history", "timeline of 5,000 events", "timeline of 17 events"),
    *("list of correlations", "list of correlations, 7 days", "list of correlations, older than 1h"),
)
_started = monotonic()


def progress(text: str) -> None:
    print(f"[{monotonic() - _started:5.0f}s] {text}", file=sys.stderr, flush=True)


class Results:
    """Figures by name, one for each round."""

    def __init__(self) -> None:
        self.figures: dict[str, list[float]] = defaultdict(list)
        self.errors: dict[str, int] = defaultdict(int)

    def add(self, name: str, value: float) -> None:
        self.figures[name].append(value)

    def load(self, name: str, load: Load, events: int = 1) -> None:
        self.add(f"{name} events/s", load.rate * events)
        self.add(f"{name} p50 ms", load.percentile_ms(50))
        self.add(f"{name} p99 ms", load.percentile_ms(99))
        for error, number in load.errors.items():
            self.errors[f"{name}: {error}"] += number

    def __getitem__(self, name: str) -> float:
        values = self.figures.get(name)
        return statistics.median(values) if values else float("nan")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement")
    parser.add_argument("--rows", type=int, default=1_000_000, help="in the table when queries are measured")
    parser.add_argument("--pages", type=int, default=300, help="of each filter, in each round")
    parser.add_argument("--leaves", type=int, default=10_000_000, help="in the log when proofs are measured")
    parser.add_argument(
        "--quick", action="store_true", help="3 rounds of 1 s, 30,000 rows: shows that it works, no more"
    )
    parser.add_argument(
        "--only",
        choices=(
            "write",
            "query",
            "filters",
            "outage",
            "proof",
            "export",
            "overload",
            "memory",
            "stream",
            "replica",
            "synchronous",
            "archive",
        ),
        help="leave the other parts out",
    )
    parser.add_argument(
        "--tree", type=Path, default=ROOT, help="overload, memory: the checkout whose service is measured"
    )
    parser.add_argument(
        "--setting", action="append", default=[], metavar="NAME=VALUE", help="overload: of the service; may be repeated"
    )
    parser.add_argument("--json", type=Path, help="write every figure of every round to this file")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.seconds, options.rows, options.leaves = 3, 1.0, 30_000, 100_000
    if options.only in _APART:
        sys.exit(0 if _APART[options.only](options) else 1)
    results = Results()
    with tempfile.TemporaryDirectory(prefix="datastorage-bench-", ignore_cleanup_errors=True) as directory:
        Path(directory).chmod(0o711)
        with EmbeddedPostgres.start(Path(directory) / "data") as postgres:
            create_databases(postgres.url, "writing", "reading", "filters", "exporting", "copy_key", "copy_all")
            version = asyncio.run(_prepare(postgres.url))
            for part, measure in (("write", measure_writing), ("query", measure_reading), ("filters", measure_filters)):
                if options.only in {None, part}:
                    measure(results, options, postgres)
            if options.only in {None, "proof"}:
                measure_proofs(results, options, postgres, Path(directory))
            if options.only in {None, "export"}:
                measure_export(results, options, postgres, Path(directory))
    if options.only in {None, "outage"}:
        measure_outage(results, options)
    if options.json:
        options.json.write_text(json.dumps(results.figures))
    report(results, options, version)


def _measure_overload(options: argparse.Namespace) -> bool:
    settings: dict[str, object] = dict(one.split("=", 1) for one in options.setting)
    seconds, rows = (2.0, 0) if options.quick else (options.seconds, 60_000)
    return overload.measure(quick=options.quick, seconds=seconds, rows=rows, tree=options.tree, settings=settings)


def _measure_archive(options: argparse.Namespace) -> bool:
    from bench import archive  # noqa: PLC0415 -- needs the extra

    return archive.measure(rows=options.rows)


_APART: dict[str, Callable[[argparse.Namespace], bool]] = {
    "overload": _measure_overload,
    "memory": lambda options: memory.measure(quick=options.quick, seconds=5.0, tree=options.tree),
    "archive": _measure_archive,
    "stream": lambda options: stream.measure(quick=options.quick, seconds=2.0 if options.quick else 20.0),
    "replica": lambda options: read_standbys.measure(
        quick=options.quick, seconds=options.seconds, rows=60_000, rounds=options.rounds
    ),
    "synchronous": lambda options: synchronous.measure(seconds=options.seconds, rounds=options.rounds),
}
"""Parts that are measured only when they are asked for, each with a service of its own."""


async def _prepare(url: str) -> str:
    connection = await asyncpg.connect(url)
    version = str(await connection.fetchval("SHOW server_version"))
    await connection.close()
    await copy.prepare(database_url(url, "copy_key"), key_only=True)
    await copy.prepare(database_url(url, "copy_all"), key_only=False)
    return version


def measure_writing(results: Results, options: argparse.Namespace, postgres: EmbeddedPostgres) -> None:
    with (
        service(database_url=database_url(postgres.url, "writing"), migrate=True) as real,
        service("bench.nodatabase") as bare,
    ):
        drive(real.port, bodies.singles("warm"), 16, 1)
        drive(bare.port, bodies.singles("warm"), 16, 1)
        for turn in range(options.rounds):
            progress(f"writing, round {turn + 1} of {options.rounds}")
            _measure_validation(results)
            _write_round(results, options, postgres, (real, bare))


def _measure_validation(results: Results) -> None:
    """From the bytes of an event of 1 KB to a checked one, in this process: parsing, number check, envelope and payload."""
    catalog = Catalog()
    sent = [json.dumps(bodies.event("validation", pad=200), separators=(",", ":")).encode() for _ in range(_VALIDATED)]
    started = perf_counter()
    for body in sent:
        posted = check_envelope(parse(body).value, "")
        catalog.check_payload(posted["event_type"], posted["event_data"], "/event_data")
    results.add("validation µs per event", (perf_counter() - started) / _VALIDATED * 1e6)


def _write_round(
    results: Results, options: argparse.Namespace, postgres: EmbeddedPostgres, servers: tuple[Running, Running]
) -> None:
    real, bare = servers
    seconds = options.seconds
    singles = int(seconds * _SINGLES_PER_SECOND)
    for connections in CONNECTIONS:
        before = real.cpu_seconds(), postgres_cpu_seconds(postgres.pid)
        load = drive(real.port, prepared(bodies.singles("single"), singles), connections, seconds)
        results.load(f"single at {connections}", load)
        if connections == 64:
            results.add("service CPU µs per single", (real.cpu_seconds() - before[0]) / len(load.latencies) * 1e6)
            used = postgres_cpu_seconds(postgres.pid) - before[1]
            results.add("Postgres CPU µs per single", used / len(load.latencies) * 1e6)
            load = drive(bare.port, prepared(bodies.singles("bare"), singles), connections, seconds)
            results.load(f"single at {connections}, no database", load)
    for connections in BATCH_CONNECTIONS:
        requests = prepared(bodies.batches("batch"), int(seconds * _BATCHES_PER_SECOND))
        before = real.cpu_seconds(), postgres_cpu_seconds(postgres.pid)
        load = drive(real.port, requests, connections, seconds)
        results.load(f"batch at {connections}", load, 100)
        if connections == 16:
            number = len(load.latencies) * 100
            results.add("service CPU µs per batch event", (real.cpu_seconds() - before[0]) / number * 1e6)
            used = postgres_cpu_seconds(postgres.pid) - before[1]
            results.add("Postgres CPU µs per batch event", used / number * 1e6)
        for name in ("key", "all"):
            rate = copy.rate(database_url(postgres.url, f"copy_{name}"), _COPY_ROWS)
            results.add(f"COPY {name} rows/s", rate)


def measure_reading(results: Results, options: argparse.Namespace, postgres: EmbeddedPostgres) -> None:
    with service(database_url=database_url(postgres.url, "reading"), migrate=True) as server:
        results.add("memory MB, fresh", server.resident_mb())
        _fill(results, server, options.rows)
        results.add(f"memory MB, after {options.rows:,} events", server.resident_mb())
        drive(server.port, bodies.stories(), 4, 600)
        events = asyncio.run(_analyze(database_url(postgres.url, "reading")))
        for turn in range(min(options.rounds, _VERIFICATIONS_MAX)):
            progress(f"verification, round {turn + 1}")
            _measure_verification(results, postgres, events)
        for turn in range(options.rounds):
            progress(f"reading, round {turn + 1} of {options.rounds}")
            for name, paths in _queries().items():
                number = 20 if "no bound" in name else 300
                requests = prepared(bodies.gets(paths), number)
                load = drive_while_writing(server.port, requests, bodies.singles("while"), writes_per_second=200)
                results.add(f"{name} p50 ms", load.percentile_ms(50))
                results.add(f"{name} p99 ms", load.percentile_ms(99))
                for error, count in load.errors.items():
                    results.errors[f"{name}: {error}"] += count
        progress("memory: bodies of 1 MB, then batches of 50 MiB beside single events")
        for _ in range(3):
            drive(server.port, itertools.islice(bodies.large("large"), 100), 4, 60)
            results.add("memory MB, after bodies of 1 MB", server.resident_mb())
        for turn in range(options.rounds):
            singles = prepared(bodies.singles("beside"), _BESIDE)
            alone, beside = drive_beside(server.port, bodies.largest_batch(f"largest {turn}"), singles, 16)
            results.add("batch of 50 MiB, seconds", alone.seconds)
            results.load("single at 16 beside a 50 MiB batch", beside)
            results.errors |= {f"batch of 50 MiB: {e}": n for e, n in alone.errors.items()}
        results.add("memory MB, peak of a 50 MiB batch", server.peak_mb())
        results.add("memory MB, after a 50 MiB batch", server.resident_mb())


def measure_filters(results: Results, options: argparse.Namespace, postgres: EmbeddedPostgres) -> None:
    """Without tiles, whose worker would find that the rows are of no log."""
    url = database_url(postgres.url, "filters")
    with service(database_url=url, migrate=True, tlog=False):
        pass
    progress(f"filters: {options.rows:,} rows")
    asyncio.run(filters.fill(url, options.rows))
    asyncio.run(filters.count(url))
    with service(database_url=url, tlog=False) as server:
        for name, paths in (filters.views() | filters.questions()).items():
            progress(f"filter {name}")
            number = 5 if name in filters.UNBOUNDED else options.pages
            for _ in range(min(options.rounds, 3)):
                load = filters.measure(server, paths, number)
                results.add(f"filter {name} p50 ms", load.percentile_ms(50))
                results.add(f"filter {name} p99 ms", load.percentile_ms(99))
                of_service, of_postgres = filters.cpu_ms(server, postgres, paths, number)
                results.add(f"filter {name} service CPU ms", of_service)
                results.add(f"filter {name} Postgres CPU ms", of_postgres)
                for error, count in load.errors.items():
                    results.errors[f"filter {name}: {error}"] += count


def measure_proofs(results: Results, options: argparse.Namespace, postgres: EmbeddedPostgres, directory: Path) -> None:
    progress(f"proofs in a log of {options.leaves:,} leaves")
    seconds, loads = proofs.measure(postgres, directory, options.leaves)
    results.add("tiles of all leaves kept and signed, seconds", seconds)
    for name, load in loads.items():
        results.load(f"proof of the {name} event", load)


def _measure_verification(results: Results, postgres: EmbeddedPostgres, events: int) -> None:
    """`datastorage verify` of the whole database, by all processes that it starts; their start counts."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN), postgres_cpu_seconds(postgres.pid), monotonic()
    env = os.environ | {"DATASTORAGE_DATABASE_URL": database_url(postgres.url, "reading")}
    subprocess.run([sys.executable, "-m", "app", "verify"], env=env, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before[0].ru_utime - before[0].ru_stime
    results.add("verification events per CPU-second", events / used)
    results.add("verification events/s", events / (monotonic() - before[2]))
    results.add("Postgres CPU µs per verified event", (postgres_cpu_seconds(postgres.pid) - before[1]) / events * 1e6)


def measure_outage(results: Results, options: argparse.Namespace) -> None:
    """Single events while Postgres is stopped, and how fast the spool is written when it is back."""
    with tempfile.TemporaryDirectory(prefix="datastorage-bench-") as directory:
        Path(directory).chmod(0o711)
        data = Path(directory) / "data"
        postgres = EmbeddedPostgres.start(data)
        try:
            with service(database_url=postgres.url, migrate=True) as server:
                drive(server.port, bodies.singles("warm"), 16, 1)
                for turn in range(options.rounds):
                    progress(f"outage, round {turn + 1} of {options.rounds}")
                    postgres.stop()
                    requests = prepared(bodies.singles("outage"), int(options.seconds * _SINGLES_PER_SECOND))
                    load = drive(server.port, requests, 64, options.seconds)
                    results.load("single at 64, Postgres stopped", load)
                    waiting = server.metric("datastorage_spool_events")
                    postgres = EmbeddedPostgres.start(data)
                    back = monotonic()
                    while (left := server.metric("datastorage_spool_events")) == waiting:
                        sleep(0.01)
                    begun = monotonic()
                    results.add("replay begins after seconds", begun - back)
                    while server.metric("datastorage_spool_events"):
                        sleep(0.02)
                    results.add("replay events/s", left / (monotonic() - begun))
                    results.add("memory MB, after an outage", server.resident_mb())
        finally:
            postgres.stop()


def measure_export(results: Results, options: argparse.Namespace, postgres: EmbeddedPostgres, directory: Path) -> None:
    """In a service that did nothing else, so that its peak of memory is that of the export."""
    url, key = database_url(postgres.url, "exporting"), directory / "key.pem"
    export.make_key(key)
    with service(database_url=url, checkpoint_key_file=key, migrate=True) as server:
        _fill(results, server, options.rows)
    asyncio.run(_analyze(url))
    file = directory / "export"
    for query in ("format=ndjson", "format=csv", "format=ndjson&redact_pii=true"):
        with service(database_url=url, checkpoint_key_file=key) as server:
            progress(f"export of {options.rows:,} events, {query}")
            cpu = postgres_cpu_seconds(postgres.pid)
            seconds = export.fetch(server, query, file)
            results.add(f"export {query} events/s", options.rows / seconds)
            results.add(f"export {query} CPU µs per event", server.cpu_seconds() / options.rows * 1e6)
            used = postgres_cpu_seconds(postgres.pid) - cpu
            results.add(f"export {query} Postgres CPU µs per event", used / options.rows * 1e6)
            results.add(f"export {query} memory MB, peak", server.peak_mb())
            results.add(f"export {query} file MB", file.stat().st_size / 1e6)
            progress("verifying it")
            results.add(f"export {query} verified events/s", options.rows / export.verify(server, file))
            file.unlink()


def _fill(results: Results, server: Running, rows: int) -> None:
    done = 0
    while done < rows:
        step = min(100_000, rows - done)
        load = drive(server.port, prepared(bodies.batches("fill"), step // 100), 8, 600)
        done += step
        results.add("fill events/s", load.rate * 100)
        progress(
            f"filled {done:,} of {rows:,} rows, {load.rate * 100:,.0f}/s, service has {server.resident_mb():.0f} MB"
        )


async def _analyze(url: str) -> int:
    """How many events there are."""
    connection = await asyncpg.connect(url)
    await connection.execute("VACUUM ANALYZE audit_events")
    events = int(await connection.fetchval("SELECT count(*) FROM audit_events"))
    await connection.close()
    return events


def _queries() -> dict[str, Iterator[str]]:
    base = "/api/v1/audit/events?"
    numbers = itertools.count(os.getpid() % bodies.CORRELATIONS)
    kind = "event_type=orchestrator.lifecycle.transitioned"
    audit, remediations = "/api/v1/audit", bodies.REMEDIATIONS
    history = (
        "/api/v1/remediation-history/context?targetKind=Deployment&targetName=story-{0}&targetNamespace=payments"
        "&currentSpecHash=sha256:after-{0}"
    )
    return {
        "query by correlation": (f"{base}correlation_id=fill-{n % bodies.CORRELATIONS}&total=none" for n in numbers),
        "query by type, 7 days": (f"{base}{kind}&since=7d&total=none" for _ in numbers),
        "keyset page of 100": (f"{base}limit=100&total=none&since=7d" for _ in numbers),
        "total=exact, no bound": (f"{base}{kind}&total=exact" for _ in numbers),
        "reconstruction": (f"{audit}/remediation-requests/story-{n % remediations}/reconstruct" for n in numbers),
        "effectiveness": (f"/api/v1/effectiveness/story-{n % remediations}" for n in numbers),
        "remediation history": (history.format(n % bodies.TARGETS) for n in numbers),
        "timeline of 5,000 events": (f"{audit}/correlations/{bodies.LONG}" for _ in numbers),
        "timeline with all of 5,000 events": (f"{audit}/correlations/{bodies.LONG}?limit=5000" for _ in numbers),
        "timeline of 17 events": (f"{audit}/correlations/story-{n % remediations}" for n in numbers),
        "list of correlations": (f"{audit}/correlations" for _ in numbers),
        "list of correlations, 7 days": (f"{audit}/correlations?since=7d" for _ in numbers),
        "list of correlations, older than 1h": (f"{audit}/correlations?until=1h" for _ in numbers),
    }


def report(results: Results, options: argparse.Namespace, version: str) -> None:
    print(
        f"\n{os.cpu_count()} cores, Python {platform.python_version()}, Postgres {version}, fsync on, client included"
    )
    print(f"medians of {options.rounds} alternating rounds of {options.seconds:g} s\n")
    for name, values in results.figures.items():
        shown = statistics.median(values)
        print(f"{name:54} {shown:>12,.1f}   ({min(values):,.1f} to {max(values):,.1f})")
    print()
    for name, value, target, better in _targets(results, options):
        if not math.isnan(value):  # it was measured
            met = value >= target if better == "at least" else value <= target
            print(f"{'met    ' if met else 'NOT MET'}  {name:58} {value:10.2f}   {better} {target:g}")
    for error, number in results.errors.items():
        print(f"ERROR    {error}: {number}")


def _targets(results: Results, options: argparse.Namespace) -> Iterator[tuple[str, float, float, str]]:
    at_64 = results["single at 64 events/s"]
    yield (
        "single at 64 / the same without a database",
        at_64 / results["single at 64, no database events/s"],
        0.6,
        "at least",
    )
    yield "single at 64, p99 ms", results["single at 64 p99 ms"], 60, "at most"
    yield "validation of an event of 1 KB, µs", results["validation µs per event"], 15, "at most"
    key, ours = results["COPY key rows/s"], results["COPY all rows/s"]
    yield "batch at 8 / COPY with the key only", results["batch at 8 events/s"] / key, 0.20, "at least"
    yield "batch at 16 / COPY with the key only", results["batch at 16 events/s"] / key, 0.24, "at least"
    yield "batch at 16 / COPY with our indexes", results["batch at 16 events/s"] / ours, 0.35, "at least"
    yield (
        "single at 64, Postgres stopped, events/s",
        results["single at 64, Postgres stopped events/s"],
        1000,
        "at least",
    )
    replayed = results["replay events/s"]
    yield "replay / batch at 16", replayed / results["batch at 16 events/s"], 0.5, "at least"
    yield "replay begins after seconds", results["replay begins after seconds"], 1, "at most"
    yield "memory MB after an outage", results["memory MB, after an outage"], 200, "at most"
    yield "verification, events per CPU-second", results["verification events per CPU-second"], 12_000, "at least"
    for query in ("format=ndjson", "format=csv", "format=ndjson&redact_pii=true"):
        name = f"export {query} memory MB, peak"
        yield name, results[name], 200, "at most"
    for name in ("query by correlation", "query by type, 7 days", "keyset page of 100"):
        yield f"{name}, p99 ms", results[f"{name} p99 ms"], 10, "at most"
    for name in ("actor, a person", "resource", "type", "category", "outcome", "correlation"):
        yield f"filter {name}, p99 ms", results[f"filter {name} p99 ms"], 20, "at most"
    for name in _REPORTS:
        yield f"{name}, p99 ms", results[f"{name} p99 ms"], 50 if "5,000" in name else 20, "at most"
    yield (
        "single at 16 beside a 50 MiB batch, p99 ms",
        results["single at 16 beside a 50 MiB batch p99 ms"],
        250,
        "at most",
    )
    for name in ("first", "last"):
        named = f"proof of the {name} event in {options.leaves:,} leaves, p99 ms"
        yield named, results[f"proof of the {name} event p99 ms"], 20, "at most"
    yield "memory MB after all events", results[f"memory MB, after {options.rows:,} events"], 200, "at most"
    yield "memory MB after bodies of 1 MB", results["memory MB, after bodies of 1 MB"], 200, "at most"
    added = results["memory MB, peak of a 50 MiB batch"] - results["memory MB, after bodies of 1 MB"]
    yield "memory MB that a 50 MiB batch adds for its time", added, 500, "at most"


if __name__ == "__main__":
    main()
