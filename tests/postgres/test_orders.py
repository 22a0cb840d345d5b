"""Holds and retention policies are what the log records: whoever changes the tables, as somebody whom no trigger stops, is found."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import orjson
import pytest
from pydantic import SecretStr

from app import schema
from app.errors import BadRequest, NotFound
from app.events.catalog import Catalog
from app.retention import adoption, erase, holds, policies, purge
from app.retention.erase import Erasure, UnderHold
from app.retention.holds import HoldOrder, Selector
from app.retention.policies import PolicyOrder
from app.retention.policy import Month
from app.settings import Settings
from app.tlog.orders import Policy, read_orders
from tests import databases
from tests.logs import FIRST_LOG
from tests.postgres import log
from tests.postgres.test_tampering import PURGED, found_by_each, own, sign

pytestmark = pytest.mark.damaged
Connection = asyncpg.Connection
NOW = datetime.now(UTC)
MONTH_AGO = (NOW.replace(day=1) - timedelta(days=60)).replace(day=10)
ORDER, POLICY_ORDER = HoldOrder("eve", "why"), PolicyOrder("eve", "why")
NOTHING: tuple[set[str], ...] = (set(),) * 4


def settings_of(url: str) -> Settings:
    return Settings(database_url=SecretStr(url))


async def write(url: str, *items: dict[str, Any]) -> list[UUID]:
    due = {"event_timestamp": MONTH_AGO.isoformat(), "retention_days": 10}
    return await log.write(url, *(due | members for members in items))


async def stored(connection: Connection) -> set[UUID]:
    rows = await connection.fetch("SELECT event_id FROM audit_events WHERE event_category <> 'security'")
    return {row["event_id"] for row in rows}


async def place(settings: Settings, **selector: Any) -> UUID:
    return (await holds.place(settings, FIRST_LOG, Selector(**selector), ORDER)).hold_id


async def set_policy(settings: Settings, category: str, *days: int | None) -> None:
    await policies.set_policy(settings, FIRST_LOG, category, Policy(*days), POLICY_ORDER)  # type: ignore[arg-type]


@pytest.fixture
def settings(database_url: str) -> Settings:
    return settings_of(database_url)


@pytest.fixture
async def owner(connection: Connection) -> Connection:
    """Whom no trigger stops."""
    await connection.execute("SET session_replication_role = replica")
    return connection


@asynccontextmanager
async def undone(owner: Connection) -> AsyncIterator[None]:
    """What is done to the tables of orders, and to marks, within this is undone after it."""
    await owner.execute(
        "CREATE TEMP TABLE holds_before AS TABLE holds; CREATE TEMP TABLE policies_before AS TABLE audit_retention_policies;"
        "CREATE TEMP TABLE marks_before AS SELECT event_id, legal_hold FROM audit_events"
    )
    yield
    await owner.execute(
        "DELETE FROM holds; INSERT INTO holds SELECT * FROM holds_before; DELETE FROM audit_retention_policies;"
        "INSERT INTO audit_retention_policies SELECT * FROM policies_before;"
        "UPDATE audit_events e SET legal_hold = m.legal_hold FROM marks_before m WHERE m.event_id = e.event_id;"
        "DROP TABLE holds_before, policies_before, marks_before"
    )


INVENTED = (
    "INSERT INTO holds (hold_id, correlation_id, reason, placed_by, placed_at, placed_index) "
    "VALUES (gen_random_uuid(), 'rr-9', 'r', 'nobody', now(), 1)"
)
ENDED = (
    "UPDATE holds SET release_reason = 'r', released_by = 'nobody', released_at = now(), released_index = 1 "
    "WHERE correlation_id = 'rr-1' AND released_at IS NULL"
)
UNENDED = (
    "UPDATE holds SET release_reason = NULL, released_by = NULL, released_at = NULL, released_index = NULL "
    "WHERE correlation_id = 'rr-3'"
)
UNMARKED = "UPDATE audit_events SET legal_hold = false WHERE correlation_id = 'rr-1'"
TAMPERING = {
    f"DELETE FROM holds WHERE correlation_id = 'rr-1'; {UNMARKED}": "hold removed",
    "DELETE FROM holds WHERE correlation_id = 'rr-1'": "hold removed",
    "DELETE FROM holds WHERE correlation_id = 'rr-3'": "hold removed",
    "TRUNCATE holds": "hold removed",
    UNMARKED: "hold removed",
    "UPDATE audit_events SET legal_hold = NULL WHERE actor_id = 'ada'": "hold removed",
    ENDED: "hold removed",
    UNENDED: "hold edited",
    "UPDATE holds SET correlation_id = 'rr-9' WHERE correlation_id = 'rr-1'": "hold edited",
    "UPDATE holds SET actor_id = 'bob' WHERE actor_id = 'ada'": "hold edited",
    "UPDATE holds SET resource_type = 'x' WHERE resource_id = 'p'": "hold edited",
    "UPDATE holds SET time_to = time_to - interval '1 microsecond'": "hold edited",
    "UPDATE holds SET time_to = 'infinity' WHERE time_to IS NOT NULL": "hold edited",
    **{
        f"UPDATE holds SET {name} = '{value}' WHERE correlation_id = 'rr-1'": "hold edited"
        for name, value in [
            *(("reason", "x"), ("placed_by", "nobody"), ("placed_at", "2020-01-01"), ("placed_index", "1")),
        ]
    },
    **{
        f"UPDATE holds SET {name} = '{value}' WHERE correlation_id = 'rr-3'": "hold edited"
        for name, value in [
            *(
                ("release_reason", "x"),
                ("released_by", "nobody"),
                ("released_at", "2020-01-01"),
                ("released_index", "1"),
            ),
        ]
    },
    "UPDATE holds SET hold_id = gen_random_uuid() WHERE correlation_id = 'rr-3'": "hold removed, hold invented",
    INVENTED: "hold invented",
    "UPDATE audit_retention_policies SET retention_days = 1 WHERE event_category = 'gateway'": "policy edited",
    "UPDATE audit_retention_policies SET floor_days = 1 WHERE event_category = 'workflow'": "policy edited",
    "UPDATE audit_retention_policies SET ceiling_days = 1 WHERE event_category = 'gateway'": "policy edited",
    "UPDATE audit_retention_policies SET event_category = 'x' WHERE event_category = 'gateway'": "policy edited",
    "INSERT INTO audit_retention_policies (event_category, retention_days) VALUES ('analysis', 2555)": "policy edited",
    "DELETE FROM audit_retention_policies WHERE event_category = 'workflow'": "policy edited",
    "TRUNCATE audit_retention_policies": "policy edited",
}


async def test_tampering_with_orders(owner: Connection, database_url: str, settings: Settings) -> None:
    """A hold or a policy that was changed by SQL is not named, or by another name; or one that the service changed is accused."""
    await write(database_url, {}, {}, {"correlation_id": "rr-2", "actor_id": "ada"}, {"correlation_id": "rr-3"})
    await place(settings, correlation_id="rr-1")
    await place(settings, correlation_id="rr-1")  # replaces it
    await place(settings, correlation_id="rr-3")
    await holds.release_correlation(settings, FIRST_LOG, "rr-3", ORDER)
    await place(settings, actor_id="ada")
    await place(settings, resource_type="Pod", resource_id="p")
    await place(settings, time_from=NOW - timedelta(days=400), time_to=NOW - timedelta(days=300))
    await set_policy(settings, "gateway", 30, 8, 90)
    await set_policy(settings, "gateway", 40)
    await policies.remove_policy(settings, FIRST_LOG, "analysis", POLICY_ORDER)
    await write(database_url, {"correlation_id": "rr-4", "actor_id": "ada"})
    outside = await sign(owner)
    assert await found_by_each(owner, "rr-1", outside) == NOTHING
    for statement, kinds in TAMPERING.items():
        async with undone(owner):
            await owner.execute(statement)
            expected = set(kinds.split(", "))
            found = await found_by_each(owner, "rr-1", outside)
            assert found == (expected, expected, set(), expected), statement
    assert await found_by_each(owner, "rr-1", outside) == NOTHING


async def test_holds_by_sql(owner: Connection, database_url: str, settings: Settings) -> None:
    """The reference's ways of holding by SQL, with its session variable, are accused; or a run purges what is held so."""
    ids = await write(database_url, {"correlation_id": "rr-1"}, {"correlation_id": "rr-2"}, {"correlation_id": "rr-3"})
    await write(database_url, {"retention_days": 2555})
    await owner.execute("SET session_replication_role = origin")
    await owner.execute(
        "UPDATE audit_events SET legal_hold = true, legal_hold_reason = 'r' WHERE correlation_id <> 'rr-3'"
    )
    async with owner.transaction():
        await owner.execute("SET LOCAL kubernaut.legal_hold_release = 'authorized'")
        await owner.execute("UPDATE audit_events SET legal_hold = false WHERE correlation_id = 'rr-2'")
    outside = await sign(owner)
    assert await found_by_each(owner, "rr-1", outside) == NOTHING
    done = await purge.run(settings, NOW)
    assert (done.rows_deleted, done.differences) == (2, [])
    assert ids[0] in await stored(owner)
    assert (await holds.release_correlation(settings, FIRST_LOG, "rr-1", ORDER)).events == 2
    assert await found_by_each(owner, "rr-1", await sign(owner)) == NOTHING


