"""Cost of a list's total, from the roll-up and from the rows: python -m bench.total postgresql://… [rows] (a database that may be filled)."""

import asyncio
import os
import statistics
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from time import perf_counter

from pydantic import SecretStr

from app import db, schema
from app.query import total as totals
from app.query.filter import EventQuery
from app.rollup import count_portion
from app.settings import Settings

PORTION = 50_000
FILL = """
INSERT INTO audit_events (event_timestamp, event_date, event_type, event_category, event_action, event_outcome, actor_type,
    actor_id, resource_type, resource_id, correlation_id, namespace, cluster_id, severity, event_data, log_id, log_index, chain_index,
    event_hash, previous_event_hash)
SELECT at, at::date, 'service.' || n % 40 || '.happened', 'category-' || n % 40 % 8, 'happen',
    CASE WHEN n % 50 = 0 THEN 'failure' ELSE 'success' END, 'service', 'controller', 'Resource', 'r-' || n % 1000, 'rr-' || n / 10,
    'n-' || n % 20, 'prod', CASE n % 7 WHEN 0 THEN 'critical' WHEN 1 THEN 'warning' END,
    jsonb_build_object('event_type', 'service.happened', 'text', repeat(md5(n::text), 12)), 0, n, n % 10,
    encode(sha256(n::text::bytea), 'hex'), encode(sha256(n::text::bytea), 'hex')
FROM (SELECT n, $3::timestamptz + ($2 - n) * interval '-1 s' * $4 AS at FROM generate_series($1::bigint, $2 - 1) n) numbered
"""


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


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


async def measure(name: str, connection: db.Connection, query: EventQuery) -> None:
    pid = await connection.fetchval("SELECT pg_backend_pid()")
    numbers = set()
    for way, count, rounds in (("rows", totals.from_rows, 5), ("roll-up", totals.from_rollup, 40)):
        walls, cpu = [], cpu_seconds(pid)
        for _ in range(rounds):
            started = perf_counter()
            numbers.add(await count(connection, query))
            walls.append(1000 * (perf_counter() - started))
        cpu = 1000 * (cpu_seconds(pid) - cpu) / rounds
        print(
            f"{name:32} {way:8} median {statistics.median(walls):7.1f} ms, slowest {max(walls):7.1f} ms, {cpu:6.1f} ms of CPU"
        )
    assert len(numbers) == 1, numbers


async def main() -> None:
    url, rows = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 1_000_000
    await schema.upgrade(url, "bench")
    connection = await db.connect(Settings(database_url=SecretStr(url), statement_timeout_ms=600_000))
    if not await connection.fetchval("SELECT EXISTS (SELECT FROM audit_events)"):
        await fill(connection, rows)
    pid = await connection.fetchval("SELECT pg_backend_pid()")
    started, cpu, portions = perf_counter(), cpu_seconds(pid), 1
    while await count_portion(connection):
        portions += 1
    print(f"worker: {portions} portions, {perf_counter() - started:.1f} s, {cpu_seconds(pid) - cpu:.1f} s of CPU")
    await connection.execute("VACUUM ANALYZE rollup_counts, rollup_changes, rollup_months")
    now = datetime.now(UTC)
    for name, query in {
        "everything": EventQuery(),
        "everything, own events too": EventQuery(include="self"),
        "one type": EventQuery(event_type="service.7.happened"),
        "one type, 24 hours": EventQuery(event_type="service.7.happened", since=now - timedelta(hours=24)),
        "failures, 30 days": EventQuery(event_outcome="failure", since=now - timedelta(days=30)),
        "from a day to another": EventQuery(since=now - timedelta(days=77), until=now - timedelta(days=12)),
    }.items():
        await measure(name, connection, query)
    size = await connection.fetchrow(
        "SELECT pg_size_pretty(pg_total_relation_size('rollup_counts')), (SELECT count(*) FROM rollup_counts)"
    )
    print("counts:", *size or ())
    await connection.close()


if __name__ == "__main__":
    asyncio.run(main())
