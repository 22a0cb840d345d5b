"""Notifications and their digests in the log: by the ordinary writer, and by somebody whom no trigger stops."""

import asyncio
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import asyncpg
import orjson
import pytest
from pydantic import SecretStr

from app.db import Engine
from app.errors import Conflict, DatabaseAway
from app.events.log import Log
from app.ingest import writer as writer_module
from app.ingest.notification_writing import write
from app.ingest.notifications import Notification, PendingNotification
from app.ingest.self_events import self_event
from app.ingest.store import Store
from app.ingest.writer import Writer
from app.query.notifications import NotificationQuery, page
from app.settings import Settings
from app.tlog.evidence import read_evidence
from app.verify.notifications import NotificationsResult, verify_notifications
from tests.postgres.test_tampering import found_by_each, own, sign
from tests.postgres.test_writer import LOG, item, replica
from tests.verification import verify_everything

Connection = asyncpg.Connection
OF_LOG = Log(0, LOG)
PLAIN = """INSERT INTO notification_audit (remediation_id, notification_id, recipient, channel, message_summary, status, sent_at)
    VALUES ('rr-1', 'n-plain', 'ada', 'email', 'x', 'sent', now())"""


def make(name: str, **members: Any) -> Notification:
    columns: dict[str, Any] = {
        "remediation_id": "rr-1",
        "notification_id": name,
        "recipient": "ada@example.com",
        "channel": "email",
        "message_summary": "the deployment was restarted",
        "status": "sent",
        "sent_at": datetime(2026, 11, 23, 2, tzinfo=UTC),
        "delivery_status": None,
        "error_message": None,
        "escalation_level": 0,
    }
    return Notification(**columns | members)


def soon() -> float:
    return asyncio.get_running_loop().time() + 30


async def result(connection: Connection) -> NotificationsResult:
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        purged = (await read_evidence(connection, OF_LOG)).purged
        return await verify_notifications(connection, OF_LOG, purged)


TAMPERING = {
    "edited": [
        "UPDATE notification_audit SET recipient = 'eve' WHERE notification_id = 'n-1'",
        "UPDATE notification_audit SET remediation_id = 'rr-2' WHERE notification_id = 'n-1'",
        "UPDATE notification_audit SET (created_at, updated_at) = ('2026-01-01Z', '2026-01-01Z') WHERE notification_id = 'n-1'",
        "UPDATE notification_audit SET updated_at = now() WHERE notification_id = 'n-1'",
        "UPDATE notification_audit SET sent_at = 'infinity' WHERE notification_id = 'n-1'",
        "UPDATE notification_audit SET escalation_level = NULL WHERE notification_id = 'n-1'",
        "UPDATE notification_audit SET salt = NULL WHERE notification_id = 'n-1'",
        "UPDATE notification_audit SET salt = NULL, log_id = NULL, log_index = NULL WHERE notification_id = 'n-1'",
    ],
    "edited inserted": [
        "UPDATE notification_audit SET log_index = NULL WHERE notification_id = 'n-1'",
        "UPDATE notification_audit SET log_index = log_index + 1 WHERE notification_id = 'n-1'",
        "UPDATE notification_audit SET log_id = 1 WHERE notification_id = 'n-1'",
    ],
    "removed": [
        "DELETE FROM notification_audit WHERE notification_id = 'n-1'",
        f"DELETE FROM notification_audit WHERE notification_id = 'n-1'; {PLAIN}",
    ],
    "removed inserted": ["UPDATE notification_audit SET notification_id = 'n-9' WHERE notification_id = 'n-1'"],
    "inserted": [
        "INSERT INTO notification_audit (remediation_id, notification_id, recipient, channel, message_summary, status, sent_at, salt, "
        f"log_id, log_index) SELECT remediation_id, 'n-9', 'eve', channel, message_summary, status, sent_at, salt, {columns} "
        "FROM notification_audit WHERE notification_id = 'n-1'"
        for columns in ("log_id, log_index", "0, 4611686018427387903", "0, NULL", "NULL, NULL")
    ],
}