HIDDEN = {
    "removed": f"DELETE FROM holds; {UNMARKED}",
    "ended": f"{ENDED}; {UNMARKED}",
    "edited": f"UPDATE holds SET correlation_id = 'rr-9'; {UNMARKED}",
    "invented": f"{UNMARKED}; DELETE FROM holds; {INVENTED}",
}


@pytest.mark.parametrize("whole", [True, False])
async def test_run_follows_the_log(owner: Connection, database_url: str, settings: Settings, whole: bool) -> None:
    """A run purges, or an erasure erases, what a hold covers of which only the log still tells; or the rest stays too."""
    held = await write(database_url, *({"correlation_id": "rr-1"} for _ in range(2)))
    if not whole:
        await write(database_url, {"retention_days": 2555})
    await place(settings, correlation_id="rr-1")
    for name in ("removed", "edited") if whole else HIDDEN:
        (invented,) = await write(database_url, {"correlation_id": "rr-9"})
        (other,) = await write(database_url, {"correlation_id": "rr-2"})
        async with undone(owner):
            await owner.execute(HIDDEN[name])
            erasure = Erasure("r", "eve", correlation_id="rr-1")
            with pytest.raises(UnderHold, match=r"hold (removed|edited)"):
                await erase.erase(settings, Catalog(), erasure, dry_run=False)
            done = await purge.run(settings, NOW)
            kinds = {one.kind for one in done.differences}
            assert kinds == {"edited": {"hold edited"}, "invented": {"hold removed", "hold invented"}}.get(
                name, {"hold removed"}
            ), name
            left = await stored(owner)
            assert set(held) <= left, name
            assert other not in left, name
            assert (invented in left) == (name in {"edited", "invented"}), name
            status = await owner.fetchrow(
                "SELECT status, error_message FROM retention_operations ORDER BY id DESC LIMIT 1"
            )
            assert status is not None
            assert (status[0], "hold" in status[1]) == ("completed", True)
        await owner.execute("DELETE FROM holds WHERE correlation_id = 'rr-9'")
    assert (await purge.run(settings, NOW)).differences == []
    await holds.release_correlation(settings, FIRST_LOG, "rr-1", ORDER)
    await purge.run(settings, NOW)
    assert not set(held) & await stored(owner)
    assert await found_by_each(owner, "rr-1", await sign(owner)) == NOTHING


