"""Every day that an event can have belongs to a partition, at any time, and creating one stops nobody."""

import asyncio
from datetime import UTC, date, datetime, timedelta

import asyncpg
import pytest

from app.ingest import partitions
from app.metrics import WORKER_FAILURES

PARTITIONS = "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'audit_events'::regclass ORDER BY 1"
INSERT = """
INSERT INTO audit_events (event_date, event_timestamp, event_type, event_category, event_action, event_outcome,
                          actor_type, actor_id, resource_type, resource_id, correlation_id, event_data)
VALUES ($1::date, ($1::date + time '12:00') AT TIME ZONE 'UTC', '', '', '', '', '', '', '', '', 'rr-1', '{}')
"""


async def names(connection: asyncpg.Connection) -> list[str]:
    return [name for (name,) in await connection.fetch(PARTITIONS)]


async def test_migration_creates_a_year(connection: asyncpg.Connection) -> None:
    """A fresh database has no partition for events of the last nine months or the next three."""
    expected = (
        "SELECT array_agg(to_char(month, '\"audit_events_\"YYYY_MM')) "
        "FROM (SELECT date_trunc('month', $1::timestamptz AT TIME ZONE 'UTC') this) now, "
        "generate_series(this - interval '9 months', this + interval '3 months', '1 month') month"
    )
    now = datetime.now(UTC)
    # The database is a copy of one that was migrated when the tests began, an hour ago at most.
    begun = now - timedelta(hours=1)
    assert await names(connection) in [await connection.fetchval(expected, time) for time in (begun, now)]


async def test_bounds(connection: asyncpg.Connection) -> None:
    """A month's first or last day has no partition, or the wrong one, or the session's date style swaps days and months."""
    await connection.execute("SET datestyle = 'SQL, DMY'; SET timezone = 'Pacific/Auckland'")
    assert await partitions.ensure(connection, date(2031, 12, 31), date(2032, 2, 1)) == 3
    assert await partitions.ensure(connection, date(2031, 12, 1), date(2032, 2, 29)) == 0
    for day in (date(2031, 12, 1), date(2031, 12, 31), date(2032, 1, 1), date(2032, 2, 29)):
        await connection.execute(INSERT, day)
        place = await connection.fetchval(
            "SELECT tableoid::regclass::text FROM audit_events WHERE event_date = $1", day
        )
        assert place == f"audit_events_{day:%Y_%m}"


async def test_new_partition_is_like_the_others(connection: asyncpg.Connection) -> None:
    """Indexes, triggers, defaults or storage of a partition that is created later differ from the migration's."""
    await partitions.ensure(connection, date(2031, 12, 1), date(2031, 12, 1))
    facts = """
        SELECT ARRAY(SELECT replace(pg_get_indexdef(indexrelid), $1, '') FROM pg_index WHERE indrelid = $1::text::regclass ORDER BY 1),
               ARRAY(SELECT tgname::text FROM pg_trigger WHERE tgrelid = $1::text::regclass ORDER BY 1),
               ARRAY(SELECT (attname, attstorage, attnotnull, pg_get_expr(adbin, adrelid))::text
                     FROM pg_attribute LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
                     WHERE attrelid = $1::text::regclass AND attnum > 0 ORDER BY attnum),
               ARRAY(SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conrelid = $1::text::regclass AND contype = 'c'),
               (SELECT relowner FROM pg_class WHERE oid = $1::text::regclass)
    """
    made = await connection.fetchrow(facts, "audit_events_2031_12")
    assert made is not None
    assert [len(fact) for fact in made[:4]] == [14, 8, 42, 1]
    parent = await connection.fetchrow(facts, "audit_events")
    assert parent is not None
    assert made[1:] == parent[1:]


async def test_two_at_once(connection: asyncpg.Connection, database_url: str) -> None:
    """Two replicas that need the same partition make each other fail."""
    others = [await asyncpg.connect(database_url) for _ in range(3)]
    made = await asyncio.gather(
        *(partitions.ensure(c, date(2031, 1, 1), date(2031, 6, 1)) for c in (connection, *others))
    )
    for other in others:
        await other.close()
    assert sorted(made) == [0, 0, 0, 6]


