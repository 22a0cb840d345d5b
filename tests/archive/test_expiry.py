"""The end of retention in the archive: a part that is over goes as a whole, and what is not over, or held, stays."""

import asyncio
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import orjson
import pyarrow as pa
import pytest
from pydantic import SecretStr

from app.archive import run
from app.archive.compare import list_recorded
from app.archive.expiring import Expiries, Outlook
from app.archive.finding import archive_search
from app.archive.rules import Holds, Judged, Rules
from app.archive.session import Selection
from app.archive.storage import StorageAway
from app.archive.table import ARROW_SCHEMA
from app.archive.writing import connect_archive
from app.cli import main
from app.errors import AuditError, Fatal, NotFound
from app.events.catalog import Catalog
from app.export.bundle import parse
from app.export.bundle_check import check_bundle
from app.ingest.self_events import self_event
from app.retention import holds, purge
from app.retention.erase import Erasure, erase
from app.retention.holds import HoldOrder
from app.retention.in_force import InForce
from app.retention.logged import action_store, commit_action
from app.retention.policies import PolicyOrder, set_policy
from app.retention.policy import Terms
from app.settings import Settings
from app.tlog.orders import Policy
from app.verify.correlation import verify_correlation
from tests.archive.archived import (
    ALL,
    DAYS,
    NOW,
    OLD,
    OLDER,
    PEM,
    PUBLIC,
    Connection,
    files_of,
    fill,
    folder_of,
    parts_of,
    problems,
    publish,
    settings_of,
    verified,
)
from tests.archive.test_faults import Faults
from tests.archive.test_killed import SELECTION, Killed, nothing_else_is_there
from tests.archive.test_killed import killed as killed  # noqa: PLC0414 -- a fixture
from tests.archive.test_one_correlation import bundle_of, fill_story, timeline_of
from tests.archive.test_one_correlation import verified as chain_of
from tests.archive.test_reading import Start, client_of
from tests.archive.test_removal import database_result, hold, nothing_else
from tests.logs import FIRST_LOG
from tests.postgres.test_continue import continued
from tests.postgres.test_continue import settings_of as settings_of_continued
from tests.postgres.test_roles import roles as roles  # noqa: PLC0414 -- a fixture
from tests.sealed import seal

pytestmark = pytest.mark.damaged  # the verification at the end of every test does not know purges
EXPIRING = Selection(expire=True)


def expiring(url: str, directory: Path, **more: Any) -> Settings:
    return settings_of(url, directory, **DAYS | more)


async def removed(settings: Settings) -> None:
    """Archive all that is due, and remove it from Postgres."""
    await run.run(settings, NOW, replace(ALL, remove=True))


async def expire(settings: Settings, **more: Any) -> Expiries:
    done = (await run.run(settings, NOW, Selection(expire=True, **more))).expiries
    assert done is not None
    return done


async def outlook(settings: Settings) -> list[Outlook]:
    return await run.plan_expiry(settings, NOW, ALL)


async def counts(connection: Connection) -> tuple[int, int]:
    """How many positions are archived, and how many purged; verification finds nothing wrong."""
    result = await database_result(connection)
    assert result.defects.listed == []
    assert result.events.total + result.events.archived + result.events.purged == result.size
    return result.events.archived, result.events.purged


async def told_of(connection: Connection) -> list[dict[str, Any]]:
    """The payloads of the events that say that parts have expired."""
    rows = await connection.fetch(
        "SELECT event_data FROM audit_events WHERE event_type = 'datastorage.archive.expired' "
        "AND correlation_id LIKE 'datastorage:%' ORDER BY log_index"
    )
    return [orjson.loads(row[0]) for row in rows]


