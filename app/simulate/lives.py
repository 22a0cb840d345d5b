"""Lives of remediations as the RemediationOrchestrator and, in the typed generation, those around it tell them.

Pure: no clock, no network.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from app.simulate import story

ENDS = (
    *("completed", "completed", "completed", "approved", "approved"),
    *("rejected", "blocked", "failed", "phase timeout", "global timeout"),
)
"""Ten lives in a row, shuffled, end in these ways."""

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


def lives(
    seed: int, remediations: int, now: datetime, prefix: str, span: timedelta = timedelta()
) -> Iterator[list[dict[str, Any]]]:
    """The events of each remediation in the order they are sent; the same arguments give the same lives.

    The lives are told one after another during `span`, which ends at `now`; all of them now if there is none.

    Correlation ids are `prefix` and a number. A fifth of the lives is told late, a fifth by a skewed clock; no event is
    further from `now` than LATE_MAX and the length of a life into the past, or SKEW_MAX into the future.
    """
    chance = random.Random(seed)  # noqa: S311 -- repeatable on purpose
    ends: list[str] = []
    for number in range(remediations):
        ends = ends or chance.sample(ENDS, len(ENDS))
        life = Life(chance, f"{prefix}-{number:06d}", typed=chance.random() < 0.5)
        _play(life, ends.pop())
        ago = span * (1 - (number + 1) / remediations)
        yield life.events(now - ago + max(_clock_error(chance), ago - LATE_MAX))


@dataclass
class Life:
    """One remediation while it is played."""

    chance: random.Random
    correlation_id: str
    typed: bool
    phase: str = "Pending"
    elapsed: float = 0.0
    """Seconds since it began."""
    told: list[tuple[float, dict[str, Any]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        draw = self.chance
        self.namespace = draw.choice(("payments", "checkout", "search", "ledger"))
        self.name = f"rr-{draw.choice(('podcrashlooping', 'oomkilled', 'diskpressure'))}-{draw.getrandbits(40):010x}"
        self.workflow_id = draw.choice(("restart-deployment", "increase-memory", "clean-volume", "rollback-release"))
        self.target = f"{self.namespace}/Deployment/{draw.choice(('api', 'worker', 'gateway'))}"
        self.approval_name = f"rar-{self.name}"
        self.fingerprint = f"{draw.getrandbits(256):064x}"
        self.spec_before = self.spec_after = ""
        self.names = {"rr_name": self.name, "namespace": self.namespace}

    @property
    def duration_ms(self) -> int:
        return int(self.elapsed * 1000)

    def wait(self, seconds: float) -> None:
        self.elapsed += seconds

    def tell(self, event_type: str, outcome: str, payload: dict[str, Any], *, action: str = "", **members: Any) -> None:
        """Send an event about now. The payload gets its type if the life is typed."""
        self.wait(self.chance.uniform(0.002, 0.05))
        event = {
            "version": "1.0",
            "event_type": event_type,
            "event_category": "orchestration",
            "event_action": action or event_type.rpartition(".")[2],
            "event_outcome": outcome,
            "actor_type": "service",
            "actor_id": "remediationorchestrator-controller",
            "resource_type": "RemediationRequest",
            "resource_id": self.name,
            "correlation_id": self.correlation_id,
            "namespace": self.namespace,
            "cluster_id": "prod-eu-1",
        }
        kind = {"event_type": event_type} if self.typed else {}
        self.told.append((self.elapsed, event | members | {"event_data": kind | payload}))

    def events(self, end: datetime) -> list[dict[str, Any]]:
        """All that was told, the last of it at `end`. A timedelta in a payload becomes the moment so long after its event."""
        start = end - timedelta(seconds=self.elapsed)
        return [_dated(event, start + timedelta(seconds=at)) for at, event in self.told]


def _dated(event: dict[str, Any], moment: datetime) -> dict[str, Any]:
    payload = event["event_data"].items()
    data = {key: _text(moment + value) if isinstance(value, timedelta) else value for key, value in payload}
    return event | {"event_timestamp": _text(moment), "event_data": data}


def _clock_error(chance: random.Random) -> timedelta:
    kind = chance.random()
    if kind < 0.2:
        return -LATE_MAX * chance.random()
    if kind < 0.4:
        return SKEW_MAX * chance.uniform(-1, 1)
    return -timedelta(minutes=10) * chance.random()  # told just now


def _text(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def _play(life: Life, end: str) -> None:
    if life.typed:
        story.receive(life)
    life.tell("orchestrator.lifecycle.started", "pending", life.names)
    if life.typed:
        story.create(life)
    life.wait(life.chance.uniform(0.1, 5))
    if end == "blocked":
        _block(life)
        return
    asks = end in {"approved", "rejected"} or (end != "completed" and life.chance.random() < 0.3)
    path = ["Processing", "Analyzing", *["AwaitingApproval"] * asks, "Executing"]
    last = _last_phase(life.chance, end, path)
    for phase in path:
        _enter(life, phase)
        if phase == "Executing" and life.typed:
            story.execute(life)
        if phase == "AwaitingApproval":
            _request_approval(life)
        if phase == last:
            _break_off(life, end)
            return
        _get_through(life, phase)
    _enter(life, "Completed")
    life.tell("orchestrator.lifecycle.completed", "success", _outcome(life, "Success"), duration_ms=life.duration_ms)
    if life.typed:
        story.assess(life)


def _get_through(life: Life, phase: str) -> None:
    life.wait(life.chance.uniform(*_USUAL_SECONDS[phase]))
    if phase == "Analyzing" and life.typed:
        story.analyse(life)
    if phase == "AwaitingApproval":
        _decide(life, approved=True)


def _last_phase(chance: random.Random, end: str, path: list[str]) -> str | None:
    """The phase in which the life breaks off; None when it comes to its proper end."""
    if end in {"completed", "approved"}:
        return None
    if end == "rejected":
        return "AwaitingApproval"
    # Who waits for an approval can run out of time, but not fail.
    return chance.choice([phase for phase in path if phase != "AwaitingApproval" or end != "failed"])


def _enter(life: Life, phase: str) -> None:
    transition = {"from_phase": life.phase, "to_phase": phase}
    event_type = "orchestrator.lifecycle.transitioned" if life.typed else "orchestrator.phase.transitioned"
    life.tell(event_type, "success", life.names | transition)
    life.phase = phase


def _break_off(life: Life, end: str) -> None:
    if end == "rejected":
        life.wait(life.chance.uniform(*_USUAL_SECONDS["AwaitingApproval"]))
        _decide(life, approved=False)
        _fail(life, "ApprovalRejected", "the approval was rejected")
    elif end == "failed":
        life.wait(life.chance.uniform(*_USUAL_SECONDS[life.phase]))
        reason = life.chance.choice(("ValidationError", "InfrastructureError", "Unknown"))
        _fail(life, reason, f"{life.phase} ended with {reason}")
    else:
        _time_out(life, end.partition(" ")[0])


def _outcome(life: Life, typed: str) -> dict[str, Any]:
    """How the life ended: a word of the schema in the typed generation, of the controller's status in the other."""
    outcome = typed if life.typed else {"Success": "Remediated", "Failed": "failure"}[typed]
    return life.names | {"outcome": outcome, "duration_ms": life.duration_ms}


