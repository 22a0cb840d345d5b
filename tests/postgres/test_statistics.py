"""A month of which Postgres knows nothing yet, as each is when it begins: a page reads as few rows of it as of any other."""

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from pydantic import SecretStr

from app.archive.recorded import read_recorded, record_version
from app.db import Connection, Engine, connect_writer, create_engine
from app.query import correlations, page, warming
from app.query.correlations import CorrelationQuery
from app.query.filter import EventQuery
from app.retention.in_force import InForce
from app.settings import Settings
from app.tlog import orders
from app.tlog.evidence import RECORDS, read_evidence
from tests.logs import FIRST_LOG
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
    await engine.dispose()
    await others_have_told(connection)
    assert 0 < await rows_read(connection) - before < most


async def others_have_told(connection: Any) -> None:
    """Wait until other sessions have ended, which then tell what they have read."""

    async def told() -> bool | None:
        return True if await connection.fetchval(SESSIONS) == 1 else None

    await eventually(told)


OF_THE_LOG: dict[str, Callable[[Connection], Awaitable[object]]] = {
    "whether orders have changed": orders.version,
    "orders": lambda writer: orders.read_orders(writer, FIRST_LOG),
    "what a flush follows": lambda writer: InForce().refresh(writer, FIRST_LOG),
    "whether records have changed": lambda writer: record_version(writer, FIRST_LOG, RECORDS),
    "records of the archive": lambda writer: read_recorded(writer, FIRST_LOG),
    "evidence": lambda writer: read_evidence(writer, FIRST_LOG),
}


@pytest.mark.parametrize("is_analyzed", [False, True])
@pytest.mark.parametrize("ask", OF_THE_LOG.values(), ids=OF_THE_LOG)
async def test_of_the_log(
    database_url: str, connection: Any, ask: Callable[[Connection], Awaitable[object]], is_analyzed: bool
) -> None:
    """A plan that is made for events of any types reads all events to find the few that say what was ordered, removed or archived.

    On Debian's Postgres 15 the database's collation is not C, so that no index has the beginning of a correlation.
    """
    await connection.execute(INSERT, ROWS)
    if is_analyzed:
        await connection.execute("ANALYZE audit_events")
    before = await rows_read(connection)
    writer = await connect_writer(Settings(database_url=SecretStr(database_url)))
    async with writer.transaction(isolation="repeatable_read"):
        await ask(writer)
    await writer.close()
    await others_have_told(connection)
    assert await rows_read(connection) - before < 500
