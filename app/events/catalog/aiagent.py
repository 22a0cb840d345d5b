"""Events of the Kubernaut agent, which lets a language model investigate a signal and propose a workflow."""

from typing import Any, Literal, NotRequired

from pydantic import ConfigDict, with_config
from typing_extensions import TypedDict

from app.events.catalog.shared import Severity
from app.events.catalog.value_types import Confidence, Count, DateTime, Integer, Ordinal
from app.events.envelope import Category

CATEGORY: Category = "aiagent"


# What the agent's endpoints let in.


class AIAgentAuthFailurePayload(TypedDict):
    """The agent's API met a caller whose credentials it could not verify; the request ended there."""

    event_type: Literal["aiagent.auth.failure"]
    event_id: str
    source_ip: NotRequired[str]
    path: NotRequired[str]
    method: NotRequired[str]
    reason: NotRequired[str]


class AIAgentAuthDeniedPayload(TypedDict):
    """A caller proved its identity to the agent's API and lacked the right to do what it asked."""

    event_type: Literal["aiagent.auth.denied"]
    event_id: str
    source_ip: NotRequired[str]
    path: NotRequired[str]
    method: NotRequired[str]
    reason: NotRequired[str]


class AIAgentRatelimitDeniedPayload(TypedDict):
    """The agent turned a request away since its caller had sent too many; a burst of these may be an attack."""

    event_type: Literal["aiagent.ratelimit.denied"]
    event_id: str
    source_ip: NotRequired[str]
    path: NotRequired[str]
    method: NotRequired[str]


# One investigation, from the enriched signal to the answer.


class AIAgentEnrichmentCompletedPayload(TypedDict):
    """The agent found the workload that owns the affected resource and what is known of it, before it asked the model.

    All that the model concludes later starts from this picture.
    """

    event_type: Literal["aiagent.enrichment.completed"]
    event_id: str
    incident_id: str
    root_owner_kind: str
    root_owner_name: str
    root_owner_namespace: NotRequired[str]
    owner_chain_length: Integer
    detected_labels_summary: NotRequired[dict[str, Any] | None]
    failed_detections: NotRequired[list[str] | None]
    remediation_history_fetched: bool


class AIAgentEnrichmentFailedPayload(TypedDict):
    """The agent could not find out what the affected resource belongs to, and the investigation did not go on."""

    event_type: Literal["aiagent.enrichment.failed"]
    event_id: str
    incident_id: str
    reason: str
    detail: str
    affected_resource_kind: str
    affected_resource_name: str
    affected_resource_namespace: NotRequired[str]


class LLMRequestPayload(TypedDict):
    """The agent is about to ask the language model: the start of the prompt, its length, and the tools on offer.

    What left the platform for the model's provider can be told from it.
    """

    event_type: Literal["aiagent.llm.request"]
    event_id: str
    incident_id: str
    model: str
    prompt_length: Count
    prompt_preview: str
    max_tokens: NotRequired[Count]
    toolsets_enabled: NotRequired[list[str]]
    mcp_servers: NotRequired[list[str]]
    retry_outcome: NotRequired[str]
    ambiguous_kind: NotRequired[str]
    conflicting_groups: NotRequired[str]


class LLMResponsePayload(TypedDict):
    """The language model answered a question of the agent: what it said, and what the answer cost in tokens."""

    event_type: Literal["aiagent.llm.response"]
    event_id: str
    incident_id: str
    has_analysis: bool
    analysis_length: Count
    analysis_preview: str
    analysis_full: NotRequired[str]
    tokens_used: NotRequired[Count]
    tool_call_count: NotRequired[Count]
    reasoning_text: NotRequired[str]
    reasoning_redacted: NotRequired[bool]


class LLMToolCallPayload(TypedDict):
    """The model had the agent call a tool, and this came back: the evidence on which its analysis rests."""

    event_type: Literal["aiagent.llm.tool_call"]
    event_id: str
    incident_id: str
    tool_call_index: Count
    tool_name: str
    tool_arguments: NotRequired[dict[str, Any]]
    tool_result: Any
    tool_result_preview: NotRequired[str]


class AIAgentSecretAccessedPayload(TypedDict):
    """An investigation read or listed Kubernetes Secrets. Reviewers look here first when credentials leaked."""

    event_type: Literal["aiagent.secret.accessed"]
    event_id: str
    verb: Literal["get", "list"]
    namespace: NotRequired[str]
    secret_name: NotRequired[str]
    tool_name: NotRequired[str]
    outcome_detail: NotRequired[str]


