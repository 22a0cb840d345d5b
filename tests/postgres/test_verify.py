"""Verification in a real Postgres. The rows are made here, by the published rules and with other people's JCS."""

import asyncio
import time
from collections.abc import AsyncIterator
from datetime import UTC, date, datetime, timedelta
from typing import Any

import asyncpg
import pytest
from pydantic import SecretStr

from app.db import create_engine
from app.events.reference import reference_hash
from app.settings import Settings
from app.verify.correlation import CorrelationResult, verify_correlation
from app.verify.database import TrustAnchors, sequential_runner, verify_database
from app.verify.snapshot import snapshot
from tests.logs import FIRST_LOG
from tests.sealed import insert, plain_row, seal

Connection = asyncpg.Connection
PAYLOAD = '{"é": 1.5, "b": [1e-7, 1e21, true, null, "<\u2028\\u0001"], "a": {"z": 0.10, "y": -3}}'


async def insert_reference(
    connection: Connection, correlation_id: str, previous: str = "", key: bytes | None = None, **columns: object
) -> str:
    """A row as the reference writes it; its hash."""
    row = plain_row(correlation_id, event_version="1.0", retention_days=30, is_sensitive=False, **columns)
    row |= {"previous_event_hash": previous, "hash_algorithm": "hmac-sha256" if key else "sha256-unkeyed"}
    row["event_hash"] = reference_hash(row, previous, key)
    await insert(connection, row)
    return str(row["event_hash"])


async def report_of(connection: Connection, correlation_id: str, key: bytes | None = None) -> CorrelationResult:
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        return await verify_correlation(connection, correlation_id, FIRST_LOG, key)


async def log_defects(connection: Connection) -> list[str]:
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        report = await verify_database(connection, sequential_runner(connection), TrustAnchors())
    return [defect.kind for defect in report.defects.listed]


def kinds(report: CorrelationResult) -> list[str]:
    found: list[str] = [defect.kind for defect in report.sealed.defects.listed]
    return found if report.head_defect is None else [*found, report.head_defect.kind]


@pytest.fixture
async def superuser(connection: Connection) -> Connection:
    """A connection on which no trigger refuses anything."""
    await connection.execute("SET session_replication_role = replica")
    return connection


async def test_chain_by_the_published_rules(connection: Connection) -> None:
    """Rows that somebody else hashed by the published rules do not verify: the record is not what is published."""
    late = datetime.now(UTC) - timedelta(days=6)
    await seal(connection, "rr-1", {}, {"event_timestamp": late, "event_date": late.date()})
    await seal(connection, "rr-2", {})
    await seal(
        connection, "rr-1", {"event_data": PAYLOAD, "severity": "info", "duration_ms": 7, "actor_ip": "10.0.0.1"}
    )
    report = await report_of(connection, "rr-1")
    assert kinds(report) == []
    assert (report.sealed.total, report.sealed.verified, report.is_valid) == (3, 3, True)
    assert await log_defects(connection) == []


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ("actor_id = 'somebody'", ["edited"]),
        ("event_data = '{\"step\": 2}'", ["edited"]),
        ("severity = 'low'", ["edited"]),
        ("event_timestamp = event_timestamp + interval '1 microsecond'", ["edited"]),
        ("event_timestamp = '0044-03-15 BC'", ["edited", "edited"]),
        ("event_timestamp = '12000-01-01'", ["edited", "edited"]),
        ("event_timestamp = '-infinity'", ["edited", "edited"]),
        ("recorded_at = '0044-03-15 BC'", ["edited"]),
        ("parent_event_date = '0044-03-15 BC'", ["edited"]),
        ("actor_ip = '10.0.0.1/8'", ["edited"]),
        ("event_data = ('{\"n\": 1' || repeat('0', 5000) || '}')::jsonb", ["edited"]),
        ("event_data = (repeat('[', 3000) || repeat(']', 3000))::jsonb", ["edited"]),
        ("payload_salt = NULL", ["edited"]),
        ("event_hash = NULL", ["edited", "edited"]),
        ("chain_index = 7", ["removed", "reordered", "removed", "inserted"]),
        ("chain_index = NULL", ["removed", "edited", "edited"]),
        ("chain_index = 2", ["removed", "edited", "inserted"]),
        ("log_index = NULL", ["edited"]),
        ("log_index = NULL, chain_index = NULL", ["removed"]),
    ],
)
@pytest.mark.damaged
async def test_edited_row(superuser: Connection, change: str, found: list[str]) -> None:
    """A row that was changed by SQL goes unnoticed, or ends the verification of the others."""
    _, second, _ = await seal(superuser, "rr-1", {}, {}, {})
    await superuser.execute(f"UPDATE audit_events SET {change} WHERE event_id = $1", second)
    report = await report_of(superuser, "rr-1")
    assert sorted(kinds(report)) == sorted(found)
    assert not report.is_valid


