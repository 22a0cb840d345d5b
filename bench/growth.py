"""What grows with the table: python -m bench.growth --rows 1000000 5000000 10000000

For each number a database of its own, filled by SQL as `bench.filters` does it, with the head of each chain, then events written by the service: batches of
100 on 8 connections, single ones on 64. Then pages while 200 events a second are written. Postgres is the embedded one, with its
default memory (128 MB) and autovacuum, fsync on.
"""

import argparse
import asyncio
import itertools
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import asyncpg

from app.embedded import EmbeddedPostgres
from bench import bodies, filters
from bench.client import drive
from bench.processes import Running, create_databases, database_url, postgres_cpu_seconds, service

_CHAIN = 10
_HEADS = """
INSERT INTO chain_heads (correlation_id, length, hash)
SELECT 'rr-' || n, $2::int, encode(sha256((n * $2 + $2 - 1)::text::bytea), 'hex') FROM generate_series(0, $1::bigint / $2 - 1) n
"""
_TABLES = """
SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::bigint AS wal, pg_database_size(current_database()) AS disk,
    (SELECT sum(pg_table_size(inhrelid)) FROM pg_inherits WHERE inhparent = 'audit_events'::regclass)::bigint AS rows,
    (SELECT sum(pg_indexes_size(inhrelid)) FROM pg_inherits WHERE inhparent = 'audit_events'::regclass)::bigint AS indexes,
    pg_total_relation_size('chain_heads') AS heads,
    (SELECT sum(autovacuum_count) FROM pg_stat_user_tables)::bigint AS vacuums,
    (SELECT sum(autoanalyze_count) FROM pg_stat_user_tables)::bigint AS analyzes
"""
_SHAPES = {"batches of 100": (bodies.batches, 8, 100), "single": (bodies.singles, 64, 1)}


@dataclass(frozen=True)
class Written:
    """What one event cost, in microseconds of CPU and in bytes."""

    rate: float
    p99_ms: float
    service_us: float
    postgres_us: float
    wal: float
    disk: float


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.growth", description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000, 5_000_000, 10_000_000])
    parser.add_argument("--seconds", type=float, default=20.0, help="of each kind of writing")
    parser.add_argument("--pages", type=int, default=100, help="of each question")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="datastorage-bench-", ignore_cleanup_errors=True) as directory:
        Path(directory).chmod(0o711)
        with EmbeddedPostgres.start(Path(directory) / "data") as postgres:
            urls = {rows: database_url(postgres.url, f"rows_{rows}") for rows in options.rows}
            for rows, url in urls.items():
                _progress(f"{rows:,} rows are filled in")
                create_databases(postgres.url, f"rows_{rows}")
                _fill(url, rows)
            for rows, url in urls.items():
                _measure(postgres, url, rows, options)


def _fill(url: str, rows: int) -> None:
    with service(database_url=url, migrate=True, tlog=False):
        pass
    asyncio.run(filters.fill(url, rows))
    asyncio.run(_fill_heads(url, rows))
    asyncio.run(filters.count(url))


def _measure(postgres: EmbeddedPostgres, url: str, rows: int, options: argparse.Namespace) -> None:
    print(f"\n{rows:,} rows\n", flush=True)
    # Filled rows have no tiles, without which the verifier would read the whole log once a second.
    with service(database_url=url, tlog=False, verifier_events_per_second=0) as server:
        for name in _SHAPES:
            _progress(f"writing, {name}")
            one = _write(server, postgres, url, name, options.seconds)
            print(
                f"| {name} | {one.rate:,.0f}/s | p99 {one.p99_ms:.0f} ms | CPU {one.service_us:.0f} + {one.postgres_us:.0f} µs | "
                f"WAL {one.wal:,.0f} B | disk {one.disk:,.0f} B |",
                flush=True,
            )
        sizes = asyncio.run(_sizes(url))
        print(f"| sizes in MB: {_in_mb(sizes)}; service {server.resident_mb():.0f} MB |", flush=True)
        print(f"| autovacuum {sizes['vacuums']}, autoanalyze {sizes['analyzes']} |\n", flush=True)
        for name, paths in (filters.views() | filters.questions()).items():
            _progress(f"page: {name}")
            load = filters.measure(server, paths, 5 if name in filters.UNBOUNDED else options.pages)
            of_service, of_postgres = filters.cpu_ms(server, postgres, paths, 5 if name in filters.UNBOUNDED else 30)
            shown = f"p50 {load.percentile_ms(50):.1f}, p99 {load.percentile_ms(99):.1f} ms | CPU {of_service:.1f} + {of_postgres:.1f} ms"
            print(f"| {name} | {shown} | {load.errors or ''} |", flush=True)


def _write(server: Running, postgres: EmbeddedPostgres, url: str, name: str, seconds: float) -> Written:
    requests, connections, size = _SHAPES[name]
    drive(server.port, requests(f"warm-{size}"), connections, 2)
    made = list(itertools.islice(requests(f"grow-{size}"), int(seconds * 15_000 / size)))
    before = asyncio.run(_sizes(url)), server.cpu_seconds(), postgres_cpu_seconds(postgres.pid)
    load = drive(server.port, made, connections, seconds)
    after = asyncio.run(_sizes(url))
    events = len(load.latencies) * size
    return Written(
        events / load.seconds,
        load.percentile_ms(99),
        1e6 * (server.cpu_seconds() - before[1]) / events,
        1e6 * (postgres_cpu_seconds(postgres.pid) - before[2]) / events,
        (after["wal"] - before[0]["wal"]) / events,
        (after["disk"] - before[0]["disk"]) / events,
    )


async def _fill_heads(url: str, rows: int) -> None:
    connection = await asyncpg.connect(url)
    await connection.execute(_HEADS, rows, _CHAIN)
    await connection.execute("VACUUM ANALYZE chain_heads")
    await connection.close()


async def _sizes(url: str) -> asyncpg.Record:
    connection = await asyncpg.connect(url)
    try:
        row = await connection.fetchrow(_TABLES)
        assert row is not None
        return row
    finally:
        await connection.close()


def _in_mb(sizes: asyncpg.Record) -> str:
    return ", ".join(f"{name} {sizes[name] / 1e6:,.0f}" for name in ("rows", "indexes", "heads", "disk"))


def _progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
