"""Retention on a real Postgres: what is due is purged, by month or in batches, and recorded; what is held stays."""

import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import orjson
import pytest
from pydantic import SecretStr

from app.errors import Conflict, Fatal
from app.events.positions import Positions
from app.retention import holds, policies, purge, removal
from app.retention.holds import HoldOrder, Selector
from app.retention.policies import PolicyOrder
from app.settings import Settings
from app.tlog.evidence import read_evidence
from app.tlog.orders import Policy
from tests.logs import FIRST_LOG
from tests.postgres import log
from tests.postgres.test_tampering import PURGED, found_by_each, sign
from tests.sealed import insert, plain_row, seal

pytestmark = pytest.mark.damaged  # the verification at the end of every test does not know purges
NOW = datetime.now(UTC)
MONTH_AGO = (NOW.replace(day=1) - timedelta(days=60)).replace(day=10)
Connection = Any
DAYS = timedelta(days=1)


def settings_of(url: str, **more: Any) -> Settings:
    return Settings(database_url=SecretStr(url), **more)


async def write(url: str, *items: dict[str, Any]) -> list[UUID]:
    return await log.write(url, *({"event_timestamp": MONTH_AGO.isoformat()} | members for members in items))


async def stored(connection: Connection) -> set[UUID]:
    rows = await connection.fetch("SELECT event_id FROM audit_events WHERE event_category <> 'security'")
    return {row["event_id"] for row in rows}


async def self_events(connection: Connection, kind: str) -> list[dict[str, Any]]:
    rows = await connection.fetch(
        "SELECT event_data::text FROM audit_events WHERE event_type = $1 ORDER BY log_index",
        f"datastorage.retention.{kind}",
    )
    return [orjson.loads(row[0]) for row in rows]


async def months(connection: Connection) -> list[str]:
    rows = await connection.fetch(
        "SELECT relname FROM pg_class WHERE relname ~ '^audit_events_\\d{4}_\\d\\d$' AND relkind = 'r'"
    )
    return sorted(row[0] for row in rows)


THE_MONTH = f"audit_events_{MONTH_AGO:%Y_%m}"


async def test_days_are_the_formula(connection: Connection) -> None:
    """An event is purged too early or too late: days = min(ceiling, max(floor, event, category))."""
    pick = random.Random(12)
    values = (None, 1, 30, 90, 400, 2555)
    for _ in range(400):
        event, category, own_floor, own_ceiling = (pick.choice(values) for _ in range(4))
        floor, ceiling = pick.choice((1, 8, 100)), pick.choice((50, 365, 2555))
        most = [days for days in (own_floor or floor, event, category) if days is not None]
        days = min(own_ceiling or ceiling, max(most))
        for age, over in ((days * DAYS, False), (days * DAYS + timedelta(seconds=1), True)):
            found = await connection.fetchval(
                "SELECT is_over($1, $2, 't', $3, p, $4, $5) FROM (SELECT NULL::uuid, 'c'::varchar, $6::int, false, now(), now(),"
                " $7::int, $8::int) AS x, LATERAL (SELECT CASE WHEN $9 THEN x::audit_retention_policies END AS p) AS y",
                *(NOW, NOW - age, event, floor, ceiling, category, own_floor, own_ceiling),
                bool(category or own_floor or own_ceiling),
            )
            assert found is over, (event, category, own_floor, own_ceiling, floor, ceiling)