class WorkflowValidationPayload(TypedDict):
    """The agent tested the workflow that the model had proposed; a proposal that fails goes back to the model.

    After the last attempt a person has to decide, for the reason given here.
    """

    event_type: Literal["aiagent.workflow.validation_attempt"]
    event_id: str
    incident_id: str
    attempt: Ordinal
    max_attempts: Ordinal
    is_valid: bool
    errors: NotRequired[list[str]]
    validation_errors: NotRequired[str]
    workflow_id: NotRequired[str]
    workflow_name: NotRequired[str]
    human_review_reason: NotRequired[str]
    is_final_attempt: NotRequired[bool]


# Its result.


@with_config(ConfigDict(extra="forbid"))
class RemediationTarget(TypedDict):
    """The resource that a remediation should change, which need not be the one that raised the signal."""

    kind: NotRequired[str]
    name: NotRequired[str]
    namespace: NotRequired[str]


@with_config(ConfigDict(extra="forbid"))
class DueDiligence(TypedDict):
    """The model's answers to the questions by which it had to doubt its own finding."""

    causalCompleteness: NotRequired[str]
    targetAccuracy: NotRequired[str]
    evidenceSufficiency: NotRequired[str]
    alternativeHypotheses: NotRequired[str]
    scopeCompleteness: NotRequired[str]
    proportionality: NotRequired[str]
    regressionAwareness: NotRequired[str]
    confidenceCalibration: NotRequired[str]


@with_config(ConfigDict(extra="forbid"))
class RootCauseAnalysis(TypedDict):
    """What the model takes for the cause of the incident, how bad it is, and the chain that led there."""

    summary: str
    severity: Severity
    contributingFactors: list[str]
    remediationTarget: NotRequired[RemediationTarget]
    causalChain: NotRequired[list[str]]
    dueDiligence: NotRequired[DueDiligence]
    reasoning: NotRequired[str]
    reasoningRedacted: NotRequired[bool]


@with_config(ConfigDict(extra="forbid"))
class SelectedWorkflow(TypedDict):
    """The workflow that the model chose, with the parameters it would run with."""

    workflowId: NotRequired[str]
    actionType: NotRequired[str]
    executionBundle: NotRequired[str]
    confidence: NotRequired[Confidence]
    parameters: NotRequired[dict[str, Any]]


@with_config(ConfigDict(extra="forbid"))
class AlternativeWorkflow(TypedDict):
    """A workflow that the model considered and did not choose."""

    workflowId: NotRequired[str]
    rationale: NotRequired[str]
    executionBundle: NotRequired[str]
    confidence: NotRequired[Confidence]


class IncidentResponse(TypedDict):
    """The agent's whole answer to one incident, as the caller got it."""

    incidentId: str
    analysis: str
    rootCauseAnalysis: RootCauseAnalysis
    selectedWorkflow: NotRequired[SelectedWorkflow]
    confidence: Confidence
    timestamp: DateTime
    isActionable: NotRequired[bool | None]
    needsHumanReview: NotRequired[bool]
    humanReviewReason: NotRequired[
        Literal[
            "workflow_not_found",
            "image_mismatch",
            "parameter_validation_failed",
            "no_matching_workflows",
            "low_confidence",
            "llm_parsing_error",
            "investigation_inconclusive",
            "rca_incomplete",
            "alignment_check_failed",
            "decision_expired",
        ]
    ]
    warnings: NotRequired[list[str]]
    alternativeWorkflows: NotRequired[list[AlternativeWorkflow]]


class AIAgentRCACompletePayload(TypedDict):
    """The model settled on a root cause, and the agent turns to choosing a workflow against it."""

    event_type: Literal["aiagent.rca.complete"]
    event_id: str
    incident_id: str
    response_data: IncidentResponse
    total_prompt_tokens: NotRequired[Count]
    total_completion_tokens: NotRequired[Count]


class AIAgentResponsePayload(TypedDict):
    """The agent handed its answer to whoever had asked: cause, chosen workflow, confidence, and what it left open.

    The remediation acts on exactly this text, so it is the one to compare with what was done.
    """

    event_type: Literal["aiagent.response.complete"]
    event_id: str
    incident_id: str
    response_data: IncidentResponse
    total_prompt_tokens: NotRequired[Count]
    total_completion_tokens: NotRequired[Count]


class AIAgentResponseFailedPayload(TypedDict):
    """An investigation broke off with an error in the named phase, and nobody got an answer from it."""

    event_type: Literal["aiagent.response.failed"]
    event_id: str
    incident_id: str
    error_message: str
    phase: str
    duration_seconds: NotRequired[float]


class AIAgentInvestigationCancelledPayload(TypedDict):
    """Somebody stopped an investigation while it ran: how far it had come, and what had been said up to then."""

    event_type: Literal["aiagent.investigation.cancelled"]
    event_id: str
    session_id: NotRequired[str]
    cancelled_phase: str
    cancelled_at_turn: Count
    total_prompt_tokens: NotRequired[Count]
    total_completion_tokens: NotRequired[Count]
    total_tokens: NotRequired[Count]
    accumulated_messages: NotRequired[str]


