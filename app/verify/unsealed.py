"""Rows that others inserted by SQL, verified by the rules that they were hashed by, in the order of their times."""

from dataclasses import dataclass, field

import asyncpg

from app.db import Connection
from app.events.reference import KEYED_ALGORITHM, recompute_hash
from app.verify.row import Defects, defect_of
from app.verify.snapshot import FETCH_TIMEOUT_SECONDS, SQL, portions, unhurried


@dataclass(slots=True)
class Unsealed:
    """What verification found about the rows of one correlation that others inserted."""

    total: int = 0
    """Those that have a hash."""
    verified: int = 0
    unhashed: int = 0
    unknown: str = ""
    """Why the last of those that could not be hashed could not."""
    defects: Defects = field(default_factory=Defects)


async def verify_unsealed(connection: Connection, correlation_id: str, hmac_key: bytes | None = None) -> Unsealed:
    """Verify the rows of one correlation that have no place in the log. `connection` is in a snapshot."""
    found, begun = Unsealed(), False
    async for rows in portions(connection, "unsealed_rows", "event_data", correlation_id):
        async for row in unhurried(rows):
            _take(found, row, hmac_key, begun=begun)
            begun = begun or not row["previous_event_hash"]
    found.unhashed = await connection.fetchval(SQL["unhashed_count"], correlation_id, timeout=FETCH_TIMEOUT_SECONDS)
    return found


def _take(found: Unsealed, row: asyncpg.Record, hmac_key: bytes | None, *, begun: bool) -> None:
    """Such a row links to any row of its correlation that has a hash; only the first of them may link to none."""
    found.total += 1
    previous, algorithm, defects = row["previous_event_hash"] or "", row["hash_algorithm"], found.defects
    if previous and not row["linked"]:
        defects.add(defect_of(row, "removed", "no event has the previous hash of this one"))
    if begun and not previous:
        defects.add(defect_of(row, "removed", "only the first event may have no previous hash"))
    try:
        expected = recompute_hash(row, previous, hmac_key)
    except ValueError as error:
        defects.add(defect_of(row, "unverifiable", str(error)))
        return
    if expected is None:
        reason = (
            "needs a key that is not configured" if algorithm == KEYED_ALGORITHM else "is none that this service knows"
        )
        found.unknown = f"hash_algorithm {algorithm!r} {reason}"
        defects.add(defect_of(row, "unverifiable", found.unknown))
    elif expected == row["event_hash"]:
        found.verified += 1
    else:
        message = "the event does not have the hash that was stored with it"
        defects.add(defect_of(row, "edited", message, expected, row["event_hash"]))
