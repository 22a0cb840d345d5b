"""Events of the API front end, through which people and other agents (A2A, MCP) talk to the platform."""

from typing import Literal, NotRequired

from typing_extensions import TypedDict

from app.events.catalog.value_types import Integer
from app.events.envelope import Category

CATEGORY: Category = "apifrontend"


# Who comes in.


class ApifrontendAuthSuccessPayload(TypedDict):
    """The front end knows who is calling, by token or token review, and by which issuer's word."""

    event_type: Literal["apifrontend.auth.success"]
    auth_method: Literal["jwt", "token_review"]
    issuer: NotRequired[str]
    groups: NotRequired[list[str]]


class ApifrontendAuthFailurePayload(TypedDict):
    """Somebody knocked with a token that the front end would not believe."""

    event_type: Literal["apifrontend.auth.failure"]
    auth_method: Literal["jwt", "token_review"]
    failure_reason: str


class ApifrontendAuthAccessDeniedPayload(TypedDict):
    """A known user tried a tool for which another role is needed; both roles are named."""

    event_type: Literal["apifrontend.auth.access_denied"]
    session_id: NotRequired[str]
    tool_name: str
    user_role: str
    required_roles: list[str]
    endpoint: Literal["a2a", "mcp"]
    reason: NotRequired[str]


class ApifrontendRatelimitDeniedPayload(TypedDict):
    """A client of the front end went over one of its limits, and its request was dropped."""

    event_type: Literal["apifrontend.ratelimit.denied"]
    limit_type: str
    limit_value: NotRequired[str]


class ApifrontendImpersonationCreatedPayload(TypedDict):
    """The front end made itself a Kubernetes client that acts as the named user.

    What the cluster records as that user's doing afterwards may have come through here.
    """

    event_type: Literal["apifrontend.impersonation.created"]
    target_user: str
    groups: NotRequired[list[str]]


class ApifrontendJWTDelegationPayload(TypedDict):
    """The front end passed the user's own token on to another service, which then acts with that user's rights."""

    event_type: Literal["apifrontend.jwt.delegation"]
    target_service: str


# Conversations.


class ApifrontendMCPSessionInitPayload(TypedDict):
    """An MCP client shook hands with the front end; its tool calls carry this session's id."""

    event_type: Literal["apifrontend.mcp.session_init"]
    mcp_session_id: str
    protocol_version: NotRequired[str]


class ApifrontendMCPToolFailedPayload(TypedDict):
    """A tool that an MCP client called ended in an error before it did its work."""

    event_type: Literal["apifrontend.mcp.tool_failed"]
    session_id: NotRequired[str]
    tool_name: str
    error: str


class ApifrontendToolExecutedPayload(TypedDict):
    """The front end ran a tool in a conversation: which one, on what resource, and with what outcome."""

    event_type: Literal["apifrontend.tool.executed"]
    session_id: str
    tool_name: str
    execution_duration_ms: Integer
    tool_outcome: Literal["success", "failure", "timeout", "denied"]
    error_code: NotRequired[str]
    target_resource: NotRequired[str]
    target_namespace: NotRequired[str]
    target_kind: NotRequired[str]


class ApifrontendA2ATaskStartedPayload(TypedDict):
    """Another agent, or a person through one, gave the front end a task."""

    event_type: Literal["apifrontend.a2a.task_started"]
    session_id: str
    task_id: str


class ApifrontendA2ATaskCompletedPayload(TypedDict):
    """A task from another agent is done, with the remediation that came of it, if any did."""

    event_type: Literal["apifrontend.a2a.task_completed"]
    session_id: str
    task_id: str
    duration_ms: NotRequired[Integer]
    rr_name: NotRequired[str]
    rr_namespace: NotRequired[str]


class ApifrontendA2ATaskFailedPayload(TypedDict):
    """A task from another agent could not be finished; its sender was told this error."""

    event_type: Literal["apifrontend.a2a.task_failed"]
    session_id: str
    task_id: str
    error: str
    rr_name: NotRequired[str]
    rr_namespace: NotRequired[str]


# Sessions around one remediation.


class ApifrontendSessionCreatedPayload(TypedDict):
    """A user began a session, either for a new problem or by taking over a remediation that was under way."""

    event_type: Literal["apifrontend.session.created"]
    session_id: str
    a2a_task_id: str
    rr_ref: NotRequired[str]
    join_mode: Literal["start", "takeover"]
    user_identity: str
    user_groups: NotRequired[list[str]]


class ApifrontendSessionPhaseChangedPayload(TypedDict):
    """A user's session moved on, for example from triage to investigation."""

    event_type: Literal["apifrontend.session.phase_changed"]
    session_id: str
    from_phase: str
    to_phase: str


class ApifrontendSessionCompletedPayload(TypedDict):
    """A user's session is over: how it ended, what the user decided, and what it used in time, tokens and tools."""

    event_type: Literal["apifrontend.session.completed"]
    session_id: str
    terminal_phase: Literal["Completed", "Cancelled", "Failed"]
    total_duration_ms: Integer
    total_tokens_input: NotRequired[Integer]
    total_tokens_output: NotRequired[Integer]
    total_tool_calls: NotRequired[Integer]
    polls_count: NotRequired[Integer]
    user_decision: NotRequired[Literal["accept", "reject", "investigate_more", "cancel", "none"]]