# The second model, which watches the first one.


class ShadowLLMRequestPayload(TypedDict):
    """The agent shows one step of the investigation to a second model, which looks for signs of manipulation."""

    event_type: Literal["aiagent.shadow.llm.request"]
    event_id: str
    incident_id: str
    step_index: Count
    step_kind: str
    prompt_length: Count


class ShadowLLMResponsePayload(TypedDict):
    """The second model gave its opinion on a step, or nothing that could be read; its tokens are counted apart."""

    event_type: Literal["aiagent.shadow.llm.response"]
    event_id: str
    incident_id: str
    step_index: Count
    step_kind: str
    prompt_tokens: Count
    completion_tokens: Count
    total_tokens: Count
    attempt: NotRequired[Ordinal]
    evaluation_result: NotRequired[Literal["success", "malformed_response", "missing_field"]]


class AIAgentAlignmentStepPayload(TypedDict):
    """The agent's alignment check found one step suspicious, such as a log line that gives the model orders."""

    event_type: Literal["aiagent.alignment.step"]
    event_id: str
    step_index: Count
    step_kind: str
    tool: NotRequired[str]
    explanation: str


class AIAgentAlignmentVerdictPayload(TypedDict):
    """The alignment check sums up an investigation: how many steps were suspicious, and whether to trust the result."""

    event_type: Literal["aiagent.alignment.verdict"]
    event_id: str
    result: str
    summary: NotRequired[str]
    flagged: Count
    total: Count
    shadow_prompt_tokens: NotRequired[Count]
    shadow_completion_tokens: NotRequired[Count]
    shadow_total_tokens: NotRequired[Count]


# Sessions: an investigation that others can watch, pause and take over.


class AIAgentSessionStartedPayload(TypedDict):
    """The agent opened a session for a signal; its id ties together all that follows in the investigation."""

    event_type: Literal["aiagent.session.started"]
    event_id: str
    session_id: str
    incident_id: NotRequired[str]
    signal_name: NotRequired[str]
    severity: NotRequired[str]
    created_by: NotRequired[str]


class AIAgentSessionObservedPayload(TypedDict):
    """Somebody began to follow a session as it runs, perhaps one of another owner."""

    event_type: Literal["aiagent.session.observed"]
    event_id: str
    session_id: str
    observer_user: NotRequired[str]
    session_owner: NotRequired[str]


class AIAgentSessionAccessDeniedPayload(TypedDict):
    """A user reached for a session that belongs to somebody else and was kept out."""

    event_type: Literal["aiagent.session.access_denied"]
    event_id: str
    session_id: str
    endpoint: str
    requesting_user: str
    session_owner: NotRequired[str]


class AIAgentSessionSuspendedPayload(TypedDict):
    """A session rests: the agent does nothing in it until it is resumed."""

    event_type: Literal["aiagent.session.suspended"]
    event_id: str
    session_id: str


class AIAgentSessionResumedPayload(TypedDict):
    """A session that had been suspended goes on where it stood."""

    event_type: Literal["aiagent.session.resumed"]
    event_id: str
    session_id: str


class AIAgentSessionCompletedPayload(TypedDict):
    """A session reached its end with a result; the response event of the same correlation holds it."""

    event_type: Literal["aiagent.session.completed"]
    event_id: str
    session_id: str


class AIAgentSessionFailedPayload(TypedDict):
    """The agent gave up on a session because of an error of its own or of the model's provider."""

    event_type: Literal["aiagent.session.failed"]
    event_id: str
    session_id: str
    error: NotRequired[str]


class AIAgentSessionCancelledPayload(TypedDict):
    """A session was called off on request: no result of it was used."""

    event_type: Literal["aiagent.session.cancelled"]
    event_id: str
    session_id: str


# Sessions in which a person holds the wheel.


class AIAgentInteractiveStartedPayload(TypedDict):
    """A person took over an investigation: from here on the agent works on that person's word and with their rights."""

    event_type: Literal["aiagent.interactive.started"]
    event_id: str
    session_id: str


class AIAgentInteractiveK8sCallPayload(TypedDict):
    """In an interactive session the agent called the Kubernetes API in the name of its user.

    The cluster's own audit log shows the agent's impersonation; who was behind it stands here.
    """

    event_type: Literal["aiagent.interactive.k8s_call"]
    event_id: str
    session_id: str
    acting_user: str
    resource: str
    verb: str
    namespace: NotRequired[str]
    resource_name: NotRequired[str]
    http_status_code: NotRequired[Integer]
    correlation_id: NotRequired[str]


class AIAgentInteractiveCompletedPayload(TypedDict):
    """The person let go of the investigation, or time took it from them; the agent acts in nobody's name again."""

    event_type: Literal["aiagent.interactive.completed"]
    event_id: str
    session_id: str
    reason: NotRequired[str]