async def test_whole_month_is_purged(database_url: str, connection: Connection) -> None:
    """A month of which everything is due stays, or is purged without a record, or other months are purged with it."""
    due = await write(database_url, *({"retention_days": 10} for _ in range(3)))
    not_due = await write(database_url, {"event_timestamp": NOW.isoformat(), "retention_days": 10})
    before = await months(connection)
    plan = {one.month.name: one for one in (await purge.plan(settings_of(database_url), NOW))[0]}
    assert (plan[THE_MONTH].whole, plan[THE_MONTH].contents.due) == (True, 3)
    assert await stored(connection) == {*due, *not_due}
    done = await purge.run(settings_of(database_url), NOW)
    assert await stored(connection) == set(not_due)
    assert await months(connection) == [name for name in before if name != THE_MONTH]
    (purged,) = await self_events(connection, "purged")
    assert (purged["positions"], purged["event_count"], purged["partition"]) == ("{[0,3)}", 3, THE_MONTH)
    run = await connection.fetchrow("SELECT * FROM retention_operations")
    assert (run["run_id"], run["status"], run["rows_deleted"], run["partitions_dropped"]) == (
        *(done.run_id, "completed", 3),
        [THE_MONTH],
    )
    assert await connection.fetchval("SELECT sum(octet_length(leaves)) / 32 FROM log_flushes") == 5