async def test_a_part_that_is_over(database_url: str, connection: Connection, tmp_path: Path) -> None:
    """A part stays for ever; or it is gone, and its events are called lost, or archived."""
    await fill(connection, rounds=2)
    settings = expiring(database_url, tmp_path)
    await removed(settings)
    assert await counts(connection) == (120, 0)
    assert [(one.is_due, one.judged.events, one.in_postgres) for one in await outlook(settings)] == [(True, 60, 0)] * 2
    older, old = await parts_of(settings)
    done = await expire(settings, month=OLDER.date().replace(day=1))
    assert [(one.part.archive_id, one.events) for one in done.expired] == [(older.archive_id, 60)]
    assert (done.waiting, done.refused) == ([], [])
    assert await counts(connection) == (60, 60)
    assert [one.archive_id for one in await parts_of(settings)] == [old.archive_id]
    after = await verified(settings)
    assert (after.problem_count, after.undeleted, after.unknown, after.verified) == (0, [], [], 60)
    assert [one.part.archive_id for one in after.expired] == [older.archive_id]
    assert await problems(settings) == []
    assert not folder_of(older).exists()
    [expiry] = (await list_recorded(settings))[0].expired
    assert all(str(expiry.expiry_id) in name or str(old.archive_id) in name for name in files_of(tmp_path))
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        chain = await verify_correlation(connection, f"rr-{OLDER:%m}-0", FIRST_LOG)
    assert (chain.is_valid, chain.archived_total, chain.purged_total) == (True, 0, 30)
    [told] = await told_of(connection)
    assert (told["archive_id"], told["positions"]) == (str(older.archive_id), str(older.positions))
    assert (told["manifest_sha256"], told["event_count"]) == (older.manifest_sha256, 60)
    assert [one["category"] for one in told["policies"]] == ["x"]
    # And then the last one: the table has no file any more.
    assert len((await expire(settings)).expired) == 1
    assert await counts(connection) == (0, 120)
    after = await verified(settings)
    assert (after.problem_count, len(after.expired), after.verified) == (0, 2, 0)
    assert await connection.fetchval("SELECT count(*) FROM archive_attempts") == 0
    again = await run.run(settings, NOW, EXPIRING)
    assert again.expiries is not None
    assert (again.parts, again.expiries.expired, again.pending) == ([], [], [])
    # What comes later is archived, and names the part before it, which is not there any more.
    old_event = {"event_timestamp": OLD, "event_date": OLD.date()}
    await seal(connection, "rr-late", old_event, old_event)
    await publish(connection)
    [late] = (await run.run(settings, NOW, ALL)).parts
    assert late.previous is not None
    assert late.previous.archive_id == old.archive_id
    assert await problems(settings) == []


