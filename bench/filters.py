"""Pages of 50 events by each filter, over HTTP, while 200 events a second are written: what a reader waits, and what it costs.

python -m bench.filters [rows]     the reading of the rows alone, and what it costs the process of Postgres: of use on a busy machine
"""

import asyncio
import itertools
import statistics
import sys
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from time import perf_counter

import asyncpg
from pydantic import SecretStr

from app import db, schema
from app.api.events import parse_query
from app.embedded import EmbeddedPostgres
from app.query.rows import rows_of_page
from app.rollup import count_portion
from app.settings import Settings
from bench import bodies
from bench.client import Load, drive, drive_while_writing, prepared
from bench.index_cost import cpu_seconds
from bench.processes import Running, postgres_cpu_seconds

_PORTION = 50_000
_DAYS = 90
_WRITES_PER_SECOND = 200
_PAUSE_SECONDS = 0.05
UNBOUNDED = ("text, 7 days", "a rare namespace", "a rare severity, by log")
"""Questions that end when their time is over, or all rows were looked at."""
_EVENTS = "/api/v1/audit/events?total=none&"
# Of a million rows: 40 types of 8 categories; 2 % failures; 60 controllers and 500 people, of whom each did 20 things;
# remediations of 10 events, resources of 100; and once in a million a namespace, a severity and a word.
FILL = """
INSERT INTO audit_events (event_timestamp, event_date, event_type, event_category, event_action, event_outcome, actor_type,
    actor_id, resource_type, resource_id, correlation_id, namespace, cluster_id, severity, event_data, log_id, log_index, chain_index,
    event_hash, previous_event_hash)
SELECT at, at::date, 'service-' || n % 40 % 8 || '.' || n % 40 || '.happened', 'category-' || n % 40 % 8, 'act-' || n % 11,
    CASE WHEN n % 50 = 0 THEN 'failure' ELSE 'success' END, CASE WHEN n % 100 = 7 THEN 'user' ELSE 'service' END,
    CASE WHEN n % 100 = 7 THEN 'person-' || n / 100 % 500 ELSE 'controller-' || n % 60 END,
    'Deployment', 'payments/deployment-' || n / 10 % 10000, 'rr-' || n / 10,
    CASE n WHEN 1000 THEN 'rare' ELSE 'ns-' || n % 20 END, 'cluster-' || n % 3,
    CASE WHEN n = 1000 THEN 'rare' WHEN n % 7 = 0 THEN 'critical' ELSE 'info' END,
    jsonb_build_object('event_type', 'service.happened', 'text', CASE n WHEN 1000 THEN 'needle' ELSE repeat(md5(n::text), 12) END),
    0, n, n % 10, encode(sha256(n::text::bytea), 'hex'), encode(sha256(n::text::bytea), 'hex')
FROM (SELECT n, $3::timestamptz + ($2 - n) * interval '-1 s' * $4 AS at FROM generate_series($1::bigint, $2 - 1) n) numbered
"""


async def fill(url: str, rows: int) -> None:
    """Rows of the last 90 days with positions of the log, but without chains: nothing of it verifies."""
    connection = await asyncpg.connect(url)
    between, end = _DAYS * 86_400 / rows, datetime.now(UTC)
    await connection.execute(
        "SELECT ensure_partitions($1::date, $2::date)", (end - timedelta(days=_DAYS + 1)).date(), end.date()
    )
    for first in range(0, rows, _PORTION):
        last = min(first + _PORTION, rows)
        await connection.execute(FILL, first, last, end - timedelta(seconds=between * (rows - last)), between)
        await connection.execute("INSERT INTO log_flushes VALUES (0, $1, $2, '')", first, last - first)
    await connection.execute("VACUUM ANALYZE")
    await connection.close()