async def test_hold_that_only_the_log_has_is_released(owner: Connection, database_url: str, settings: Settings) -> None:
    """Nobody can release a hold whose row was deleted, or it is reported for ever."""
    await write(database_url, {"correlation_id": "rr-1"}, {"correlation_id": "rr-2"})
    await place(settings, correlation_id="rr-1")
    by_actor = await place(settings, correlation_id="rr-2")
    await owner.execute("DELETE FROM holds")
    assert (await holds.release_correlation(settings, FIRST_LOG, "rr-1", ORDER)).events == 1
    assert (await holds.release(settings, FIRST_LOG, by_actor, ORDER)).events == 1
    with pytest.raises(NotFound):
        await holds.release(settings, FIRST_LOG, by_actor, ORDER)
    assert await found_by_each(owner, "rr-1", await sign(owner)) == NOTHING
    assert await owner.fetchval("SELECT count(*) FROM holds WHERE released_index IS NOT NULL") == 2


async def test_month_that_is_put_back_is_marked(owner: Connection, database_url: str, settings: Settings) -> None:
    """A hold is placed while a month is detached, and its events stay unmarked for ever."""
    await write(database_url, {"actor_id": "ada"}, {})
    month = f"audit_events_{MONTH_AGO:%Y_%m}"
    await own(owner, PURGED, "{[0,2)}", operation_id=str(uuid4()), partition=month)
    await owner.execute(f"SET session_replication_role = origin; ALTER TABLE audit_events DETACH PARTITION {month}")
    await place(settings, actor_id="ada")
    done = await purge.run(settings, NOW)
    assert done.restored == [month]
    assert await owner.fetchval("SELECT count(*) FROM audit_events WHERE legal_hold") == 1
    assert await found_by_each(owner, "rr-1", await sign(owner)) == NOTHING


