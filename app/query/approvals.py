"""What was asked and answered about the approval of a remediation: who, why, and how sure the one was who asked."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import chain

from app.db import Pool, fetch
from app.events.record import Row
from app.query.both import archived_columns
from app.sql import load

SQL = load("reports")

_REQUESTS = frozenset(
    {"orchestrator.approval.requested", "remediationorchestrator.approval.requested", "analysis.approval.required"}
)
_ANSWERS = {
    "orchestrator.approval.approved": "Approved",
    "orchestrator.approval.rejected": "Rejected",
    "orchestrator.approval.expired": "Expired",
    "webhook.remediationapprovalrequest.decided": "Decided",
    "apifrontend.user.decision": "Decided",
}
"""Types that answer a request, each with the answer that is shown if the payload has none."""
_ASSESSMENTS = frozenset({"aianalysis.analysis.completed", "aiagent.response.complete", "aianalysis.approval.decision"})
"""Types whose payload may say how sure the analysis was; they matter only without that in a request."""


@dataclass(frozen=True, slots=True)
class Approval:
    """One request for approval, one answer, or both. Texts are empty where nothing is known. Both are sealed, or neither is."""

    requested: Row | None
    answered: Row | None
    confidence: str

    @property
    def is_sealed(self) -> bool:
        """Whether the log has it. Else others inserted it by SQL."""
        return all(row["sealed"] for row in (self.requested, self.answered) if row is not None)

    @property
    def answer(self) -> str:
        """`Approved`, `Rejected` or whatever the answer's payload says; `Pending` as long as nobody has answered."""
        if self.answered is None:
            return "Pending"
        return str(self.answered["decision"] or _ANSWERS[self.answered["event_type"]])

    @property
    def answered_by(self) -> str:
        """The person that the payload names, rather than the event's actor."""
        return "" if self.answered is None else str(self.answered["decided_by"] or self.answered["actor_id"] or "")

    @property
    def waited_ms(self) -> int | None:
        """Milliseconds from the request to the answer."""
        if self.requested is None or self.answered is None:
            return None
        asked, answered = _time(self.requested), _time(self.answered)
        return round((answered - asked).total_seconds() * 1000)


EVENT_TYPES = frozenset([*_REQUESTS, *_ANSWERS, *_ASSESSMENTS])
"""Of the events that are read."""


async def approvals(pool: Pool, correlation_id: str, archived: Sequence[Row] = ()) -> list[Approval]:
    """The approvals of one correlation, with those of its events that are `archived` alone, in the order of their times. DatabaseAway or DatabaseFailed
    when Postgres does not answer.
    """
    statement, more = (
        SQL["approvals_of_both" if archived else "approvals"],
        archived_columns(archived) if archived else [],
    )
    return paired(await fetch(pool, statement, correlation_id, list(EVENT_TYPES), *more))


def paired(rows: Sequence[Row]) -> list[Approval]:
    """Each request with the answer that follows it. An answer without a request, and a request without an answer, stand alone.

    Rows that others inserted by SQL answer no request of the log, and its answers none of theirs.
    """
    apart = ([row for row in rows if row["sealed"] is sealed] for sealed in (True, False))
    return sorted(chain.from_iterable(map(_paired, apart)), key=_beginning)


def _paired(rows: Sequence[Row]) -> list[Approval]:
    found: list[Approval] = []
    confidence, waiting = "", False
    for row in rows:
        confidence = row["confidence"] or confidence
        if row["event_type"] in _REQUESTS:
            found.append(Approval(row, None, row["confidence"] or confidence))
            waiting = True
        elif row["event_type"] in _ANSWERS and waiting:
            asked = found.pop()
            found.append(Approval(asked.requested, row, row["confidence"] or asked.confidence))
            waiting = False
        elif row["event_type"] in _ANSWERS:
            found.append(Approval(None, row, row["confidence"] or confidence))
    return found


def _beginning(approval: Approval) -> datetime:
    row = approval.requested or approval.answered
    assert row is not None, "it is one of them, or both"
    return _time(row)


def _time(row: Row) -> datetime:
    time: datetime = row["event_timestamp"]
    return time
