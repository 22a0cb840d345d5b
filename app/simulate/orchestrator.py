"""Simulated remediations: the events of the RemediationOrchestrator, phase by phase, until the remediation ends.

In the typed generation the events of other controllers are inserted where they would happen (controllers.py). Pure: no
clock, no network.
"""

import random
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

from app.simulate import controllers
from app.simulate.remediation import Remediation

ENDS = (
    *("completed", "completed", "completed", "approved", "approved"),
    *("rejected", "blocked", "failed", "phase timeout", "global timeout"),
)
"""How ten remediations in a row end, in a shuffled order."""

TIMEOUT_SECONDS = {"Processing": 300, "Analyzing": 600, "AwaitingApproval": 900, "Executing": 1800}
GLOBAL_TIMEOUT_SECONDS = 3600
LATE_MAX = timedelta(days=6)
SKEW_MAX = timedelta(minutes=59)

_USUAL_SECONDS = {"Processing": (1, 30), "Analyzing": (10, 240), "AwaitingApproval": (30, 800), "Executing": (20, 900)}
_FAILURE_PHASE = {
    "Processing": "SignalProcessing",
    "Analyzing": "AIAnalysis",
    "AwaitingApproval": "Approval",
    "Executing": "WorkflowExecution",
}
_BLOCK_REASONS = {
    "ConsecutiveFailures": "3 consecutive failures of the same signal: cooling down",
    "DuplicateInProgress": "another remediation of the same signal is in progress",
    "ResourceBusy": "another workflow is running on the target",
    "RecentlyRemediated": "the same workflow ran on the target a moment ago",
    "ExponentialBackoff": "the last attempt failed: backing off",
}


def simulate_remediations(
    seed: int, count: int, now: datetime, prefix: str, span: timedelta = timedelta()
) -> Iterator[list[dict[str, Any]]]:
    """The events of each remediation in the order in which they are sent; the same arguments give the same events.

    The remediations end one after another during `span`, which ends at `now`; without `span` all of them end at `now`.

    Correlation ids are `prefix` and a number. A fifth of the remediations is late, a fifth has a skewed clock; no event is
    further from `now` than LATE_MAX and the duration of its remediation into the past, or SKEW_MAX into the future.
    """
    rng = random.Random(seed)  # noqa: S311 -- repeatable on purpose
    ends: list[str] = []
    for number in range(count):
        ends = ends or rng.sample(ENDS, len(ENDS))
        remediation = Remediation(rng, f"{prefix}-{number:06d}", typed=rng.random() < 0.5)
        _simulate(remediation, ends.pop())
        ago = span * (1 - (number + 1) / count)
        yield remediation.events(now - ago + max(_clock_error(rng), ago - LATE_MAX))


def _clock_error(rng: random.Random) -> timedelta:
    kind = rng.random()
    if kind < 0.2:
        return -LATE_MAX * rng.random()
    if kind < 0.4:
        return SKEW_MAX * rng.uniform(-1, 1)
    return -timedelta(minutes=10) * rng.random()  # on time


def _simulate(remediation: Remediation, end: str) -> None:
    if remediation.typed:
        controllers.receive_signal(remediation)
    remediation.emit("orchestrator.lifecycle.started", "pending", remediation.names)
    if remediation.typed:
        controllers.create_remediation_request(remediation)
    remediation.wait(remediation.rng.uniform(0.1, 5))
    if end == "blocked":
        _block(remediation)
        return
    needs_approval = end in {"approved", "rejected"} or (end != "completed" and remediation.rng.random() < 0.3)
    path = ["Processing", "Analyzing", *["AwaitingApproval"] * needs_approval, "Executing"]
    failing_phase = _failing_phase(remediation.rng, end, path)
    for phase in path:
        _enter(remediation, phase)
        if phase == "Executing" and remediation.typed:
            controllers.start_workflow(remediation)
        if phase == "AwaitingApproval":
            _request_approval(remediation)
        if phase == failing_phase:
            _end_early(remediation, end)
            return
        _complete_phase(remediation, phase)
    _enter(remediation, "Completed")
    remediation.emit(
        "orchestrator.lifecycle.completed",
        "success",
        _outcome(remediation, "Success"),
        duration_ms=remediation.duration_ms,
    )
    if remediation.typed:
        controllers.assess_effectiveness(remediation)


def _complete_phase(remediation: Remediation, phase: str) -> None:
    remediation.wait(remediation.rng.uniform(*_USUAL_SECONDS[phase]))
    if phase == "Analyzing" and remediation.typed:
        controllers.complete_analysis(remediation)
    if phase == "AwaitingApproval":
        _decide(remediation, approved=True)


def _failing_phase(rng: random.Random, end: str, path: list[str]) -> str | None:
    """The phase in which the remediation ends early; None if it completes."""
    if end in {"completed", "approved"}:
        return None
    if end == "rejected":
        return "AwaitingApproval"
    # While it waits for an approval a remediation can time out, but not fail.
    return rng.choice([phase for phase in path if phase != "AwaitingApproval" or end != "failed"])


def _enter(remediation: Remediation, phase: str) -> None:
    transition = {"from_phase": remediation.phase, "to_phase": phase}
    event_type = "orchestrator.lifecycle.transitioned" if remediation.typed else "orchestrator.phase.transitioned"
    remediation.emit(event_type, "success", remediation.names | transition)
    remediation.phase = phase


