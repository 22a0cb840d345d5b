"""What an export vouches for, against what verification of the correlation says: rows forged by INSERT, or changed by a superuser."""

import io
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import orjson
import pytest

from app.db import Engine
from app.events.canonical import loads
from app.events.record import stored_hash
from app.export.certificate import ExportKeyPair
from app.export.file import MEMBERS, Format, RecordReader, event_record, header_record
from app.export.select import ExportQuery
from app.sql import load
from app.verify.correlation import verify_correlation
from tests.events import make_event
from tests.logs import FIRST_LOG
from tests.postgres import test_export
from tests.postgres.test_export import LOG, Post, events_of, export, page, verdict
from tests.postgres.test_tampering import own
from tests.sealed import insert, plain_row

pytestmark = pytest.mark.damaged

Connection = asyncpg.Connection
post, signing, superuser = test_export.post, test_export.signing, test_export.superuser
Tamper = Callable[[Connection], Awaitable[Any]]
SEALS = "event_hash, hash_algorithm, previous_event_hash, log_id, log_index, chain_index, payload_salt, recorded_at"


def sql(statement: str) -> Tamper:
    async def change(connection: Connection) -> None:
        await connection.execute(statement)

    return change


def forged(*columns: str, **changed: Any) -> Tamper:
    """INSERT a row of one's own that has these columns of the second event."""

    async def insert_row(connection: Connection) -> None:
        names = ", ".join(columns)
        copied = await connection.fetchrow(f"SELECT {names or 'event_type'} FROM audit_events WHERE log_index = 1")
        await insert(connection, plain_row("rr-1", event_data='{"forged": true}') | dict(copied or {}) | changed)

    return insert_row


async def hash_again(connection: Connection) -> None:
    """Change an event and compute its hash anew, so that it is right by itself."""
    await connection.execute("""UPDATE audit_events SET event_data = '{"edited": true}' WHERE log_index = 4""")
    row = await connection.fetchrow(load("tlog")["rows_with_id"], await id_at(connection, 4))
    assert row is not None
    await connection.execute("UPDATE audit_events SET event_hash = $1 WHERE log_index = 4", stored_hash(row, LOG))


async def id_at(connection: Connection, position: int) -> UUID:
    event_id: UUID = await connection.fetchval("SELECT event_id FROM audit_events WHERE log_index = $1", position)
    return event_id


async def a_second_without_a_link(connection: Connection) -> None:
    for _ in range(2):
        await test_export.insert(connection, hash_algorithm="sha256-unkeyed")


async def purge_of_others(connection: Connection) -> None:
    """Somebody removes an event where the log records only that others were purged."""
    await own(connection, "datastorage.retention.purged", "{[0,1)}", operation_id="one")
    await connection.execute("DELETE FROM audit_events WHERE log_index = 2")


async def shadow(connection: Connection) -> None:
    ago = datetime.now(UTC) - timedelta(days=40)
    changed = {"correlation_id": "rr-2", "event_timestamp": ago, "event_date": ago.date()}
    await forged("event_id", **changed)(connection)


TAMPERINGS = {
    "a forged payload with a copied hash": forged("event_hash", "hash_algorithm"),
    "a copied hash of an unkeyed algorithm": forged("event_hash", hash_algorithm="sha256-unkeyed"),
    "a keyed hash": forged("event_hash", hash_algorithm="hmac-sha256"),
    "a copy of all that seals": forged(*SEALS.split(", ")),
    "a position beyond the end": forged(*SEALS.split(", "), log_index=99, chain_index=9),
    "no hash": forged(),
    "a second one without a link": a_second_without_a_link,
    "a shadow": shadow,
    "an event that was hashed again": hash_again,
    "an edited event": sql("UPDATE audit_events SET severity = 'low' WHERE log_index = 3"),
    "another log": sql("UPDATE audit_events SET log_id = 7 WHERE log_index = 3"),
    "another date": sql("UPDATE audit_events SET event_date = event_date + 1 WHERE log_index = 3"),
    "an erasure that the log does not record": sql(
        "UPDATE audit_events SET payload_commitment = sha256('x'), actor_id = 'erased', resource_id = 'erased' WHERE log_index = 3"
    ),
    "a removed event": sql("DELETE FROM audit_events WHERE log_index = 2"),
    "a removed event and a purge of others": purge_of_others,
    "a changed link": sql("UPDATE audit_events SET previous_event_hash = event_hash WHERE log_index = 3"),
    "a place that two have": sql("UPDATE audit_events SET chain_index = 2 WHERE log_index = 3"),
    "a changed leaf": sql("UPDATE log_flushes SET leaves = sha256('x') || substr(leaves, 33) WHERE first_index = 0"),
}


