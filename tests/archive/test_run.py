"""The archive on a real Postgres and a real directory: what is due is written once, sorted, and verified."""

from datetime import timedelta
from pathlib import Path

import pytest

from app.archive import run
from app.archive.session import Progress, Selection
from app.events.catalog import Catalog
from app.retention.erase import Erasure, erase
from tests.archive.archived import (
    ALL,
    NOW,
    ODD,
    OLD,
    OLDER,
    Connection,
    files_of,
    fill,
    parts_of,
    problems,
    publish,
    rows_of,
    settings_of,
    verified,
)
from tests.postgres.log import write
from tests.sealed import seal


async def test_months_are_archived(database_url: str, connection: Connection, tmp_path: Path) -> None:
    """An event that is due is not in the archive, or one that is not; or a value of it is another one there."""
    await fill(connection)
    settings = settings_of(database_url, tmp_path)
    done = await run.run(settings, NOW, ALL)
    assert [(part.month, part.events) for part in done.parts] == [(f"{OLDER:%Y-%m}", 300), (f"{OLD:%Y-%m}", 300)]
    assert not done.left.count
    assert await problems(settings) == []
    parts = await parts_of(settings)
    assert [part.manifest_sha256 for part in parts] == [
        one.manifest_sha256 for _, one in (await verified(settings)).parts
    ]
    for part in parts:
        stored = await connection.fetch(
            "SELECT *, actor_ip::text AS ip FROM audit_events WHERE to_char(event_date, 'YYYY-MM') = $1"
            ' ORDER BY correlation_id COLLATE "C", event_timestamp, log_index',
            part.month,
        )
        rows = rows_of(part)
        assert len(rows) == len(stored)
        for row, known in zip(rows, stored, strict=True):
            for name in set(row) - {"event_data", "event_metadata", "actor_ip", "previous_event_hash"}:
                assert row[name] == known[name], name
            assert (row["actor_ip"] or "") == (known["ip"] or "").partition("/")[0]
            assert (row["previous_event_hash"] or b"").hex() == known["previous_event_hash"]
    assert (
        sum(await connection.fetchrow("SELECT count(*) FROM audit_events WHERE correlation_id LIKE 'rr-%'") or ())
        == 900
    )


async def test_what_the_service_writes(database_url: str, connection: Connection, tmp_path: Path) -> None:
    """A payload is in the archive otherwise than it was hashed; an erased event, or one without a time, never gets there."""
    old = {"event_timestamp": OLD.isoformat()}
    ids = await write(database_url, ODD | old, old | {"actor_id": "ada"}, {"event_timestamp": "0001-01-01T00:00:00Z"})
    settings = settings_of(database_url, tmp_path)
    await erase(settings, Catalog(), Erasure("asked for", "tests", event_ids=[ids[1]]), dry_run=False)
    await publish(connection)
    now = NOW + timedelta(days=150)
    [first, second] = (await run.run(settings, now, ALL)).parts
    assert (first.events, first.erased) == (2, 1)
    assert second.events == 2  # the one without a time, and that of the erasure
    assert await problems(settings) == []
    rows = [row for part in await parts_of(settings) for row in rows_of(part)]
    [odd] = [row for row in rows if row["event_id"] == ids[0]]
    assert (
        odd["event_data"]
        == '{"big":12345678901234567890123,"nested":[{"a":null}],"small":0.1,"\U0001f600":1,"\ue000":2}'
    )
    [erased] = [row for row in rows if row["event_id"] == ids[1]]
    assert (erased["actor_id"], erased["payload_salt"], len(erased["payload_commitment"])) == ("erased", None, 32)
    [timeless] = [row for row in rows if row["event_id"] == ids[2]]
    assert timeless["event_metadata"] == '{"event_timestamp":"received"}'


async def test_twice_is_once(database_url: str, connection: Connection, tmp_path: Path) -> None:
    """A second run archives again what is archived, or leaves files that nobody names."""
    await fill(connection, rounds=2)
    settings = settings_of(database_url, tmp_path)
    await run.run(settings, NOW, ALL)
    before = files_of(tmp_path)
    done = await run.run(settings, NOW, ALL)
    assert done.parts == []
    assert files_of(tmp_path) == before
    assert len(await parts_of(settings)) == 2


