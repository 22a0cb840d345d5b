"""What other controllers tell of a typed life: the alert it began with, the analysis, the workflow, and whether it helped.

A life that ends early lacks what comes later, so that its RemediationRequest can be rebuilt in part only.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from app.simulate.lives import Life

_TIMEOUTS = {"global": "1h0m0s", "processing": "5m0s", "analyzing": "10m0s", "executing": "30m0s"}
_ACTIONS = {
    "restart-deployment": "RestartDeployment",
    "increase-memory": "IncreaseMemoryLimits",
    "clean-volume": "CleanVolume",
    "rollback-release": "RollbackRelease",
}
_SPECS = ("sha256:spec-1", "sha256:spec-2", "sha256:spec-3")


def receive(life: "Life") -> None:
    """The gateway made a remediation of an alert."""
    signal = {
        "signal_type": "alert",
        "signal_name": life.name.split("-")[1],
        "namespace": life.namespace,
        "fingerprint": life.fingerprint,
        "signal_labels": {"namespace": life.namespace, "severity": "critical"},
        "signal_annotations": {"summary": f"{life.target} needs help"},
        "original_payload": {"status": "firing", "labels": {"target": life.target}},
    }
    life.tell("gateway.signal.received", "success", signal, **_by("gateway", "gateway"))


def create(life: "Life") -> None:
    life.tell("orchestrator.lifecycle.created", "success", life.names | {"timeout_config": _TIMEOUTS})


def analyse(life: "Life") -> None:
    """The agent's answer, as the AIAnalysis controller keeps it."""
    analysis = {
        "analysis_name": f"ai-{life.name}",
        "namespace": life.namespace,
        "phase": "Completed",
        "approval_required": False,
        "degraded_mode": False,
        "warnings_count": 0,
        "workflow_id": life.workflow_id,
        "provider_response_summary": {
            "incident_id": f"incident-{life.name}",
            "analysis_preview": f"{life.workflow_id} should help {life.target}",
            "needs_human_review": False,
            "warnings_count": 0,
        },
    }
    life.tell("aianalysis.analysis.completed", "success", analysis, **_by("analysis", "aianalysis-controller"))


def execute(life: "Life") -> None:
    """A workflow was chosen, recorded for the target's history, and started."""
    execution = {
        "workflow_id": life.workflow_id,
        "workflow_version": "1.4.2",
        "target_resource": life.target,
        "phase": "Pending",
        "container_image": f"registry.example/workflows/{life.workflow_id}:1.4.2",
        "execution_name": f"wfe-{life.name}",
    }
    by = _by("workflowexecution", "workflowexecution-controller")
    life.tell("workflowexecution.selection.completed", "success", execution, **by)
    life.spec_before, life.spec_after = life.chance.sample(_SPECS, 2)
    created = {
        "workflow_id": life.workflow_id,
        "target_resource": life.target,
        "pre_remediation_spec_hash": life.spec_before,
        "action_type": _ACTIONS[life.workflow_id],
        "signal_type": "alert",
        "signal_fingerprint": life.fingerprint,
    }
    life.tell("remediation.workflow_created", "success", life.names | created)
    life.tell("workflowexecution.execution.started", "success", execution | {"phase": "Running"}, **by)


def assess(life: "Life") -> None:
    """The effectiveness monitor looked at health, alert, metrics and spec; now and then it found no metrics, or drift."""
    health = life.chance.choice((1.0, 1.0, 0.5, 0.0))
    resolved = life.chance.random() < 0.75
    metrics = life.chance.choice((1.0, 0.8, 0.4, None))
    drifted = life.chance.random() < 0.1
    life.wait(life.chance.uniform(30, 120))
    checks = {"pod_running": health > 0, "readiness_pass": health == 1.0, "restart_delta": round(3 - 3 * health)}
    _assess(life, "health", assessed=True, score=health, details=f"{life.target} looked at", health_checks=checks)
    _assess(life, "alert", assessed=True, score=float(resolved), alert_resolution={"alert_resolved": resolved})
    if metrics is None:
        _assess(life, "metrics", assessed=False, score=None)
    else:
        _assess(life, "metrics", assessed=True, score=metrics, metric_deltas={"cpu_before": 0.9, "cpu_after": 0.5})
    hashes = {"pre_remediation_spec_hash": life.spec_before, "post_remediation_spec_hash": life.spec_after}
    _assess(life, "hash", "computed", hash_match=False, **hashes)
    reason = "SpecDrift" if drifted else "MetricsTimedOut" if metrics is None else "Full"
    _assess(life, "completed", reason=reason)


def _assess(life: "Life", component: str, step: str = "assessed", **said: Any) -> None:
    event_type = f"effectiveness.{component}.{step}"
    if component == "completed":
        event_type = "effectiveness.assessment.completed"
    common = {"correlation_id": life.correlation_id, "namespace": life.namespace, "component": component}
    by = _by("effectiveness", "effectivenessmonitor-controller")
    life.tell(event_type, "success", common | said, **by)


def _by(category: str, actor: str) -> dict[str, str]:
    return {"event_category": category, "actor_id": actor}
