"""Archives months of simulated events with random text, then reads them: events per second, memory at two sizes, bytes for each event, times."""

import asyncio
import gzip
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import chain, islice
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import asyncpg
import pyarrow.compute as pc
import pyarrow.parquet as pq
import zstandard
from pydantic import SecretStr

from app import schema
from app.archive.columns import NAMES
from app.archive.reading import ArchiveReader
from app.db import connect_writer, create_engine
from app.embedded import EmbeddedPostgres
from app.events.catalog import Catalog
from app.events.ids import random_event_id
from app.events.log import Log
from app.export.file import event_record
from app.export.row import exported_event
from app.export.select import sealed_rows
from app.ingest import partitions
from app.ingest.accept import Acceptance, accept, check_item
from app.ingest.link import Head, link
from app.ingest.store import COPY_COLUMNS
from app.query.filter import EventFilter, EventQuery
from app.retention import purge
from app.settings import Settings
from app.simulate.orchestrator import simulate_remediations
from app.tlog import note
from app.tlog.keys import SigningKey, private_keys
from app.tlog.signer import Signer
from app.tlog.tiles import extend_tiles
from bench import bodies
from bench.client import drive_steadily
from bench.export import make_key
from bench.processes import create_databases, database_url, service

LOG = Log(0, "bench.example/archive")
_EVENT_BYTES = 1_000
_FLUSH_EVENTS = 1_000
_SAMPLE_EVENTS = 10_000
_COLD, _WARM = 10, 10
_POSTS_PER_SECOND = 200
_WORDS = random.Random(1)
_FREQUENT = "a15 b3 c7 d8 e22 f4 g4 h11 i13 j2 k2 l7 m4 n13 o14 p4 q2 r11 s11 t17 u5 v2 w3 x2 y4 z2"
_LETTERS = "".join(one[0] * int(one[1:]) for one in _FREQUENT.split()).ljust(256).encode()
"""A letter for each byte."""
_MEASURED = """
import resource, subprocess, sys
code = subprocess.run(sys.argv[1:]).returncode
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(used.ru_utime + used.ru_stime, used.ru_maxrss)
sys.exit(code)
"""
"""A small process between, since a process begins with the peak of the one that has started it."""


def measure(*, rows: int) -> bool:
    """Print the figures for so many events and for three times as many; whether memory is as promised."""
    peaks = []
    with tempfile.TemporaryDirectory(prefix="datastorage-bench-", ignore_cleanup_errors=True) as name:
        directory = Path(name)
        directory.chmod(0o711)
        make_key(directory / "log.pem")
        with EmbeddedPostgres.start(directory / "data") as postgres:
            for number in (rows, 3 * rows):
                database = f"archive_{number}"
                create_databases(postgres.url, database)
                peaks.append(_measure(database_url(postgres.url, database), directory, number))
            create_databases(postgres.url, "archive_beside")
            _measure_beside(database_url(postgres.url, "archive_beside"), directory, rows)
    print(f"memory: {peaks[0]:.0f} MB at {rows:,} events, {peaks[1]:.0f} MB at {3 * rows:,} (promised: below 300)")
    return max(peaks) < 300


def _measure(url: str, directory: Path, number: int) -> float:
    """Peak memory of the run, in MB."""
    filled = asyncio.run(fill(url, directory, number))
    print(f"{number:,} events written in {filled:.0f} s", file=sys.stderr, flush=True)
    target = directory / f"archive-{number}"
    settings = os.environ | environment(url, directory, target)
    peak = run(settings, number, "archived", "archive", "run")
    _print_sizes(url, target, number)
    event_id = pq.read_table(next(target.rglob("*.parquet")), columns=["event_id"]).column(0)[0]
    run(settings, 1, "erased", "erase", "--event-id", str(event_id), "--reason", "bench")
    again = run(settings, number, "archived again without the erased one", "archive", "run")
    print(f"memory: {peak:.0f} MB to archive {number:,} events, {again:.0f} MB to do it again without one")
    reading = Settings(database_url=SecretStr(url), archive_url=f"file://{target}")
    asyncio.run(purge_all(reading, number))
    asyncio.run(print_reads(reading, number))
    return max(peak, again)


def _measure_beside(url: str, directory: Path, number: int) -> None:
    """What single posts wait while a run archives, and while it removes what it has archived."""
    asyncio.run(fill(url, directory, number))
    settings = os.environ | environment(url, directory, directory / "archive-beside")
    with service(database_url=url, checkpoint_key_file=directory / "log.pem", processes=None) as server:
        for what, command in {
            "nothing": (sys.executable, "-c", "import time; time.sleep(15)"),
            "archive run": (sys.executable, "-m", "app", "archive", "run"),
            "archive run --remove": (sys.executable, "-m", "app", "archive", "run", "--remove"),
        }.items():
            started = perf_counter()
            with subprocess.Popen(command, env=settings, stdout=subprocess.DEVNULL) as beside:
                posts = bodies.singles(what[-3:])
                load = drive_steadily(server.port, posts, _POSTS_PER_SECOND, partial(_has_ended, beside))
            if beside.returncode:
                raise SystemExit(f"bench: {what} has failed")
            print(
                f"{load.rate:.0f} posts a second beside {what} of {number:,} events, {perf_counter() - started:.0f} s: "
                f"p50 {load.percentile_ms(50):.1f} ms, p99 {load.percentile_ms(99):.1f}, most {1000 * max(load.latencies):.0f}; errors {load.errors}"
            )