async def test_what_comes_late_is_a_part_of_its_own(database_url: str, connection: Connection, tmp_path: Path) -> None:
    """An event that is recorded after its month was archived never gets there; or one that no checkpoint has yet cannot be proved."""
    await fill(connection, rounds=2)
    settings = settings_of(database_url, tmp_path)
    await run.run(settings, NOW, ALL)
    await seal(connection, "rr-late", *({"event_timestamp": OLD, "event_date": OLD.date()} for _ in range(3)))
    assert (await run.run(settings, NOW, ALL)).parts == []
    [unsigned] = [one for one in await run.plan(settings, NOW, ALL) if one.unsigned]
    assert (unsigned.month, unsigned.unsigned, unsigned.archived) == (OLD.date().replace(day=1), 3, 60)
    await publish(connection)
    [late] = (await run.run(settings, NOW, ALL)).parts
    assert (late.events, late.month) == (3, f"{OLD:%Y-%m}")
    assert late.previous is not None
    assert late.previous.archive_id == (await parts_of(settings))[1].archive_id
    assert late.consistency
    assert await problems(settings) == []


async def test_parts_are_bounded(database_url: str, connection: Connection, tmp_path: Path) -> None:
    """A month of any size is sorted at once; or an event at the edge of two parts is in both, or in none."""
    await fill(connection)
    settings = settings_of(database_url, tmp_path)
    done = await run.run(settings, NOW, Selection(month=OLD.date().replace(day=1), part_events=97))
    assert [part.events for part in done.parts] == [97, 97, 97, 9]
    assert {part.month for part in done.parts} == {f"{OLD:%Y-%m}"}
    assert (await verified(settings)).verified == 300
    assert await problems(settings) == []


async def test_part_of_a_month(database_url: str, connection: Connection, tmp_path: Path) -> None:
    """--partial archives an event that is not past archive_after_days, or the rest of the month is never archived."""
    for day in (-1, 0, 1):
        time = OLD + timedelta(days=day)
        await seal(connection, "rr-1", *({"event_timestamp": time, "event_date": time.date()} for _ in range(2)))
    await publish(connection)
    now = OLD + timedelta(days=91)
    settings = settings_of(database_url, tmp_path)
    assert (await run.run(settings, now, ALL)).parts == []
    [part] = (await run.run(settings, now, Selection(partial=True))).parts
    assert part.events == 4
    [month] = [
        one for one in await run.plan(settings, now, Selection(partial=True)) if one.month == OLD.date().replace(day=1)
    ]
    assert (month.events, month.archived, month.due, month.young) == (6, 4, 0, 2)
    [rest] = (await run.run(settings, now + timedelta(days=60), ALL)).parts
    assert rest.events == 2
    assert await problems(settings) == []


async def test_progress(database_url: str, connection: Connection, tmp_path: Path) -> None:
    """Whoever waits sees nothing, or a time left that does not end at 0."""
    await fill(connection, rounds=2)
    shown: list[Progress] = []
    await run.run(settings_of(database_url, tmp_path), NOW, ALL, show=shown.append)
    assert {one.stage for one in shown} == {"writing", "verifying"}
    assert [one.done for one in shown if one.done == one.total] == [60] * 4
    assert {one.seconds_left for one in shown if one.done == one.total} == {0}


async def test_two_runs_exclude_each_other(database_url: str, connection: Connection, tmp_path: Path) -> None:
    """Two runs at once archive the same events twice."""
    await fill(connection, rounds=2)
    settings = settings_of(database_url, tmp_path)
    await connection.execute("SELECT pg_advisory_lock(hashtextextended('datastorage.archive', 0))")
    with pytest.raises(Exception, match="Another run of the archive is under way"):
        await run.run(settings, NOW, ALL)
    await connection.execute("SELECT pg_advisory_unlock_all()")
    assert len((await run.run(settings, NOW, ALL)).parts) == 2


@pytest.mark.damaged
async def test_rows_that_are_not_as_logged_stay(database_url: str, connection: Connection, tmp_path: Path) -> None:
    """A row that somebody has changed gets into the archive as if it had been logged, or keeps all others out of it."""
    await fill(connection, rounds=2)
    await connection.execute("SET session_replication_role = replica")
    await connection.execute("UPDATE audit_events SET actor_id = 'eve' WHERE log_index = 30")
    await connection.execute("UPDATE audit_events SET log_index = 32 WHERE log_index = 31")
    await connection.execute("DELETE FROM audit_events WHERE log_index = 35")
    settings = settings_of(database_url, tmp_path)
    done = await run.run(settings, NOW, ALL)
    assert [part.events for part in done.parts] == [60, 57]
    assert sorted((one.kind, one.position) for one in done.left.listed) == [("edited", 30), ("inserted", 32)]
    assert await problems(settings) == []
    again = await run.run(settings, NOW, ALL)
    assert again.parts == []
    assert [one.position for one in again.left.listed] == [30]
    assert await connection.fetchval("SELECT count(*) FROM archive_attempts") == 0