@pytest.mark.damaged
async def test_tampering(database_url: str, connection: Connection, engine: Engine) -> None:
    """A notification that was changed, removed or inserted is shown to an auditor, and no verifier names it."""
    async with replica(database_url) as one:
        await one.post(item("rr-1"))
        for name in ("n-0", "n-1", "n-2"):
            await write(engine, one.writer, make(name), None, soon())
    outside = await sign(connection)
    assert await found_by_each(connection, "rr-1", outside) == (set(), set(), set(), set())
    await connection.execute("SET session_replication_role = replica; CREATE TABLE saved AS TABLE notification_audit")
    for kinds, statements in TAMPERING.items():
        expected = set(kinds.split())
        for statement in statements:
            await connection.execute(statement)
            found = await found_by_each(connection, "rr-1", outside)
            assert found == (expected, expected, set(), expected), statement
            await connection.execute("TRUNCATE notification_audit; INSERT INTO notification_audit SELECT * FROM saved")
    assert await found_by_each(connection, "rr-1", outside) == (set(), set(), set(), set())


async def test_written_in_one_flush(database_url: str, connection: Connection, engine: Engine) -> None:
    """A notification is stored without its digest, or the log has what it says."""
    async with replica(database_url) as one:
        posts = [write(engine, one.writer, make(f"n-{n}"), None, soon()) for n in range(5)]
        stored = await asyncio.gather(*posts, one.post(item("rr-1")))
        with pytest.raises(Conflict):
            await write(engine, one.writer, make("n-0", recipient="eve"), None, soon())
        again = await asyncio.gather(
            *(write(engine, one.writer, make("n-9", recipient=who), None, soon()) for who in ("a", "b")),
            return_exceptions=True,
        )
    assert [type(one).__name__ for one in again] == ["GeneratedColumns", "Conflict"]
    await connection.execute(PLAIN)
    found = await result(connection)
    assert (found.total, found.verified, found.unsealed, found.defects.count) == (6, 6, 1, 0)
    rows = await connection.fetch("SELECT id, created_at FROM notification_audit ORDER BY id LIMIT 5")
    assert sorted(tuple(row) for row in rows) == sorted(tuple(one) for one in stored[:5] if isinstance(one, tuple))
    texts = await connection.fetch(
        "SELECT event_data::text AS text FROM audit_events WHERE event_type LIKE 'datastorage.%'"
    )
    assert len(texts) == 6
    assert not [row for row in texts if "ada@" in row["text"] or "restarted" in row["text"]]
    shown = (await page(engine, NotificationQuery())).notifications
    assert {one["notification_id"]: one.get("sealed") for one in shown}["n-plain"] is False
    assert [one["notification_id"] for one in shown if "sealed" in one] == ["n-plain"]
    await verify_everything(connection)


LOCKS = (
    "LOCK TABLE notification_audit IN SHARE MODE",
    PLAIN.replace("n-plain", "n-1"),  # the same id, not committed
)


