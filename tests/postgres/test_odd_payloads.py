"""Payloads that only SQL can write, in rows that verification has to read: none of them ends it."""

import asyncpg
import orjson
import pytest

from tests.postgres.test_tampering import ERASED, PURGED, erase, found_by_each, own, sign
from tests.postgres.test_writer import item, replica
from tests.sealed import insert, plain_row, seal

pytestmark = pytest.mark.damaged
Connection = asyncpg.Connection
ODD = [
    '{"event_type": "x", "n": 1%s}' % ("0" * 400),
    '{"event_type": "x", "deep": %s}' % ("[" * 1500 + "]" * 1500),
    '{"event_type": ["Ada"], "operation_id": {}}',
    "[]",
    "1",
]


async def test_odd_payloads(connection: Connection) -> None:
    """One INSERT of a row that looks like evidence, or a change of an erased one, and nothing is verified any more."""
    await seal(connection, "rr-1", *({} for _ in range(5)))
    await own(connection, ERASED, "{[2,3)}")
    outside = await sign(connection)
    for kind in (PURGED, ERASED, "datastorage.notification.stored"):
        for payload in ODD:
            columns = {
                "event_type": kind,
                "event_category": "security",
                "log_id": 0,
                "log_index": 1,
                "event_data": payload,
            }
            await insert(connection, plain_row(f"datastorage:{kind.split('.')[1]}:x", **columns))
    anchored, unanchored, _, background = await found_by_each(connection, "rr-1", outside)
    assert "inserted" in anchored & unanchored & background
    await connection.execute(
        "SET session_replication_role = replica; DELETE FROM audit_events WHERE correlation_id LIKE '%:x'"
    )
    await erase(connection, 2)
    assert await found_by_each(connection, "rr-1", outside) == (set(),) * 4
    for payload in ODD:
        await connection.execute("UPDATE audit_events SET event_data = $1 WHERE log_index = 2", payload)
        assert await found_by_each(connection, "rr-1", outside) == ({"edited"},) * 4, payload[:40]


EVIDENCE = {
    PURGED: "operation_id",
    "datastorage.retention.restored": "operation_id",
    ERASED: "erasure_id",
    "datastorage.notification.stored": "storing_id",
    "datastorage.finding.recorded": "finding_id",
    "datastorage.finding.acknowledged": "finding_id",
    "datastorage.log.continued": "continuation_id",
}
"""By type: the member that the event's correlation repeats."""
ODD_MEMBERS: list[dict[str, object]] = [
    {},
    {"notification_id": ["n-1"], "remediation_id": 1, "digest": {}, "log_id": [], "positions": 7, "left": 1},
]


async def test_odd_members_in_the_log(connection: Connection) -> None:
    """One event that the log has, and that no release can have written, and nothing is verified any more."""
    for kind, about in EVIDENCE.items():
        for number, members in enumerate(ODD_MEMBERS):
            payload = orjson.dumps(members | {"event_type": kind, about: str(number)}).decode()
            columns = {"event_type": kind, "event_category": "security", "event_data": payload}
            await seal(connection, f"datastorage:{kind.split('.')[1]}:{number}", columns)
    outside = await sign(connection)
    assert await found_by_each(connection, "rr-1", outside) == (set(),) * 4


async def test_odd_times_of_holds(database_url: str, connection: Connection) -> None:
    """A hold with a time that is none to Python, which a superuser has inserted, and no event is written any more."""
    await connection.execute("SET session_replication_role = replica")
    for number, times in enumerate(("'-infinity', 'infinity'", "'4714-11-24 BC', '294276-01-01'")):
        hold = f"(gen_random_uuid(), {times}, 'x', 'x', {times.split(',')[number]}, {number})"
        await connection.execute(
            f"INSERT INTO holds (hold_id, time_from, time_to, reason, placed_by, placed_at, placed_index) VALUES {hold}"
        )
        async with replica(database_url) as one:
            await one.post(item(f"rr-{number}"))
    assert await connection.fetchval("SELECT count(*) FROM audit_events WHERE legal_hold") == 2