async def test_policies_of_the_log_are_followed(owner: Connection, database_url: str, settings: Settings) -> None:
    """A policy that was edited by SQL is followed; or a purge does not record what it followed, or is accused of it later."""
    gateway = {"event_category": "gateway", "correlation_id": "rr-g"}
    (kept,) = await write(database_url, gateway)
    await write(database_url, {"event_category": "workflow", "retention_days": 2555})
    await set_policy(settings, "orchestration", 20, 9)
    (purged,) = await write(database_url, {})
    for statement in (
        "UPDATE audit_retention_policies SET retention_days = 1, floor_days = 1, ceiling_days = 1",
        "TRUNCATE audit_retention_policies",
    ):
        async with undone(owner):
            await owner.execute(statement)
            done = await purge.run(settings, NOW)
            assert {one.kind for one in done.differences} == {"policy edited"}
            left = await stored(owner)
            assert (kept in left, purged in left) == (True, False)
    rows = await owner.fetch("SELECT event_data::text FROM audit_events WHERE event_type = $1", PURGED)
    [followed] = [one for (text,) in rows for one in orjson.loads(text)["policies"]]
    newest = f"{MONTH_AGO:%Y-%m-%dT%H:%M:%S.%fZ}"
    days = {"retention_days": 20, "floor_days": 9, "ceiling_days": 2555}
    assert followed == {"category": "orchestration", **days, "newest": newest}
    await set_policy(settings, "orchestration", 2555)
    await set_policy(settings, "gateway", 5)
    await purge.run(settings, NOW)
    assert kept not in await stored(owner)
    await policies.remove_policy(settings, FIRST_LOG, "gateway", POLICY_ORDER)
    assert await found_by_each(owner, "rr-g", await sign(owner)) == NOTHING


async def test_orders_during_a_run(owner: Connection, database_url: str, settings: Settings) -> None:
    """A policy or hold that comes between reading and purging is not followed, so that the purge event says what is not true."""
    (event_id,) = await write(database_url, {})
    async with purge._session(settings, NOW) as session:
        month = Month(f"audit_events_{MONTH_AGO:%Y_%m}")
        due = await session.connection.fetch(purge.SQL["due_events"], month.name, *session.terms.columns(), -1, 10)
        assert [row["event_id"] for row in due] == [event_id]
        await set_policy(settings, "orchestration", 2555)
        assert await purge._purge(session, uuid4(), due) == 0
        assert await purge._pass(session, uuid4(), month, after=-1) == 0
    assert event_id in await stored(owner)
    assert await found_by_each(owner, "rr-1", await sign(owner)) == NOTHING


