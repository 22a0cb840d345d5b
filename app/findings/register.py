"""The findings of the log: which were recorded there, and which were acknowledged."""

from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any
from uuid import UUID

from app import metrics
from app.db import Connection, Engine, driver_connection
from app.events.log import LOG_POSITIONS, Log, place_of
from app.events.own import correlation_of
from app.events.record import Row
from app.findings.finding import Acknowledgement, Finding, Subject
from app.tlog.evidence import ACKNOWLEDGED, FOUND, read_self_events

_LOSSES = ("removed", "edited", "truncated", "reordered")


async def read_findings(
    connection: Connection, log: Log, only: UUID | None = None, before: int | None = None
) -> list[Finding]:
    """Every finding that the log records, the first first, with its acknowledgement if it has one. `connection` is in a snapshot.

    `only` the one with this id; only events `before` this place.
    Events that are not what the log has count as little as those whose columns and payload do not agree.
    """
    recorded: list[tuple[int, UUID, Finding | Acknowledgement]] = []
    correlation_ids = None if only is None else [correlation_of(FOUND, only)]
    async for payload, row in read_self_events(connection, log, (FOUND, ACKNOWLEDGED), correlation_ids):
        place = place_of(row["log_id"], row["log_index"])
        if before is not None and place >= before:
            continue
        with suppress(KeyError, TypeError, ValueError):  # then no release of this service has written it
            recorded.append((place, UUID(payload["finding_id"]), _parse(payload, row, place)))
    findings: dict[UUID, Finding] = {}
    for _, finding_id, one in sorted(recorded, key=lambda entry: entry[0]):
        known = findings.get(finding_id)
        if isinstance(one, Finding):
            findings.setdefault(finding_id, one)
        elif known is not None and known.acknowledgement is None:
            findings[finding_id] = replace(known, acknowledgement=one)
    return list(findings.values())


def _parse(payload: dict[str, Any], row: Row, place: int) -> Finding | Acknowledgement:
    if payload["event_type"] == FOUND:
        return Finding.of_payload(payload, row["recorded_at"], place)
    return Acknowledgement(str(payload["acknowledged_by"]), str(payload["reason"]), row["recorded_at"])


async def findings_of(engine: Engine, log: Log) -> list[Finding]:
    """Every finding that the log records, as read_findings()."""
    async with (
        driver_connection(engine) as connection,
        connection.transaction(isolation="repeatable_read", readonly=True),
    ):
        return await read_findings(connection, log)


def _is_loss_acknowledged(lost: Finding, findings: Sequence[Finding]) -> bool:
    """Whether somebody has acknowledged that the event of a finding is missing."""
    if lost.place is None:
        return False  # it waits in the spool, perhaps
    log_id, position = divmod(lost.place, LOG_POSITIONS)
    return any(
        one.acknowledgement is not None and one.covers(kind, log_id, position) for one in findings for kind in _LOSSES
    )


class Register:
    """The findings that this process has read from the log or written to it.

    One whose event has disappeared from the log stands until somebody has acknowledged that the event is missing, or the process
    ends.
    """

    def __init__(self, log: Log, read: Callable[[Log], Awaitable[list[Finding]]]) -> None:
        """`read` reads the findings of a log and those before it, as findings_of()."""
        self.log = log
        """The open log: with an earlier one, findings in a later one are not believed."""
        self._read = read
        self._findings: dict[UUID, Finding] = {}

    async def read(self) -> None:
        """Read the findings of the log. Raises what reading raises."""
        findings = await self._read(self.log)
        there = {finding.id for finding in findings}
        for finding in self.open:
            if finding.id not in there and _is_loss_acknowledged(finding, findings):
                del self._findings[finding.id]
        self.add(findings)

    def add(self, findings: Iterable[Finding]) -> None:
        """Add findings of the log, or replace what was known of them."""
        self._findings |= {finding.id: finding for finding in findings}
        counts = Counter(one.kind if one.kind in metrics.DEFECT_KINDS else "other" for one in self.open)
        for kind in (*metrics.DEFECT_KINDS, "other"):
            metrics.OPEN_FINDINGS.labels(kind=kind).set(counts[kind])

    @property
    def open(self) -> list[Finding]:
        """Those that nobody has acknowledged."""
        return [finding for finding in self._findings.values() if finding.acknowledgement is None]

    def is_open(self, kind: str, subject: Subject) -> bool:
        """Whether a defect belongs to a finding that nobody has acknowledged."""
        return any(finding.covers(kind, self.log.id, subject) for finding in self.open)

    def acknowledged(self, kind: str, subject: Subject) -> UUID | None:
        """The last of the acknowledged findings to which a defect belongs; None without one."""
        covering = [
            finding
            for finding in self._findings.values()
            if finding.acknowledgement is not None and finding.covers(kind, self.log.id, subject)
        ]
        return max(covering, key=lambda one: one.place or 0).id if covering else None
