"""Events as a controller posts them. Nothing of the application is imported: black-box tests use them."""

from datetime import UTC, datetime
from typing import Any
from uuid import uuid4


def make_event(**overrides: Any) -> dict[str, Any]:
    """A valid typed event of the orchestrator, about 1 KB as JSON, of now and of a correlation of its own."""
    return _envelope() | {"event_type": _TYPED["event_type"], "event_data": dict(_TYPED)} | overrides


def make_freeform(
    event_type: str = "orchestrator.phase.transitioned", payload: dict[str, Any] | None = None, **overrides: Any
) -> dict[str, Any]:
    """A valid event of the generation without event_type in its payload."""
    if payload is None:
        payload = {"from_phase": "Pending", "to_phase": "Processing", "namespace": "payments", "rr_name": "rr-1"}
    return _envelope() | {"event_type": event_type, "event_data": payload} | overrides


_TYPED = {
    "event_type": "orchestrator.lifecycle.transitioned",
    "rr_name": "rr-podcrashlooping-5f3a",
    "namespace": "payments",
    "from_phase": "Processing",
    "to_phase": "Analyzing",
    "transition_reason": (
        "The pod was restarted eleven times within ten minutes after the rollout; memory stayed above its limit, and "
        "the previous revision did not show the symptom."
    ),
    "signal_type": "alert",
    "signal_fingerprint": "9c1b6f0e" * 8,
    "target_resource": "payments/Deployment/api",
    "workflow_version": "1.4.2",
    "is_gitops_managed": True,
}


def _envelope() -> dict[str, Any]:
    return {
        "version": "1.0",
        "event_timestamp": datetime.now(UTC).isoformat(),
        "event_category": "orchestration",
        "event_action": "transitioned",
        "event_outcome": "success",
        "actor_type": "service",
        "actor_id": "remediationorchestrator-controller",
        "actor_ip": "10.0.0.7",
        "resource_type": "RemediationRequest",
        "resource_id": "rr-podcrashlooping-5f3a",
        "correlation_id": f"rr-{uuid4()}",
        "namespace": "payments",
        "cluster_id": "prod-eu-1",
        "severity": "warning",
        "duration_ms": 1250,
    }


NOTIFICATION = {
    "remediation_id": "rr-1",
    "notification_id": "n-1",
    "recipient": "sre",
    "channel": "slack",
    "message_summary": "done",
    "status": "sent",
    "sent_at": "2026-11-24T10:00:00Z",
}
