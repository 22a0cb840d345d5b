"""What is left of chains whose events were purged: gaps and heads, compared with the leaves of purged events; and all heads together."""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from app.db import LONG_FETCH_SECONDS, Connection
from app.events.log import Log
from app.events.record import Row
from app.tlog.continued import read_seam
from app.tlog.evidence import read_evidence
from app.tlog.gaps import Gap, MissingPositions, judge_gaps_by_leaf
from app.verify.chain import gap_defect
from app.verify.row import Defect, Defects
from app.verify.snapshot import SQL

GAPS_AT_ONCE = 100_000
"""For so many gaps the leaves of all purged positions are read once."""
_HEADS_AT_ONCE = 1_000


class ChainGap(NamedTuple):
    """A gap that may be a purge, until the leaves have shown it."""

    correlation_id: str
    gap: Gap
    row: Row | None = None
    """The event after the gap, as far as a defect names it; None if the chain's end is missing."""


async def verify_gaps(connection: Connection, log: Log, gaps: Sequence[ChainGap], missing: MissingPositions) -> Defects:
    """A defect for each gap that is not a purge. `connection` is in a snapshot."""
    defects = Defects()
    verdicts = await judge_gaps_by_leaf(connection, log, [one.gap for one in gaps], missing)
    for one, verdict in zip(gaps, verdicts, strict=True):
        if not verdict.is_purge:
            defect = gap_defect(one.gap, one.row, verdict.detail)
            defects.add(replace(defect, correlation_id=one.correlation_id))
    return defects


async def verify_heads_without_end(connection: Connection, log: Log) -> Defects:
    """A defect for each head whose last event is missing and was not purged. `connection` is in a snapshot."""
    defects, gaps, missing = Defects(), list[ChainGap](), MissingPositions()
    has_evidence, correlation_id, known = False, "", 0
    while heads := await connection.fetch(
        SQL["heads"], correlation_id, _HEADS_AT_ONCE, known, timeout=LONG_FETCH_SECONDS
    ):
        correlation_id, known = heads[-1]["correlation_id"], 1
        for head in heads:
            if head["is_whole"] or head["rows"] >= head["length"] > 0:
                continue
            if not has_evidence:
                missing, has_evidence = MissingPositions((await read_evidence(connection, log)).purged), True
            if head["length"] > 0:
                gap = Gap(head["length"] - head["rows"], head["length"], head["position"], None, head["hash"])
                gaps.append(ChainGap(head["correlation_id"], gap))
            else:
                message = f"edited: the head of this chain has length {head['length']}"
                defects.add(Defect("edited", message, correlation_id=head["correlation_id"]))
        if len(gaps) >= GAPS_AT_ONCE:
            defects.extend(await verify_gaps(connection, log, gaps, missing))
            gaps.clear()
    defects.extend(await verify_gaps(connection, log, gaps, missing))
    return defects


async def verify_equal_heads(connection: Connection) -> Defects:
    """A defect for each head that ends with the event of another chain: there are no two events with one hash."""
    defects = Defects()
    for row in await connection.fetch(SQL["equal_heads"], timeout=LONG_FETCH_SECONDS):
        message = f"inserted: the head of this chain has the last hash of {row['number'] - 1} other(s)"
        defects.add(Defect("inserted", message, correlation_id=row["correlation_id"]))
    return defects


async def verify_sum_of_heads(connection: Connection, log: Log, size: int) -> Defects:
    """A defect if the chains together do not have the events of all logs, each of which is in one chain. `log` has `size` of them.

    Events that were lost may be counted or not, so that of chains that are purged whole as many can be missing unseen. `connection` is
    in a snapshot.
    """
    defects, lost = Defects(), 0
    for later in log.and_earlier():
        if later.id:
            if (seam := await read_seam(connection, later)) is None:
                return defects  # which is a defect of its own
            size, lost = size + seam.size, lost + seam.lost.size
    length = await connection.fetchval(SQL["sum_of_heads"], timeout=LONG_FETCH_SECONDS)
    if not size - lost <= length <= size:
        where, counted = ("logs have", f"{size - lost} to {size}") if log.id else ("log has", str(size))
        message = (
            f"the heads of all chains have {length} events, but the {where} {counted}: the length of one was changed"
        )
        message = f"edited: {message}, or one was removed or inserted"
        defects.add(Defect("edited", message, subject="the heads of all chains"))
    return defects