def _fail(life: Life, reason: str, message: str) -> None:
    failure = _outcome(life, "Failed") | _failure(life, reason)
    _enter(life, "Failed")
    if life.typed:
        failure["error_details"] = {
            "message": message,
            "code": f"ERR_{reason.upper()}",
            "component": "remediationorchestrator",
            "retry_possible": reason == "InfrastructureError",
        }
    # The free-form generation has no lifecycle.failed: there a failure is a completed life with outcome failure.
    event_type = "orchestrator.lifecycle.failed" if life.typed else "orchestrator.lifecycle.completed"
    life.tell(event_type, "failure", failure, severity="warning", error_message=message, duration_ms=life.duration_ms)


def _failure(life: Life, reason: str) -> dict[str, str]:
    phase = _FAILURE_PHASE[life.phase] if life.typed else life.phase
    return {"failure_phase": phase, "failure_reason": reason}


def _time_out(life: Life, scope: str) -> None:
    """`scope` is global or phase."""
    if scope == "global":
        life.elapsed = max(life.elapsed, float(GLOBAL_TIMEOUT_SECONDS))
    else:
        life.wait(TIMEOUT_SECONDS[life.phase])
    failure = _outcome(life, "Failed") | _failure(life, "Timeout")
    if not life.typed:
        failure["timeout_type"] = scope
    message = f"the {scope} timeout ran out in {life.phase}"
    _enter(life, "TimedOut")
    life.tell(
        "orchestrator.lifecycle.completed",
        "failure",
        failure,
        severity="warning",
        error_code="TIMEOUT",
        error_message=message,
        duration_ms=life.duration_ms,
    )


