"""One correlation: its chain against its head and the leaves of the log, and its unsealed rows."""

from dataclasses import dataclass, field

from app.db import Connection
from app.events.positions import Positions
from app.tlog.evidence import NO_EVIDENCE, Evidence, leaves_at, read_evidence
from app.tlog.gaps import purge_objection
from app.tlog.tiles import SQL as TLOG_SQL
from app.verify.chain import Chain, gap_defect
from app.verify.row import Defect, mark_reordered
from app.verify.snapshot import SQL, cooperatively, portions
from app.verify.unsealed import UnsealedReport, verify_unsealed


@dataclass(slots=True)
class ChainReport:
    """What verification found in one correlation."""

    sealed: Chain
    head_defect: Defect | None = None
    purged_total: int = 0
    """Events of the chain that were purged, as the log says."""
    unsealed: UnsealedReport = field(default_factory=UnsealedReport)

    @property
    def is_sealed(self) -> bool:
        """Whether this service ever wrote an event of the correlation."""
        return self.sealed.total > 0 or self.head_defect is not None or self.purged_total > 0

    @property
    def is_valid(self) -> bool:
        """Whether nothing is wrong with the chain. Unsealed rows count only where there is no chain."""
        if self.is_sealed:
            return not self.sealed.defects.count and self.head_defect is None
        return not self.unsealed.defects.count


async def verify_chain(
    connection: Connection, correlation_id: str, log: str, hmac_key: bytes | None = None
) -> ChainReport:
    """Verify everything that is stored of one correlation in the log named `log`. `connection` is in a snapshot."""
    report = await _verify_sealed(connection, correlation_id, log, NO_EVIDENCE)
    if report.is_sealed and not report.is_valid:  # only then is it worth reading what was purged and erased
        evidence = await read_evidence(connection, log)
        if evidence.purged or evidence.erased:
            report = await _verify_sealed(connection, correlation_id, log, evidence)
    report.unsealed = await verify_unsealed(connection, correlation_id, hmac_key)
    return report


async def _verify_sealed(connection: Connection, correlation_id: str, log: str, evidence: Evidence) -> ChainReport:
    chain = Chain(log, evidence.erased)
    report = ChainReport(chain)
    async for rows in portions(connection, TLOG_SQL["chain_rows"], [correlation_id], widest="event_data"):
        leaves = await leaves_at(connection, [row["log_index"] for row in rows if row["log_index"] is not None])
        async for row in cooperatively(rows):
            chain.check(row, leaves.get(row["log_index"]))
        await _resolve_gaps(connection, report, evidence.purged)
    head = await connection.fetchrow(SQL["chain_head"], correlation_id)
    report.head_defect = chain.check_head(None if head is None else (head["length"], head["hash"]))
    await _resolve_gaps(connection, report, evidence.purged)
    chain.defects.listed = mark_reordered(chain.defects.listed)
    return report


async def _resolve_gaps(connection: Connection, report: ChainReport, purged: Positions) -> None:
    """Count each gap of the chain as purged, or make it a defect."""
    for gap, row in report.sealed.gaps:
        objection = await purge_objection(connection, gap, purged)
        if objection is None:
            report.purged_total += gap.missing
        elif row is None:
            report.head_defect = gap_defect(gap, None, objection)
        else:
            report.sealed.defects.add(gap_defect(gap, row, objection))
    report.sealed.gaps.clear()