@pytest.mark.damaged
async def test_removed_rows(superuser: Connection) -> None:
    """Rows that were deleted by SQL go unnoticed: one in the middle, the tail, the whole chain."""
    for correlation_id, condition, found in [
        ("rr-1", "chain_index = 1", "removed"),
        ("rr-2", "chain_index > 1", "truncated"),
        ("rr-3", "true", "truncated"),
    ]:
        await seal(superuser, correlation_id, {}, {}, {})
        await superuser.execute(f"DELETE FROM audit_events WHERE correlation_id = $1 AND {condition}", correlation_id)
        report = await report_of(superuser, correlation_id)
        assert kinds(report) == [found]
        assert not report.is_valid


@pytest.mark.damaged
async def test_removed_head(connection: Connection) -> None:
    """Without its head a chain could lose its tail unnoticed."""
    await seal(connection, "rr-1", {})
    await connection.execute("DELETE FROM chain_heads")
    assert not (await report_of(connection, "rr-1")).is_valid


async def test_rows_of_the_reference(connection: Connection) -> None:
    """Rows that the reference wrote before us, or beside us, look edited."""
    previous = ""
    for address in (None, "2001:db8::1", "::ffff:1.2.3.4", "10.0.0.0/8"):
        previous = await insert_reference(
            connection, "old", previous, actor_ip=address, parent_event_date=date(2026, 1, 2)
        )
    report = await report_of(connection, "old")
    assert (report.is_valid, report.unsealed.total, report.unsealed.verified) == (True, 4, 4)
    assert (report.unsealed.defects.count, report.is_sealed) == (0, False)


async def test_row_of_the_reference_after_ours(connection: Connection) -> None:
    """A row that the reference appended to a chain of ours looks as if the row before it were missing."""
    await seal(connection, "rr-1", {}, {})
    for previous in await connection.fetch("SELECT event_hash FROM audit_events"):
        await insert_reference(connection, "rr-1", previous["event_hash"])
    report = await report_of(connection, "rr-1")
    assert (report.is_valid, report.unsealed.verified, report.unsealed.defects.count) == (True, 2, 0)
    assert report.sealed.total == 2


async def test_edited_row_of_the_reference(connection: Connection) -> None:
    """An edited unsealed row goes unnoticed where it is all there is, or spoils a chain of ours."""
    await insert_reference(connection, "rr-1")
    await connection.execute("UPDATE audit_events SET severity = 'low'")
    alone = await report_of(connection, "rr-1")
    assert (alone.is_valid, [d.kind for d in alone.unsealed.defects.listed]) == (False, ["edited"])
    await seal(connection, "rr-1", {})
    beside = await report_of(connection, "rr-1")
    assert (beside.is_valid, beside.unsealed.defects.count, beside.sealed.verified) == (True, 1, 1)


async def test_row_of_the_reference_without_the_one_before(connection: Connection) -> None:
    """Of rows that the reference wrote, one was deleted, or one was inserted as if it were the first, and nobody notices."""
    await insert_reference(connection, "cut", "ab" * 32)
    await insert_reference(connection, "two")
    await insert_reference(connection, "two")
    for correlation_id in ("cut", "two"):
        report = await report_of(connection, correlation_id)
        assert [defect.kind for defect in report.unsealed.defects.listed] == ["removed"]


async def test_row_hashed_with_a_key(connection: Connection) -> None:
    """A keyed row counts as edited without its key, hides the rows beside it, or is not verified with the key."""
    await insert_reference(connection, "rr-1", await insert_reference(connection, "rr-1"), b"k" * 32)
    without = await report_of(connection, "rr-1")
    assert (without.unsealed.verified, [d.kind for d in without.unsealed.defects.listed]) == (1, ["unverifiable"])
    assert (await report_of(connection, "rr-1", b"k" * 32)).unsealed.verified == 2
    assert (await report_of(connection, "rr-1", b"K" * 32)).unsealed.verified == 1