def _end_early(remediation: Remediation, end: str) -> None:
    if end == "rejected":
        remediation.wait(remediation.rng.uniform(*_USUAL_SECONDS["AwaitingApproval"]))
        _decide(remediation, approved=False)
        _fail(remediation, "ApprovalRejected", "the approval was rejected")
    elif end == "failed":
        remediation.wait(remediation.rng.uniform(*_USUAL_SECONDS[remediation.phase]))
        reason = remediation.rng.choice(("ValidationError", "InfrastructureError", "Unknown"))
        _fail(remediation, reason, f"{remediation.phase} ended with {reason}")
    else:
        _time_out(remediation, end.partition(" ")[0])


def _outcome(remediation: Remediation, typed: str) -> dict[str, Any]:
    """How the remediation ended: a word of the schema in the typed generation, of the controller's status in the other one."""
    outcome = typed if remediation.typed else {"Success": "Remediated", "Failed": "failure"}[typed]
    return remediation.names | {"outcome": outcome, "duration_ms": remediation.duration_ms}


def _fail(remediation: Remediation, reason: str, message: str) -> None:
    failure = _outcome(remediation, "Failed") | _failure(remediation, reason)
    _enter(remediation, "Failed")
    if remediation.typed:
        failure["error_details"] = {
            "message": message,
            "code": f"ERR_{reason.upper()}",
            "component": "remediationorchestrator",
            "retry_possible": reason == "InfrastructureError",
        }
    # The free-form generation has no lifecycle.failed: there a failure is a lifecycle.completed with outcome failure.
    event_type = "orchestrator.lifecycle.failed" if remediation.typed else "orchestrator.lifecycle.completed"
    remediation.emit(
        event_type, "failure", failure, severity="warning", error_message=message, duration_ms=remediation.duration_ms
    )


def _failure(remediation: Remediation, reason: str) -> dict[str, str]:
    phase = _FAILURE_PHASE[remediation.phase] if remediation.typed else remediation.phase
    return {"failure_phase": phase, "failure_reason": reason}


def _time_out(remediation: Remediation, scope: str) -> None:
    """`scope` is global or phase."""
    if scope == "global":
        remediation.elapsed = max(remediation.elapsed, float(GLOBAL_TIMEOUT_SECONDS))
    else:
        remediation.wait(TIMEOUT_SECONDS[remediation.phase])
    failure = _outcome(remediation, "Failed") | _failure(remediation, "Timeout")
    if not remediation.typed:
        failure["timeout_type"] = scope
    message = f"the {scope} timeout ran out in {remediation.phase}"
    _enter(remediation, "TimedOut")
    remediation.emit(
        "orchestrator.lifecycle.completed",
        "failure",
        failure,
        severity="warning",
        error_code="TIMEOUT",
        error_message=message,
        duration_ms=remediation.duration_ms,
    )


def _request_approval(remediation: Remediation) -> None:
    confidence = round(remediation.rng.uniform(0.5, 0.79), 2)
    request: dict[str, Any] = {
        "rar_name": remediation.approval_name,
        "required_by": timedelta(seconds=TIMEOUT_SECONDS["AwaitingApproval"]),
        "workflow_id": remediation.workflow_id,
    }
    reason = f"confidence {confidence} is below 0.8"
    if remediation.typed:
        request |= {"confidence_str": f"{confidence:.2f}", "decision": "Pending", "reason": reason}
    else:
        request |= {"confidence_score": confidence, "approval_reason": reason}
    _emit_approval(remediation, "requested", "pending", request)


def _decide(remediation: Remediation, *, approved: bool) -> None:
    decision = "Approved" if approved else "Rejected"
    user = remediation.rng.choice(("ada@example.com", "grace@example.com", "edsger@example.com"))
    decided: dict[str, Any] = {
        "rar_name": remediation.approval_name,
        "decision": decision,
        "message": f"{decision} by {user}",
    }
    decided["decided_by" if not remediation.typed else f"{decision.lower()}_by"] = user
    if remediation.typed and not approved:
        decided["rejection_reason"] = "the change window is closed"
    outcome = "success" if approved else "failure"
    _emit_approval(remediation, decision.lower(), outcome, decided, actor_type="user", actor_id=user)


def _emit_approval(remediation: Remediation, step: str, outcome: str, payload: dict[str, Any], **members: Any) -> None:
    remediation.emit(
        f"orchestrator.approval.{step}",
        outcome,
        remediation.names | payload,
        action="approval_requested" if step == "requested" else step,
        resource_type="RemediationApprovalRequest",
        resource_id=remediation.approval_name,
        **members,
    )


def _block(remediation: Remediation) -> None:
    reason, message = remediation.rng.choice(list(_BLOCK_REASONS.items()))
    seconds = remediation.rng.choice((30, 60, 300, 3600))
    phases = {"from_phase": remediation.phase, "to_phase": "Blocked"}
    target = {"workflow_id": remediation.workflow_id, "target_resource": remediation.target}
    if remediation.typed:
        payload: dict[str, Any] = remediation.names | {"reason": reason, "message": message}
    else:  # without the names of the request, which the controller does not send here
        payload = {
            "block_reason": reason,
            "block_message": message,
            "requeue_after_seconds": seconds,
            "blocked_until": timedelta(seconds=seconds),
            "blocking_wfe": f"wfe-{remediation.name}" if reason == "ResourceBusy" else "",
            "duplicate_of": f"rr-{remediation.rng.getrandbits(40):010x}" if reason == "DuplicateInProgress" else "",
            "consecutive_failures": 3 if reason == "ConsecutiveFailures" else 0,
            "backoff_seconds": seconds if reason == "ExponentialBackoff" else 0,
            "recent_wfe": f"wfe-{remediation.name}" if reason == "RecentlyRemediated" else "",
        }
    _enter(remediation, "Blocked")
    remediation.emit("orchestrator.routing.blocked", "pending", phases | target | payload)
