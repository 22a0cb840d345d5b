"""Rows that others inserted by SQL, verified by the rules that they were hashed by, in the order of their times."""

from dataclasses import dataclass, field

import asyncpg

from app.db import LONG_FETCH_SECONDS, Connection, portions
from app.events.reference import KEYED_ALGORITHM, recompute_hash
from app.verify.row import Defects, defect_of
from app.verify.snapshot import SQL, yielding_to_others


@dataclass(slots=True)
class UnsealedResult:
    """What verification found in unsealed rows."""

    total: int = 0
    """Rows that have a hash."""
    verified: int = 0
    """Rows whose hash is right."""
    unhashed: int = 0
    """Rows that have no hash."""
    correlations: int = 0
    """In how many correlations they all are."""
    unknown: str = ""
    """Why the last of the rows that could not be hashed could not."""
    defects: Defects = field(default_factory=Defects)

    def add(self, other: "UnsealedResult") -> None:
        """Add the result of another part of the work."""
        self.total += other.total
        self.verified += other.verified
        self.unhashed += other.unhashed
        self.correlations += other.correlations
        self.defects.extend(other.defects)


async def verify_unsealed(connection: Connection, correlation_id: str, hmac_key: bytes | None = None) -> UnsealedResult:
    """Verify the unsealed rows of one correlation. `connection` is in a snapshot."""
    result, has_first = UnsealedResult(), False
    async for rows in portions(connection, SQL["unsealed_rows"], correlation_id, widest="event_data"):
        async for row in yielding_to_others(rows):
            _check_row(result, row, hmac_key, has_first=has_first)
            has_first = has_first or not row["previous_event_hash"]
    result.unhashed = await connection.fetchval(SQL["count_unhashed"], correlation_id, timeout=LONG_FETCH_SECONDS)
    result.correlations = int(result.total + result.unhashed > 0)
    return result


def _check_row(result: UnsealedResult, row: asyncpg.Record, hmac_key: bytes | None, *, has_first: bool) -> None:
    """Check link and hash. An unsealed row links to any hashed row of its correlation; one row only may link to none.

    `has_first`: a row before this one links to none.
    """
    result.total += 1
    previous, algorithm, defects = row["previous_event_hash"] or "", row["hash_algorithm"], result.defects
    if previous and not row["linked"]:
        defects.add(defect_of(row, "removed", "no event has the previous hash of this one"))
    if has_first and not previous:
        defects.add(defect_of(row, "removed", "only the first event may have no previous hash"))
    try:
        expected = recompute_hash(row, previous, hmac_key)
    except ValueError as error:
        defects.add(defect_of(row, "unverifiable", str(error)))
        return
    if expected is None:
        reason = (
            "needs a key that is not configured" if algorithm == KEYED_ALGORITHM else "is not known to this service"
        )
        result.unknown = f"hash_algorithm {algorithm!r} {reason}"
        defects.add(defect_of(row, "unverifiable", result.unknown))
    elif expected == row["event_hash"]:
        result.verified += 1
    else:
        message = "the stored hash is not the hash of this event"
        defects.add(defect_of(row, "edited", message, expected, row["event_hash"]))
