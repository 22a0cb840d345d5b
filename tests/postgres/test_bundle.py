"""Bundles on a real Postgres: what is in them, what the checker says of rows that were damaged, and what there is no bundle of."""

from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import asyncpg
import orjson
import pytest

from app.api.trust import read_removals
from app.db import Engine
from app.errors import NotFound
from app.events.notification import STORED, notification_digest
from app.export import bundle_read
from app.export.bundle import DIFFERS, Bundle, parse
from app.export.bundle_check import check_bundle
from app.export.bundle_read import BundleExport, BundleQuery, BundleTooLarge
from app.export.result import CheckResult
from app.tlog import merkle
from app.tlog.keys import SigningKey
from app.tlog.prove import NotSignedYet
from app.verify.snapshot import snapshot
from tests.logs import FIRST_LOG
from tests.postgres.test_tampering import ERASED, KEY, PUBLIC, RESTORED, all_leaves, erase, own, purge, sign
from tests.sealed import insert, plain_row, seal, sealed_hash

pytestmark = pytest.mark.damaged  # rows are changed on purpose, or by rows of tests that are no events of the catalogue
SIGNING_KEY = SigningKey(KEY, PUBLIC)
PAYLOAD = '{"text": "€ \\" 😀", "who": "ada@example.test"}'
NOW = datetime(2026, 11, 29, 10, 0, 0, 500000, tzinfo=UTC)
Connection = asyncpg.Connection


@pytest.fixture
async def owner(connection: Connection) -> Connection:
    """Whom no trigger stops, on a log of two chains: the first events of `rr-1` are at 0, 2 and 4."""
    await connection.execute("SET session_replication_role = replica")
    for turn in range(3):
        await seal(connection, "rr-1", {"actor_id": f"user-{turn}"})
        await seal(connection, "rr-2", {})
    return connection


async def publish(connection: Connection) -> None:
    """A checkpoint of the log as it is now, which is the one that is served."""
    await sign(connection)
    await connection.execute("UPDATE log_checkpoints SET published_at = now()")


async def bundle(
    engine: Engine, correlation_id: str = "rr-1", *, key: SigningKey | None = SIGNING_KEY, redacted: bool = False
) -> bytes:
    async with snapshot(engine) as connection:
        export = BundleExport(BundleQuery(correlation_id, redacted), "ada@example.test", FIRST_LOG, key)
        return await export.read(connection)


async def published(connection: Connection, engine: Engine, **options: Any) -> tuple[Bundle, CheckResult]:
    """The bundle, once a checkpoint covers everything, and what the checker says of it."""
    await publish(connection)
    content = await bundle(engine, **options)
    return parse(content).bundle, check_bundle(content, [PUBLIC])


async def held(connection: Connection, act: str, **selector: str) -> None:
    """The event of a hold that was placed or released."""
    payload = {
        "event_type": f"datastorage.hold.{act}",
        "hold_id": str(uuid4()),
        "reason": "case 7",
        "placed_by": "grace",
    }
    columns = {"event_type": payload["event_type"], "event_category": "security"}
    columns |= {"event_data": orjson.dumps(payload | selector).decode()}
    await seal(connection, f"datastorage:hold:{payload['hold_id']}", columns)


HELD = """
INSERT INTO holds (hold_id, correlation_id, actor_id, time_from, time_to, reason, placed_by, placed_at, placed_index, placed_log, released_log)
SELECT (event_data->>'hold_id')::uuid, event_data->>'correlation_id', event_data->>'actor_id', (event_data->>'time_from')::timestamptz,
    (event_data->>'time_to')::timestamptz, 'case 7', 'grace', now(), log_index, 0, 0
FROM audit_events WHERE event_type = 'datastorage.hold.placed';
UPDATE audit_events SET legal_hold = true
"""
"""What the service writes beside the events of holds."""


