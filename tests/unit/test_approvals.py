"""Requests for approval and their answers, as the events of one correlation have them."""

from datetime import UTC, datetime, timedelta
from typing import Any

from app.query.approvals import paired

START = datetime(2026, 11, 24, 14, 0, tzinfo=UTC)
NOTHING = dict.fromkeys(("confidence", "reason", "decided_by", "decision", "required_by", "workflow_id")) | {
    "sealed": True
}


def row(seconds: int, event_type: str, **members: Any) -> dict[str, Any]:
    time = {"event_timestamp": START + timedelta(seconds=seconds), "event_type": event_type, "actor_id": "orchestrator"}
    return NOTHING | time | members


def test_an_answer_belongs_to_the_request_before_it() -> None:
    """Who approved, how long that took, or how sure the analysis was, is not what was recorded."""
    analysed = row(0, "aianalysis.analysis.completed", confidence="0.9")
    asked = row(1, "orchestrator.approval.requested", confidence="0.52")
    approved = row(61, "orchestrator.approval.approved", decided_by="ada@example.com")
    [approval] = paired([analysed, asked, approved])
    assert (approval.answer, approval.answered_by, approval.confidence) == ("Approved", "ada@example.com", "0.52")
    assert approval.waited_ms == 60_000
    [approval] = paired([analysed, asked | {"confidence": None}])
    assert (approval.answer, approval.answered_by, approval.confidence, approval.waited_ms) == (
        "Pending",
        "",
        "0.9",
        None,
    )


def test_requests_and_answers_that_stand_alone() -> None:
    """An answer is shown with a request that was answered already, or not at all."""
    asked = row(0, "orchestrator.approval.requested")
    rejected = row(1, "orchestrator.approval.rejected")
    decided = row(2, "webhook.remediationapprovalrequest.decided", decision="Approved", decided_by="grace")
    first, second = paired([asked, rejected, decided])
    assert (first.answer, first.answered_by) == ("Rejected", "orchestrator")
    assert (second.requested, second.answer, second.answered_by) == (None, "Approved", "grace")
    assert paired([row(0, "aianalysis.analysis.completed", confidence="0.9")]) == []


def test_forged_rows_stand_apart() -> None:
    """Who inserts an answer, or a request, by SQL takes the place of the real one, or their row is shown as one of the log."""
    asked, approved = row(0, "orchestrator.approval.requested"), row(60, "orchestrator.approval.approved")
    forged = row(1, "orchestrator.approval.rejected", sealed=False, decided_by="eve", confidence="0.1")
    forged_request = row(30, "orchestrator.approval.requested", sealed=False)
    first, second, third = paired([asked, approved, forged, forged_request])
    assert (first.requested, first.answered, first.is_sealed, first.confidence) == (asked, approved, True, "")
    assert (second.requested, second.answered_by, second.is_sealed) == (None, "eve", False)
    assert (third.requested, third.answer, third.is_sealed) == (forged_request, "Pending", False)
    first, second = paired([asked, forged])
    assert (first.answer, second.answer) == ("Pending", "Rejected")
    [both] = paired([forged_request, forged | {"event_timestamp": START + timedelta(seconds=40)}])
    assert (both.answer, both.is_sealed) == ("Rejected", False)
