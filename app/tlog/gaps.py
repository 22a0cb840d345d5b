"""Whether a gap in a chain is a purge.

A gap's events had positions between those of its two neighbours, but it is not known which: only the hash of the last missing
event is known, since the next event or the chain's head has it. There are two ways to decide, by what the caller knows:

- judge_gap_by_leaf() is for one correlation. It asks Postgres about the positions of this gap alone, so it requires proof: the
  last missing event must have been purged, and between the neighbours no position may be missing that was not purged.
- MissingPositions.judge_gap_by_count() is for a whole database whose log has been compared with its rows already. Every position
  that is missing without a purge is a defect of its own by then, so a gap needs only as many missing positions as it has events.
  That needs no query: a database may have a hundred thousand gaps. Those that pass are judged by judge_gaps_by_leaf(), many at
  once: the leaves of all purged positions are read for them.

An export of format=json does not use either: there any purge in the log excuses a missing predecessor (export/signed_page.py).
"""

from asyncio import sleep
from collections.abc import AsyncIterator, Container, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from app.db import LONG_FETCH_SECONDS, Connection
from app.events.log import LOG_POSITIONS, Log
from app.events.positions import NO_POSITIONS, Positions
from app.tlog.merkle import HASH_BYTES
from app.tlog.tiles import SQL

_POSITION_END = 2**62
_LEAVES_AT_ONCE = 8_192
_GAPS_AT_ONCE = 1_000


@dataclass(frozen=True, slots=True)
class Gap:
    """Consecutive events that are missing in a chain, and where in the logs they can have been; positions are places (place_of)."""

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


class GapVerdict(NamedTuple):
    """Whether a gap is a purge, as far as can be known."""

    is_purge: bool
    detail: str = ""
    """What is known about a gap that is not a purge, as the end of the defect's message; often empty."""


_PURGE, _NO_PURGE = GapVerdict(is_purge=True), GapVerdict(is_purge=False)


@dataclass(frozen=True, slots=True)
class MissingPositions:
    """The positions of a whole log that have no row."""

    purged: Positions = NO_POSITIONS
    """Those that were purged, as recorded in the log; some of them may have rows."""
    unpurged: Positions = NO_POSITIONS
    """The others, all without a row."""
    unpurged_leaves: frozenset[str] = frozenset()
    """The leaf hashes of the first of the others."""

    def judge_gap_by_count(self, gap: Gap) -> GapVerdict:
        """Whether the gap can be a purge: it is not larger than the number of positions that are missing there."""
        if gap.last_hash in self.unpurged_leaves:
            return _NO_PURGE
        return self._judge_up_to(gap, _POSITION_END if gap.position_after is None else gap.position_after)

    def judge_gap_by_end(self, gap: Gap, last: int | None) -> GapVerdict:
        """Whether the gap is a purge, if the log has the hash of its last event at the purged position `last`, or at none."""
        end = _POSITION_END if gap.position_after is None else gap.position_after
        if last is None or not gap.position_before < last < end:
            return GapVerdict(is_purge=False, detail="; the last of them is not among the purged ones")
        return self._judge_up_to(gap, last + 1)

    def _judge_up_to(self, gap: Gap, end: int) -> GapVerdict:
        first = gap.position_before + 1
        missing = self.unpurged.count(first, end) + self.purged.count(first, end)
        if gap.missing <= missing:
            return _PURGE
        return GapVerdict(is_purge=False, detail=f"; only {missing} positions of the log are missing there")


async def judge_gaps_by_leaf(
    connection: Connection, log: Log, gaps: Sequence[Gap], missing: MissingPositions
) -> list[GapVerdict]:
    """Whether each gap is a purge: the hash of its last event is the leaf of a purged position. `connection` is in a snapshot."""
    wanted = frozenset(gap.last_hash for gap in gaps)
    positions = await _purged_positions(connection, log, missing.purged, wanted) if gaps else {}
    verdicts: list[GapVerdict] = []
    for start in range(0, len(gaps), _GAPS_AT_ONCE):
        some = gaps[start : start + _GAPS_AT_ONCE]
        verdicts += [missing.judge_gap_by_end(gap, positions.get(gap.last_hash)) for gap in some]
        await sleep(0)  # other tasks of the event loop run
    return verdicts


