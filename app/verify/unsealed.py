"""Rows that others inserted by SQL, verified by the rules that they were hashed by, in the order of their times."""

from dataclasses import dataclass, field

import asyncpg

from app.db import Connection
from app.events.reference import KEYED_ALGORITHM, recompute_hash
from app.tlog.gaps import FETCH_TIMEOUT_SECONDS
from app.verify.row import Defects, defect_of
from app.verify.snapshot import SQL, cooperatively, portions


@dataclass(slots=True)
class UnsealedReport:
    """What verification found in unsealed rows."""

    total: int = 0
    """Rows that have a hash."""
    verified: int = 0
    """Rows whose hash is right."""
    unhashed: int = 0
    """Rows that have no hash."""
    unknown: str = ""
    """Why the last of the rows that could not be hashed could not."""
    defects: Defects = field(default_factory=Defects)

    def add(self, other: "UnsealedReport") -> None:
        """Add the report of another part of the work."""
        self.total += other.total
        self.verified += other.verified
        self.unhashed += other.unhashed
        self.defects.extend(other.defects)


async def verify_unsealed(connection: Connection, correlation_id: str, hmac_key: bytes | None = None) -> UnsealedReport:
    """Verify the unsealed rows of one correlation. `connection` is in a snapshot."""
    report, has_first = UnsealedReport(), False
    async for rows in portions(connection, SQL["unsealed_rows"], correlation_id, widest="event_data"):
        async for row in cooperatively(rows):
            _check_row(report, row, hmac_key, has_first=has_first)
            has_first = has_first or not row["previous_event_hash"]
    report.unhashed = await connection.fetchval(SQL["count_unhashed"], correlation_id, timeout=FETCH_TIMEOUT_SECONDS)
    return report


def _check_row(report: UnsealedReport, row: asyncpg.Record, hmac_key: bytes | None, *, has_first: bool) -> None:
    """Check link and hash. An unsealed row links to any hashed row of its correlation; one row only may link to none.

    `has_first`: a row before this one links to none.
    """
    report.total += 1
    previous, algorithm, defects = row["previous_event_hash"] or "", row["hash_algorithm"], report.defects
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
        report.unknown = f"hash_algorithm {algorithm!r} {reason}"
        defects.add(defect_of(row, "unverifiable", report.unknown))
    elif expected == row["event_hash"]:
        report.verified += 1
    else:
        message = "the event does not have the hash that was stored with it"
        defects.add(defect_of(row, "edited", message, expected, row["event_hash"]))
