"""What is purged or removed gives its space back, although some events of the month stay."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from pydantic import SecretStr

from app.retention import purge, space
from app.retention.policy import Month
from tests.archive.archived import fill, settings_of
from tests.archive.test_removal import nothing_is_lost, remove
from tests.postgres.test_retention import MONTH_AGO, NOW, THE_MONTH, write
from tests.postgres.test_retention import settings_of as settings_of_retention
from tests.postgres.test_roles import roles as roles  # noqa: PLC0414 -- a fixture

pytestmark = pytest.mark.damaged  # the verification at the end of every test does not know purges
Connection = Any
PAGES = "SELECT pg_relation_size($1::text::regclass) / 8192"
STATE = """
SELECT (SELECT array_agg(e ORDER BY event_id) FROM audit_events e WHERE event_category <> 'security'),
    (SELECT array_agg((indexrelid, indisvalid, indisclustered) ORDER BY indexrelid) FROM pg_index WHERE indrelid = $1::text::regclass)
"""
NOTE = {"note": "".join(map(chr, range(0x4E00, 0x4E00 + 400)))}  # 1.2 KB that cannot be compressed
FILLER = """
INSERT INTO audit_events (event_date, event_timestamp, event_type, event_category, event_action, event_outcome, actor_type, actor_id,
    resource_type, resource_id, correlation_id, event_data)
SELECT ($1::timestamptz AT TIME ZONE 'UTC')::date, $1, 't', 'c', 'a', 'success', 's', 'ada', 'Pod', 'p', 'filler', '{}'
FROM generate_series(1, 1000)
"""


@pytest.fixture(autouse=True)
def small_months(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(space, "PAGES_MIN", 10)
    monkeypatch.setattr(space, "PAUSE_SECONDS", 0.01)


async def fill_month(url: str, count: int = 150) -> None:
    """A month of which all is due but two events in between."""
    stays = {count // 2, count - 1}
    events = ({"retention_days": 2555 if number in stays else 10, "event_data": NOTE} for number in range(count))
    await write(url, *events)


async def test_purged_month_gives_its_space_back(database_url: str, connection: Connection) -> None:
    """The table stays as large as it was, a row or an index is lost, or counts are wrong since it is in another file."""
    await fill_month(database_url)
    before = await connection.fetchval(PAGES, THE_MONTH)
    done = await purge.run(settings_of_retention(database_url), NOW)
    assert (done.rows_deleted, done.dropped, [*done.space.freed], done.space.waiting) == (148, [], [THE_MONTH], [])
    assert await connection.fetchval(PAGES, THE_MONTH) == 1
    assert before > 20
    assert done.space.freed[THE_MONTH] > 8192 * 20
    stayed, indexes = await connection.fetchrow(STATE, THE_MONTH)
    assert len(stayed) == 2
    assert {(valid, clustered) for _, valid, clustered in indexes} == {(True, False)}
    assert (await space.give_back(connection, [])).freed == {}


async def test_month_with_rows_stays_as_it_is(database_url: str, connection: Connection) -> None:
    """A month is written anew, and locked, for the few rows that it has lost."""
    await fill_month(database_url)
    await connection.execute("DELETE FROM audit_events WHERE log_index = 7")
    found = await space.give_back(connection, [Month(THE_MONTH)])
    assert (found.freed, found.waiting) == ({}, [])


async def test_reader_is_not_stopped(database_url: str, connection: Connection) -> None:
    """Who reads the month for long makes the run wait, and so whoever reads after him."""
    await fill_month(database_url)
    reader = await asyncpg.connect(database_url)
    async with reader.transaction():
        await reader.execute("LOCK TABLE audit_events IN ACCESS SHARE MODE")
        done = await purge.run(settings_of_retention(database_url), NOW)
        assert (done.rows_deleted, done.space.freed, done.space.waiting) == (148, {}, [THE_MONTH])
    assert [*(await space.give_back(connection, [])).freed] == [THE_MONTH]
    await reader.close()


async def test_rows_that_somebody_still_sees(database_url: str, connection: Connection) -> None:
    """A transaction that began before the rows were deleted has them written anew with the rest, or does not see them any more."""
    await fill_month(database_url)
    reader = await asyncpg.connect(database_url)
    async with reader.transaction(isolation="repeatable_read"):
        await reader.fetchval("SELECT 1 FROM pg_class LIMIT 1")
        done = await purge.run(settings_of_retention(database_url), NOW)
        assert (done.rows_deleted, done.space.freed, done.space.waiting) == (148, {}, [THE_MONTH])
        assert await reader.fetchval("SELECT count(*) FROM audit_events WHERE event_category <> 'security'") == 150
    assert [*(await space.give_back(connection, [Month(THE_MONTH)])).freed] == [THE_MONTH]
    await reader.close()


async def test_writer_goes_on_meanwhile(database_url: str, connection: Connection) -> None:
    """Events that come late for the month are lost, or refused, while it gives its space back."""
    given = 0

    async def give_back() -> None:
        nonlocal given
        for _ in range(5):
            await connection.execute(FILLER, MONTH_AGO)
            await connection.execute("DELETE FROM audit_events WHERE correlation_id = 'filler'")
            given += len((await space.give_back(connection, [Month(THE_MONTH)])).freed)

    giving = asyncio.create_task(give_back())
    written = 0
    while not giving.done():
        await write(database_url, {"retention_days": 2555, "correlation_id": "rr-late"})
        written += 1
    await giving
    assert given > 0
    assert await connection.fetchval("SELECT count(*) FROM audit_events WHERE correlation_id = 'rr-late'") == written


async def test_archived_month_gives_its_space_back(
    roles: Callable[[str], str],
    database_url: str,
    connection: Connection,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is removed since it is archived leaves its space taken, also by the role for that, or what stays does not verify any more."""
    monkeypatch.setattr(space, "PAGES_MIN", 3)
    await fill(connection, rounds=8)
    settings = settings_of(database_url, tmp_path, retention_url=SecretStr(roles("datastorage_retention")))
    await connection.execute("UPDATE audit_events SET legal_hold = true WHERE log_index IN (1, 31)")
    done = await remove(settings)
    assert len(done.space.freed) == 2
    assert done.space.waiting == []
    await nothing_is_lost(connection, settings, 478)