async def test_everything_about_a_remediation(owner: Connection, engine: Engine) -> None:
    """Something about a remediation is missing in its bundle, or something of another one is in it, or it does not verify."""
    await seal(owner, "rr-1", {"event_data": PAYLOAD, "actor_ip": "10.1.2.3", "namespace": "payments"}, {})
    for act, selector in (
        ("placed", {"correlation_id": "rr-1"}),
        ("placed", {"actor_id": "x"}),
        ("released", {"resource_type": "x", "resource_id": "x"}),
        ("placed", {"time_from": "2026-01-01T00:00:00Z", "time_to": "2126-01-01T00:00:00Z"}),
        ("placed", {"correlation_id": "rr-2"}),
        ("placed", {"actor_id": "nobody"}),
        ("placed", {"time_from": "2016-01-01T00:00:00Z", "time_to": "2017-01-01T00:00:00Z"}),
    ):
        await held(owner, act, **selector)
    await owner.execute(HELD)
    await own(owner, ERASED, "{[4,5)}")
    await erase(owner, 4)
    await own(owner, ERASED, "{[1,2)}")
    await purge(owner, "{[0,3)}")
    await insert(owner, plain_row("rr-1"))
    await owner.execute(
        "INSERT INTO notification_audit (remediation_id, notification_id, recipient, channel, message_summary, status, sent_at) "
        "VALUES ('rr-1', 'n-1', 'ada@example.test', 'email', $1, 'sent', '2026-11-29T10:00:00.5Z')",
        "long " * 1000,
    )
    found, result = await published(owner, engine)
    assert result.problems == []
    assert [(one.position, one.is_erased) for one in found.events] == [(4, True), (6, False), (7, False)]
    assert [(gap.first, gap.end, gap.position) for gap in found.gaps] == [(0, 2, 2)]
    types = [orjson.loads(one.record)["event_type"] for one in found.evidence]
    assert types == [
        *(f"datastorage.hold.{act}" for act in ("placed", "placed", "released", "placed")),
        ERASED,
        "datastorage.retention.purged",
    ]
    assert found.events[1].committed is not None
    assert '{"text":"€ \\" 😀","who":"ada@example.test"}' in found.events[1].committed
    [notification] = found.notifications
    assert (notification.columns["sent_at"], len(notification.columns["message_summary"])) == (
        "2026-11-29T10:00:00.500000Z",
        5000,
    )
    assert len(found.unproved) == 1
    page = "\n".join(found.page)
    assert all(
        text in page for text in ("by ada@example.test.", "purged or lost, as the log records", "(erased)", "case 7")
    )

    found, result = await published(owner, engine, redacted=True)
    assert result.problems == []
    text = found.content().decode()
    assert "ada@example" not in text
    assert "10.1.2.3" not in text
    assert [one.redacted for one in found.events] == [None, ["actor_ip", "event_data"], None]
    assert [one.salt is None for one in found.events] == [True, True, False]


NOTIFICATION: dict[str, Any] = {
    "remediation_id": "rr-1",
    "notification_id": "n-1",
    "recipient": "ada@example.test",
    "channel": "email",
    "message_summary": "€",
    "status": "sent",
    "sent_at": NOW,
    "delivery_status": None,
    "error_message": None,
    "escalation_level": 1,
    "created_at": NOW,
}