EARLY: dict[str, dict[str, Any]] = {
    "another policy": {"policies": [{"retention_days": 1}]},
    "no policy": {"policies": [{"retention_days": None}]},
    "another ceiling": {"policies": [{"ceiling_days": 1}]},
    "another floor": {"policies": [{"floor_days": 7}]},
    "a policy where there is none": {"policies": [{"category": "analysis"}]},
    "a newer event": {"policies": [{"newest": (NOW - timedelta(days=29)).isoformat()}]},
    "the future": {"cutoff": (NOW + timedelta(days=900)).isoformat()},
    "nothing that can be read": {"policies": [{"newest": "x"}]},
}


async def test_early_purge(owner: Connection, database_url: str, settings: Settings) -> None:
    """A purge that its own policy did not allow, as the log records that, is not named; or one that it did allow is."""
    await write(database_url, {"event_category": "gateway"})
    await set_policy(settings, "gateway", 30, 8, 90)
    await policies.remove_policy(settings, FIRST_LOG, "analysis", POLICY_ORDER)
    allowed = {"category": "gateway", "retention_days": 30, "floor_days": 8, "ceiling_days": 90}
    allowed["newest"] = (NOW - timedelta(days=31)).isoformat()
    for name, changed in {"allowed": {}, "an earlier release": {"policies": None}, **EARLY}.items():
        members = {"cutoff": NOW.isoformat(), "policies": [{}]} | changed
        if members["policies"] is None:
            del members["policies"]
        else:
            merged = [allowed | one for one in members["policies"]]
            members["policies"] = [{n: v for n, v in one.items() if v is not None} for one in merged]
        event_id = await own(owner, PURGED, "{[0,1)}", **members)
        expected = {"early purge"} if name in EARLY else set[str]()
        found = await found_by_each(owner, "rr-1", await sign(owner))
        assert found == (expected, expected, set(), expected), name
        await owner.execute(
            "DELETE FROM log_flushes WHERE first_index = (SELECT log_index FROM audit_events WHERE event_id = $1)",
            event_id,
        )
        await owner.execute("DELETE FROM chain_heads WHERE correlation_id LIKE 'datastorage:retention:%'")
        await owner.execute("DELETE FROM audit_events WHERE event_id = $1", event_id)
        await owner.execute("DELETE FROM log_checkpoints; UPDATE log_signers SET note = NULL")
    await set_policy(settings, "gateway", 1)
    event = {"cutoff": NOW.isoformat(), "policies": [allowed]}
    await own(owner, PURGED, "{[0,1)}", **event)
    assert "early purge" in (await found_by_each(owner, "rr-1", await sign(owner)))[0]


async def test_orders_stay(owner: Connection, database_url: str, settings: Settings) -> None:
    """Events of holds and policies are purged or erased, and then what they have ordered is called invented."""
    await write(database_url, {})
    await place(settings, correlation_id="rr-1")
    await holds.release_correlation(settings, FIRST_LOG, "rr-1", ORDER)
    await set_policy(settings, "gateway", 30)
    erased = await erase.erase(settings, Catalog(), Erasure("r", "eve", actor_id="eve"), dry_run=False)
    assert erased.events == []
    await purge.run(settings, NOW + timedelta(days=3000))
    async with owner.transaction():
        orders = await read_orders(owner, FIRST_LOG)
    assert [hold.release is not None for hold in orders.holds.values()] == [True]
    assert orders.policies()["gateway"].policy == Policy(30)


async def test_bad_orders(settings: Settings) -> None:
    """A policy that nobody can mean is accepted, or the refusal does not say what is wrong with it."""
    for category, policy, order, named in (
        ("gateway", Policy(0), POLICY_ORDER, "/retention_days"),
        ("gateway", Policy(5, 9, 8), POLICY_ORDER, "/ceiling_days"),
        ("gateway", Policy(5, 40_000), POLICY_ORDER, "/floor_days"),
        ("x" * 51, Policy(5), POLICY_ORDER, "event_category"),
        ("gateway", Policy(5), PolicyOrder("eve", " "), "/reason"),
    ):
        with pytest.raises(BadRequest, match=named):
            await policies.set_policy(settings, FIRST_LOG, category, policy, order)
    with pytest.raises(NotFound):
        await policies.remove_policy(settings, FIRST_LOG, "nothing", POLICY_ORDER)


