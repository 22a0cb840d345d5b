"""Whether a gap in a chain is a purge.

A gap's events had positions between those of its two neighbours, but nothing says which: only the hash of the last missing
event is known, since the next event or the chain's head has it. There are two ways to decide, by what the caller knows:

- purge_objection() is for one correlation. It asks Postgres about the positions of this gap alone, so it wants proof: the last
  missing event must have been purged, and between the neighbours no position may be missing that was not purged.
- MissingPositions.purge_objection() is for a whole database whose log has been compared with its rows already. Every position
  that is missing without a purge is a defect of its own by then, so a gap needs only as many missing positions as it has events.
  That takes no query, for a database may have a hundred thousand gaps.

Both return None if the gap can be a purge, and otherwise what the message of the defect says besides.
"""

from dataclasses import dataclass

from app.db import Connection
from app.events.positions import Positions
from app.tlog.tiles import SQL

FETCH_TIMEOUT_SECONDS = 600.0
"""For each fetch of a verification, which may read much."""
_POSITION_END = 2**62


@dataclass(frozen=True, slots=True)
class Gap:
    """Consecutive events that are missing in a chain, and where in the log they can have been."""

    missing: int
    """How many."""
    chain_end: int
    """The chain position after the gap; the chain's length when its end is missing."""
    position_before: int
    """The log position of the event before the gap; -1 when its beginning is missing."""
    position_after: int | None
    """The log position of the event after the gap; None when its end is missing."""
    last_hash: str
    """The hash of the last missing event."""


@dataclass(frozen=True, slots=True)
class MissingPositions:
    """The positions of a whole log that have no row."""

    purged: Positions
    """Those that the log says were purged; some of them may have rows."""
    unpurged: Positions
    """The others, all without a row."""
    unpurged_leaves: frozenset[str]
    """The leaf hashes of the first of the others."""

    def purge_objection(self, gap: Gap) -> str | None:
        """None if the gap can be a purge."""
        if gap.last_hash in self.unpurged_leaves:
            return ""
        first, end = gap.position_before + 1, _POSITION_END if gap.position_after is None else gap.position_after
        missing = self.unpurged.count(first, end) + self.purged.count(first, end)
        return None if gap.missing <= missing else f"; the log misses only {missing} there"


async def purge_objection(connection: Connection, gap: Gap, purged: Positions) -> str | None:
    """None if the gap can be a purge; `purged` are the positions that the log says were purged.

    `connection` is in a snapshot.
    """
    if not purged:
        return ""
    position_after = _POSITION_END if gap.position_after is None else gap.position_after
    try:
        last = await connection.fetchval(
            SQL["position_of_leaf"],
            bytes.fromhex(gap.last_hash),
            gap.position_before,
            position_after,
            timeout=FETCH_TIMEOUT_SECONDS,
        )
    except ValueError:
        last = None
    if last is None or last not in purged:
        return ""
    first = gap.position_before + 1
    with_rows = await connection.fetchrow(
        SQL["count_positions_with_rows"], first, last, str(purged), timeout=FETCH_TIMEOUT_SECONDS
    )
    assert with_rows is not None
    purged_between = purged.count(first, last)
    missing_purged = purged_between - with_rows["purged"]
    missing_others = last - first - purged_between - with_rows["others"]
    if missing_purged >= gap.missing - 1 and not missing_others:
        return None
    return f"; some were purged, but {missing_others} positions of the log are missing there that were not"