async def test_batches_where_something_stays(
    database_url: str, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One event that is not due keeps its month, or is purged with it; parents fail the run; a batch is not recorded."""
    monkeypatch.setattr(purge, "BATCH_ROWS", 2)
    await write(database_url, *({"retention_days": 10, "correlation_id": f"rr-{i}"} for i in range(5)))
    (not_due,) = await write(database_url, {"retention_days": 2555})
    (parent,) = await write(database_url, {"retention_days": 10})
    (child,) = await write(database_url, {"retention_days": 10, "parent_event_id": str(parent)})
    await write(database_url, {"retention_days": 10, "parent_event_id": str(child)})
    (kept_parent,) = await write(database_url, {"retention_days": 10})
    (orphan,) = await write(database_url, {"retention_days": 2555, "parent_event_id": str(kept_parent)})
    done = await purge.run(settings_of(database_url), NOW)
    assert await stored(connection) == {not_due, kept_parent, orphan}
    assert (done.rows_deleted, done.dropped) == (8, [])
    purges = await self_events(connection, "purged")
    assert {one["operation_id"] for one in purges} == {str(done.run_id)}
    assert {one["partition"] for one in purges} == {None}
    assert (
        sum(one["event_count"] for one in purges) == sum(Positions.parse(one["positions"]).size for one in purges) == 8
    )
    positions = await connection.fetchval("SELECT purged_positions(NULL)::text")
    assert positions == "{[0,5),[6,9)}"
    assert (await purge.run(settings_of(database_url), NOW)).rows_deleted == 0


async def test_unsealed_rows_are_purged_too(database_url: str, connection: Connection) -> None:
    """Rows that others inserted by SQL stay for ever, or are not counted separately."""
    await write(database_url, {"retention_days": 10}, {"retention_days": 2555})
    await connection.execute(INSERT.format(days=10, correlation="rr-sql"), MONTH_AGO)
    await connection.execute(INSERT.format(days=2555, correlation="rr-sql"), MONTH_AGO)
    assert (await purge.run(settings_of(database_url), NOW)).rows_deleted == 2
    assert sorted((one["event_count"], one["unsealed_count"]) for one in await self_events(connection, "purged")) == [
        (0, 1),
        (1, 0),
    ]


INSERT = """
INSERT INTO audit_events (event_date, event_timestamp, event_type, event_category, event_action, event_outcome, actor_type,
    actor_id, resource_type, resource_id, correlation_id, event_data, retention_days)
VALUES (($1::timestamptz AT TIME ZONE 'UTC')::date, $1, 't', 'c', 'a', 'success', 's', 'ada', 'Pod', 'p', '{correlation}', '{{}}', {days})
"""


@pytest.mark.parametrize("by", ["sql", "correlation", "actor", "time"])
@pytest.mark.parametrize("whole", [True, False])
async def test_held_events_stay(database_url: str, connection: Connection, by: str, whole: bool) -> None:
    """Retention purges what is held."""
    settings = settings_of(database_url)
    held = await write(database_url, {"retention_days": 10, "correlation_id": "rr-held", "actor_id": "ada"})
    if not whole:
        await write(database_url, {"retention_days": 2555, "correlation_id": "rr-not-due"})
    if by == "sql":
        await connection.execute("UPDATE audit_events SET legal_hold = true WHERE correlation_id = 'rr-held'")
    else:
        selector = {
            "correlation": Selector(correlation_id="rr-held"),
            "actor": Selector(actor_id="ada"),
            "time": Selector(time_from=MONTH_AGO - DAYS, time_to=MONTH_AGO + DAYS),
        }[by]
        await holds.place(settings, FIRST_LOG, selector, HoldOrder("eve", "why"))
        if by != "time":  # a row without a mark
            await connection.execute(INSERT.format(days=1, correlation="rr-held"), MONTH_AGO)
            held.append(await connection.fetchval("SELECT event_id FROM audit_events WHERE log_index IS NULL"))
    await purge.run(settings, NOW)
    assert set(held) <= await stored(connection)


async def test_purged_purges_are_repeated(database_url: str, connection: Connection) -> None:
    """Purged events look removed once the self event that recorded their purge is purged as well."""
    settings = settings_of(database_url)
    await write(database_url, *({"retention_days": 10} for _ in range(3)))
    await purge.run(settings, NOW)
    await write(database_url, {"event_timestamp": NOW.isoformat()})
    later = NOW + 2600 * DAYS
    done = await purge.run(settings, later)
    assert done.rows_deleted == 2
    assert await connection.fetchval("SELECT purged_positions(NULL)::text") == "{[0,5)}"
    assert len(await stored(connection)) == 0


@pytest.mark.parametrize("whole", [True, False])
async def test_forged_purges_are_not_repeated(database_url: str, connection: Connection, whole: bool) -> None:
    """A run takes what somebody inserted for a purge event and repeats its positions, so that the log excuses any removal."""
    await write(database_url, {"event_timestamp": NOW.isoformat(), "retention_days": 2555})
    if not whole:
        await write(database_url, {"retention_days": 2555})
    operation = str(uuid4())
    payload = {"event_type": PURGED, "operation_id": operation, "positions": "{[0,1)}"}
    columns = {
        "event_timestamp": MONTH_AGO,
        "event_date": MONTH_AGO.date(),
        "retention_days": 10,
        "event_category": "security",
    }
    columns |= {"event_type": PURGED, "event_data": orjson.dumps(payload).decode()}
    correlation_id = f"datastorage:retention:{operation}"
    await insert(connection, plain_row(correlation_id, **columns))
    await insert(connection, plain_row(correlation_id, **columns, log_id=0, log_index=2**40))
    # As somebody can who writes to the log as the service does.
    await seal(connection, correlation_id, columns | {"event_type": "workflow.completed"})
    await purge.run(settings_of(database_url), NOW)
    purges = [one for one in await self_events(connection, "purged") if one["operation_id"] != operation]
    assert "{[0,1)}" not in {one["positions"] for one in purges}
    outside = await sign(connection)
    await connection.execute("SET session_replication_role = replica")
    await connection.execute("DELETE FROM audit_events WHERE log_index = 0")
    for kinds in await found_by_each(connection, "rr-1", outside):
        assert kinds & {"removed", "truncated"}


@pytest.mark.parametrize("operation", ["none", "11111111-1111-4111-8111-111111111111"])
async def test_forged_purge_of_a_month(database_url: str, connection: Connection, operation: str) -> None:
    """What somebody inserted for the purge of a month ends every run, or the run takes back what was never purged."""
    ids = await write(database_url, {"retention_days": 10}, {"retention_days": 2555})
    payload = {"event_type": PURGED, "operation_id": operation, "positions": "{[0,2)}", "partition": THE_MONTH}
    columns = {"event_type": PURGED, "event_category": "security", "event_data": orjson.dumps(payload).decode()}
    await insert(connection, plain_row(f"datastorage:retention:{operation}", **columns, log_id=0, log_index=2**40))
    done = await purge.run(settings_of(database_url), NOW)
    assert (done.rows_deleted, done.restored, await stored(connection)) == (1, [], {ids[1]})
    assert await self_events(connection, "restored") == []


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("place", [0, 1])
async def test_position_of_another_event(database_url: str, connection: Connection, whole: bool, place: int) -> None:
    """A run purges a row that was inserted at the position of an event that is not due, so that the log excuses its removal."""
    await write(database_url, *({"event_timestamp": NOW.isoformat(), "retention_days": 2555} for _ in range(2)))
    await write(database_url, *({"retention_days": days} for days in (10, 10 if whole else 2555, 10)))
    due = {"event_timestamp": MONTH_AGO, "event_date": MONTH_AGO.date(), "retention_days": 10}
    for log_index in (place, place, 2**40):
        await insert(connection, plain_row("rr-9", **due, log_id=0, log_index=log_index))
    await purge.run(settings_of(database_url), NOW)
    async with connection.transaction():
        purged = (await read_evidence(connection, FIRST_LOG)).purged
    assert str(purged) == ("{[2,5)}" if whole else "{[2,3),[4,5)}")
    assert await connection.fetchval("SELECT count(*) FROM audit_events WHERE log_index < 2") == 4
    assert (await purge.run(settings_of(database_url), NOW)).rows_deleted == 0
    outside = await sign(connection)
    for kinds in await found_by_each(connection, "rr-9", outside):
        assert kinds & {"inserted", "edited"}
    await connection.execute("SET session_replication_role = replica")
    await connection.execute("DELETE FROM audit_events WHERE log_index = $1", place)
    for kinds in await found_by_each(connection, "rr-1", outside):
        assert kinds & {"removed", "truncated"}


async def test_claim_outlives_the_row(database_url: str) -> None:
    """An id that a client chose is accepted again once its event was purged."""
    posted: dict[str, Any] = {"retention_days": 10, "event_id": str(uuid4())}
    await write(database_url, posted)
    await write(database_url, posted | {"event_id": str(uuid4()), "retention_days": 2555})
    await purge.run(settings_of(database_url), NOW)
    assert await write(database_url, posted) == [UUID(posted["event_id"])]
    with pytest.raises(Conflict):
        await write(database_url, posted | {"event_action": "other"})
    done = await purge.run(settings_of(database_url), NOW)
    assert done.rows_deleted == 0


class Crash(Exception):
    """The process ends here."""


STEPS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {}


def step(function: Callable[[pytest.MonkeyPatch], None]) -> Callable[[pytest.MonkeyPatch], None]:
    STEPS[function.__name__] = function
    return function


@step
def told_only(patch: pytest.MonkeyPatch) -> None:
    async def crash(*_: object) -> None:
        raise Crash

    patch.setattr(removal, "_detach", crash)


@step
def half_detached(patch: pytest.MonkeyPatch) -> None:
    async def crash(connection: Connection, month: Any) -> None:
        # A reader in the way lets the first half of DETACH CONCURRENTLY commit and the second one time out.
        url = connection_url(connection)
        reader = await asyncpg.connect(url)
        await reader.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        await reader.execute("SELECT count(*) FROM audit_events")
        await connection.execute("SET lock_timeout = '200ms'; SET statement_timeout = '500ms'")
        with pytest.raises(Fatal, match="another session uses the table"):
            await detach(connection, month)
        await reader.close()
        raise Crash

    detach = removal._detach
    patch.setattr(removal, "_detach", crash)


@step
def detached(patch: pytest.MonkeyPatch) -> None:
    async def crash(connection: Connection, month: Any) -> None:
        await detach(connection, month)
        raise Crash

    detach = removal._detach
    patch.setattr(removal, "_detach", crash)


URLS: dict[str, str] = {}


def connection_url(connection: Connection) -> str:
    del connection
    return URLS["now"]


@pytest.mark.parametrize("crash", STEPS)
async def test_next_run_finishes(
    database_url: str, connection: Connection, monkeypatch: pytest.MonkeyPatch, crash: str
) -> None:
    """A month stays half removed for ever after a crash, in whatever step, or its purge is recorded twice."""
    URLS["now"] = database_url
    settings = settings_of(database_url)
    await write(database_url, *({"retention_days": 10} for _ in range(3)))
    with monkeypatch.context() as patch:
        STEPS[crash](patch)
        with pytest.raises(Crash):
            await purge.run(settings, NOW)
    assert THE_MONTH in await months(connection)
    done = await purge.run(settings, NOW)
    assert done.dropped == [THE_MONTH]
    assert THE_MONTH not in await months(connection)
    assert len(await self_events(connection, "purged")) == 1
    assert await self_events(connection, "restored") == []
    runs = await connection.fetch("SELECT status FROM retention_operations ORDER BY id")
    assert [run["status"] for run in runs] == ["failed", "completed"]


@pytest.mark.parametrize("crash", STEPS)
@pytest.mark.parametrize("how", ["sql", "policy"])
async def test_month_is_put_back(
    database_url: str, connection: Connection, monkeypatch: pytest.MonkeyPatch, crash: str, how: str
) -> None:
    """What was held, or became not due, between two steps of a removal is lost; or the log says that it is purged."""
    URLS["now"] = database_url
    settings = settings_of(database_url)
    ids = await write(database_url, *({"retention_days": 10} for _ in range(3)))
    with monkeypatch.context() as patch:
        STEPS[crash](patch)
        with pytest.raises(Crash):
            await purge.run(settings, NOW)
    if how == "sql":
        await connection.execute(f"UPDATE {THE_MONTH} SET legal_hold = true WHERE log_index = 1")
    else:
        order = PolicyOrder("eve", "why")
        await policies.set_policy(settings, FIRST_LOG, "orchestration", Policy(2555), order)
    done = await purge.run(settings, NOW)
    assert done.restored == [THE_MONTH]
    assert ids[1] in await stored(connection)
    (purged, *later), (restored,) = await self_events(connection, "purged"), await self_events(connection, "restored")
    assert (restored["operation_id"], restored["positions"]) == (purged["operation_id"], "{[0,3)}")
    # The rows that are due all the same are purged in batches.
    assert len(await stored(connection)) == (1 if how == "sql" else 3)
    assert [one["positions"] for one in later] == (["{[0,1),[2,3)}"] if how == "sql" else [])
    await connection.execute("SELECT ensure_partitions($1, $1)", MONTH_AGO.date())
    triggers = "SELECT count(*) FROM pg_trigger WHERE tgrelid = $1::text::regclass"
    assert await connection.fetchval(triggers, THE_MONTH) == await connection.fetchval(triggers, "audit_events")


async def test_late_event_in_a_new_month_of_that_name(database_url: str, connection: Connection) -> None:
    """A month that was created again after its removal is treated as the rest of it, and late events are dropped."""
    settings = settings_of(database_url)
    await write(database_url, {"retention_days": 10})
    assert (await purge.run(settings, NOW)).dropped == [THE_MONTH]
    (late,) = await write(database_url, {"retention_days": 2555})
    done = await purge.run(settings, NOW)
    assert (done.dropped, done.restored) == ([], [])
    assert await stored(connection) == {late}


async def test_detached_by_hand(database_url: str, connection: Connection) -> None:
    """A month that somebody has detached without a purge is dropped, or stops every run."""
    settings = settings_of(database_url)
    await write(database_url, {"retention_days": 10})
    await connection.execute(f"ALTER TABLE audit_events DETACH PARTITION {THE_MONTH}")
    done = await purge.run(settings, NOW)
    assert (done.dropped, done.restored) == ([], [])
    assert await connection.fetchval(f"SELECT count(*) FROM {THE_MONTH}") == 1


async def test_one_run_at_a_time(database_url: str, connection: Connection) -> None:
    """Two runs purge the same events twice over."""
    await connection.execute("SELECT pg_advisory_lock(hashtextextended('datastorage.retention', 0))")
    with pytest.raises(Fatal, match="Another retention run"):
        await purge.run(settings_of(database_url), NOW)
