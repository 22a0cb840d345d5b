"""Events of the other controllers about a remediation of the typed generation: its signal, analysis, workflow and effect.

A remediation that ends early has no later ones, so that its RemediationRequest can be reconstructed only in part.
"""

from typing import Any

from app.simulate.remediation import Remediation

_TIMEOUTS = {"global": "1h0m0s", "processing": "5m0s", "analyzing": "10m0s", "executing": "30m0s"}
_ACTIONS = {
    "restart-deployment": "RestartDeployment",
    "increase-memory": "IncreaseMemoryLimits",
    "clean-volume": "CleanVolume",
    "rollback-release": "RollbackRelease",
}
_SPECS = ("sha256:spec-1", "sha256:spec-2", "sha256:spec-3")


def receive_signal(remediation: Remediation) -> None:
    """The gateway received an alert and made a RemediationRequest of it."""
    signal = {
        "signal_type": "alert",
        "signal_name": remediation.name.split("-")[1],
        "namespace": remediation.namespace,
        "fingerprint": remediation.fingerprint,
        "signal_labels": {"namespace": remediation.namespace, "severity": "critical"},
        "signal_annotations": {"summary": f"{remediation.target} needs help"},
        "original_payload": {"status": "firing", "labels": {"target": remediation.target}},
    }
    remediation.emit("gateway.signal.received", "success", signal, **_sent_by("gateway", "gateway"))


def create_remediation_request(remediation: Remediation) -> None:
    """The RemediationOrchestrator accepted the RemediationRequest, with its timeouts."""
    remediation.emit("orchestrator.lifecycle.created", "success", remediation.names | {"timeout_config": _TIMEOUTS})


def complete_analysis(remediation: Remediation) -> None:
    """The AIAnalysis controller reports the answer of the agent."""
    analysis = {
        "analysis_name": f"ai-{remediation.name}",
        "namespace": remediation.namespace,
        "phase": "Completed",
        "approval_required": False,
        "degraded_mode": False,
        "warnings_count": 0,
        "workflow_id": remediation.workflow_id,
        "provider_response_summary": {
            "incident_id": f"incident-{remediation.name}",
            "analysis_preview": f"{remediation.workflow_id} should help {remediation.target}",
            "needs_human_review": False,
            "warnings_count": 0,
        },
    }
    remediation.emit(
        "aianalysis.analysis.completed", "success", analysis, **_sent_by("analysis", "aianalysis-controller")
    )


def start_workflow(remediation: Remediation) -> None:
    """A workflow was selected, recorded for the history of its target, and started."""
    execution = {
        "workflow_id": remediation.workflow_id,
        "workflow_version": "1.4.2",
        "target_resource": remediation.target,
        "phase": "Pending",
        "container_image": f"registry.example/workflows/{remediation.workflow_id}:1.4.2",
        "execution_name": f"wfe-{remediation.name}",
    }
    sender = _sent_by("workflowexecution", "workflowexecution-controller")
    remediation.emit("workflowexecution.selection.completed", "success", execution, **sender)
    remediation.spec_before, remediation.spec_after = remediation.rng.sample(_SPECS, 2)
    created = {
        "workflow_id": remediation.workflow_id,
        "target_resource": remediation.target,
        "pre_remediation_spec_hash": remediation.spec_before,
        "action_type": _ACTIONS[remediation.workflow_id],
        "signal_type": "alert",
        "signal_fingerprint": remediation.fingerprint,
    }
    remediation.emit("remediation.workflow_created", "success", remediation.names | created)
    remediation.emit("workflowexecution.execution.started", "success", execution | {"phase": "Running"}, **sender)


def assess_effectiveness(remediation: Remediation) -> None:
    """The effectiveness monitor assessed health, alert, metrics and spec. Sometimes there are no metrics, or the spec drifted."""
    health = remediation.rng.choice((1.0, 1.0, 0.5, 0.0))
    resolved = remediation.rng.random() < 0.75
    metrics = remediation.rng.choice((1.0, 0.8, 0.4, None))
    drifted = remediation.rng.random() < 0.1
    remediation.wait(remediation.rng.uniform(30, 120))
    checks = {"pod_running": health > 0, "readiness_pass": health == 1.0, "restart_delta": round(3 - 3 * health)}
    _emit_assessment(
        remediation,
        "health",
        assessed=True,
        score=health,
        details=f"{remediation.target} looked at",
        health_checks=checks,
    )
    _emit_assessment(
        remediation, "alert", assessed=True, score=float(resolved), alert_resolution={"alert_resolved": resolved}
    )
    if metrics is None:
        _emit_assessment(remediation, "metrics", assessed=False, score=None)
    else:
        _emit_assessment(
            remediation, "metrics", assessed=True, score=metrics, metric_deltas={"cpu_before": 0.9, "cpu_after": 0.5}
        )
    hashes = {
        "pre_remediation_spec_hash": remediation.spec_before,
        "post_remediation_spec_hash": remediation.spec_after,
    }
    _emit_assessment(remediation, "hash", "computed", hash_match=False, **hashes)
    reason = "SpecDrift" if drifted else "MetricsTimedOut" if metrics is None else "Full"
    _emit_assessment(remediation, "completed", reason=reason)


def _emit_assessment(remediation: Remediation, component: str, step: str = "assessed", **members: Any) -> None:
    event_type = f"effectiveness.{component}.{step}"
    if component == "completed":
        event_type = "effectiveness.assessment.completed"
    common = {"correlation_id": remediation.correlation_id, "namespace": remediation.namespace, "component": component}
    sender = _sent_by("effectiveness", "effectivenessmonitor-controller")
    remediation.emit(event_type, "success", common | members, **sender)


def _sent_by(category: str, actor: str) -> dict[str, str]:
    return {"event_category": category, "actor_id": actor}