@pytest.mark.parametrize("lock", LOCKS, ids=["table", "id"])
async def test_events_do_not_wait_for_locks_on_notifications(
    database_url: str, connection: Connection, engine: Engine, lock: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody locks the notifications, and no event is written until he lets go; or a notification is lost by that."""
    monkeypatch.setattr(writer_module, "_NOTIFICATIONS_LOCKED_SECONDS", 3600.0)
    async with replica(database_url) as one:
        transaction = connection.transaction()
        await transaction.start()
        await connection.execute(lock)
        waiting = asyncio.create_task(write(engine, one.writer, make("n-1"), None, soon()))
        for number in range(3):
            await one.post(item(f"rr-{number}"))
        with pytest.raises(DatabaseAway):
            await waiting
        with pytest.raises(DatabaseAway):  # at once, without another try
            await write(engine, one.writer, make("n-2"), None, soon())
        await transaction.rollback()
        one.writer._notifications_locked_until = 0.0
        for name in ("n-1", "n-2"):
            await write(engine, one.writer, make(name), None, soon())
    found = await result(connection)
    assert (found.verified, found.defects.count) == (2, 0)


async def test_many_that_are_stored(
    database_url: str, connection: Connection, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A crowd of notifications that are stored already has the events that share their flush sent once more for each of them."""
    monkeypatch.setattr(writer_module, "_NOTIFICATIONS_MAX", 8)
    async with replica(database_url) as one:
        commit, attempts = one.writer.store.commit, list[int]()

        async def counted(events: Any, *more: Any) -> None:
            attempts.append(len(events))
            await commit(events, *more)

        monkeypatch.setattr(one.writer.store, "commit", counted)
        for _ in range(2):
            posts = [write(engine, one.writer, make(f"n-{n}"), None, soon()) for n in range(24)]
            answers = await asyncio.gather(*posts, one.post(item("rr-1")), return_exceptions=True)
    assert sum(isinstance(answer, Conflict) for answer in answers) == 24
    assert max(attempts) <= 9
    assert len(attempts) <= 15
    assert (await result(connection)).verified == 24
    await verify_everything(connection)


async def test_replicas_race(database_url: str, connection: Connection, engine: Engine) -> None:
    """One of two replicas that write at once loses a notification, or both store the same one."""
    async with replica(database_url) as one, replica(database_url) as other:
        posts = []
        for n in range(20):
            posts += [one.post(item("rr-1")), write(engine, other.writer, make(f"n-{n}"), None, soon())]
            posts += [other.post(item("rr-2")), write(engine, one.writer, make(f"n-{n}"), None, soon())]
        answers = await asyncio.gather(*posts, return_exceptions=True)
    assert sum(isinstance(answer, Conflict) for answer in answers) == 20
    assert await connection.fetchval("SELECT count(*) FROM notification_audit") == 20
    assert (await result(connection)).verified == 20
    await verify_everything(connection)


async def test_lost_transaction_leaves_nothing(database_url: str, connection: Connection, engine: Engine) -> None:
    """A row is there whose event is not, or the other way round, after a flush that failed in the middle."""
    settings = Settings(database_url=SecretStr(database_url))
    store = Store(settings, OF_LOG)
    pending = PendingNotification(make("n-1"), None)
    event = self_event(LOG, pending.payload(), about=pending.storing_id)

    async def write_and_fail(connection: Any, flush: Any) -> None:
        await pending.write(connection, 0, flush.first_index)
        raise DatabaseAway

    with pytest.raises(DatabaseAway):
        await store.commit([event], [], soon(), write_and_fail)
    await store.close()
    assert await connection.fetchval("SELECT count(*) FROM notification_audit") == 0
    writer = Writer(Store(settings, OF_LOG), settings)
    writer.start()
    await write(engine, writer, make("n-1"), None, soon())
    await writer.close()
    assert (await result(connection)).verified == 1
    await verify_everything(connection)


@pytest.mark.damaged
async def test_digests_that_are_gone(database_url: str, connection: Connection, engine: Engine) -> None:
    """A notification is called a forgery since retention has purged its digest, or forged digests are believed."""
    async with replica(database_url) as one:
        for name in ("n-0", "n-1"):
            await write(engine, one.writer, make(name), None, soon())
        await one.post(item("rr-1"))
    await connection.execute("SET session_replication_role = replica")
    forged = await connection.fetchrow("SELECT * FROM audit_events WHERE log_index = 1")
    await own(connection, "datastorage.retention.purged", "{[0,1)}", operation_id="one")
    await connection.execute("DELETE FROM audit_events WHERE log_index = 0")
    found = await result(connection)
    assert (found.verified, found.purged, found.defects.count) == (1, 1, 0)
    assert forged is not None
    payload = orjson.loads(forged["event_data"]) | {"notification_id": "n-7"}
    columns = dict(forged) | {"event_data": orjson.dumps(payload).decode(), "log_index": 99, "event_id": uuid4()}
    names = ", ".join(columns)
    marks = ", ".join(f"${n}" for n in range(1, len(columns) + 1))
    await connection.execute(f"INSERT INTO audit_events ({names}) VALUES ({marks})", *columns.values())
    assert (await result(connection)).defects.count == 0