def _has_ended(process: subprocess.Popen[bytes]) -> bool:
    return process.poll() is not None


def environment(url: str, directory: Path, target: Path) -> dict[str, str]:
    return {
        "DATASTORAGE_DATABASE_URL": url,
        "DATASTORAGE_ARCHIVE_URL": f"file://{target}",
        "DATASTORAGE_CHECKPOINT_KEY_FILE": str(directory / "log.pem"),
    }


async def purge_all(settings: Settings, number: int) -> None:
    """Purge what Postgres has, which is quicker than to remove it."""
    terms = {"retention_floor_days": 30, "retention_ceiling_days": 30}
    started = perf_counter()
    await purge.run(settings.model_copy(update=terms), datetime.now(UTC))
    print(f"{number:,} events purged in {perf_counter() - started:.0f} s", file=sys.stderr, flush=True)


async def print_reads(settings: Settings, number: int) -> None:
    """Times of pages that only the archive has, of a process that was just started and of one that was asked before; and its memory."""
    engine, reader = create_engine(settings), ArchiveReader(settings)
    try:
        [(_, some)] = (await reader.read(engine, LOG, EventQuery(limit=1), None, 60)).events[:1]
        questions = {
            "one correlation": EventQuery(correlation_id=some["correlation_id"], limit=100),
            "one type": EventQuery(event_type=some["event_type"], limit=50),
            "one actor that is not there": EventQuery(actor_id="nobody", limit=50),
            "the newest": EventQuery(limit=50),
            "a text that is not there": EventQuery(q="zzzzzzzz", since=datetime(2000, 1, 1, tzinfo=UTC), limit=50),
        }
        for what, query in questions.items():
            cold, warm, found = list[float](), list[float](), 0
            for count in range(_COLD + _WARM):
                if count < _COLD:
                    await reader.close()
                started = perf_counter()
                found = len((await reader.read(engine, LOG, query, None, 60)).events)
                (cold if count < _COLD else warm).append(1000 * (perf_counter() - started))
            times = ", ".join(
                f"{name} p50 {median(one):,.0f} ms, most {max(one):,.0f}"
                for name, one in (("started anew", cold), ("again", warm))
            )
            print(f"  {what} of {number:,}: {found} found; {times}; the reader has used {_peak_of(reader):.0f} MB")
    finally:
        await reader.close()
        await engine.dispose()


def _peak_of(reader: ArchiveReader) -> float:
    """Peak memory of the process that reads, in MB."""
    assert reader.process_id is not None
    lines = Path(f"/proc/{reader.process_id}/status").read_text("utf-8").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def run(settings: dict[str, str], number: int, what: str, *command: str) -> float:
    """Peak memory of a command, in MB."""
    started = perf_counter()
    program = [sys.executable, "-c", _MEASURED, sys.executable, "-m", "app", *command]
    done = subprocess.run(program, env=settings, stdout=subprocess.PIPE, text=True, check=False)
    seconds = perf_counter() - started
    if done.returncode:
        raise SystemExit(f"bench: {command} has failed")
    *told, used = done.stdout.splitlines()
    cpu, peak = map(float, used.split())
    print(*told, f"{number:,} events {what}: {number / seconds:,.0f}/s, {cpu:.0f} s of CPU", sep="\n")
    return peak / 1024


def _print_sizes(url: str, target: Path, number: int) -> None:
    files = sorted(target.rglob("*.parquet"))
    tiles = sum(file.stat().st_size for file in target.rglob("tiles"))
    columns: dict[str, int] = dict.fromkeys(NAMES, 0)
    for file in files:
        metadata = pq.read_metadata(file)
        for group in range(metadata.num_row_groups):
            for column in range(metadata.num_columns):
                chunk = metadata.row_group(group).column(column)
                columns[chunk.path_in_schema] += chunk.total_compressed_size
    payloads = [text for file in files for text in pq.read_table(file, columns=["event_data"]).column(0).to_pylist()]
    size = sum(file.stat().st_size for file in files)
    raw = sum(pc.sum(pc.binary_length(pq.read_table(f, columns=["event_data"]).column(0))).as_py() for f in files)
    alone = len(zstandard.ZstdCompressor(6).compress("\n".join(islice(payloads, _SAMPLE_EVENTS)).encode()))
    in_postgres, line = asyncio.run(_other_sizes(url))
    print(
        f"bytes of an event: payload {raw / number:,.0f}, by itself in zstd {alone / min(number, _SAMPLE_EVENTS):,.0f}"
    )
    print(
        f"  archive {size / number:,.0f} (payload column {columns['event_data'] / number:,.0f}, the others "
        f"{(size - columns['event_data']) / number:,.0f}) and {tiles / number:,.0f} of tiles; "
        f"Postgres {in_postgres / number:,.0f}; ndjson.gz {line:,.0f}"
    )
    largest = sorted(columns.items(), key=lambda one: -one[1])[:9]
    print("  by column:", ", ".join(f"{name} {bytes_ / number:,.1f}" for name, bytes_ in largest))


