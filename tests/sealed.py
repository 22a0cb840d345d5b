"""Rows of a log made by the published rules and with other people's JCS, nothing of the application's."""

import hashlib
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import orjson
import rfc8785

Connection = asyncpg.Connection
LOG = "test.example/datastorage"
SALT = bytes(range(16))
RECORD = (
    *("event_type", "event_category", "event_action", "event_outcome", "actor_type", "resource_type", "correlation_id"),
    *("parent_event_id", "parent_event_date", "namespace", "cluster_id", "severity", "duration_ms", "error_code"),
    *("is_sensitive", "trace_id", "span_id"),
)
COMMITTED = ("actor_id", "actor_ip", "resource_id", "resource_name", "error_message", "event_data", "event_metadata")
REQUIRED = ("event_type", "event_category", "event_action", "event_outcome", "actor_type", "actor_id", "resource_type")


async def insert(connection: Connection, row: dict[str, Any]) -> None:
    marks = ", ".join(f"${number}" for number in range(1, len(row) + 1))
    await connection.execute(f"INSERT INTO audit_events ({', '.join(row)}) VALUES ({marks})", *row.values())


def plain_row(correlation_id: str, **columns: object) -> dict[str, Any]:
    now = datetime.now(UTC)
    return {
        **dict.fromkeys((*REQUIRED, "resource_id"), "x"),
        "event_id": uuid4(),
        "event_timestamp": now,
        "event_date": now.date(),
        "correlation_id": correlation_id,
        "event_data": '{"step": 1}',
    } | columns


async def seal(connection: Connection, correlation_id: str, *columns: dict[str, Any]) -> list[UUID]:
    """Write one flush of one correlation, an event for each of `columns`: rows, leaves and head."""
    tail = await connection.fetchrow("SELECT first_index + count AS next FROM log_flushes ORDER BY 1 DESC LIMIT 1")
    head = await connection.fetchrow("SELECT length, hash FROM chain_heads WHERE correlation_id = $1", correlation_id)
    length, previous = head or (0, "")
    assert tail is not None
    first, leaves, ids = tail["next"], b"", []
    for place, changed in enumerate(columns):
        row = {"log_id": 0, "log_index": first + place, "chain_index": length, "previous_event_hash": previous}
        row = {"recorded_at": datetime.now(UTC), "payload_salt": SALT, "hash_algorithm": "sha256-rfc6962"} | row
        row = plain_row(correlation_id, event_version="1.0", is_sensitive=False, **row) | changed
        row["event_hash"] = previous = sealed_hash(row)
        await insert(connection, row)
        leaves += bytes.fromhex(previous)
        ids.append(row["event_id"])
        length += 1
    await connection.execute(
        "INSERT INTO log_flushes (log_id, first_index, count, leaves) VALUES (0, $1, $2, $3)", first, len(ids), leaves
    )
    await connection.execute(
        "INSERT INTO chain_heads VALUES ($1, $2, $3) ON CONFLICT (correlation_id) DO UPDATE SET length = $2, hash = $3",
        *(correlation_id, length, previous),
    )
    return ids


def sealed_hash(row: dict[str, Any]) -> str:
    """The hash by the words of the design; nothing of the application's."""
    committed = {name: row.get(name) for name in COMMITTED}
    committed |= {name: orjson.loads(row[name]) for name in ("event_data", "event_metadata") if row.get(name)}
    record = {
        "v": 1,
        "log": LOG,
        "log_index": row["log_index"],
        "chain_index": row["chain_index"],
        "previous_event_hash": row["previous_event_hash"] or None,
        "commitment": hashlib.sha256(row.get("payload_salt", SALT) + rfc8785.dumps(committed)).hexdigest(),
        "event_id": str(row["event_id"]),
        "event_version": row["event_version"],
        "event_timestamp": f"{row['event_timestamp']:%Y-%m-%dT%H:%M:%S.%fZ}",
        "recorded_at": f"{row['recorded_at']:%Y-%m-%dT%H:%M:%S.%fZ}",
    } | {name: str(value) if isinstance(value := row.get(name), UUID) else value for name in RECORD}
    return hashlib.sha256(b"\0" + rfc8785.dumps(record)).hexdigest()
