"""Damage done to the rows by SQL: the service goes on writing and answering, and verification finds what is wrong."""

from collections.abc import AsyncIterator, Callable
from typing import Any

import asyncpg
import httpx
import pytest

from tests.events import make_event
from tests.services import Service

pytestmark = pytest.mark.damaged

Connection = asyncpg.Connection
EVENTS = "/api/v1/audit/events"
INSERT = """
INSERT INTO audit_events (event_date, event_timestamp, event_type, event_category, event_action, event_outcome, actor_type,
    actor_id, resource_type, resource_id, correlation_id, event_data, event_hash, is_sensitive, retention_days, legal_hold)
VALUES ((now() AT TIME ZONE 'UTC')::date, now(), $1, $2, '', '', '', '', '', '', $3, $4, $5, NULL, NULL, NULL)
"""


@pytest.fixture
async def client(service: Callable[..., Service]) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=service().url, timeout=30) as client:
        yield client


async def post(client: httpx.AsyncClient, correlation_id: str, times: int = 1) -> None:
    for _ in range(times):
        answer = await client.post(EVENTS, json=make_event(correlation_id=correlation_id))
        assert answer.status_code == 201, answer.text


async def verified(client: httpx.AsyncClient, correlation_id: str) -> dict[str, Any]:
    answer = await client.post("/api/v1/audit/verify-chain", json={"correlation_id": correlation_id})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    assert None not in found.values()
    return found


async def found_by_query(client: httpx.AsyncClient, correlation_id: str) -> int:
    answer = await client.get(EVENTS, params={"correlation_id": correlation_id})
    assert answer.status_code == 200, answer.text
    assert answer.json()["pagination"]["total"] == len(answer.json()["data"])
    return len(answer.json()["data"])


async def works_on(client: httpx.AsyncClient, correlation_id: str, expected: int) -> dict[str, Any]:
    """The service accepts one more event of the correlation and returns `expected`; the answer of verification after that."""
    await post(client, correlation_id)
    assert await found_by_query(client, correlation_id) == expected
    assert (await client.get("/readyz")).status_code == 200
    await post(client, "another")
    assert (await verified(client, "another"))["is_valid"]
    return await verified(client, correlation_id)


async def test_unsealed_rows(client: httpx.AsyncClient, connection: Connection) -> None:
    """Rows of other programs, strange ones too, stop the service, hide from it, or spoil the chain of the same correlation."""
    await post(client, "rr-1", 2)
    for event_data, event_hash in [("{}", None), ('{"event_type": null}', None), ("[1]", "short"), ("null", "ab" * 40)]:
        await connection.execute(INSERT, "test.foreign", "no such category", "rr-1", event_data, event_hash)
    found = await works_on(client, "rr-1", 7)
    assert (found["is_valid"], found["total_events"], found["verified_events"]) == (True, 5, 3)
    assert (found["skipped_null_hash"], found["unsealed_events"]) == (2, 2)
    assert {defect["actual_hash"] for defect in found["unsealed_defects"]} - {""} == {"short", "ab" * 40}
    assert "tampered_events" not in found


async def test_unsealed_rows_alone(client: httpx.AsyncClient, connection: Connection) -> None:
    """A correlation that only other programs wrote to cannot be queried, or its edited row goes unnoticed."""
    await connection.execute(INSERT, "", "", "foreign", "{}", None)
    assert (await verified(client, "foreign"))["is_valid"]
    await connection.execute(INSERT, "", "", "foreign", "{}", "ab" * 32)
    assert await found_by_query(client, "foreign") == 2
    found = await verified(client, "foreign")
    assert (found["is_valid"], found["total_events"], found["skipped_null_hash"]) == (False, 1, 1)
    assert [entry["actual_hash"] for entry in found["tampered_events"]] == ["ab" * 32]
    assert (await works_on(client, "foreign", 3))["is_valid"]


async def test_overwritten_hash(client: httpx.AsyncClient, connection: Connection) -> None:
    """The reference's own tamper test: an event_hash overwritten with 74 characters goes unnoticed."""
    await post(client, "rr-1", 3)
    overwritten = "tampered_" + "0" * 65
    row = await connection.fetchrow("SELECT event_id, event_hash FROM audit_events ORDER BY log_index LIMIT 1")
    assert row is not None
    await connection.execute(
        "UPDATE audit_events SET event_hash = $1 WHERE event_id = $2", overwritten, row["event_id"]
    )
    found = await works_on(client, "rr-1", 4)
    assert (found["is_valid"], found["total_events"], found["verified_events"]) == (False, 4, 3)
    own, link = found["tampered_events"]
    assert (own["event_id"], own["actual_hash"]) == (str(row["event_id"]), overwritten)
    assert own["expected_hash"] == row["event_hash"]
    assert (link["expected_hash"], link["actual_hash"], link["previous_hash"]) == ("", "", row["event_hash"])


