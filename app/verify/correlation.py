"""One correlation: its chain against its head and the leaves of the log, and its unsealed rows."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from app.db import Connection, portions
from app.events.log import Log
from app.events.record import Row, place
from app.tlog.evidence import NO_EVIDENCE, Evidence, leaves_at, read_evidence
from app.tlog.gaps import Gap, judge_gap_by_leaf
from app.tlog.tiles import SQL as TLOG_SQL
from app.verify.chain import ChainChecker, gap_defect
from app.verify.row import Defect, Defects, mark_reordered
from app.verify.shadowed import verify_ids_in
from app.verify.snapshot import SQL, yielding_to_others
from app.verify.unsealed import UnsealedResult, verify_unsealed

_PLACE_END = 2**62


@dataclass(slots=True)
class CorrelationResult:
    """What verification found in one correlation."""

    sealed: ChainChecker
    head_defect: Defect | None = None
    purged_total: int = 0
    """Events of the chain that were purged, as recorded in the log, and of which not all are in the archive for certain."""
    archived_total: int = 0
    """Events of the chain that were purged, as recorded in the log, and are in the archive; not those that were read there."""
    archived_read: int = 0
    """Events of the chain that were read in the archive, and verified as those of Postgres."""
    archive_unread: str = ""
    """Why the archive was not read, although it has events of the chain."""
    unsealed: UnsealedResult = field(default_factory=UnsealedResult)
    shadowed: Defects = field(default_factory=Defects)
    """Of rows of the correlation, sealed or not, whose ids other rows have too."""

    @property
    def gone_total(self) -> int:
        """Events of the chain that Postgres has no longer, as recorded in the log."""
        return self.purged_total + self.archived_total

    @property
    def is_sealed(self) -> bool:
        """Whether this service ever wrote an event of the correlation."""
        return self.sealed.total > 0 or self.head_defect is not None or self.gone_total > 0

    @property
    def is_empty(self) -> bool:
        """Whether there is no event of the correlation, nor a sign that there was one."""
        return not (self.is_sealed or self.unsealed.total or self.unsealed.unhashed or self.shadowed.count)

    @property
    def is_valid(self) -> bool:
        """Whether the chain has no defect, and no id stands twice. Else unsealed rows count only where there is no chain."""
        return not self.defects.count and self.head_defect is None

    @property
    def defects(self) -> Defects:
        """Those of single events that the verdict is about."""
        of_rows, defects = self.sealed.defects if self.is_sealed else self.unsealed.defects, Defects()
        defects.extend(of_rows)
        defects.extend(self.shadowed)
        return defects


async def verify_correlation(
    connection: Connection, correlation_id: str, log: Log, hmac_key: bytes | None = None, archived: Sequence[Row] = ()
) -> CorrelationResult:
    """Verify everything that is stored of one correlation in `log`. `connection` is in a snapshot.

    `archived` are events of it that are in the archive alone, as ChainChecker.check_archived() takes them: they count as the others do.
    """
    result = await _verify_sealed(connection, correlation_id, log, NO_EVIDENCE, archived)
    if result.is_sealed and not result.is_valid:  # only then does it matter what was purged and erased
        evidence = await read_evidence(connection, log)
        if evidence.purged or evidence.erased or evidence.lost:
            result = await _verify_sealed(connection, correlation_id, log, evidence, archived)
    result.unsealed = await verify_unsealed(connection, correlation_id, hmac_key)
    result.shadowed = await verify_ids_in(connection, correlation_id)
    return result


async def _verify_sealed(
    connection: Connection, correlation_id: str, log: Log, evidence: Evidence, archived: Sequence[Row]
) -> CorrelationResult:
    chain = ChainChecker(log, evidence.erased)
    waiting = deque(sorted(archived, key=lambda row: (row["chain_index"], place(row))))
    result = CorrelationResult(chain)
    async for rows in portions(connection, TLOG_SQL["chain_rows"], [correlation_id], widest="event_data"):
        places = [one for row in rows if (one := place(row)) is not None]
        leaves = await leaves_at(connection, log, places)
        async for row in yielding_to_others(rows):
            position, index = place(row), row["chain_index"]
            while waiting and (index is None or waiting[0]["chain_index"] <= index):
                chain.check_archived(waiting.popleft())
            chain.check(row, None if position is None else leaves.get(position))
        await _resolve_gaps(connection, log, result, evidence)
    while waiting:
        chain.check_archived(waiting.popleft())
    head = await connection.fetchrow(SQL["chain_head"], correlation_id)
    result.head_defect = chain.check_head(None if head is None else (head["length"], head["hash"]))
    await _resolve_gaps(connection, log, result, evidence)
    chain.defects.listed = mark_reordered(chain.defects.listed)
    return result


async def _resolve_gaps(connection: Connection, log: Log, result: CorrelationResult, evidence: Evidence) -> None:
    """Count each gap of the chain as archived or purged, or make it a defect."""
    for gap, row in result.sealed.gaps:
        verdict = await judge_gap_by_leaf(connection, log, gap, evidence.missing)
        if verdict.is_purge and _is_archived(gap, evidence):
            result.archived_total += gap.missing
        elif verdict.is_purge:
            result.purged_total += gap.missing
        elif row is None:
            result.head_defect = gap_defect(gap, None, verdict.detail)
        else:
            result.sealed.defects.add(gap_defect(gap, row, verdict.detail))
    result.sealed.gaps.clear()


def _is_archived(gap: Gap, evidence: Evidence) -> bool:
    """Whether all that is missing where the gap's events can have been is archived. Which of these positions they had is not known."""
    where = gap.position_before + 1, _PLACE_END if gap.position_after is None else gap.position_after
    return 0 < evidence.archived.count(*where) == evidence.missing.count(*where)