async def test_readers_and_writers_go_on(connection: asyncpg.Connection, database_url: str) -> None:
    """Creating a partition waits for readers and writers, or makes all others wait for it."""
    maker, later = await asyncpg.connect(database_url), await asyncpg.connect(database_url)
    await later.execute("SET lock_timeout = '1s'")
    async with connection.transaction(), maker.transaction():
        await connection.execute(INSERT, datetime.now(UTC).date())
        assert await partitions.ensure(maker, date(2031, 1, 1), date(2031, 1, 1)) == 1
        await later.execute(INSERT, datetime.now(UTC).date())
        assert await later.fetchval("SELECT count(*) FROM audit_events") == 1
    await maker.close()
    await later.close()


async def test_detached_month_is_named(connection: asyncpg.Connection) -> None:
    """A month between DETACH and DROP is created again, or the error does not name what is in the way."""
    await partitions.ensure(connection, date(2031, 1, 1), date(2031, 1, 1))
    await connection.execute("ALTER TABLE audit_events DETACH PARTITION audit_events_2031_01")
    with pytest.raises(
        asyncpg.ObjectNotInPrerequisiteStateError, match="audit_events_2031_01 exists but is no partition"
    ):
        await partitions.ensure(connection, date(2031, 1, 1), date(2031, 1, 1))


async def test_range_is_bounded(connection: asyncpg.Connection) -> None:
    """One wrong date creates thousands of tables."""
    with pytest.raises(asyncpg.InvalidParameterValueError):
        await partitions.ensure(connection, date(2026, 1, 1), date(9999, 1, 1))


async def test_service_role(connection: asyncpg.Connection) -> None:
    """A service that does not own the tables cannot write, create a partition, or read it; or anybody can create one."""
    if not await connection.fetchval("SELECT rolsuper FROM pg_roles WHERE rolname = current_user"):
        pytest.skip("only a superuser can make roles and act as them")
    await connection.execute("BEGIN")
    await connection.execute("CREATE ROLE ds_service_test; CREATE ROLE ds_other_test")
    await connection.execute(
        "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO ds_service_test; "
        "GRANT EXECUTE ON FUNCTION ensure_partitions(date, date) TO ds_service_test; SET LOCAL ROLE ds_service_test"
    )
    # A temporary table of the caller must not be used in place of the real one.
    await connection.execute("RESET ROLE; CREATE TEMP TABLE audit_events_2031_01 (); SET LOCAL ROLE ds_service_test")
    assert await partitions.ensure(connection, date(2031, 1, 1), date(2031, 1, 1)) == 1
    await connection.execute(INSERT, date(2031, 1, 15))
    assert await connection.execute("DELETE FROM audit_events") == "DELETE 1"
    await connection.execute("RESET ROLE; SET LOCAL ROLE ds_other_test")
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await partitions.ensure(connection, date(2031, 2, 1), date(2031, 2, 1))
    await connection.execute("ROLLBACK")


async def test_create_ahead(connection: asyncpg.Connection, database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that has run for years has no partition for a late event or for the next months, or a failure ends the worker."""
    monkeypatch.setattr(partitions, "ROUND_SECONDS", 0.01)
    monkeypatch.setattr(partitions, "RETRY_SECONDS", 0.01)
    days = iter((datetime(2031, 12, 5, tzinfo=UTC), None, datetime(2032, 3, 31, tzinfo=UTC)))
    failed = WORKER_FAILURES.labels(worker="partitions")
    before = failed._value.get()
    worker = asyncio.create_task(partitions.create_ahead_forever(database_url, lambda: next(days)))  # type: ignore[arg-type,return-value]
    try:
        async with asyncio.timeout(10):
            while "audit_events_2032_06" not in (made := await names(connection)):  # noqa: ASYNC110 - the worker sets no event
                await asyncio.sleep(0.02)
    finally:
        worker.cancel()
    months = ["2031_11", "2031_12", *(f"2032_{month:02}" for month in range(1, 7))]
    assert made[-8:] == [f"audit_events_{month}" for month in months]
    assert failed._value.get() > before