async def test_what_makes_a_part_stay(database_url: str, connection: Connection, tmp_path: Path) -> None:
    """One event of a part is not over, or held, and is gone with the others."""
    old = {"event_timestamp": OLD, "event_date": OLD.date()}
    resource = {"resource_type": "Pod", "resource_id": "api-7", "actor_id": "eve"}
    await seal(connection, "rr-1", old, old | resource | {"event_category": "kept", "retention_days": 20})
    await publish(connection)
    settings = expiring(database_url, tmp_path)
    await run.run(settings, NOW, ALL)
    [waiting] = (await expire(settings)).waiting
    assert "is over, but 2 of its events are in Postgres" in waiting
    await removed(settings)

    async def stays(**expected: Any) -> None:
        assert await expire(settings) == Expiries(), expected
        [one] = await outlook(settings)
        assert not one.is_due, expected
        found = {"held": one.judged.held, "not_over": one.judged.not_over, "until": one.until}
        assert found == {"held": 0, "not_over": 0, "until": None} | expected

    settings = expiring(database_url, tmp_path, retention_ceiling_days=2555, retention_floor_days=400)
    await stays(not_over=2, until=OLD + timedelta(days=2555))
    settings = expiring(database_url, tmp_path)
    by = PolicyOrder("eve", "why")
    await set_policy(settings, FIRST_LOG, "kept", Policy(900, ceiling_days=1000), by)
    await stays(not_over=1, until=OLD + timedelta(days=900))
    await set_policy(settings, FIRST_LOG, "kept", Policy(10, floor_days=700, ceiling_days=1000), by)
    await stays(not_over=1, until=OLD + timedelta(days=700))
    await set_policy(settings, FIRST_LOG, "kept", Policy(1), by)
    for selector, held in (
        ({"correlation_id": "rr-1"}, 2),
        ({"actor_id": "eve"}, 1),
        ({"resource_type": "Pod", "resource_id": "api-7"}, 1),
        ({"time_from": OLD, "time_to": OLD}, 2),
    ):
        placed = await hold(settings, **selector)
        await stays(held=held)
        [one] = await outlook(settings)
        assert one.judged.holds == {str(placed.hold_id)}
        await connection.execute("SET session_replication_role = replica")
        await connection.execute("DELETE FROM holds WHERE hold_id = $1", placed.hold_id)  # the log has it still
        await connection.execute("SET session_replication_role = origin")
        assert [one.kind for one in (await expire(settings)).differences] == ["hold removed"]
        assert [one.judged.held for one in await outlook(settings)] == [held]
        await holds.release(settings, FIRST_LOG, placed.hold_id, HoldOrder("eve", "over"))
    await hold(settings, actor_id="somebody else")
    await hold(settings, resource_type="Job", resource_id="api-7")
    await hold(settings, time_from=OLD + timedelta(microseconds=1), time_to=NOW)
    assert [one.events for one in (await expire(settings)).expired] == [2]
    assert await counts(connection) == (0, 2)


async def test_what_is_never_purged(database_url: str, connection: Connection, tmp_path: Path) -> None:
    """No part ever expires, since each has events of the archive's own; or such an event is gone with its part."""
    old = {"event_timestamp": OLD, "event_date": OLD.date()}
    judging = old | {"event_type": "datastorage.finding.recorded"}
    await seal(connection, "rr-1", old, judging, old)
    await seal(
        connection,
        "rr-2",
        {"event_timestamp": OLDER, "event_date": OLDER.date()} | {"event_type": "datastorage.archive.expired"},
    )
    await publish(connection)
    settings = expiring(database_url, tmp_path)
    await removed(settings)
    assert await counts(connection) == (2, 0)
    assert [(one.is_due, one.judged.without_end) for one in await outlook(settings)] == [(False, [3]), (True, [1])]
    await connection.execute("SET session_replication_role = replica")
    await connection.execute("UPDATE audit_events SET error_code = 'eve' WHERE log_index = 1")
    done = await expire(settings)
    assert (done.expired, [why.rpartition(": ")[2] for why in done.refused]) == (
        [],
        ["1 of its events are never purged, and have no row that is as the log has it"],
    )
    await connection.execute("UPDATE audit_events SET error_code = NULL WHERE log_index = 1")
    assert [one.events for one in (await expire(settings)).expired] == [2]
    assert await counts(connection) == (0, 2)
    assert [one["positions"] for one in await told_of(connection)] == ["{[0,1),[2,3)}"]
    again = await run.run(settings, NOW, replace(EXPIRING, remove=True))
    assert again.parts == []  # its row is in Postgres, and not archived anew
    assert len(await parts_of(settings)) == 1
    assert await problems(settings) == []


async def test_rows_that_are_missing(database_url: str, connection: Connection, tmp_path: Path) -> None:
    """A part goes that is the only copy of rows of which nobody knows why they are missing."""
    await fill(connection, rounds=1)
    settings = expiring(database_url, tmp_path)
    await removed(settings)
    await run.run(settings, NOW, ALL)
    old = {"event_timestamp": OLD, "event_date": OLD.date()}
    await seal(connection, "rr-1", old, old)
    await publish(connection)
    await run.run(settings, NOW, ALL)
    await connection.execute("SET session_replication_role = replica")
    await connection.execute("DELETE FROM audit_events WHERE correlation_id = 'rr-1'")
    done = await expire(settings)
    assert [one.events for one in done.expired] == [30, 30]
    [why] = done.refused
    assert "2 of its events have no row, and the log does not say why" in why
    assert len(await parts_of(settings)) == 1