class ApifrontendSessionAutoCancelledPayload(TypedDict):
    """Nobody used a session for as long as it may live, so the front end ended it by itself."""

    event_type: Literal["apifrontend.session.auto_cancelled"]
    session_id: str
    ttl_seconds: NotRequired[Integer]


class ApifrontendSessionDeletedPayload(TypedDict):
    """A session and its conversation were removed on somebody's demand; only the trail remains."""

    event_type: Literal["apifrontend.session.deleted"]
    session_id: str
    reason: NotRequired[str]


class ApifrontendSessionRetentionDeletedPayload(TypedDict):
    """A finished session outlived its retention, and the front end cleared it away as configured."""

    event_type: Literal["apifrontend.session.retention_deleted"]
    session_id: str
    retention_seconds: NotRequired[Integer]


# From a complaint to a remediation.


class ApifrontendTriageStartedPayload(TypedDict):
    """A user described a problem, and the front end's model set out to see whether there is one."""

    event_type: Literal["apifrontend.triage.started"]
    session_id: str
    persona: Literal["sre", "orchestrator", "cicd", "dashboard", "audit", "approver"]
    model_name: NotRequired[str]
    query_length: NotRequired[Integer]


class ApifrontendTriageCompletedPayload(TypedDict):
    """The triage of a user's problem ended: a remediation was requested, nothing was found, or a person must look."""

    event_type: Literal["apifrontend.triage.completed"]
    session_id: str
    triage_outcome: Literal["rr_created", "no_issue_found", "escalated", "error"]
    triage_duration_ms: Integer
    tokens_input: NotRequired[Integer]
    tokens_output: NotRequired[Integer]
    tools_called: NotRequired[list[str]]
    tools_call_count: NotRequired[Integer]


class ApifrontendSeverityTriageCompletedPayload(TypedDict):
    """The front end rated how urgent a problem is, and says which source it took the rating from."""

    event_type: Literal["apifrontend.severity_triage.completed"]
    severity: str
    source_tier: str
    duration_ms: NotRequired[Integer]


class ApifrontendSeverityTriageFailedPayload(TypedDict):
    """A source of severity ratings gave no usable answer; a later one, or the default, had to serve."""

    event_type: Literal["apifrontend.severity_triage.failed"]
    error: str
    failed_tier: NotRequired[str]


class ApifrontendRRCreatedPayload(TypedDict):
    """A conversation led to a RemediationRequest: the beginning of a remediation that no alert raised."""

    event_type: Literal["apifrontend.rr.created"]
    session_id: str
    rr_name: str
    rr_namespace: str
    target_kind: str
    target_name: str
    fingerprint: str
    signal_name: str
    signal_source: NotRequired[str]


class ApifrontendRRDeduplicatedPayload(TypedDict):
    """A user asked for a remediation that somebody else had begun already, and was pointed to that one."""

    event_type: Literal["apifrontend.rr.deduplicated"]
    session_id: str
    fingerprint: str
    existing_rr_name: str
    existing_rr_namespace: NotRequired[str]
    lease_holder: NotRequired[str]


# The investigation, as the front end sees it.


class ApifrontendKADelegatedPayload(TypedDict):
    """The front end handed an investigation to the Kubernaut agent, to do alone or together with the user."""

    event_type: Literal["apifrontend.ka.delegated"]
    session_id: str
    ka_correlation_id: str
    delegation_type: Literal["autonomous", "interactive"]
    rr_name: NotRequired[str]
    rr_namespace: NotRequired[str]


class ApifrontendKAResultReceivedPayload(TypedDict):
    """The Kubernaut agent's result reached the front end, or none came before time ran out or somebody stepped in."""

    event_type: Literal["apifrontend.ka.result_received"]
    session_id: str
    ka_correlation_id: str
    result_type: Literal[
        "rca_complete", "rca_failed", "timeout", "cancelled", "operator_escalation", "operator_dismissed"
    ]
    investigation_duration_ms: NotRequired[Integer]
    confidence: NotRequired[float]
    workflow_candidates_count: NotRequired[Integer]


class ApifrontendWorkflowDiscoveryPayload(TypedDict):
    """The front end looked up which workflows could serve a remediation, to lay them before the user."""

    event_type: Literal["apifrontend.workflow.discovery"]
    rr_id: str
    workflow_count: Integer


class ApifrontendUserDecisionPayload(TypedDict):
    """The user said yes, no or not yet to what was proposed: human consent to a remediation, with the time it took."""

    event_type: Literal["apifrontend.user.decision"]
    session_id: str
    decision: Literal["accept", "reject", "investigate_more", "cancel"]
    workflow_id: NotRequired[str]
    time_to_decision_ms: NotRequired[Integer]
    rr_name: NotRequired[str]


# The front end itself.


class ApifrontendCircuitbreakerTripPayload(TypedDict):
    """A service behind the front end failed so often in a row that calls to it are held back for a while."""

    event_type: Literal["apifrontend.circuitbreaker.trip"]
    circuit_name: str
    failure_count: Integer
    threshold: NotRequired[Integer]


class ApifrontendConfigReloadedPayload(TypedDict):
    """The front end put a new configuration to work without a restart; the keys that differ are listed."""

    event_type: Literal["apifrontend.config.reloaded"]
    config_version: str
    changed_keys: NotRequired[list[str]]


class ApifrontendConfigRejectedPayload(TypedDict):
    """A new configuration of the front end did not hold up to its checks; the old one stays in force."""

    event_type: Literal["apifrontend.config.rejected"]
    rejection_reason: str
    config_version: NotRequired[str]
