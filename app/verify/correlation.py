"""One correlation held against the head of its chain and the leaves of the log."""

from dataclasses import dataclass, field

from app.db import Connection
from app.events.positions import Positions
from app.tlog.evidence import NONE, Evidence, leaves_at, read_evidence
from app.verify.chain import Chain, Gap
from app.verify.row import Defect, named
from app.verify.snapshot import FETCH_TIMEOUT_SECONDS, SQL, portions, unhurried
from app.verify.unsealed import Unsealed, verify_unsealed


@dataclass(slots=True)
class ChainReport:
    """What verification found about one correlation."""

    sealed: Chain
    head_defect: Defect | None = None
    purged_total: int = 0
    unsealed: Unsealed = field(default_factory=Unsealed)

    @property
    def is_sealed(self) -> bool:
        """Whether this service ever wrote an event of the correlation."""
        return self.sealed.total > 0 or self.head_defect is not None or self.purged_total > 0

    @property
    def is_valid(self) -> bool:
        """Unsealed rows say nothing about a chain of ours. Where there is none, they are all that was asked about."""
        if self.is_sealed:
            return not self.sealed.defects.count and self.head_defect is None
        return not self.unsealed.defects.count


async def verify_chain(
    connection: Connection, correlation_id: str, log: str, hmac_key: bytes | None = None
) -> ChainReport:
    """Verify all that is stored of one correlation in the log named `log`. `connection` is in a snapshot."""
    report = await _sealed(connection, correlation_id, log, NONE)
    if report.is_sealed and not report.is_valid:  # only then what was purged and erased is worth reading
        evidence = await read_evidence(connection, log)
        if evidence.purged or evidence.erased:
            report = await _sealed(connection, correlation_id, log, evidence)
    report.unsealed = await verify_unsealed(connection, correlation_id, hmac_key)
    return report


async def _sealed(connection: Connection, correlation_id: str, log: str, evidence: Evidence) -> ChainReport:
    chain = Chain(log, evidence.erased)
    report = ChainReport(chain)
    async for rows in portions(connection, "sealed_rows", "event_data", [correlation_id]):
        leaves = await leaves_at(connection, [row["log_index"] for row in rows if row["log_index"] is not None])
        async for row in unhurried(rows):
            chain.take(row, leaves.get(row["log_index"]))
        await _judge(connection, report, evidence.purged)
    head = await connection.fetchrow(SQL["head"], correlation_id)
    report.head_defect = chain.finish(None if head is None else (head["length"], head["hash"]))
    await _judge(connection, report, evidence.purged)
    chain.defects.listed = named(chain.defects.listed)
    return report


async def _judge(connection: Connection, report: ChainReport, purged: Positions) -> None:
    """Say of each gap of the chain whether it was purged."""
    for gap, row in report.sealed.gaps:
        more = await _unpurged(connection, gap, purged)
        if more is None:
            report.purged_total += gap.missing
        elif row is None:
            report.head_defect = gap.defect(None, more)
        else:
            report.sealed.defects.add(gap.defect(row, more))
    report.sealed.gaps.clear()


async def _unpurged(connection: Connection, gap: Gap, purged: Positions) -> str | None:
    """None when all of a gap was purged; else what more is to be said of it.

    Nothing tells whose events the missing positions of the log were, but for the last one, whose hash is known. So all
    that are missing there must have been purged.
    """
    if not purged:
        return ""
    high = 2**62 if gap.high is None else gap.high
    try:
        last = await connection.fetchval(
            SQL["leaf_positions"], bytes.fromhex(gap.last_hash), gap.low, high, timeout=FETCH_TIMEOUT_SECONDS
        )
    except ValueError:
        last = None
    if last is None or last not in purged:
        return ""
    first = gap.low + 1
    present = await connection.fetchrow(SQL["present"], first, last, str(purged), timeout=FETCH_TIMEOUT_SECONDS)
    assert present is not None
    gone = purged.count(first, last) - present["purged"]
    others = last - first - purged.count(first, last) - present["kept"]
    if gone >= gap.missing - 1 and not others:
        return None
    return f"; some were purged, but {others} positions of the log are missing there that were not"