def questions() -> dict[str, Iterator[str]]:
    """Paths by what they ask for; the last ones are of filters without an index that next to nothing meets."""
    n = itertools.count(1)
    asked = {
        "actor, a person": ("actor_id=person-{}", 500),
        "actor, a controller": ("actor_id=controller-{}", 60),
        "actor, any of three": ("actor_id_in=person-{0}&actor_id_in=person-1{0}&actor_id_in=controller-1", 9),
        "resource": ("resource_id=payments/deployment-{}", 10_000),
        "type": ("event_type=service-0.{}.happened", 1),
        "types by prefix": ("event_type_in=service-{}.*", 8),
        "category": ("event_category=category-{}", 8),
        "outcome": ("event_outcome=failure", 1),
        "correlation": ("correlation_id=rr-{}", 50_000),
        "namespace and cluster": ("namespace=ns-{0}&cluster_id=cluster-1", 20),
        "all but controllers": ("actor_type_not=service", 1),
        "a person's failures": ("actor_id=person-{}&event_outcome=failure", 500),
        "by log, a person": ("actor_id=person-{}&order=log", 500),
        "by log, all": ("order=log", 1),
        "text, 7 days": ("q=NEEDLE&since=7d", 1),
        "a rare namespace": ("namespace=rare", 1),
        "a rare severity, by log": ("severity=rare&order=log", 1),
    }
    return {name: _paths(_EVENTS + form, several, n) for name, (form, several) in asked.items()}


def views() -> dict[str, Iterator[str]]:
    """Paths of histograms and of pages for browsers, as somebody who looks around asks for them."""
    n = itertools.count(1)
    asked = {
        "histogram, 7 days": ("/api/v1/audit/histogram?by=outcome&since=7d", 1),
        "histogram, 90 days": ("/api/v1/audit/histogram?by=outcome&since=90d", 1),
        "list with total": ("/api/v1/audit/events", 1),
        "page of events": ("/ui/events", 1),
        "page of an actor": ("/ui/events?actor_id=person-{}", 500),
        "page of remediations": ("/ui/correlations", 1),
        "page of a remediation": ("/ui/correlations/rr-{}", 50_000),
        "page of trust": ("/ui/trust", 1),
    }
    return {name: _paths(form, several, n) for name, (form, several) in asked.items()}


async def count(url: str) -> None:
    """Let the roll-up count what was filled in."""
    connection = await db.connect(Settings(database_url=SecretStr(url)))
    while await count_portion(connection):
        pass
    await connection.close()


def _paths(form: str, several: int, numbers: Iterator[int]) -> Iterator[str]:
    return (form.format(number % several) for number in numbers)


def measure(server: Running, paths: Iterator[str], number: int) -> Load:
    """Latencies of `number` pages beside the writing, each asked for a moment after the last one has come.

    Who asks without a pause waits for the rests of his slot (app/api/reading.py), which says nothing about the page.
    """
    requests = prepared(bodies.gets(paths), number)
    return drive_while_writing(
        server.port,
        requests,
        bodies.singles("while"),
        writes_per_second=_WRITES_PER_SECOND,
        pause_seconds=_PAUSE_SECONDS,
    )


def cpu_ms(server: Running, postgres: EmbeddedPostgres, paths: Iterator[str], number: int) -> tuple[float, float]:
    """Milliseconds of CPU of one page, without the writing: of the service, and of Postgres."""
    before = server.cpu_seconds(), postgres_cpu_seconds(postgres.pid)
    pages = max(1, len(drive(server.port, prepared(bodies.gets(paths), number), 1, 60).latencies))
    of_service = server.cpu_seconds() - before[0]
    return 1000 * of_service / pages, 1000 * (postgres_cpu_seconds(postgres.pid) - before[1]) / pages


async def _measure_rows(url: str, rows: int) -> None:
    await schema.upgrade(url, "bench")
    await fill(url, rows)
    await count(url)
    connection = await db.connect(Settings(database_url=SecretStr(url)))
    pid = await connection.fetchval("SELECT pg_backend_pid()")
    for name, paths in questions().items():
        walls, costs, cut = [], [], 0
        for path in itertools.islice(paths, 5 if name in UNBOUNDED else 60):
            query = parse_query(path.partition("?")[2].encode(), datetime.now(UTC))
            started, before = perf_counter(), cpu_seconds(pid)
            found = await rows_of_page(connection, query)
            walls.append(1000 * (perf_counter() - started))
            costs.append(1000 * (cpu_seconds(pid) - before))
            cut += found.scanned_until is not None
        print(
            f"{name:26} CPU of Postgres: median {statistics.median(costs):7.1f} ms, most {max(costs):7.1f}; "
            f"waited: median {statistics.median(walls):7.1f} ms, most {max(walls):7.1f}; cut {cut} of {len(walls)}",
            flush=True,
        )
    await connection.close()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="datastorage-bench-", ignore_cleanup_errors=True) as directory:
        Path(directory).chmod(0o711)
        with EmbeddedPostgres.start(Path(directory) / "data") as postgres:
            asyncio.run(_measure_rows(postgres.url, int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000))