async def notify(connection: Connection, position: int) -> None:
    """A notification of which the log has the digest at `position`, which is its end."""
    storing, salt = str(uuid4()), bytes(16)
    payload = {"event_type": STORED, "storing_id": storing, "notification_id": "n-1", "remediation_id": "rr-1"}
    payload |= {"digest": notification_digest(salt, NOTIFICATION)}
    columns = {"event_type": STORED, "event_category": "security", "event_data": orjson.dumps(payload).decode()}
    await seal(connection, f"datastorage:notification:{storing}", columns)
    names = [*NOTIFICATION, "updated_at", "salt", "log_id", "log_index"]
    marks = ", ".join(f"${number}" for number in range(1, len(names) + 1))
    values = *NOTIFICATION.values(), NOW, salt, 0, position
    await connection.execute(f"INSERT INTO notification_audit ({', '.join(names)}) VALUES ({marks})", *values)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ("id = id", None),
        ("recipient = 'mallory'", "it does not have the digest that the log has"),
        ("salt = NULL", "it does not have the digest that the log has"),
        ("updated_at = now()", "updated_at is not created_at"),
        ("log_index = 0", "the event that covers it is missing"),
        ("log_index = 99", "the event that covers it is missing"),
        ("notification_id = 'n-2'", "the event that covers it is missing, or is about another notification"),
    ],
)
async def test_notification_with_a_digest(owner: Connection, engine: Engine, change: str, problem: str | None) -> None:
    """A notification that is not the one that was stored passes as covered, or an honest one does not."""
    await notify(owner, 6)
    await owner.execute(f"UPDATE notification_audit SET {change}")
    found, result = await published(owner, engine)
    if problem is not None:
        assert any(problem in one for one in result.problems), result.problems
        return
    assert result.problems == []
    assert [one.covered_by and one.covered_by.position for one in found.notifications] == [6]
    _, result = await published(owner, engine, redacted=True)
    assert result.problems == []
    await purge(owner, "{[6,7)}")
    found, result = await published(owner, engine)
    assert (result.problems, found.notifications[0].covered_by) == ([], None)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ("DELETE FROM holds WHERE correlation_id = 'rr-2'", None),
        ("DELETE FROM holds WHERE correlation_id = 'rr-1'", "hold removed: the table has no hold"),
        ("DELETE FROM holds WHERE actor_id IS NOT NULL", "hold removed: the table has no hold"),
        ("UPDATE holds SET correlation_id = 'rr-9' WHERE correlation_id = 'rr-1'", "hold edited: correlation_id"),
        ("UPDATE audit_events SET legal_hold = false WHERE log_index = 2", "at position 2, but its row does not show"),
        (
            "DELETE FROM audit_events WHERE event_type = 'datastorage.hold.placed'",
            "hold invented: the table has a hold",
        ),
        ("DELETE FROM notification_audit", "removed: the notification that it has the digest of is missing"),
        ("UPDATE notification_audit SET remediation_id = 'rr-9'", "removed: the notification"),
    ],
)
async def test_removed_evidence(owner: Connection, engine: Engine, change: str, problem: str | None) -> None:
    """What the log records of holds and notifications is not in the tables, or the other way round, and the bundle does not say so."""
    for selector in ({"correlation_id": "rr-1"}, {"actor_id": "user-1"}, {"correlation_id": "rr-2"}):
        await held(owner, "placed", **selector)
    await owner.execute(HELD)
    await notify(owner, 9)
    await owner.execute(change)
    for redacted in (False, True):
        found, result = await published(owner, engine, redacted=redacted)
        said = [line for line in found.page if line.startswith(DIFFERS)]
        assert bool(result.problems) == (problem is not None)
        assert all(problem in one for one in result.problems if problem is not None), result.problems
        assert bool(said) == (problem is not None and "notification" not in problem)


async def test_missing_marks_and_infinite_times(owner: Connection, engine: Engine) -> None:
    """A row of others with an infinite time hides that a hold by time is gone, or an erased event is held without showing it."""
    await held(owner, "placed", time_from="2026-01-01T00:00:00Z", time_to="2126-01-01T00:00:00Z")
    await held(owner, "placed", actor_id="x")
    await owner.execute(HELD)
    await own(owner, ERASED, "{[4,5)}")
    await erase(owner, 4)
    await insert(owner, plain_row("rr-1"))
    await owner.execute("UPDATE audit_events SET event_timestamp = 'infinity' WHERE log_index IS NULL")
    await owner.execute("UPDATE audit_events SET legal_hold = log_index <> 4")

    async def differing() -> list[str]:
        found, _ = await published(owner, engine)
        return [line.removeprefix(DIFFERS).partition(" ")[0] + line[-60:] for line in found.page if DIFFERS in line]

    [marked] = await differing()
    assert "at position 4, but its row does not show it" in marked
    await owner.execute("DELETE FROM holds WHERE time_from IS NOT NULL")
    assert len(await differing()) == 2


async def test_forged_purges_hide_none(owner: Connection) -> None:
    """Whoever may INSERT hides from the page of trust what was removed."""
    await own(owner, ERASED, "{[4,5)}")
    await owner.execute(
        "INSERT INTO audit_events SELECT (jsonb_populate_record(e, jsonb_build_object('event_id', gen_random_uuid(), "
        "'recorded_at', now() + interval '1 day'))).* FROM audit_events e, generate_series(1, 120) WHERE event_type = $1",
        ERASED,
    )
    async with owner.transaction(isolation="repeatable_read", readonly=True):
        assert [(one["event_type"], one["events"]) for one in await read_removals(owner, FIRST_LOG)] == [(ERASED, 1)]