async def _other_sizes(url: str) -> tuple[int, float]:
    """Bytes of the events' tables with their indexes; and of one exported line in gzip."""
    connection = await connect_writer(Settings(database_url=SecretStr(url)))
    size = await connection.fetchval(
        "SELECT sum(pg_total_relation_size(inhrelid)) FROM pg_inherits WHERE inhparent = 'audit_events'::regclass"
    )
    lines: list[bytes] = []
    await connection.close()
    plain = await asyncpg.connect(url, server_settings={"timezone": "UTC"})
    async with plain.transaction(isolation="repeatable_read", readonly=True):
        async for rows in sealed_rows(plain, EventFilter(include="all"), LOG, 0, _SAMPLE_EVENTS):
            lines += [event_record("ndjson", exported_event(row, redacted=False)) for row in rows]
    await plain.close()
    return int(size), len(gzip.compress(b"".join(lines))) / len(lines)


async def fill(
    url: str, directory: Path, number: int, months: int = 1, show: Callable[[int], None] = lambda _: None
) -> float:
    """Write events as the service writes them, of so many months before the last four; seconds. `show` gets how many there are so far."""
    started = perf_counter()
    await schema.upgrade(url, LOG.name)
    connection = await asyncpg.connect(url)
    await connection.execute("SET session_replication_role = replica")
    await connection.execute("SET synchronous_commit = off")
    end = (datetime.now(UTC) - timedelta(days=115)).replace(day=1, hour=0, minute=0, second=1) + timedelta(days=25)
    first = (end - timedelta(days=30 * (months - 1))).replace(day=1)
    await partitions.ensure(connection, first.date(), end.date())
    tail, heads, catalog = (-1, 1), dict[str, Head](), Catalog()
    events = islice(_events(first, end, number), number)
    while some := list(islice(events, _FLUSH_EVENTS)):
        drafts = [check_item(catalog, event, "", plain=False, depth=6) for event in some]
        now = datetime.fromisoformat(some[-1]["event_timestamp"])
        ids = [random_event_id(int(now.timestamp() * 1000), os.urandom(10)) for _ in some]
        flush = link(accept(drafts, ids, Acceptance(now, {}, LOG.name)), LOG, tail, heads)
        heads |= flush.heads
        rows = [(*row, None, None, None, 0, "sha256-rfc6962") for row in flush.rows]
        await connection.copy_records_to_table("audit_events", records=map(_as_text, rows), columns=COPY_COLUMNS)
        await connection.execute(
            "INSERT INTO log_flushes (log_id, first_index, count, leaves) VALUES (0, $1, $2, $3)",
            *(flush.first_index, len(rows), flush.leaves),
        )
        tail = flush.first_index, len(rows)
        show(sum(tail))
    of_chains = ((correlation_id, head.length, head.hash) for correlation_id, head in heads.items())
    await connection.copy_records_to_table(
        "chain_heads", records=of_chains, columns=["correlation_id", "length", "hash"]
    )
    await _sign(connection, directory)
    await connection.execute("VACUUM ANALYZE audit_events")
    await connection.close()
    return perf_counter() - started


def _as_text(row: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(
        value.decode() if index == _DATA and isinstance(value, bytes) else value for index, value in enumerate(row)
    )


_DATA = COPY_COLUMNS.index("event_data")


def _events(first: datetime, end: datetime, number: int) -> Iterator[dict[str, Any]]:
    """Events of remediations, one after another between two times, each with text that makes its payload as long as it has to be."""
    events = chain.from_iterable(simulate_remediations(1, 10**7, first, "bench"))
    for count, event in enumerate(events):
        event["event_timestamp"] = (first + (end - first) * (count / number)).isoformat()
        event.pop("parent_event_id", None)
        event["event_data"]["note"] = _text(_EVENT_BYTES - len(str(event["event_data"])))
        yield event


def _text(length: int) -> str:
    """Words that nobody has written: letters at random, as frequent as in English."""
    return _WORDS.randbytes(max(0, length)).translate(_LETTERS).decode()


async def _sign(connection: Any, directory: Path) -> None:
    async with connection.transaction():
        while await extend_tiles(connection, LOG):
            pass
    private, _ = private_keys(Settings(checkpoint_key_file=directory / "log.pem"))
    assert private is not None
    key = SigningKey(private, note.PublicKey(LOG.name, private.public_key().public_bytes_raw()))
    await Signer(key, of_log=LOG).sign(connection)
    await connection.execute("UPDATE log_checkpoints SET published_at = now()")
