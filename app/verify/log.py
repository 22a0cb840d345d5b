"""A part of the log against the rows at its positions."""

from dataclasses import dataclass, field
from typing import NamedTuple

from app.db import LONG_FETCH_SECONDS, Connection, portions
from app.events.log import Log
from app.events.record import Row
from app.tlog.evidence import Evidence
from app.tlog.merkle import HASH_BYTES
from app.verify.row import DEFECTS_MAX, Defect, Defects, defect_of, row_defects
from app.verify.snapshot import SQL, yielding_to_others

_ROWS_MAX = 64
_HEX_DIGITS = 2 * HASH_BYTES


@dataclass(slots=True)
class LogResult:
    """What verification found in a part of the log."""

    total: int = 0
    """Rows read."""
    verified: int = 0
    """Rows that match the log."""
    erased: int = 0
    """Of those, the ones that were erased since."""
    purged: int = 0
    """Positions whose rows were purged, as recorded in the log, and are not archived."""
    archived: int = 0
    """Positions whose rows were purged, as recorded in the log, or lost, as it admits, and that are archived."""
    lost: int = 0
    """Positions whose rows were lost, as the event admits with which the log was continued, and are not archived."""
    missing: list[tuple[int, int]] = field(default_factory=list)
    """Positions without a row that were not purged, as ranges."""
    missing_leaves: dict[str, int] = field(default_factory=dict)
    """The first of those, by their leaf hashes."""
    defects: Defects = field(default_factory=Defects)

    def add(self, part: "LogResult", start: int = 0) -> None:
        """Add the result of another part of the log; `start` is added to its positions."""
        self.total += part.total
        self.verified += part.verified
        self.erased += part.erased
        self.purged += part.purged
        self.archived += part.archived
        self.lost += part.lost
        self.missing += [(start + first, start + end) for first, end in part.missing]
        self.defects.extend(part.defects)
        if len(self.missing_leaves) < DEFECTS_MAX:
            self.missing_leaves |= {leaf: start + position for leaf, position in part.missing_leaves.items()}


async def verify_positions(
    connection: Connection, log: Log, first: int, end: int, evidence: Evidence, *, rows_max: int = _ROWS_MAX
) -> LogResult:
    """Compare the rows at positions from `first` up to, not including, `end` with the leaves that the log has there.

    `connection` is in a snapshot.
    """
    result = LogResult()
    leaves = await _read_leaves(connection, log, first, end)
    # Leaves and rows are merged: both come in the order of their positions.
    remaining = iter(leaves.items())
    position, leaf = next(remaining, (end, ""))
    last: _Checked | None = None
    async for rows in portions(connection, SQL.of(log)["log_rows"], first, end, widest="event_data", rows_max=rows_max):
        async for row in yielding_to_others(rows):
            index = row["log_index"]
            result.total += 1
            if last is not None and index == last.position:
                last = _rightful(result, last, row, log, evidence)
                continue
            _add_row(result, last)
            while position < index:
                _add_missing(result, log, position, leaf, evidence)
                position, leaf = next(remaining, (end, ""))
            own_leaf = leaf if index == position else None
            last = _Checked(index, own_leaf, row, list(row_defects(row, own_leaf, log, evidence.erased)))
            if index == position:
                position, leaf = next(remaining, (end, ""))
    _add_row(result, last)
    while position < end:
        _add_missing(result, log, position, leaf, evidence)
        position, leaf = next(remaining, (end, ""))
    return result


class _Checked(NamedTuple):
    """The row at a position, which may still turn out not to be the only one there."""

    position: int
    leaf: str | None
    row: Row
    defects: list[Defect]


def _add_row(result: LogResult, checked: _Checked | None) -> None:
    """Count the row at a position, and add its defects."""
    if checked is None:
        return
    for defect in checked.defects:
        result.defects.add(defect)
    result.verified += not checked.defects
    result.erased += not checked.defects and checked.row["payload_commitment"] is not None


def _rightful(result: LogResult, last: _Checked, row: Row, log: Log, evidence: Evidence) -> _Checked:
    """Which of two rows at one position is the event that was logged there; the other one was inserted."""
    defects = list(row_defects(row, last.leaf, log, evidence.erased)) if last.defects else []
    other = last.row if last.defects and not defects else row
    result.defects.add(defect_of(other, "inserted", f"another event is at position {last.position} of the log too"))
    return last if other is row else last._replace(row=row, defects=defects)


async def _read_leaves(connection: Connection, log: Log, first: int, end: int) -> dict[int, str]:
    """The leaf hashes of a part of the log in hex, by position and in order. Of two flushes with one position the first counts."""
    leaves: dict[int, str] = {}
    flushes = await connection.fetch(SQL.of(log)["flushes_between"], first, end, timeout=LONG_FETCH_SECONDS)
    for flush in flushes:
        flush_first, joined = flush["first_index"], flush["leaves"].hex()
        low = max(first, flush_first)
        high = min(end, flush_first + min(flush["count"], len(joined) // _HEX_DIGITS))
        for position in range(low, high):
            start = (position - flush_first) * _HEX_DIGITS
            leaves.setdefault(position, joined[start : start + _HEX_DIGITS])
    return leaves


def _add_missing(result: LogResult, log: Log, position: int, leaf: str, evidence: Evidence) -> None:
    """Count a position without a row as archived, as purged, as lost, or as missing."""
    place = log.place(position)
    if place in evidence.archived:
        result.archived += 1
        return
    if place in evidence.purged:
        result.purged += 1
        return
    if place in evidence.lost:
        result.lost += 1
        return
    if result.missing and result.missing[-1][1] == position:
        result.missing[-1] = result.missing[-1][0], position + 1
    else:
        result.missing.append((position, position + 1))
    if len(result.missing_leaves) < DEFECTS_MAX:
        result.missing_leaves[leaf] = position