async def test_many_events(owner: Connection, engine: Engine) -> None:
    """Events whose proofs go through tiles do not verify."""
    for turn in range(8):
        await seal(owner, f"rr-{turn % 2 + 1}", *({} for _ in range(70)))
    leaves = await all_leaves(owner)
    await owner.execute(
        "INSERT INTO log_tiles VALUES (0, 1, 0, $1)", merkle.root(leaves[:256]) + merkle.root(leaves[256:512])
    )
    found, result = await published(owner, engine)
    assert (result.problems, len(found.events)) == ([], 283)


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (
            "UPDATE audit_events SET event_data = '{}' WHERE log_index = 2",
            "is not in the log: it had another hash at position 2",
        ),
        ("UPDATE audit_events SET correlation_id = 'rr-2' WHERE log_index = 2", "chain positions 1 to 1: removed"),
        (
            "UPDATE audit_events SET log_index = 3 WHERE log_index = 2",
            "is not in the log: it had another hash at position 3",
        ),
        ("UPDATE audit_events SET log_id = 7 WHERE log_index = 2", "chain positions 1 to 1: removed"),
        ("UPDATE audit_events SET event_timestamp = 'infinity' WHERE log_index = 2", "is not in the log"),
        ("DELETE FROM audit_events WHERE log_index = 0", "chain positions 0 to 0: removed"),
        ("DELETE FROM audit_events WHERE log_index = 2", "chain positions 1 to 1: removed"),
        ("DELETE FROM audit_events WHERE log_index = 4", "chain positions 2 to 2: removed"),
        ("DELETE FROM audit_events WHERE correlation_id = 'rr-1'", "chain positions 0 to 2: removed"),
        ("DELETE FROM chain_heads WHERE correlation_id = 'rr-1'", "the head of the chain is missing"),
        ("UPDATE chain_heads SET length = 9 WHERE correlation_id = 'rr-1'", "chain positions 3 to 8: removed"),
        ("UPDATE chain_heads SET length = 2 WHERE correlation_id = 'rr-1'", "has 3 events, but its head has length 2"),
        ("UPDATE chain_heads SET hash = repeat('0', 64) WHERE correlation_id = 'rr-1'", "the hash of another event"),
        ("UPDATE chain_heads SET hash = 'x' WHERE correlation_id = 'rr-1'", "the hash of another event"),
        ("UPDATE chain_heads SET length = -1 WHERE correlation_id = 'rr-1'", "has length -1"),
        (
            "UPDATE chain_heads SET length = 5, hash = 'x' WHERE correlation_id = 'rr-1'",
            "chain positions 3 to 4: removed",
        ),
    ],
)
async def test_damaged_rows(owner: Connection, engine: Engine, damage: str, problem: str) -> None:
    """The bundle of a damaged chain verifies, or an event that the log has otherwise is shown as proved."""
    await owner.execute(damage)
    _, result = await published(owner, engine)
    assert any(problem in one for one in result.problems), result.problems


async def test_what_was_hashed_again(owner: Connection, engine: Engine) -> None:
    """An event that was changed and hashed again is shown as one of the log."""
    row = dict(
        await owner.fetchrow("SELECT *, event_data::text AS event_data FROM audit_events WHERE log_index = 2") or {}
    )
    changed = sealed_hash(row | {"actor_id": "mallory"})
    await owner.execute("UPDATE audit_events SET actor_id = 'mallory', event_hash = $1 WHERE log_index = 2", changed)
    found, result = await published(owner, engine)
    assert [one.position for one in found.events] == [0, 4]
    assert any("is not in the log" in one for one in result.problems)


async def test_erasures_and_purges_that_the_log_does_not_record(owner: Connection, engine: Engine) -> None:
    """A row that was emptied, or one that is gone, passes as erased or purged since the log records another one, or took it back."""
    await erase(owner, 4)
    await own(owner, ERASED, "{[3,4)}")
    await purge(owner, "{[0,1)}", "one")
    await own(owner, RESTORED, "{[0,1)}", operation_id="one")
    _, result = await published(owner, engine)
    problems = "\n".join(result.problems)
    assert "no erasure of it is recorded" in problems
    assert "chain positions 0 to 0: removed" in problems


