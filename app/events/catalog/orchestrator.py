"""Events of the RemediationOrchestrator, which leads a remediation from its first phase to its end."""

from typing import Literal, NotRequired

from typing_extensions import TypedDict

from app.events.catalog.shared import ErrorDetails, TimeoutConfig
from app.events.catalog.value_types import DateTime, Int64
from app.events.envelope import Category

CATEGORY: Category = "orchestration"


class RemediationOrchestratorPayload(TypedDict):
    """The orchestrator took a step with a RemediationRequest: created, handed on, approved, blocked or ended it.

    In order the steps tell what the platform decided, and how the remediation came out.
    """

    event_type: Literal[
        "orchestrator.lifecycle.started",
        "orchestrator.lifecycle.created",
        "orchestrator.lifecycle.completed",
        "orchestrator.lifecycle.failed",
        "orchestrator.lifecycle.verifying_started",
        "orchestrator.lifecycle.verification_completed",
        "orchestrator.lifecycle.verification_timed_out",
        "orchestrator.lifecycle.transitioned",
        "orchestrator.approval.requested",
        "orchestrator.approval.approved",
        "orchestrator.approval.rejected",
        "orchestrator.remediation.manual_review",
        "orchestrator.routing.blocked",
        "remediation.workflow_created",
        "orchestrator.ea.created",
    ]
    rr_name: str
    namespace: str
    outcome: NotRequired[Literal["Success", "Failed", "Pending"]]
    duration_ms: NotRequired[Int64]
    failure_phase: NotRequired[Literal["SignalProcessing", "AIAnalysis", "WorkflowExecution", "Approval"]]
    failure_reason: NotRequired[
        Literal["Timeout", "ValidationError", "InfrastructureError", "ApprovalRejected", "Unknown"]
    ]
    error_details: NotRequired[ErrorDetails]
    from_phase: NotRequired[str]
    to_phase: NotRequired[str]
    transition_reason: NotRequired[str]
    rar_name: NotRequired[str]
    required_by: NotRequired[DateTime]
    workflow_id: NotRequired[str]
    confidence_str: NotRequired[str]
    decision: NotRequired[Literal["Approved", "Rejected", "Pending"]]
    approved_by: NotRequired[str]
    rejected_by: NotRequired[str]
    rejection_reason: NotRequired[str]
    message: NotRequired[str]
    reason: NotRequired[str]
    sub_reason: NotRequired[str]
    notification_name: NotRequired[str]
    timeout_config: NotRequired[TimeoutConfig]
    pre_remediation_spec_hash: NotRequired[str]
    target_resource: NotRequired[str]
    workflow_version: NotRequired[str]
    action_type: NotRequired[str]
    signal_type: NotRequired[str]
    signal_fingerprint: NotRequired[str]
    crd_outcome: NotRequired[str]
    ea_name: NotRequired[str]
    hash_compute_delay: NotRequired[str]
    alert_check_delay: NotRequired[str]
    gitops_sync_delay: NotRequired[str]
    operator_reconcile_delay: NotRequired[str]
    is_gitops_managed: NotRequired[bool]
    is_crd: NotRequired[bool]