@pytest.fixture
async def before(server_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[str]:
    """A database of the release before, which changed policies by SQL, and of whose holds one has lost its events."""
    url = await databases.create(server_url)
    with monkeypatch.context() as patch:
        patch.setattr(schema, "HEAD", BEFORE)
        await schema.upgrade(url, FIRST_LOG.name)
    settings = settings_of(url)
    await log.write(url, {"correlation_id": "rr-1"}, {"correlation_id": "rr-2"}, {"correlation_id": "rr-3"})
    async with databases.connected(url) as connection:
        for name in ("rr-1", "rr-2", "rr-3"):
            await place(settings, correlation_id=name)
        await holds.release_correlation(settings, FIRST_LOG, "rr-3", ORDER)
        await connection.execute(
            "UPDATE audit_retention_policies SET retention_days = 99 WHERE event_category = 'gateway';"
            "INSERT INTO audit_retention_policies (event_category, retention_days, ceiling_days) VALUES ('x', 5, 7);"
            "DELETE FROM audit_retention_policies WHERE event_category = 'workflow'"
        )
        await connection.execute("SET session_replication_role = replica")
        # As a purge has left them: one that placed a hold, and one that released a hold.
        await connection.execute("DELETE FROM audit_events WHERE log_index IN (3, 6)")
        await own(connection, PURGED, "{[3,4),[6,7)}", operation_id=str(uuid4()))
    try:
        yield url
    finally:
        await databases.drop(server_url, url)


REVISIONS = sorted(path.stem for path in (schema.MIGRATIONS / "versions").glob("*_pre_*.py"))
BEFORE = next(earlier for earlier, later in pairwise(REVISIONS) if later.endswith("_orders"))


async def test_adoption(before: str) -> None:
    """What was there before is called invented or edited; or it is recorded twice when replicas start together."""
    settings = settings_of(before)
    async with databases.connected(before) as connection:
        await connection.execute("SET session_replication_role = replica")
        outside = await sign(connection)
        assert (await found_by_each(connection, "rr-1", outside))[0] == set()
        await schema.upgrade(before)
        assert await found_by_each(connection, "rr-1", outside) == NOTHING
        await asyncio.gather(*(adopt(settings) for _ in range(3)))
        outside = await sign(connection)
        assert await found_by_each(connection, "rr-1", outside) == NOTHING
        kinds = "SELECT event_type, count(*) FROM audit_events WHERE event_type LIKE 'datastorage.%' GROUP BY 1"
        counts: dict[str, int] = {row[0]: row[1] for row in await connection.fetch(kinds)}
        assert counts["datastorage.hold.adopted"] == 2
        assert (counts["datastorage.policy.set"], counts["datastorage.policy.removed"]) == (2, 1)
        async with connection.transaction():
            orders = await read_orders(connection, FIRST_LOG)
        active = {hold.selector[0] for hold in orders.active_holds()}
        assert active == {"rr-1", "rr-2"}
        assert {name: change.policy for name, change in orders.policies().items()} | {"gateway": Policy(99)} == {
            **dict.fromkeys(("analysis", "apifrontend", "notification", "remediation"), Policy(2555)),
            "gateway": Policy(99),
            "x": Policy(5, None, 7),
        }
        await connection.execute("UPDATE audit_retention_policies SET retention_days = 1 WHERE event_category = 'x'")
        await adopt(settings)
        assert await found_by_each(connection, "rr-1", outside) == (
            {"policy edited"},
            {"policy edited"},
            set(),
            {"policy edited"},
        )


async def test_database_without_holds_adopts_nothing(database_url: str, connection: Connection) -> None:
    """Every new database begins with events about policies that nobody has set."""
    await adopt(settings_of(database_url))
    assert await connection.fetchval("SELECT count(*) FROM audit_events") == 0
    assert await connection.fetchval("SELECT adopted_index FROM adoptions") == -1


async def adopt(settings: Settings) -> None:
    assert settings.database_url is not None
    async with databases.connected(settings.database_url.get_secret_value()) as connection:
        await adoption.adopt(connection, settings, FIRST_LOG)