async def test_a_row_that_stands_twice(owner: Connection, engine: Engine) -> None:
    """A copy of a row under another date is a second event of the bundle."""
    columns = "event_id, event_version, event_timestamp, event_type, event_category, event_action, event_outcome, actor_type, actor_id"
    columns += ", resource_type, resource_id, correlation_id, event_data, event_hash, previous_event_hash, log_id, log_index, chain_index"
    columns += ", payload_salt, recorded_at, hash_algorithm, is_sensitive"
    await owner.execute(
        f"INSERT INTO audit_events (event_date, {columns}) SELECT event_date - 20, {columns} FROM audit_events WHERE log_index = 2"
    )
    found, result = await published(owner, engine)
    assert (result.problems, [one.position for one in found.events]) == ([], [0, 2, 4])


async def test_odd_payloads_of_evidence(owner: Connection, engine: Engine) -> None:
    """One row that looks like the event of a hold, or one event of a purge or erasure with members of other types, ends every bundle."""
    odd = {"actor_id": [], "resource_type": {}, "time_from": 1, "time_to": [], "log_id": "x", "positions": "{[0,1)}"}
    for payload in ("[]", orjson.dumps(odd).decode()):
        columns = {"event_type": "datastorage.hold.placed", "event_category": "security", "event_data": payload}
        await insert(owner, plain_row("datastorage:hold:x", log_id=0, log_index=3, **columns))
    for kind, about in (
        (ERASED, "erasure_id"),
        ("datastorage.retention.purged", "operation_id"),
        (RESTORED, "operation_id"),
    ):
        payload = orjson.dumps(odd | {"event_type": kind, about: "x"}).decode()
        columns = {"event_type": kind, "event_category": "security", "event_data": payload}
        await seal(owner, f"datastorage:{kind.split('.')[1]}:x", columns)
    await own(owner, ERASED, "{[0,1)}")
    await erase(owner, 0)
    await own(owner, "datastorage.retention.purged", "{[2,3)}")
    await owner.execute("DELETE FROM audit_events WHERE log_index = 2")
    found, result = await published(owner, engine)
    assert (result.problems, len(found.evidence), found.events[0].is_erased) == ([], 2, True)


async def test_until_a_checkpoint_covers_it(owner: Connection, engine: Engine) -> None:
    """A bundle leaves the service in which an event has no proof; or an event that the log lost is proved."""
    with pytest.raises(NotSignedYet):
        await bundle(engine)
    await publish(owner)
    await bundle(engine)
    await seal(owner, "rr-1", {})
    with pytest.raises(NotSignedYet):
        await bundle(engine)
    await bundle(engine, "rr-2")
    await held(owner, "placed", correlation_id="rr-2")
    with pytest.raises(NotSignedYet):
        await bundle(engine, "rr-2")


async def test_without_a_key(owner: Connection, engine: Engine) -> None:
    """A bundle without signature and proofs passes as one with them, or there is none."""
    await publish(owner)
    content = await bundle(engine, key=None)
    assert len(parse(content).bundle.events) == 3
    problems = "\n".join(check_bundle(content, [PUBLIC]).problems)
    assert "without a key for checkpoints a service signs nothing" in problems
    assert "nothing in it is proved" in problems


async def test_what_there_is_no_bundle_of(owner: Connection, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A correlation that never was has a bundle; or one that is too large fills the memory."""
    await publish(owner)
    with pytest.raises(NotFound):
        await bundle(engine, "nobody")
    monkeypatch.setattr(bundle_read, "ENTRIES_MAX", 2)
    with pytest.raises(BundleTooLarge, match="format=ndjson"):
        await bundle(engine)
    monkeypatch.undo()
    await seal(owner, "rr-1", {"error_message": "€" * 1400})  # 4,200 bytes
    await publish(owner)
    monkeypatch.setattr(bundle_read, "BYTES_MAX", 3000)
    with pytest.raises(BundleTooLarge):
        await bundle(engine)
    await bundle(engine, "rr-2")
