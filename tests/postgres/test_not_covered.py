"""What docs/evidence.md lists as outside the log: a superuser may set it to anything, nobody is accused, and signing goes on."""

from typing import Any

import asyncpg
import pytest

from app.tlog.keys import SigningKey
from app.tlog.signer import Signer
from tests.postgres.test_checkpoints import worker
from tests.postgres.test_tampering import KEY, PUBLIC, found
from tests.sealed import seal

Connection = asyncpg.Connection
TIMES = ("'infinity'", "'-infinity'", "'4000-01-01 BC'", "'294276-01-01'", "now() + interval '2 hours'")
CHANGES = (
    *(f"UPDATE log_flushes SET flushed_at = {time}" for time in TIMES),
    "INSERT INTO claims (scope, key, body_digest, event_ids, answer, expires_at) VALUES ('event', 'x', '', '{}', '{}', 'infinity')",
    "UPDATE claims SET (claimed_at, expires_at, key) = ('infinity', '-infinity', 'y')",
    "DELETE FROM claims",
    "INSERT INTO retention_operations (run_id, operation_start) VALUES (gen_random_uuid(), '-infinity')",
    "UPDATE retention_operations SET (status, rows_deleted, operation_end) = ('completed', -1, 'infinity')",
    "TRUNCATE retention_operations",
    "UPDATE audit_events SET retention_days = 1",
    "UPDATE audit_events SET hash_algorithm = 'md5'",
    "UPDATE audit_events SET legal_hold_reason = 'none', legal_hold_placed_by = 'nobody', legal_hold_placed_at = 'infinity'",
)


@pytest.mark.damaged
async def test_not_covered(connection: Connection) -> None:
    """The table leaves out what is named, or names what it says is not looked at; or a value stops the signing."""
    heartbeats: list[tuple[int, Any]] = []

    async def heartbeat(*of_log: Any) -> None:
        heartbeats.append((of_log[0], of_log[1]))

    await seal(connection, "rr-1", {}, {}, {})
    await connection.execute("SET session_replication_role = replica")
    signing = worker(Signer(SigningKey(KEY, PUBLIC)), heartbeat_seconds=3_600)
    await signing.run_round(connection, heartbeat)
    for number, change in enumerate(CHANGES):
        await connection.execute(change)
        if "flushed_at" not in change:
            await seal(connection, f"rr-{number}", {})
        await signing.run_round(connection, heartbeat)
        assert await found(connection) == set(), change
    assert heartbeats == [(3, None)] * len(TIMES)
    assert await connection.fetchval("SELECT max(size) FROM log_checkpoints") == 3 + len(CHANGES) - len(TIMES)
