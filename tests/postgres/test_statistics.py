"""A month of which Postgres knows nothing yet, as each is when it begins: a page reads as few rows of it as of any other."""

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from pydantic import SecretStr

from app.db import Engine, create_engine
from app.query import correlations, page, warming
from app.query.correlations import CorrelationQuery
from app.query.filter import EventQuery
from app.settings import Settings
from tests.waiting import eventually

pytestmark = pytest.mark.damaged  # rows are written by SQL

ROWS = 20_000
INSERT = """
    INSERT INTO audit_events (event_timestamp, event_date, event_type, event_category, event_action, event_outcome, actor_type,
        actor_id, resource_type, resource_id, correlation_id, event_data, log_id, log_index)
    SELECT date_trunc('day', now()) + n * interval '1 ms', current_date, 'a', 'gateway', '', 'success', '', '', '', '', 'rr-' || n, '{}', 0, n
    FROM generate_series(1, $1) n
"""
SESSIONS = (
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND backend_type = 'client backend'"
)
READ = """
    SELECT pg_stat_clear_snapshot()::text || sum(coalesce(seq_tup_read, 0) + coalesce(idx_tup_fetch, 0)) AS read
    FROM pg_stat_user_tables WHERE relname LIKE 'audit\\_events\\_%'
"""


async def rows_read(connection: Any) -> int:
    await connection.execute("SELECT pg_stat_force_next_flush()")
    return int(await connection.fetchval(READ))


async def correlations_page(engine: Engine, limit: int) -> int:
    return len((await correlations.page(engine, CorrelationQuery(limit=limit))).correlations)


def events_page(**fields: Any) -> Callable[[Engine, int], Awaitable[int]]:
    async def ask(engine: Engine, limit: int) -> int:
        return len((await page.page(engine, EventQuery(limit=limit, total="none", **fields))).events)

    return ask


LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("ask", "limit", "most"),
    [
        (correlations_page, 25, 500),
        (correlations_page, 1000, 7000),
        (events_page(), 1000, 5000),
        (events_page(since=LONG_AGO), 1000, 5000),
        (events_page(until=datetime(2120, 1, 1, tzinfo=UTC), include="all"), 1000, 2500),
        (events_page(since=LONG_AGO, event_category="gateway"), 1000, 7000),
        (events_page(since=LONG_AGO, offset=1000), 500, 5000),
        (events_page(since=LONG_AGO, event_category="gateway", offset=900), 500, 2500),
        (events_page(since=LONG_AGO, namespace_not=("a",)), 1000, 7000),
        (events_page(order="log"), 1000, 2500),
    ],
)
async def test_few_rows_are_read(
    database_url: str, connection: Any, ask: Callable[[Engine, int], Awaitable[int]], limit: int, most: int
) -> None:
    """Plans that were made of an empty month, or with a wrong guess of how many rows are in a time, read all of them, or sort them."""
    for (name,) in await connection.fetch(
        "SELECT relid::regclass::text FROM pg_partition_tree('audit_events') WHERE isleaf"
    ):
        await connection.execute(f"ALTER TABLE {name} SET (autovacuum_enabled = false)")
    engine = create_engine(Settings(database_url=SecretStr(database_url), pool_connections_max=1))
    await warming.warm(engine)
    await connection.execute(INSERT, ROWS)
    before = await rows_read(connection)
    assert await ask(engine, limit) == limit
    await engine.dispose()  # its session tells what it read when it ends

    async def told() -> bool | None:
        return True if await connection.fetchval(SESSIONS) == 1 else None

    await eventually(told)
    assert 0 < await rows_read(connection) - before < most
