"""The default question where audit events of Kubernetes stand before what it shows: python -m bench.left_out [of Kubernetes] [others].

What a page costs the process of Postgres, and what the reader waits, one page after another; of use on a busy machine.
"""

import asyncio
import statistics
import sys
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from time import perf_counter

import asyncpg
from pydantic import SecretStr

from app import db, schema
from app.api.events import parse_query
from app.embedded import EmbeddedPostgres
from app.query.page import page
from app.settings import Settings
from bench.filters import count
from bench.index_cost import cpu_seconds

PORTION = 50_000
PAGES = 60
FILL = """
INSERT INTO audit_events (event_timestamp, event_date, event_type, event_category, event_action, event_outcome, actor_type,
    actor_id, resource_type, resource_id, correlation_id, namespace, cluster_id, severity, event_data, log_id, log_index, chain_index,
    event_hash, previous_event_hash)
SELECT at, at::date,
    CASE WHEN n < $4 THEN 'service-' || n % 40 % 8 || '.' || n % 40 || '.happened'
        ELSE 'kubernetes.audit.' || CASE n % 20 WHEN 0 THEN 'response_started' ELSE 'response_complete' END END,
    CASE WHEN n < $4 THEN 'category-' || n % 40 % 8 ELSE 'kubernetes' END, 'get',
    CASE WHEN n % 50 = 0 THEN 'failure' ELSE 'success' END, 'service', 'controller-' || n % 60, 'pods', 'deployment-' || n / 10 % 10000,
    CASE WHEN n < $4 THEN 'rr-' || n / 10 ELSE 'kubernetes:' || md5(n::text) END, 'ns-' || n % 20, 'cluster-' || n % 3,
    CASE WHEN n % 7 = 0 THEN 'critical' ELSE 'info' END, jsonb_build_object('event_type', 'happened', 'text', repeat(md5(n::text), 12)),
    0, n, n % 10, encode(sha256(n::text::bytea), 'hex'), encode(sha256(n::text::bytea), 'hex')
FROM (SELECT n, $3::timestamptz - ($2 - n) * interval '1 s' AS at FROM generate_series($1::bigint, $2 - 1) n) numbered
"""
QUESTIONS = {
    "default, without total": "total=none",
    "default, with its total": "",
    "capped total": "total=capped",
    "since 30 days": "since=30d&total=none",
    "critical": "severity=critical&total=none",
    "failures": "event_outcome=failure&total=none",
    "offset 900": "offset=900&total=none",
    "with those of Kubernetes": "include=kubernetes&total=none",
}


async def fill(connection: db.Connection, others: int, of_kubernetes: int) -> None:
    """The others first, then those of Kubernetes, one each second; without chains, so that nothing of it verifies."""
    rows, end = others + of_kubernetes, datetime.now(UTC)
    await connection.execute(
        "SELECT ensure_partitions($1::date, $2::date)", (end - timedelta(seconds=rows)).date(), end.date()
    )
    for first in range(0, rows, PORTION):
        last = min(first + PORTION, rows)
        await connection.execute(FILL, first, last, end - timedelta(seconds=rows - last), others, timeout=600)
        await connection.execute("INSERT INTO log_flushes VALUES (0, $1, $2, '')", first, last - first)
    await connection.execute("VACUUM ANALYZE", timeout=600)


async def measure(url: str, questions: Sequence[str] = tuple(QUESTIONS)) -> None:
    """Print what each question costs."""
    settings = Settings(database_url=SecretStr(url))
    engine = db.create_engine(settings)
    async with engine.connect() as pooled:
        driver = (await pooled.get_raw_connection()).driver_connection
        assert driver is not None
        pid = await driver.fetchval("SELECT pg_backend_pid()")
    for name in questions:
        walls, costs = [], []
        for number in range(PAGES + 5):
            query = parse_query(QUESTIONS[name].encode(), datetime.now(UTC))
            started, before = perf_counter(), cpu_seconds(pid)
            found = await page(engine, query)
            if number >= 5:
                walls.append(1000 * (perf_counter() - started))
                costs.append(1000 * (cpu_seconds(pid) - before))
        print(
            f"{name:26} CPU of Postgres: median {statistics.median(costs):7.1f} ms, most {max(costs):7.1f}; "
            f"waited: median {statistics.median(walls):7.1f} ms, most {max(walls):7.1f}; {len(found.events)} events, total {found.total}",
            flush=True,
        )
    await engine.dispose()


async def _run(url: str, of_kubernetes: int, others: int) -> None:
    await schema.upgrade(url, "bench")
    connection = await asyncpg.connect(url)
    await fill(connection, others, of_kubernetes)
    await connection.close()
    await count(url)
    await measure(url)


if __name__ == "__main__":
    sizes = [int(argument) for argument in sys.argv[1:]]
    with tempfile.TemporaryDirectory(prefix="datastorage-bench-", ignore_cleanup_errors=True) as directory:
        Path(directory).chmod(0o711)
        with EmbeddedPostgres.start(Path(directory) / "data") as postgres:
            asyncio.run(_run(postgres.url, *(sizes + [1_500_000, 1_000][len(sizes) :])))