@pytest.mark.parametrize(
    "columns",
    [
        {"hash_algorithm": "md5"},
        {"hash_algorithm": "sha256-rfc6962"},
        {"event_timestamp": None},
        {"event_data": "[" * 3000 + "]" * 3000},
        {"event_data": '{"n": 1' + "0" * 5000 + "}"},
        {"event_data": "null"},
        {"retention_days": None, "is_sensitive": None},
    ],
)
async def test_strange_unsealed_row(connection: Connection, columns: dict[str, Any]) -> None:
    """A row that somebody put in by SQL ends the verification of its correlation."""
    row = plain_row("rr-1", event_hash="ab" * 40, **columns)
    if row["event_timestamp"] is None:
        del row["event_timestamp"]
    await insert(connection, row)
    await connection.execute(
        "UPDATE audit_events SET parent_event_date = '0044-03-15 BC', actor_ip = '::ffff:1.2.3.4/8'"
    )
    if "event_timestamp" in columns:
        await connection.execute("UPDATE audit_events SET event_timestamp = '0044-03-15 BC'")
    await insert(connection, plain_row("rr-1"))
    await seal(connection, "rr-1", {})
    report = await report_of(connection, "rr-1")
    assert (report.is_valid, report.unsealed.total, report.unsealed.defects.count) == (True, 1, 1)
    assert report.unsealed.unhashed == 1


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        ("DELETE FROM log_flushes WHERE first_index = 2", ["inserted", "inserted", "removed"]),
        ("DELETE FROM log_flushes", ["inserted"] * 5 + ["removed"]),
        ("DELETE FROM log_flushes WHERE first_index = -1", ["removed"]),
        ("UPDATE log_flushes SET leaves = substr(leaves, 1, 40) WHERE first_index = 2", ["edited", "inserted"]),
        (
            "UPDATE log_flushes SET leaves = set_byte(leaves, 40, get_byte(leaves, 40) # 255) WHERE first_index = 2",
            ["edited"],
        ),
        ("UPDATE log_flushes SET count = 2000000000 WHERE first_index = 4", ["edited"]),
        ("UPDATE log_flushes SET count = 3 WHERE first_index = 2", ["edited", "inserted"]),
        (
            "UPDATE log_flushes SET first_index = 3 WHERE first_index = 2",
            ["edited", "inserted", "removed", "reordered", "reordered"],
        ),
        ("DELETE FROM audit_events WHERE log_index IN (0, 4)", ["removed", "removed", "truncated", "truncated"]),
        ("UPDATE audit_events SET log_index = 3 WHERE log_index = 1", ["inserted", "removed"]),
        ("UPDATE audit_events SET log_index = 9 WHERE log_index = 1", ["reordered"]),
        ("UPDATE audit_events SET event_hash = NULL WHERE log_index = 1", ["edited", "edited"]),
    ],
)
@pytest.mark.damaged
async def test_damaged_log(superuser: Connection, damage: str, found: list[str]) -> None:
    """Damage to the log, or to rows against it, goes unnoticed, or ends the verification of the rest."""
    for correlation_id in ("rr-1", "rr-2"):
        await seal(superuser, correlation_id, {}, {})
    await seal(superuser, "rr-1", {})
    assert await log_defects(superuser) == []
    await superuser.execute(damage)
    assert sorted(await log_defects(superuser)) == sorted(found), damage


@pytest.fixture
async def reading(database_url: str) -> AsyncIterator[Connection]:
    """A connection in a snapshot, from the pool as the service has it."""
    engine = create_engine(Settings(database_url=SecretStr(database_url)))
    async with snapshot(engine) as connection:
        yield connection
    await engine.dispose()


async def test_write_beside_a_verification(connection: Connection, reading: Connection) -> None:
    """An event that is written while its chain is being verified looks like damage."""
    await seal(connection, "rr-1", {"event_data": PAYLOAD, "actor_ip": "2001:db8::1"})
    assert (await verify_correlation(reading, "rr-1", FIRST_LOG)).sealed.verified == 1
    await seal(connection, "rr-1", {})
    assert (await verify_correlation(reading, "rr-1", FIRST_LOG)).sealed.total == 1


@pytest.mark.damaged
async def test_others_get_their_turn(superuser: Connection) -> None:
    """While a chain of large payloads is verified the process answers nobody."""
    digits = ",".join(f"{number}.00000000000000000001" for number in range(3000))
    await seal(superuser, "rr-1", *({} for _ in range(40)))
    await superuser.execute("UPDATE audit_events SET event_data = $1", f'{{"slow": [{digits}]}}')
    gaps, last = [0.0], time.thread_time()

    async def tick() -> None:
        nonlocal last
        while True:
            await asyncio.sleep(0)
            gaps.append(time.thread_time() - last)  # of this thread only: other processes do not count
            last = time.thread_time()

    ticking = asyncio.create_task(tick())
    report = await report_of(superuser, "rr-1")
    ticking.cancel()
    assert report.sealed.defects.count == 40
    assert max(gaps) < 0.15