async def _purged_positions(
    connection: Connection, log: Log, purged: Positions, wanted: Container[str]
) -> dict[str, int]:
    """The positions of those of the leaf hashes `wanted`, in hex, that are at purged positions."""
    found: dict[str, int] = {}
    if not purged:
        return found
    for one in log.and_earlier():
        of_log = list(purged.within(one.place(0), one.place(LOG_POSITIONS)))
        for start in range(of_log[0][0], of_log[-1][1], _LEAVES_AT_ONCE) if of_log else ():
            if purged.count(start, start + _LEAVES_AT_ONCE):
                async for place, leaf in _leaves_of_purged(connection, one, start, purged):
                    if leaf in wanted:
                        found.setdefault(leaf, place)
    return found


async def _leaves_of_purged(
    connection: Connection, log: Log, start: int, purged: Positions
) -> AsyncIterator[tuple[int, str]]:
    """Place and leaf hash, in hex, of the next purged places of a log from `start` on."""
    begin = start - log.place(0)
    rows = await connection.fetch(SQL.of(log)["leaves"], begin, begin + _LEAVES_AT_ONCE, timeout=LONG_FETCH_SECONDS)
    for row in rows:
        first, leaves = log.place(row["first"]), row["leaves"]
        for low, high in purged.within(first, first + len(leaves) // HASH_BYTES):
            joined = leaves[(low - first) * HASH_BYTES : (high - first) * HASH_BYTES].hex()
            for number in range(high - low):
                yield low + number, joined[number * 2 * HASH_BYTES : (number + 1) * 2 * HASH_BYTES]


async def place_of_leaf(connection: Connection, log: Log, leaf: str, before: int, after: int) -> int | None:
    """Where between two places the leaf hash is, in `log` or one before it; None if it is not there."""
    try:
        hashed = bytes.fromhex(leaf)
    except ValueError:
        return None
    for one in log.and_earlier():
        first, end = _within_log(one, before, after)
        if first < end:
            position = await connection.fetchval(
                SQL.of(one)["position_of_leaf"], hashed, first, end, timeout=LONG_FETCH_SECONDS
            )
            if position is not None:
                return one.place(position)
    return None


def _within_log(log: Log, first: int, end: int) -> tuple[int, int]:
    """The positions of a log between two places."""
    start = log.place(0)
    return max(first - start, -1), min(end - start, _POSITION_END)


async def judge_gap_by_leaf(connection: Connection, log: Log, gap: Gap, purged: Positions) -> GapVerdict:
    """Whether the gap is a purge: the leaf of its last event is at a purged position. `purged` is as recorded in the log.

    `connection` is in a snapshot.
    """
    if not purged:
        return _NO_PURGE
    place_after = _POSITION_END if gap.position_after is None else gap.position_after
    last = await place_of_leaf(connection, log, gap.last_hash, gap.position_before, place_after)
    if last is None or last not in purged:
        return _NO_PURGE
    missing_purged = missing_others = 0
    for one in log.and_earlier():
        first, end = _within_log(one, gap.position_before + 1, last)
        if last >= one.place(LOG_POSITIONS):  # the gap goes on in the next log
            end = await connection.fetchval(SQL.of(one)["last_end"]) or 0
        first = max(first, 0)
        if first >= end:
            continue
        of_log = [
            (low - one.place(0), high - one.place(0)) for low, high in purged.within(one.place(first), one.place(end))
        ]
        with_rows = await connection.fetchrow(
            SQL.of(one)["count_positions_with_rows"], first, end, str(Positions(of_log)), timeout=LONG_FETCH_SECONDS
        )
        assert with_rows is not None
        purged_between = purged.count(one.place(first), one.place(end))
        missing_purged += purged_between - with_rows["purged"]
        missing_others += end - first - purged_between - with_rows["others"]
    if missing_purged >= gap.missing - 1 and not missing_others:
        return _PURGE
    detail = f"; some were purged, but {missing_others} other positions of the log are missing there without a purge"
    return GapVerdict(is_purge=False, detail=detail)
