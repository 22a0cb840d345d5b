"""Cost of totals and histograms: python -m bench.total postgresql://… [rows] (a database that may be filled, of a superuser).

First the latencies over HTTP, one question after another, while 200 events a second are written; then the CPU of Postgres's backend alone.
"""

import asyncio
import itertools
import statistics
import sys
from datetime import UTC, datetime, timedelta
from time import perf_counter

from pydantic import SecretStr

from app import db, schema
from app.api.events import parse_query
from app.api.histogram import parse_histogram_query
from app.query.histogram import histogram
from app.query.page import page
from app.rollup import count_portion
from app.settings import Settings
from bench import bodies
from bench.client import drive_while_writing, prepared
from bench.processes import cpu_seconds, service

PORTION = 50_000
FILL = """
INSERT INTO audit_events (event_timestamp, event_date, event_type, event_category, event_action, event_outcome, actor_type,
    actor_id, resource_type, resource_id, correlation_id, namespace, cluster_id, severity, event_data, log_id, log_index, chain_index,
    event_hash, previous_event_hash)
SELECT at, at::date, 'service.' || n % 40 || '.happened', 'category-' || n % 40 % 8, 'happen',
    CASE WHEN n % 50 = 0 THEN 'failure' ELSE 'success' END, 'service', 'controller', 'Resource', 'r-' || n % 1000, 'rr-' || n / 10,
    'n-' || h / 256 % 20, 'c-' || h / 4096 % 3, CASE n % 7 WHEN 0 THEN 'critical' WHEN 1 THEN 'warning' END,
    jsonb_build_object('event_type', 'service.happened', 'text', repeat(md5(n::text), 12)), 0, n, n % 10,
    encode(sha256(n::text::bytea), 'hex'), encode(sha256(n::text::bytea), 'hex')
FROM (SELECT n, abs(hashint8(n)) AS h, $3::timestamptz + ($2 - n) * interval '-1 s' * $4 AS at FROM generate_series($1::bigint, $2 - 1) n) numbered
"""


async def fill(connection: db.Connection, rows: int) -> None:
    """Rows of the last 90 days, and the flushes of their positions; without chains, so that nothing of it verifies."""
    end = datetime.now(UTC)
    between = 90 * 86_400 / rows
    await connection.execute("SELECT ensure_partitions((now() - interval '91 days')::date, now()::date)")
    for first in range(0, rows, PORTION):
        until = end - timedelta(seconds=between * (rows - first - PORTION))
        await connection.execute(FILL, first, first + PORTION, until, between)
        await connection.execute("INSERT INTO log_flushes VALUES (0, $1, $2, '')", first, PORTION)
    await connection.execute("VACUUM ANALYZE")


QUESTIONS = {
    "default question, with its total": "events",
    "one type": "events?event_type=service.7.happened",
    "the last 24 hours": "events?since=24h",
    "one type, 24 hours": "events?event_type=service.7.happened&since=24h",
    "failures, 30 days": "events?event_outcome=failure&since=30d",
    "one namespace": "events?namespace=n-7",
    "a page at offset 100,000": "events?offset=100000",
    "histogram, 7 days by outcome": "histogram?by=outcome&since=7d",
    "histogram, 90 days by outcome": "histogram?by=outcome&since=90d",
    "histogram, 90 days by type": "histogram?by=type&since=90d",
    "histogram, 7 days by cluster": "histogram?by=cluster&since=7d",
    "histogram, 90 days by cluster": "histogram?by=cluster&since=90d",
}
WRITES_PER_SECOND = 200
REQUESTS, ROUNDS = 400, 40


def measure_latencies(url: str) -> None:
    """Of the questions, as a client sees them, while others write and the worker counts that."""
    with service(database_url=url, unsafe_database=True) as running:
        for name, question in QUESTIONS.items():
            requests = prepared(bodies.gets(itertools.repeat(f"/api/v1/audit/{question}")), REQUESTS)
            load = drive_while_writing(
                running.port, requests, bodies.singles("while"), writes_per_second=WRITES_PER_SECOND
            )
            p50, p99 = load.percentile_ms(50), load.percentile_ms(99)
            print(f"{name:34} p50 {p50:7.1f} ms, p99 {p99:7.1f} ms {load.errors or ''}", flush=True)


async def measure_cpu(url: str) -> None:
    """Milliseconds of CPU of the backend that answers a question, planning included as often as it plans."""
    engine = db.create_engine(Settings(database_url=SecretStr(url), pool_connections_max=1))
    async with db.driver_connection(engine) as connection:
        pid = await connection.fetchval("SELECT pg_backend_pid()")
    for name, question in QUESTIONS.items():
        what, _, filters = question.partition("?")
        walls, before = [], 0.0
        for number in range(ROUNDS + 6):  # Postgres plans the first ones anew
            if number == 6:
                before = cpu_seconds(pid)
            now, started = datetime.now(UTC), perf_counter()
            if what == "events":
                await page(engine, parse_query(filters.encode(), now))
            else:
                await histogram(engine, parse_histogram_query(filters.encode(), now))
            walls.append(1000 * (perf_counter() - started))
        cpu = 1000 * (cpu_seconds(pid) - before) / ROUNDS
        print(
            f"{name:34} {cpu:6.1f} ms of CPU of the backend, median {statistics.median(walls[6:]):6.1f} ms", flush=True
        )
    await engine.dispose()


async def prepare(url: str, rows: int) -> None:
    """Rows, and the counts of them."""
    await schema.upgrade(url, "bench")
    connection = await db.connect(Settings(database_url=SecretStr(url), statement_timeout_ms=600_000))
    if not await connection.fetchval("SELECT EXISTS (SELECT FROM audit_events)"):
        await fill(connection, rows)
    pid = await connection.fetchval("SELECT pg_backend_pid()")
    started, cpu, portions = perf_counter(), cpu_seconds(pid), 1
    while await count_portion(connection):
        portions += 1
    print(f"worker: {portions} portions, {perf_counter() - started:.1f} s, {cpu_seconds(pid) - cpu:.1f} s of CPU")
    await connection.execute("VACUUM ANALYZE rollup_counts, rollup_scopes, rollup_changes, rollup_months")
    for table in ("rollup_counts", "rollup_scopes"):
        size = await connection.fetchrow(
            f"SELECT pg_size_pretty(pg_total_relation_size('{table}')), (SELECT count(*) FROM {table})"
        )
        print(f"{table}:", *size or ())
    await connection.close()


def main() -> None:
    url, rows = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 1_000_000
    asyncio.run(prepare(url, rows))
    measure_latencies(url)
    asyncio.run(measure_cpu(url))


if __name__ == "__main__":
    main()