async def test_overwritten_end_of_a_chain(client: httpx.AsyncClient, connection: Connection) -> None:
    """The next event links to an overwritten hash, so that the forgery becomes part of the chain."""
    await post(client, "rr-1", 2)
    await connection.execute("UPDATE audit_events SET event_hash = 'forged' WHERE chain_index = 1")
    await works_on(client, "rr-1", 3)
    assert await connection.fetchval("SELECT count(*) FROM audit_events WHERE previous_event_hash = 'forged'") == 0


async def test_deleted_rows(client: httpx.AsyncClient, connection: Connection) -> None:
    """Deleted events go unnoticed, or nothing can be written after them."""
    for correlation_id, condition, left in (
        ("rr-1", "chain_index = 1", 3),
        ("rr-2", "chain_index = 0", 3),
        ("rr-3", "true", 1),
    ):
        await post(client, correlation_id, 3)
        await connection.execute(f"DELETE FROM audit_events WHERE correlation_id = $1 AND {condition}", correlation_id)
        found = await works_on(client, correlation_id, left)
        assert (found["is_valid"], found["verified_events"]) == (False, left)
        assert found["tampered_events"][0]["message"].startswith("removed")


async def test_deleted_tail(client: httpx.AsyncClient, connection: Connection) -> None:
    """A chain without its end, or of which nothing is left, is reported as whole."""
    await post(client, "rr-1", 3)
    for condition, left in (("chain_index = 2", 2), ("true", 0)):
        await connection.execute(f"DELETE FROM audit_events WHERE {condition}")
        found = await verified(client, "rr-1")
        assert (found["is_valid"], found["total_events"]) == (False, left)
        assert "truncated" in found["message"]


async def test_damaged_head(client: httpx.AsyncClient, connection: Connection) -> None:
    """A chain whose head was deleted or edited can no longer be written to, or the damage goes unnoticed."""
    for place, damage in enumerate(
        ("DELETE FROM chain_heads", "UPDATE chain_heads SET length = 1", "UPDATE chain_heads SET length = 7")
    ):
        await post(client, f"rr-{place}", 2)
        await connection.execute(f"{damage} WHERE correlation_id = $1", f"rr-{place}")
        assert not (await verified(client, f"rr-{place}"))["is_valid"]
        assert not (await works_on(client, f"rr-{place}", 3))["is_valid"]


async def test_edited_end_in_a_head(client: httpx.AsyncClient, connection: Connection) -> None:
    """A head that names another event as the last one goes unnoticed."""
    await post(client, "rr-1", 2)
    await connection.execute("UPDATE chain_heads SET hash = 'ab'")
    assert not (await verified(client, "rr-1"))["is_valid"]
    await works_on(client, "rr-1", 3)


async def test_edited_row(client: httpx.AsyncClient, connection: Connection) -> None:
    """A change that somebody makes with the triggers off goes unnoticed."""
    await connection.execute("SET session_replication_role = replica")
    for place, change in enumerate(("event_timestamp = date_trunc('day', event_timestamp)", "severity = 'low'")):
        await post(client, f"rr-{place}", 2)
        await connection.execute(
            f"UPDATE audit_events SET {change} WHERE correlation_id = $1 AND chain_index = 0", f"rr-{place}"
        )
        found = await works_on(client, f"rr-{place}", 3)
        assert (found["is_valid"], found["verified_events"]) == (False, 2)
        assert [entry["message"].partition(":")[0] for entry in found["tampered_events"]] == ["edited"]


async def test_changes_that_are_no_damage(client: httpx.AsyncClient, connection: Connection) -> None:
    """Retention and holds, which the platform's tests change by SQL, look like tampering."""
    await post(client, "rr-1", 2)
    await connection.execute("UPDATE audit_events SET retention_days = 30, legal_hold = true, legal_hold_reason = 'x'")
    assert (await works_on(client, "rr-1", 3))["is_valid"]


async def test_emptied_log(client: httpx.AsyncClient, connection: Connection) -> None:
    """After the log's own table was emptied nothing is written any more, or a position is given twice."""
    await post(client, "rr-1", 3)
    await connection.execute("DELETE FROM log_flushes")
    await works_on(client, "rr-1", 4)
    positions = await connection.fetch("SELECT log_index FROM audit_events ORDER BY log_index")
    assert len({row["log_index"] for row in positions}) == len(positions)
