"""A part of the log held against the rows that stand at its positions."""

from dataclasses import dataclass, field

from app.db import Connection
from app.events.positions import Positions
from app.tlog.evidence import Evidence
from app.verify.row import DEFECTS_MAX, Defects, defect_of, faults
from app.verify.snapshot import FETCH_TIMEOUT_SECONDS, SQL, portions, unhurried

LEAF_BYTES = 32
_ROWS_AT_ONCE = 64


@dataclass(slots=True)
class Walk:
    """What verification found in a part of the log."""

    total: int = 0
    """Rows looked at."""
    verified: int = 0
    erased: int = 0
    purged: int = 0
    missing: list[tuple[int, int]] = field(default_factory=list)
    """Positions without a row, which nobody purged, as ranges."""
    missing_leaves: dict[str, int] = field(default_factory=dict)
    """Of the first of those, their leaves."""
    defects: Defects = field(default_factory=Defects)


async def walk(
    connection: Connection, log: str, first: int, end: int, evidence: Evidence, *, rows_at_once: int = _ROWS_AT_ONCE
) -> Walk:
    """Hold the rows at positions from `first` up to, not including, `end` against the leaves that the log has there."""
    found = Walk()
    leaves = await _leaves(connection, first, end)
    waiting = iter(leaves.items())
    position, leaf = next(waiting, (end, ""))
    last = None
    async for rows in portions(connection, "logged_rows", "event_data", first, end, at_once=rows_at_once):
        async for row in unhurried(rows):
            index = row["log_index"]
            while position < index:
                _miss(found, position, leaf, evidence.purged)
                position, leaf = next(waiting, (end, ""))
            found.total += 1
            if index == last:
                found.defects.add(
                    defect_of(row, "inserted", f"another event stands at position {index} of the log too")
                )
                continue
            defects = list(faults(row, leaf if index == position else None, log, evidence.erased))
            for defect in defects:
                found.defects.add(defect)
            found.verified += not defects
            found.erased += not defects and row["payload_commitment"] is not None
            last = index
            if index == position:
                position, leaf = next(waiting, (end, ""))
    while position < end:
        _miss(found, position, leaf, evidence.purged)
        position, leaf = next(waiting, (end, ""))
    return found


async def _leaves(connection: Connection, first: int, end: int) -> dict[int, str]:
    """The leaves of a part of the log by position, in order. Where two flushes hold a position, the first one counts."""
    leaves: dict[int, str] = {}
    rows = await connection.fetch(SQL["flushes_of"], first, end, timeout=FETCH_TIMEOUT_SECONDS)
    for flush in rows:
        start, joined = flush["first_index"], flush["leaves"].hex()
        low = max(first, start)
        high = min(end, start + min(flush["count"], len(joined) // (2 * LEAF_BYTES)))
        for position in range(low, high):
            place = (position - start) * 2 * LEAF_BYTES
            leaves.setdefault(position, joined[place : place + 2 * LEAF_BYTES])
    return leaves


def _miss(found: Walk, position: int, leaf: str, purged: Positions) -> None:
    if position in purged:
        found.purged += 1
        return
    if found.missing and found.missing[-1][1] == position:
        found.missing[-1] = found.missing[-1][0], position + 1
    else:
        found.missing.append((position, position + 1))
    if len(found.missing_leaves) < DEFECTS_MAX:
        found.missing_leaves[leaf] = position
