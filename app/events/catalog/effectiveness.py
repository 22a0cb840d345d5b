"""Events of the effectiveness monitor, which checks after a remediation whether it helped."""

from typing import Literal, NotRequired

from typing_extensions import TypedDict

from app.events.catalog.value_types import DateTime, Int32
from app.events.envelope import Category

CATEGORY: Category = "effectiveness"


class HealthChecks(TypedDict):
    """How the pods of the remediated workload were when the monitor looked."""

    pod_running: NotRequired[bool]
    readiness_pass: NotRequired[bool]
    total_replicas: NotRequired[Int32]
    ready_replicas: NotRequired[Int32]
    restart_delta: NotRequired[Int32]
    crash_loops: NotRequired[bool]
    oom_killed: NotRequired[bool]
    pending_count: NotRequired[Int32]


class MetricDeltas(TypedDict):
    """Measurements from before and after the remediation; null where Prometheus had none."""

    cpu_before: NotRequired[float | None]
    cpu_after: NotRequired[float | None]
    memory_before: NotRequired[float | None]
    memory_after: NotRequired[float | None]
    latency_p95_before_ms: NotRequired[float | None]
    latency_p95_after_ms: NotRequired[float | None]
    error_rate_before: NotRequired[float | None]
    error_rate_after: NotRequired[float | None]
    throughput_before_rps: NotRequired[float | None]
    throughput_after_rps: NotRequired[float | None]
    node_not_ready_before: NotRequired[float | None]
    node_not_ready_after: NotRequired[float | None]
    node_memory_pressure_before: NotRequired[float | None]
    node_memory_pressure_after: NotRequired[float | None]
    node_disk_pressure_before: NotRequired[float | None]
    node_disk_pressure_after: NotRequired[float | None]
    pv_phase_failed_before: NotRequired[float | None]
    pv_phase_failed_after: NotRequired[float | None]
    pv_phase_pending_before: NotRequired[float | None]
    pv_phase_pending_after: NotRequired[float | None]
    pv_usage_ratio_before: NotRequired[float | None]
    pv_usage_ratio_after: NotRequired[float | None]


class AlertResolution(TypedDict):
    """Whether the alert that had started it all went away, and how soon."""

    alert_resolved: NotRequired[bool]
    active_count: NotRequired[Int32]
    resolution_time_seconds: NotRequired[float | None]


class EffectivenessAssessmentPayload(TypedDict):
    """The monitor planned an assessment, finished one part of it (health, alert, metrics, spec hash), or closed it.

    Read together, a remediation's assessment events say whether it worked, and what was never looked at.
    """

    event_type: Literal[
        "effectiveness.health.assessed",
        "effectiveness.hash.computed",
        "effectiveness.alert.assessed",
        "effectiveness.metrics.assessed",
        "effectiveness.assessment.scheduled",
        "effectiveness.assessment.completed",
        "effectiveness.alert_decay.detected",
    ]
    correlation_id: str
    namespace: str
    ea_name: NotRequired[str]
    component: Literal["health", "alert", "alert_decay", "metrics", "hash", "scheduled", "completed"]
    assessed: NotRequired[bool]
    score: NotRequired[float | None]
    details: NotRequired[str]
    reason: NotRequired[str]
    signal_name: NotRequired[str]
    components_assessed: NotRequired[list[str]]
    completed_at: NotRequired[DateTime]
    assessment_duration_seconds: NotRequired[float | None]
    validity_deadline: NotRequired[DateTime]
    prometheus_check_after: NotRequired[DateTime]
    alertmanager_check_after: NotRequired[DateTime]
    hash_compute_after: NotRequired[DateTime]
    hash_compute_delay: NotRequired[str]
    alert_check_delay: NotRequired[str]
    gitops_sync_delay: NotRequired[str]
    operator_reconcile_delay: NotRequired[str]
    total_propagation_delay: NotRequired[str]
    validity_window: NotRequired[str]
    stabilization_window: NotRequired[str]
    pre_remediation_spec_hash: NotRequired[str]
    post_remediation_spec_hash: NotRequired[str]
    hash_match: NotRequired[bool]
    health_checks: NotRequired[HealthChecks]
    metric_deltas: NotRequired[MetricDeltas]
    alert_resolution: NotRequired[AlertResolution]