def _request_approval(life: Life) -> None:
    confidence = round(life.chance.uniform(0.5, 0.79), 2)
    request: dict[str, Any] = {
        "rar_name": life.approval_name,
        "required_by": timedelta(seconds=TIMEOUT_SECONDS["AwaitingApproval"]),
        "workflow_id": life.workflow_id,
    }
    reason = f"confidence {confidence} is below 0.8"
    if life.typed:
        request |= {"confidence_str": f"{confidence:.2f}", "decision": "Pending", "reason": reason}
    else:
        request |= {"confidence_score": confidence, "approval_reason": reason}
    _tell_approval(life, "requested", "pending", request)


def _decide(life: Life, *, approved: bool) -> None:
    decision = "Approved" if approved else "Rejected"
    user = life.chance.choice(("ada@example.com", "grace@example.com", "edsger@example.com"))
    said: dict[str, Any] = {"rar_name": life.approval_name, "decision": decision, "message": f"{decision} by {user}"}
    said["decided_by" if not life.typed else f"{decision.lower()}_by"] = user
    if life.typed and not approved:
        said["rejection_reason"] = "the change window is closed"
    outcome = "success" if approved else "failure"
    _tell_approval(life, decision.lower(), outcome, said, actor_type="user", actor_id=user)


def _tell_approval(life: Life, step: str, outcome: str, payload: dict[str, Any], **members: Any) -> None:
    life.tell(
        f"orchestrator.approval.{step}",
        outcome,
        life.names | payload,
        action="approval_requested" if step == "requested" else step,
        resource_type="RemediationApprovalRequest",
        resource_id=life.approval_name,
        **members,
    )


def _block(life: Life) -> None:
    reason, message = life.chance.choice(list(_BLOCK_REASONS.items()))
    seconds = life.chance.choice((30, 60, 300, 3600))
    phases = {"from_phase": life.phase, "to_phase": "Blocked"}
    target = {"workflow_id": life.workflow_id, "target_resource": life.target}
    if life.typed:
        payload: dict[str, Any] = life.names | {"reason": reason, "message": message}
    else:  # without the names of the request: the controller does not send them
        payload = {
            "block_reason": reason,
            "block_message": message,
            "requeue_after_seconds": seconds,
            "blocked_until": timedelta(seconds=seconds),
            "blocking_wfe": f"wfe-{life.name}" if reason == "ResourceBusy" else "",
            "duplicate_of": f"rr-{life.chance.getrandbits(40):010x}" if reason == "DuplicateInProgress" else "",
            "consecutive_failures": 3 if reason == "ConsecutiveFailures" else 0,
            "backoff_seconds": seconds if reason == "ExponentialBackoff" else 0,
            "recent_wfe": f"wfe-{life.name}" if reason == "RecentlyRemediated" else "",
        }
    _enter(life, "Blocked")
    life.tell("orchestrator.routing.blocked", "pending", phases | target | payload)