@pytest.mark.parametrize("kind", TAMPERINGS)
async def test_page(engine: Engine, post: Post, superuser: Connection, signing: ExportKeyPair, kind: str) -> None:
    """The signed page calls an event valid that verification of its correlation calls a defect, or cannot verify."""
    await post(*(make_event(correlation_id="rr-1") for _ in range(6)))
    whole = await page(engine, signing)
    assert whole["hash_chain_verification"]["chain_integrity_percentage"] == 100
    await TAMPERINGS[kind](superuser)
    exported = await page(engine, signing, include="self")
    valid = {event["event_id"] for event in exported["events"] if event["hash_chain_valid"]}
    doubtful = set()
    for correlation in ("rr-1", "rr-2"):
        async with superuser.transaction(isolation="repeatable_read", readonly=True):
            report = await verify_correlation(superuser, correlation, FIRST_LOG)
        doubtful |= {str(defect.event_id) for defect in (*report.defects.listed, *report.unsealed.defects.listed)}
    nothing_said = await superuser.fetch("SELECT event_id::text FROM audit_events WHERE event_hash IS NULL")
    doubtful |= {row["event_id"] for row in nothing_said}
    assert doubtful
    assert not valid & doubtful
    assert len(valid) >= 2  # the others are not blamed
    verification = exported["hash_chain_verification"]
    assert verification["chain_integrity_percentage"] < 100
    assert verification["valid_chain_events"] == len(valid)


@pytest.mark.parametrize("form", ["ndjson", "csv"])
async def test_file_marks_what_the_log_does_not_have(
    engine: Engine, post: Post, superuser: Connection, form: Format
) -> None:
    """An event that was hashed again leaves the service as one of the log, and the file says that nothing is wrong."""
    await post(*(make_event(correlation_id="rr-1") for _ in range(6)))
    query = ExportQuery(format=form)
    assert verdict(await export(engine, query)).problems == []
    await hash_again(superuser)
    await forged()(superuser)
    file = await export(engine, query)
    problems = verdict(file).problems
    assert [text for text in problems if "not in the log" in text and str(await id_at(superuser, 4)) in text]
    only = await export(engine, ExportQuery(format=form, sealed=True))
    assert (verdict(file).counts["unsealed"], verdict(only).counts["unsealed"]) == (1, 0)
    if form == "ndjson":
        assert [event["sealed"] for event in events_of(file)] == [True] * 4 + [False, True, False]
    else:
        assert file.splitlines()[0].endswith(b",sealed")


def test_files_from_before_are_read() -> None:
    """A file that was exported before its events said whether they are sealed cannot be verified any more."""
    older = MEMBERS[:-1]
    event: dict[str, Any] = dict.fromkeys(older, "x") | {"event_id": str(uuid4()), "event_data": {"a": 1}}
    event |= dict.fromkeys(("event_metadata", "duration_ms", "retention_days", "log_index", "chain_index"))
    event |= dict.fromkeys(("is_sensitive", "legal_hold", "redacted"))
    line = orjson.dumps(event) + b"\n"
    reader = RecordReader(io.BytesIO(line))
    assert [reader.event(record) for record in reader] == [loads(line)]
    header = header_record("csv").replace(b",sealed", b"")
    newer = event | {"sealed": None}
    record = event_record("csv", newer).rstrip(b"\r\n").removesuffix(b",") + b"\r\n"
    reader = RecordReader(io.BytesIO(header + record))
    first, second = list(reader)
    assert reader.is_header(first)
    assert "sealed" not in reader.event(second)
    assert reader.event(second)["event_id"] == event["event_id"]
