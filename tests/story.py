"""One remediation from its alert to its assessment, as its controllers post it. Nothing of the application is imported."""

from datetime import UTC, datetime, timedelta
from typing import Any

TARGET = "payments/Deployment/api"
BEFORE, AFTER = "sha256:before", "sha256:after"


def make_story(correlation_id: str, start: datetime | None = None) -> list[dict[str, Any]]:
    """Its events in their order, a second apart; with every part that a reconstruction needs."""
    start = start or datetime.now(UTC) - timedelta(hours=1)
    names = {"rr_name": correlation_id, "namespace": "payments"}
    execution = {
        "workflow_id": "restart-deployment",
        "workflow_version": "1.4.2",
        "target_resource": TARGET,
        "phase": "Running",
        "container_image": "registry.example/workflows/restart@sha256:0a1b",
        "execution_name": "wfe-1",
    }
    steps: list[tuple[str, str, dict[str, Any]]] = [
        (
            "gateway.signal.received",
            "gateway",
            {
                "signal_type": "alert",
                "signal_name": "PodCrashLooping",
                "namespace": "payments",
                "fingerprint": "9c1b6f0e",
                "original_payload": {"status": "firing", "alerts": [{"value": 1.5, "name": "é"}]},
                "signal_labels": {"severity": "critical", "team": "payments"},
                "signal_annotations": {"summary": "eleven restarts"},
            },
        ),
        ("orchestrator.lifecycle.started", "orchestration", names),
        (
            "orchestrator.lifecycle.created",
            "orchestration",
            names | {"timeout_config": {"global": "1h", "processing": "5m", "analyzing": "600s", "executing": "1.5h"}},
        ),
        (
            "orchestrator.lifecycle.transitioned",
            "orchestration",
            names | {"from_phase": "Pending", "to_phase": "Analyzing"},
        ),
        (
            "aianalysis.analysis.completed",
            "analysis",
            {
                "analysis_name": "ai-1",
                "namespace": "payments",
                "phase": "Completed",
                "approval_required": True,
                "degraded_mode": False,
                "warnings_count": 0,
                "provider_response_summary": {
                    "incident_id": "incident-1",
                    "analysis_preview": "memory stays above its limit",
                    "needs_human_review": False,
                    "warnings_count": 0,
                },
            },
        ),
        (
            "orchestrator.approval.approved",
            "orchestration",
            names
            | {"rar_name": "rar-1", "decision": "Approved", "approved_by": "ada@example.com", "message": "go ahead"},
        ),
        (
            "orchestrator.lifecycle.transitioned",
            "orchestration",
            names | {"from_phase": "Analyzing", "to_phase": "Executing"},
        ),
        ("workflowexecution.selection.completed", "workflowexecution", execution),
        (
            "remediation.workflow_created",
            "orchestration",
            names
            | {
                "workflow_id": "restart-deployment",
                "target_resource": TARGET,
                "pre_remediation_spec_hash": BEFORE,
                "action_type": "RestartDeployment",
                "signal_type": "alert",
                "signal_fingerprint": "9c1b6f0e",
                "outcome": "Success",
            },
        ),
        ("workflowexecution.execution.started", "workflowexecution", execution),
        (
            "orchestrator.lifecycle.transitioned",
            "orchestration",
            names | {"from_phase": "Executing", "to_phase": "Completed"},
        ),
        ("orchestrator.lifecycle.completed", "orchestration", names | {"outcome": "Success", "duration_ms": 11_000}),
        *assessments(correlation_id),
    ]
    return [
        make_row(correlation_id, kind, category, {"event_type": kind} | payload, start + timedelta(seconds=second))
        for second, (kind, category, payload) in enumerate(steps)
    ]


def assessments(correlation_id: str) -> list[tuple[str, str, dict[str, Any]]]:
    """What the monitor found: 0.40 of 1, 0.35 of 1 and 0.25 of 0.6 are a score of 0.9."""
    common = {"correlation_id": correlation_id, "namespace": "payments"}
    parts: dict[str, dict[str, Any]] = {
        "health.assessed": {
            "component": "health",
            "assessed": True,
            "score": 1,
            "details": "all pods run",
            "health_checks": {"pod_running": True, "restart_delta": 0, "oom_killed": False},
        },
        "alert.assessed": {
            "component": "alert",
            "assessed": True,
            "score": 1.0,
            "alert_resolution": {"alert_resolved": True},
        },
        "metrics.assessed": {
            "component": "metrics",
            "assessed": True,
            "score": 0.6,
            "metric_deltas": {
                "cpu_before": 0.9,
                "cpu_after": 0.5,
                "latency_p95_before_ms": 120,
                "error_rate_after": None,
            },
        },
        "hash.computed": {
            "component": "hash",
            "pre_remediation_spec_hash": BEFORE,
            "post_remediation_spec_hash": AFTER,
            "hash_match": False,
        },
        "assessment.completed": {"component": "completed", "reason": "Full"},
    }
    return [(f"effectiveness.{kind}", "effectiveness", common | members) for kind, members in parts.items()]


def make_row(
    correlation_id: str, event_type: str, category: str, payload: Any, time: datetime, **members: Any
) -> dict[str, Any]:
    """One event as it is posted, or as `insert` writes it."""
    return {
        "version": "1.0",
        "event_type": event_type,
        "event_timestamp": time.astimezone(UTC).isoformat(),
        "event_category": category,
        "event_action": event_type.rpartition(".")[2][:50],
        "event_outcome": "success",
        "actor_type": "service",
        "actor_id": f"{category}-controller",
        "correlation_id": correlation_id,
        "namespace": "payments",
        "cluster_id": "prod-eu-1",
        "event_data": payload,
    } | members


INSERT = """
    INSERT INTO audit_events (event_version, event_type, event_timestamp, event_date, event_category, event_action,
        event_outcome, actor_type, actor_id, correlation_id, namespace, cluster_id, event_data, resource_type, resource_id)
    SELECT version, event_type, event_timestamp, (event_timestamp AT TIME ZONE 'UTC')::date, event_category, event_action,
        event_outcome, actor_type, actor_id, correlation_id, namespace, cluster_id, event_data, 'x', 'x'
    FROM jsonb_to_recordset($1::text::jsonb) AS r (version text, event_type text, event_timestamp timestamptz,
        event_category text, event_action text, event_outcome text, actor_type text, actor_id text, correlation_id text,
        namespace text, cluster_id text, event_data jsonb)
"""
"""Rows as another program writes them: without hashes."""