async def test_rows_go_first_by_a_purge(database_url: str, connection: Connection, tmp_path: Path) -> None:
    """What was purged after it was archived stays in the archive for ever."""
    await fill(connection, rounds=1)
    settings = expiring(database_url, tmp_path)
    await run.run(settings, NOW, ALL)
    assert [one.in_postgres for one in await outlook(settings)] == [30, 30]
    assert (await purge.run(settings, NOW)).rows_deleted == 60
    assert await counts(connection) == (60, 0)
    assert [one.events for one in (await expire(settings)).expired] == [30, 30]
    assert await counts(connection) == (0, 60)


async def test_tampering(database_url: str, connection: Connection, tmp_path: Path) -> None:
    """Files of a part that has expired, or of the table before, are there again, and nobody is told; or a changed part expires."""
    await fill(connection, rounds=2)
    settings = expiring(database_url, tmp_path)
    await removed(settings)
    archive, kept = tmp_path / "archive", tmp_path / "kept"
    shutil.copytree(archive, kept)
    pointer = await connection.fetchval("SELECT metadata_location FROM iceberg_tables")
    [older, _] = await parts_of(settings)
    for name in ("events-0.parquet", "tiles", "manifest.json"):
        (folder_of(older) / name).unlink()
        assert any(one.startswith("removed: ") for one in await problems(settings)), name
        refused = (await expire(settings, month=OLDER.date().replace(day=1))).refused
        assert [why.rpartition("expire: ")[2][:8] for why in refused] == ["removed:"], name
        content = bytearray((kept / folder_of(older).relative_to(archive) / name).read_bytes())
        content[len(content) // 2] ^= 1
        (folder_of(older) / name).write_bytes(content)
        done = await expire(settings, month=OLDER.date().replace(day=1))
        assert (done.expired, len(done.refused)) == ([], 1), name
        shutil.copytree(kept, archive, dirs_exist_ok=True)
    for first, end in ((4, -4000), (-4000, -8)):  # pages, and what says where they are
        file = folder_of(older) / "events-0.parquet"
        content = bytearray(file.read_bytes())
        content[first:end] = bytes(len(content[first:end]))
        file.write_bytes(content)
        assert "edited: events-0.parquet is not as it was signed" in (await outlook(settings))[0].problem
        [why] = (await expire(settings, month=OLDER.date().replace(day=1))).refused
        assert "edited: events-0.parquet is not as it was signed" in why
        shutil.copytree(kept, archive, dirs_exist_ok=True)
    assert len((await expire(settings, month=OLDER.date().replace(day=1))).expired) == 1
    assert await problems(settings) == []
    shutil.copytree(kept / folder_of(older).relative_to(archive), folder_of(older))
    assert await problems(settings, "manifests") == [
        f"inserted: files of the part {older.archive_id} of {OLDER:%Y-%m}, which has expired, are there again"
    ]
    shutil.copytree(kept / "metadata", archive / "metadata", dirs_exist_ok=True)
    await connection.execute("UPDATE iceberg_tables SET metadata_location = $1", pointer)
    found = await problems(settings, "manifests")
    assert {one.partition(":")[0] for one in found} == {"inserted"}
    assert any("which is of no part that the log records" in one for one in found)
    assert any("is of the table before a part was replaced, or has expired" in one for one in found)


@pytest.mark.parametrize("act", ["another manifest", "too early", "no policies", "more than it has", "no such part"])
async def test_an_expiry_that_is_not_true(database_url: str, connection: Connection, tmp_path: Path, act: str) -> None:
    """Somebody with the role for retention has the log say that a part has expired, and nobody is told why that is wrong."""
    await fill(connection, rounds=1)
    settings = settings_of(database_url, tmp_path)
    await removed(settings)
    part, _ = await parts_of(settings)
    followed = {
        "category": "x",
        "floor_days": 1,
        "ceiling_days": 30,
        "newest": f"{NOW - timedelta(days=40):%Y-%m-%dT%H:%M:%S.%fZ}",
    }
    payload = {
        "event_type": "datastorage.archive.expired",
        "archive_id": str(uuid4() if act == "no such part" else part.archive_id),
        "expiry_id": str(uuid4()),
        "log_id": 0,
        "month": part.month,
        "manifest_sha256": "0" * 64 if act == "another manifest" else part.manifest_sha256,
        "positions": "{[0,40)}" if act == "more than it has" else str(part.positions),
        "event_count": 30,
        "cutoff": NOW.isoformat(),
        "policies": []
        if act == "no policies"
        else [followed | ({"ceiling_days": 900, "floor_days": 800} if act == "too early" else {})],
    }
    async with action_store(settings, FIRST_LOG) as store:
        event = self_event(FIRST_LOG.name, payload, about=UUID(str(payload["archive_id"])))
        await commit_action(store, [event], nothing_else)
    [defect] = [one for one in (await database_result(connection)).defects.listed if one.kind == "early purge"]
    assert f"the expiry of part {payload['archive_id']} at position" in defect.message
    is_believed = act in {"too early", "no policies"}
    assert len(await parts_of(settings)) == 2 - is_believed
    assert any("has expired, are there again" in one for one in await problems(settings)) == is_believed
    assert folder_of(part).exists()
    await run.run(settings, NOW, ALL)
    assert folder_of(part).exists()


async def test_erased_and_expired(database_url: str, connection: Connection, tmp_path: Path) -> None:
    """A part that was written again, or is to be, does not expire, or leaves something; or what has expired is looked for."""
    await fill(connection, rounds=2)
    settings = expiring(database_url, tmp_path)
    await removed(settings)
    search = archive_search(settings)

    async def erase_all(correlation: str) -> int:
        order = Erasure("asked for", "tests", correlation_id=correlation)
        return (await erase(settings, Catalog(), order, dry_run=False, search_archive=search)).archived

    assert await erase_all(f"rr-{OLDER:%m}-0") == 30
    done = await run.run(settings, NOW, EXPIRING)
    assert done.expiries is not None
    assert (len(done.rewritten), [one.events for one in done.expiries.expired]) == (1, [60, 60])
    after = await verified(settings)
    assert (after.problem_count, after.pending, after.undeleted, after.unknown) == (0, [], [], [])
    assert [len(one.part.replaced) for one in after.expired] == [1, 0]
    left = {name for name in files_of(tmp_path) if not name.startswith("metadata/")}
    assert {name.rpartition("/")[2] for name in left} == {"expired.json"}
    assert len(left) == 2
    assert await erase_all(f"rr-{OLD:%m}-0") == 0
    with pytest.raises(NotFound):
        await hold(settings, correlation_id=f"rr-{OLD:%m}-0")
    assert await counts(connection) == (0, 120)


async def test_never_purged(connection: Connection) -> None:
    """The event that says that a part has expired is purged itself."""
    due = "SELECT is_over(now(), '-infinity', 'datastorage.archive.expired', 1, NULL::audit_retention_policies, 1, 1)"
    assert await connection.fetchval(due) is False


async def test_rules_are_those_of_a_purge(database_url: str, connection: Connection) -> None:
    """What is over, or held, of the archive is something else than in Postgres."""
    times = [NOW - timedelta(days=days, microseconds=one) for days in (9, 10, 11, 40, 400) for one in (0, 1)]
    settings = settings_of(database_url, Path("/nowhere"), retention_floor_days=10, retention_ceiling_days=100)
    by = PolicyOrder("eve", "why")
    await set_policy(settings, FIRST_LOG, "short", Policy(40, floor_days=5, ceiling_days=11), by)
    await set_policy(settings, FIRST_LOG, "long", Policy(40, ceiling_days=900), by)
    for selector in (
        {"correlation_id": "c-1"},
        {"actor_id": "a-1"},
        {"resource_type": "t-1", "resource_id": "r-1"},
        {"time_from": times[6], "time_to": times[5]},
    ):
        if "correlation_id" in selector:
            await seal(connection, "c-1", {})
        await hold(settings, **selector)
    rows = [
        {
            "event_timestamp": time,
            "event_category": ("short", "long", "none")[number % 3],
            "event_type": ("x", "datastorage.hold.placed", "datastorage.retention.purged")[number % 5 % 3],
            "retention_days": (None, 1, 11, 2555)[number % 4],
            "correlation_id": f"c-{number % 2}",
            "actor_id": f"a-{number % 3}",
            "resource_type": f"t-{number % 2}",
            "resource_id": f"r-{number % 4}",
            "log_index": number,
        }
        for number, time in enumerate(times * 12)
    ]
    connection_of_rules = await connect_archive(settings)
    try:
        in_force, terms = InForce(), Terms.of(settings, NOW)
        await in_force.refresh(connection_of_rules, FIRST_LOG)
        rules = Rules(connection_of_rules, terms, await Holds.read(connection_of_rules))
        outcomes = set()
        for row in rows:
            judged = Judged()
            table = pa.Table.from_pylist([row], schema=pa.schema([ARROW_SCHEMA.field(name) for name in row]))
            await rules.add(judged, lambda name, table=table: table.column(name).combine_chunks())  # type: ignore[misc]
            found = await connection_of_rules.fetchrow(
                "SELECT is_over($1, $4, $5, $6, p, $2, $3) AS over, hold_of($8, $9, $10, $11, $4) IS NOT NULL AS held "
                "FROM (SELECT $7::text AS category) c LEFT JOIN followed_policies() p ON p.event_category = c.category",
                *terms.columns(),
                *(row[name] for name in ("event_timestamp", "event_type", "retention_days", "event_category")),
                *(row[name] for name in ("correlation_id", "actor_id", "resource_type", "resource_id")),
            )
            assert found is not None
            assert (bool(judged.newest), bool(judged.held)) == (found["over"], found["held"]), row
            outcomes.add((found["over"], found["held"], bool(judged.without_end)))
        assert len(outcomes) == 6
    finally:
        await connection_of_rules.close()


EXPIRING_STEPS = (
    "expiry begun",
    "notice written",
    "table written",
    "committing",
    "expired",
    "expired deleted",
    "attempt deleted",
)
"""The last one needs something that another one has left."""


async def test_killed_at_every_step(database_url: str, connection: Connection, tmp_path: Path, killed: Killed) -> None:
    """A run that was killed while a part expires leaves files for ever, or a part that is there only half."""
    await fill(connection, rounds=2)
    settings = expiring(database_url, tmp_path)
    await run.run(settings, NOW, replace(SELECTION, remove=True))
    await run.run(settings, NOW, replace(ALL, remove=True))
    assert [part.positions.size for part in await parts_of(settings)] == [25, 25, 10, 60]
    met, purged = set(), 0
    for step in (*EXPIRING_STEPS[:-1], "table written", EXPIRING_STEPS[-1]):
        code, steps = await killed(f"expire {step}")
        assert (code, steps[-1]) == (-9, step)
        met |= set(steps)
        assert await problems(settings, "manifests") == [], step
        archived, now_purged = await counts(connection)
        assert archived + now_purged == 120
        assert (now_purged > purged) == ("expired" in steps), step
        purged = now_purged
        after = await verified(settings, "manifests")
        assert (bool(after.undeleted), after.unknown) == (step in {"expired", "expired deleted"}, []), step
    assert met == set(EXPIRING_STEPS)
    code, _ = await killed("expire ")
    assert code == 0
    assert await counts(connection) == (60, 60)
    result = await verified(settings)
    assert (result.problem_count, result.verified, result.undeleted, result.unknown) == (0, 60, [], [])
    await nothing_else_is_there(settings, connection, tmp_path)
    assert await killed("expire ") == (0, [])


async def test_a_storage_that_fails(
    database_url: str, connection: Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fault while a part expires has it half there, or lets the archive look as if somebody had changed it."""
    await fill(connection, rounds=2)
    settings = expiring(database_url, tmp_path)
    await removed(settings)
    faults, at, failed = Faults(monkeypatch), 0, 0
    while True:
        at += 1
        faults.begin(at)
        try:
            done = await run.run(settings, NOW, EXPIRING)
        except StorageAway:
            done = None
        made = faults.count
        faults.begin(0)
        assert await problems(settings, "manifests") == [], at
        assert sum(await counts(connection)) == 120
        if done is not None and made < at:
            break
        failed += 1
    assert failed > 20
    assert await counts(connection) == (0, 120)
    result = await verified(settings)
    assert (result.problem_count, len(result.expired), result.undeleted, result.unknown) == (0, 2, [], [])
    await nothing_else_is_there(settings, connection, tmp_path)


async def test_a_continued_log(database_url: str, connection: Connection, tmp_path: Path) -> None:
    """Parts of a log that is closed do not expire, or the log that is written to has other positions expired."""
    await continued(connection, database_url)
    terms = {"archive_url": f"file://{tmp_path}/archive"} | DAYS
    settings = settings_of_continued(database_url).model_copy(update=terms)
    later = NOW + timedelta(days=200)  # so that all of it is due
    await run.run(settings, later, replace(ALL, remove=True))
    before = (await database_result(connection)).events
    of_log = [part.log_id for part in await parts_of(settings)]
    done = (await run.run(settings, later, EXPIRING)).expiries
    assert done is not None
    assert {one.part.log_id for one in done.expired} == {0, 1} == {*of_log}
    after = (await database_result(connection)).events
    gone = sum(one.events for one in done.expired)
    assert (after.archived, after.purged + after.lost) == (before.archived - gone, before.purged + before.lost + gone)
    assert after.missing == before.missing


async def test_with_roles(
    roles: Callable[[str], str], database_url: str, connection: Connection, tmp_path: Path
) -> None:
    """The role for retention cannot have a part expire, or the service's role can."""
    await fill(connection, rounds=2)
    urls = {name: SecretStr(roles(f"datastorage_{name}")) for name in ("service", "retention")}
    settings = expiring(database_url, tmp_path).model_copy(update={"database_url": urls["service"]})
    both = settings.model_copy(update={"retention_url": urls["retention"]})
    await removed(both)
    with pytest.raises(AuditError):
        await expire(settings)
    assert len(await parts_of(both)) == 2
    assert [one.events for one in (await expire(both)).expired] == [60, 60]
    assert await counts(connection) == (0, 120)


async def test_retention_and_expiry_exclude_each_other(
    database_url: str, connection: Connection, tmp_path: Path
) -> None:
    """A month that a retention run may put back expires meanwhile."""
    await fill(connection, rounds=1)
    settings = expiring(database_url, tmp_path)
    await removed(settings)
    await connection.execute("SELECT pg_advisory_lock(hashtextextended('datastorage.retention', 0))")
    with pytest.raises(Fatal, match="A retention run is under way"):
        await expire(settings)
    await connection.execute("SELECT pg_advisory_unlock_all()")
    await connection.execute(f"ALTER TABLE audit_events DETACH PARTITION audit_events_{OLD:%Y_%m}")
    done = await expire(settings)
    assert [one.part.month for one in done.expired] == [f"{OLDER:%Y-%m}"]
    assert ["has to finish what it has begun with this month" in why for why in done.refused] == [True]


async def test_what_the_service_shows(
    database_url: str, connection: Connection, tmp_path: Path, service: Start
) -> None:
    """What has expired is shown; or a chain of which a month has is broken, or cannot be read any more."""
    await fill_story(connection)
    settings = expiring(database_url, tmp_path)
    await removed(settings)
    with client_of(service, settings, tmp_path) as client:

        def shown() -> tuple[int, int]:
            page = client.get("/api/v1/audit/events", params={"archive": "include", "correlation_id": "rr-story"})
            assert page.status_code == 200, page.text
            return len(page.json()["data"]), timeline_of(client)["event_count"]

        def chain() -> list[int]:
            found = chain_of(client)
            names = ("is_valid", "verified_events", "purged_events", "archived_events")
            return [found.get(name, 0) for name in names]

        assert shown() == (43, 43)
        assert chain() == [True, 43, 0, 29]
        assert len((await expire(settings, month=OLDER.date().replace(day=1))).expired) == 1
        assert shown() == (28, 28)
        assert chain() == [True, 28, 15, 14]
        bundle = parse(bundle_of(client))
        assert len(bundle.bundle.events) == 28
        assert not check_bundle(bundle_of(client), [PUBLIC]).problems
        assert len((await expire(settings)).expired) == 1
        assert shown() == (14, 14)
        assert chain() == [True, 14, 29, 0]
    await counts(connection)


async def test_commands(
    database_url: str,
    connection: Connection,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A command does not say what would expire, or has, or why not; or what stays cannot be verified without what is gone."""
    await fill(connection, rounds=1)
    settings = expiring(database_url, tmp_path)
    await run.run(settings, NOW, ALL)
    [older, old] = await parts_of(settings)
    key = tmp_path / "key"
    key.write_text(PEM)
    named = {"database_url": database_url, "archive_url": str(settings.archive_url), "checkpoint_key_file": key}
    for name, value in (named | DAYS).items():
        monkeypatch.setenv(f"DATASTORAGE_{name.upper()}", str(value))

    monkeypatch.setattr("signal.signal", lambda *_: None)  # not in the main thread, which has the connection

    async def told(*command: str, code: int = 0) -> str:
        monkeypatch.setattr(sys, "argv", ["datastorage", *command])
        assert await asyncio.to_thread(main) == code
        return "".join(capsys.readouterr())

    assert "is over, but 30 of its events are in Postgres" in await told("archive", "run", "--expire")
    assert "Nothing of the archive has expired" not in await told("archive", "run", "--remove")
    planned = [orjson.loads(line) for line in (await told("archive", "plan", "--expire", "--json")).splitlines()]
    assert [(one["expires"], one["not_over"], one["held"], one["in_postgres"]) for one in planned] == [
        (True, 0, 0, 0)
    ] * 2
    assert "yes" in await told("archive", "plan", "--expire")
    placed = await hold(settings, correlation_id=f"rr-{OLD:%m}-0")
    assert str(placed.hold_id) in await told("archive", "plan", "--expire", "--json")
    ran = await told("archive", "run", "--expire")
    assert f"part {older.archive_id} has expired, its 30 events are purged" in ran
    assert str(old.archive_id) not in ran
    verified_now = await told("archive", "verify")
    assert "1 part(s) have expired: 30 events of them are purged" in verified_now
    listed = [orjson.loads(line) for line in (await told("archive", "list", "--json")).splitlines()]
    assert [one["expired_at"] is None for one in listed] == [False, True]
    public = tmp_path / "log.vkey"
    public.write_text(f"{PUBLIC}\n")
    assert "1 part(s) are complete and unchanged" in await told(
        "verify-archive", str(tmp_path / "archive"), "--key", str(public)
    )
    assert "no such part" in await told(
        "archive", "restore", "--part", str(older.archive_id), "--output", str(tmp_path / "x"), code=2
    )
    (folder_of(old) / "tiles").unlink()
    await holds.release(settings, FIRST_LOG, placed.hold_id, HoldOrder("eve", "over"))
    assert "does not expire: removed: tiles is missing" in await told("archive", "run", "--expire", code=1)
