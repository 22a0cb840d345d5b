"""Events of the AIAnalysis controller, which lets the agent investigate and decides whether a person must approve."""

from typing import Literal, NotRequired

from typing_extensions import TypedDict

from app.events.catalog.shared import ErrorDetails
from app.events.catalog.value_types import Int32, Integer
from app.events.envelope import Category

CATEGORY: Category = "analysis"


class ProviderResponseSummary(TypedDict):
    """The controller's own extract of the agent's answer, kept so that both sides can be compared."""

    incident_id: str
    analysis_preview: str
    selected_workflow_id: NotRequired[str]
    needs_human_review: bool
    warnings_count: Integer


class AIAnalysisOutcomePayload(TypedDict):
    """An AIAnalysis is over: which workflow it recommends with what confidence, or why it has nothing to recommend."""

    event_type: Literal["aianalysis.analysis.completed", "aianalysis.analysis.failed"]
    analysis_name: str
    namespace: str
    phase: Literal["Pending", "Investigating", "Analyzing", "Completed", "Failed"]
    approval_required: bool
    approval_reason: NotRequired[str]
    degraded_mode: bool
    warnings_count: Integer
    confidence: NotRequired[float]
    workflow_id: NotRequired[str]
    reason: NotRequired[str]
    sub_reason: NotRequired[str]
    provider_response_summary: NotRequired[ProviderResponseSummary]
    error_details: NotRequired[ErrorDetails]


class AIAnalysisAgentCallPayload(TypedDict):
    """The controller called the agent over HTTP, to hand in an investigation, ask how it stands or fetch its result."""

    event_type: Literal["aianalysis.aiagent.call", "aianalysis.aiagent.result", "aianalysis.aiagent.submit"]
    endpoint: str
    http_status_code: Int32
    duration_ms: Int32


class AIAnalysisRegoEvaluationPayload(TypedDict):
    """The approval policy was put to the question, with the hash of the policy text that answered it."""

    event_type: Literal["aianalysis.rego.evaluation"]
    outcome: str
    degraded: bool
    duration_ms: Int32
    reason: str
    policy_hash: NotRequired[str]


class AIAnalysisApprovalDecisionPayload(TypedDict):
    """The controller settled whether the recommended workflow may run by itself or has to wait for a person."""

    event_type: Literal["aianalysis.approval.decision"]
    approval_required: bool
    approval_reason: str
    auto_approved: bool
    decision: str
    reason: str
    environment: str
    confidence: NotRequired[float]
    workflow_id: NotRequired[str]


class AIAnalysisPhaseTransitionPayload(TypedDict):
    """An AIAnalysis stepped from one phase to the next; the times between them show where it waited."""

    event_type: Literal["aianalysis.phase.transition"]
    old_phase: str
    new_phase: str


class AIAnalysisErrorPayload(TypedDict):
    """Something went wrong inside an AIAnalysis; it may recover, so this alone is not its end."""

    event_type: Literal["aianalysis.error.occurred"]
    phase: str
    error_message: str
