"""An example payload for every typed name, derived from its class: always valid, and the same each time.

All examples belong to one scenario: the pods of `payments-api` crash because their memory limit is too low, and a workflow
raises it. The name of a member selects its value, so a new class needs an entry here only for names that no other class has.
"""

from copy import deepcopy
from functools import cache
from typing import Any

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema

from app.events.catalog import EVENT_TYPES
from app.events.catalog.freeform import FREEFORM

Schema = dict[str, Any]


def example(name: str, *, full: bool = True) -> dict[str, Any]:
    """A payload of the type `name`: with all members, or only with the required ones."""
    schema = json_schema(EVENT_TYPES[name].payload)
    payload = _ExampleBuilder(name, schema.get("$defs", {}), full).object(schema)
    return payload | {key: value for key, value in _BY_EVENT_TYPE.get(name, {}).items() if key in payload}


def freeform_example(name: str) -> dict[str, Any]:
    """A payload of the free-form event `name`, with every key that was seen. `a.b` is the key `b` of the object `a`."""
    payload: dict[str, Any] = {}
    for path in FREEFORM[name]:
        within, _, key = path.rpartition(".")
        node = payload.setdefault(within, {}) if within else payload
        if any(other.startswith(path + ".") for other in FREEFORM[name]):
            continue
        node[key] = deepcopy(_LISTS.get(key) or _MAPS.get(key)) or _scalar(key, _guessed_schema(key), within)
    return payload


def _guessed_schema(key: str) -> Schema:
    """A schema for a key of a free-form event, guessed from its name."""
    if key in _TEXTS:
        return {"type": "string"}
    for kind, ends in _TYPE_BY_SUFFIX.items():
        if key.endswith(ends) or key.startswith(("is_", "has_", "will_")):
            return {"type": kind}
    return {"type": "string", "format": "date-time"} if key.endswith(_TIME_SUFFIXES) else {"type": "string"}


class Untitled(GenerateJsonSchema):
    """JSON Schema without a title for each member, which would only repeat its name."""

    def field_title_should_be_set(self, schema: object) -> bool:
        del schema
        return False


@cache
def json_schema(payload: Any) -> Schema:
    """The JSON Schema of a payload class. The result is shared and must not be changed."""
    return TypeAdapter(payload).json_schema(schema_generator=Untitled)


class _ExampleBuilder:
    """Builds one example from the JSON Schema of its class."""

    def __init__(self, name: str, definitions: dict[str, Schema], full: bool) -> None:
        self.name = name
        self.definitions = definitions
        self.full = full

    def object(self, schema: Schema, within: str = "") -> dict[str, Any]:
        required = schema.get("required", ())
        members = schema["properties"].items()
        return {key: self.value(key, member, within) for key, member in members if self.full or key in required}

    def value(self, key: str, schema: Schema, within: str) -> Any:
        """A value for the member `key` of the object that is the member `within`."""
        if "$ref" in schema:
            return self.value(key, self.definitions[schema["$ref"].rpartition("/")[2]], within)
        if "anyOf" in schema:
            return self.value(key, schema["anyOf"][0], within)  # the other alternative is null
        if "enum" in schema or "const" in schema:
            return self.choice(key, schema.get("enum") or [schema["const"]])
        if "properties" in schema:
            return self.object(schema, key)
        if schema.get("type") == "array":
            texts = _LISTS.get(key) if schema["items"] == {"type": "string"} else None
            return deepcopy(texts) or [self.value(key, schema["items"], within)]
        return _scalar(key, schema, within)

    def choice(self, key: str, options: list[Any]) -> Any:
        """The option that occurs in the name of the event type, else the first."""
        if key == "event_type":
            return self.name
        words = self.name.split(".")
        return next(
            (o for word in words for o in options if o.lower().rpartition("_")[2] == word or o == word), options[0]
        )


def _scalar(key: str, schema: Schema, within: str) -> Any:
    kind = schema.get("type")
    if kind == "object":
        named = deepcopy(_MAPS.get(key, {}))
        values = schema["additionalProperties"]
        return {k: [v] for k, v in named.items()} if values is not True and "items" in values else named
    if kind == "boolean":
        return key not in _FALSE_MEMBERS
    if kind == "integer":
        return next((n for end, n in _INTEGERS.items() if key.endswith(end)), 3)
    if kind == "number":
        return next((n for end, n in _NUMBERS.items() if key.endswith(end)), 0.87)
    if kind is None:
        return deepcopy(_UNTYPED.get(key))
    if schema.get("format") == "uuid":
        return _WORKFLOW_ID
    if schema.get("format") == "date-time":
        return _TIMES.get(key, "2026-01-31T12:00:00Z")
    return _TEXTS.get(f"{within}.{key}") or _TEXTS.get(key) or key.replace("_", " ")


# Values, each with the members that have it: `member`, or `object.member` for a member of that object only.

_WORKFLOW_ID = "0195c3a0-7d2e-7b1c-9f0a-2f6f1d3b5a72"
_TEXTS_WITH_NAMES = {
    # names of things in the cluster
    "payments": "namespace affected_resource_namespace root_owner_namespace target_namespace",
    "payments-api": "resource_name affected_resource_name root_owner_name target_name name component",
    "Deployment": "resource_kind affected_resource_kind root_owner_kind target_kind kind",
    "payments/Deployment/payments-api": "target_resource",
    "kubernaut-system": "crd_namespace rr_namespace existing_rr_namespace",
    "rr-payments-api-7c2f": "rr_name rr_id existing_rr_name remediation_request remediation_request_ref rr_ref "
    "correlation_id incident_id incidentId ka_correlation_id",
    "ai-rr-payments-api-7c2f": "analysis_name ai_analysis_ref",
    "rar-rr-payments-api-7c2f": "rar_name request_name",
    "ea-rr-payments-api-7c2f": "ea_name",
    "we-rr-payments-api-7c2f": "execution_name",
    "we-rr-payments-api-7c2f-run": "pipelinerun_name",
    "nr-rr-payments-api-7c2f": "notification_id notification_name",
    "increase-memory": "crd_name",
    "workflow-settings": "configMaps.name",
    "raise-limit": "failed_task_name",
    "payments-api-database": "secret_name secrets.name",
    "secrets": "resource",
    # ids
    "0195c3a0-7d2e-7b1c-9f0a-2f6f1d3b5a71": "event_id",
    _WORKFLOW_ID: "workflow_id workflowId selected_workflow_id",
    "0195c3a0-7d2e-7b1c-9f0a-2f6f1d3b5a73": "session_id mcp_session_id",
    "0195c3a0-7d2e-7b1c-9f0a-2f6f1d3b5a74": "task_id a2a_task_id",
    "0195c3a0-7d2e-7b1c-9f0a-2f6f1d3b5a75": "user_uid",
    "{[0,5),[7,9)}": "positions differing",
    "9c1b6f0e" * 8: "fingerprint signal_fingerprint policy_hash root_hash file_sha256 left digest manifest_sha256",
    "sha256:" + "4e07408d" * 8: "content_hash bundleDigest pre_remediation_spec_hash",
    "sha256:" + "4b227777" * 8: "post_remediation_spec_hash",
    # people and services
    "j.doe@example.com": "acting_user approved_by cancelled_by created_by delegated_user email lease_holder modified_by "
    "observer_user registered_by requested_by requesting_user target_user updated_by user_identity reenabled_by "
    "placed_by released_by erased_by exported_by read_by",
    "a.roe@example.com": "session_owner rejected_by disabled_by",
    "platform team": "maintainer owner maintainers.name",
    "https://login.example.com": "issuer",
    "approver": "user_role",
    "kubernaut console": "delegated_via",
    "kubernaut-agent": "target_service circuit_name",
    "workflow-runner": "serviceAccountName",
    "payments business unit": "business_unit",
    # requests
    "10.0.4.17": "source_ip",
    "/api/v1/incident/analyze": "path endpoint",
    "POST": "method",
    "get": "verb",
    "/api/v1/audit/events": "http_path",
    "GET": "http_method",
    "requests_per_minute": "limit_type",
    "60": "limit_value",
    "E_TIMEOUT": "error_code",
    "2025-06-18": "protocol_version",
    # the signal
    "KubePodCrashLooping": "signal_name source_signal_name signal",
    "alert": "signal_type",
    "prometheus": "signal_source",
    "critical": "severity external_severity",
    "production": "environment",
    "high": "priority",
    "15m response": "sla_requirement",
    # phases and outcomes
    "Processing": "from_phase old_phase",
    "Analyzing": "to_phase new_phase",
    "investigation": "phase cancelled_phase",
    "Remediated": "crd_outcome",
    "approved": "decision outcome result retry_outcome",
    "Active": "catalog_status status",
    "UPDATE": "denial_operation",
    # workflows
    "increase-memory-limit": "workflow_name",
    "IncreaseMemoryLimits": "actionType action_type action_type_name",
    "Increase the memory limit": "title",
    "1.4.2": "version workflow_version",
    "1.0": "schema_version",
    "tekton": "engine execution_engine",
    "registry.example.com/workflows/increase-memory:1.4.2": "bundle container_image executionBundle",
    "^[0-9]+Mi$": "pattern",
    "string": "type",
    "MEMORY_LIMIT": "parameters.name rollbackParameters.name",
    "The limit to set, as a Kubernetes quantity.": "parameters.description rollbackParameters.description",
    "P0": "labels.priority",
    "Raises a container's memory limit and rolls the change out.": "what description",
    "Containers are killed since they use more memory than their limit allows.": "whenToUse when_to_use",
    "The memory use grows without end, as with a leak.": "whenNotToUse when_not_to_use",
    "The node has memory to spare.": "preconditions",
    # answers of models
    "example-model-1": "model model_name",
    "The container payments-api was killed eleven times within ten minutes.": "analysis_preview prompt_preview "
    "tool_result_preview accumulated_messages",
    "The container payments-api exceeds its memory limit of 256Mi since the last rollout.": "analysis analysis_full "
    "reasoning reasoning_text summary",
    "More memory ends the crashes at once; a rollback would undo a security fix.": "rationale proportionality",
    "The limit was lowered in the last rollout, and the kills began a minute later.": "causalCompleteness "
    "evidenceSufficiency",
    "The Deployment sets the limit; its pods only inherit it.": "targetAccuracy",
    "A leak was ruled out: the use is flat.": "alternativeHypotheses",
    "Only this Deployment is affected.": "scopeCompleteness",
    "The same change was made in May and held.": "regressionAwareness",
    "Sure of the cause, less so of the right limit.": "confidenceCalibration",
    "0.87": "confidence_str",
    "tool_call": "step_kind",
    "kubectl_describe": "tool tool_name",
    "A line of the log asks the model to delete the namespace.": "explanation",
    "workflow": "ambiguous_kind",
    "memory, rollout": "conflicting_groups",
    "alert label": "source_tier failed_tier",
    # reasons, errors and other prose
    "The confidence of 0.87 is below the threshold of 0.9.": "approval_reason human_review_reason",
    "Memory stayed above the limit after the rollout.": "reason sub_reason transition_reason detail details",
    "Looks right, go ahead.": "decision_message clear_reason",
    "Workflows still depend on it.": "denial_reason denied_reason rejection_reason",
    "Replaced by a newer version.": "disabled_reason",
    "context deadline exceeded": "error error_message failure_message failure_reason error_details.message",
    "parameter MEMORY_LIMIT: expected a quantity": "validation_errors",
    "The workflow waits for approval.": "message",
    "UPSTREAM_TIMEOUT": "code error_type",
    "read": "outcome_detail",
    # messages
    "slack": "channel",
    "payments-api needs your approval": "subject",
    "A workflow is ready to raise the memory limit of payments-api.": "body",
    # durations
    "1h0m0s": "global",
    "5m0s": "processing stabilization_window total_propagation_delay",
    "10m0s": "analyzing alert_check_delay",
    "30m0s": "executing validity_window",
    "2m30s": "duration hash_compute_delay",
    "3m0s": "gitops_sync_delay",
    "1m0s": "operator_reconcile_delay",
    "2026-01-31.2": "config_version",
}
_TEXTS = {key: text for text, keys in _TEXTS_WITH_NAMES.items() for key in keys.split()}

_LISTS = {
    "members": ["/requestObject", "/responseObject"],
    "sourceIPs": ["10.0.0.7"],
    "causalChain": ["the limit was lowered", "the container was killed", "the pod crashed in a loop"],
    "changed_keys": ["rate_limit.requests_per_minute"],
    "cluster": ["prod-eu-1"],
    "component": ["deployment"],
    "components_assessed": ["health", "alert", "metrics", "hash"],
    "contributingFactors": ["memory limit of 256Mi", "more traffic since the morning"],
    "delivery_channels": ["slack", "email"],
    "dependent_workflows": ["increase-memory-limit"],
    "dependsOn": ["CONTAINER"],
    "enum": ["256Mi", "512Mi", "1024Mi"],
    "environment": ["production", "staging"],
    "errors": ["parameter MEMORY_LIMIT: expected a quantity"],
    "failed_detections": ["serviceMesh"],
    "groups": ["sre", "system:authenticated"],
    "mcp_servers": ["kubernetes"],
    "required_roles": ["approver", "admin"],
    "severity": ["critical", "high"],
    "stack_trace": ["analyze at agent.go:118", "reconcile at controller.go:72"],
    "tools_called": ["kubectl_describe", "prometheus_query"],
    "toolsets_enabled": ["kubernetes/core", "prometheus/metrics"],
    "updated_fields": ["what", "when_to_use"],
    "user_groups": ["sre"],
    "warnings": ["metrics of the last ten minutes were missing"],
}

_MAPS: dict[str, dict[str, Any]] = {
    "annotations": {"authorization.k8s.io/decision": "allow"},
    "impersonatedUser": {"username": "ada@example.org", "groups": ["sre"]},
    "objectRef": {
        "resource": "deployments",
        "namespace": "payments",
        "name": "payments-api",
        "apiGroup": "apps",
        "apiVersion": "v1",
    },
    "responseStatus": {"metadata": {}, "code": 200},
    "user": {"username": "system:serviceaccount:kubernaut-system:workflow", "groups": ["system:serviceaccounts"]},
    "customLabels": {"team": "payments"},
    "detected_labels_summary": {"gitOpsManaged": True, "gitOpsTool": "argocd"},
    "labels": {"severity": "critical", "environment": "production"},
    "metadata": {"rr_name": "rr-payments-api-7c2f", "cluster": "prod-eu-1"},
    "original_payload": {"status": "firing", "labels": {"alertname": "KubePodCrashLooping", "namespace": "payments"}},
    "parameters": {"MEMORY_LIMIT": "512Mi", "CONTAINER": "payments-api"},
    "signal_annotations": {"summary": "Pod payments-api restarts in a loop"},
    "signal_labels": {"alertname": "KubePodCrashLooping", "namespace": "payments"},
    "tool_arguments": {"kind": "Deployment", "name": "payments-api", "namespace": "payments"},
}

_UNTYPED = {
    "requestObject": {"spec": {"replicas": 3}},
    "responseObject": {"kind": "Deployment", "spec": {"replicas": 3}},
    "default": "512Mi",
    "detectedLabels": {"gitOpsManaged": True},
    "engineConfig": {"timeout": "10m"},
    "tool_result": {"replicas": 3, "containers": [{"name": "payments-api", "memory": "256Mi"}]},
}

_TIMES = {
    "completed_at": "2026-01-31T12:02:30Z",
    "cleared_at": "2026-01-31T12:15:00Z",
    "decided_at": "2026-01-31T12:04:00.5Z",
    "validity_deadline": "2026-01-31T12:30:00Z",
    "required_by": "2026-01-31T12:15:00Z",
    "hash_compute_after": "2026-01-31T12:05:00Z",
    "alertmanager_check_after": "2026-01-31T12:10:00Z",
    "prometheus_check_after": "2026-01-31T12:05:00Z",
}

# By the end of a name; the first that matches.
_INTEGERS = {
    "duration_ms": 1250,
    "_ms": 48000,
    "prompt_tokens": 1400,
    "completion_tokens": 400,
    "tokens": 1800,
    "tokens_used": 1800,
    "tokens_input": 1400,
    "tokens_output": 400,
    "owner_chain_length": 2,
    "_length": 640,
    "http_status_code": 200,
    "_seconds": 3600,
    "_index": 2,
    "active_count": 0,
    "pending_count": 0,
    "flagged": 0,
    "restart_delta": 0,
    "retry_count": 1,
    "warnings_count": 1,
    "attempt": 1,
    "total": 12,
    "rank": 1,
    "returned": 1,
    "threshold": 5,
    "top_k": 5,
}

_NUMBERS = {
    "_seconds": 92.5,
    "cpu_before": 0.42,
    "cpu_after": 0.4,
    "memory_before": 268435456,
    "memory_after": 301989888,
    "latency_p95_before_ms": 840.5,
    "latency_p95_after_ms": 120.25,
    "rate_before": 0.12,
    "rate_after": 0.002,
    "before_rps": 85.5,
    "after_rps": 140,
    "ratio_before": 0.61,
    "ratio_after": 0.61,
    "_before": 0,
    "_after": 0,
    "minimum": 128,
    "maximum": 4096,
    "min_score": 0.5,
}

# Everything else is true.
_FALSE_MEMBERS = {
    *("auto_approved", "cdiManaged", "crash_loops", "degraded", "degraded_mode", "helmManaged", "is_crd"),
    *("is_final_attempt", "is_valid", "liveMigratable", "needsHumanReview", "needs_human_review", "networkIsolated"),
    *("oom_killed", "previously_existed", "reasoningRedacted", "reasoning_redacted", "resourceQuotaConstrained"),
    *("stateful", "virtualMachine", "was_reenabled"),
}

# By the end of a name, for the keys of free-form events, which have no types.
_TYPE_BY_SUFFIX = {
    "boolean": ("_required", "_approval", "approved", "degraded", "_mode", "_resolved", "_matched", "_owner_chain"),
    "number": ("score", "confidence", "_delta"),
    "integer": (
        *("_ms", "_sec", "_seconds", "_min", "_count", "_length", "_tokens", "_used", "_index", "_number", "_level"),
        *(
            "attempt",
            "_attempts",
            "_failures",
            "_before",
            "_after",
            "_code",
            "_dimensions",
            "_found",
            "returned",
            "top_k",
        ),
        "labels_added",
    ),
}
_TIME_SUFFIXES = ("_at", "_until", "_timestamp", "_time", "required_by")

_SINK_ORDER = {"sink": "soc", "address": "https://soc.example.org", "place": "0:4711", "ordered_by": "ada@example.org"}

# Values of single event types that differ from those of the common scenario.
_BY_EVENT_TYPE: dict[str, dict[str, Any]] = {
    "aiagent.auth.denied": {"reason": "may not create incidents"},
    "aiagent.auth.failure": {"reason": "token expired"},
    "aiagent.enrichment.failed": {"reason": "owner_resolution_failed", "detail": "pods is forbidden"},
    "aiagent.interactive.completed": {"reason": "handed back by the user"},
    "aiagent.secret.accessed": {"tool_name": "kubectl_get_secret"},
    "apifrontend.auth.access_denied": {"user_role": "viewer", "reason": "role viewer may not approve"},
    "apifrontend.auth.failure": {"failure_reason": "token expired"},
    "apifrontend.config.rejected": {"rejection_reason": "rate_limit must be positive"},
    "apifrontend.session.deleted": {"reason": "asked for by the user"},
    "authwebhook.workflow.registration_failed": {"message": "secret payments-api-database is missing"},
    "datastorage.archive.stored": {
        "month": "2026-01",
        "location": "s3://audit-archive/parts/2026-01/0/7d1a4f0e-5c43-4d0c-9f0b-2b8c1b7a9e55",
        "manifest_sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
        "positions": "{[0,4711)}",
    },
    "datastorage.archive.expired": {
        "month": "2019-01",
        "manifest_sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
        "positions": "{[0,4711)}",
        "cutoff": "2026-01-31T01:47:00+00:00",
    },
    "datastorage.archive.locked": {
        "month": "2026-01",
        "manifest_sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
        "holds": ["7d1a4f0e-5c43-4d0c-9f0b-2b8c1b7a9e55"],
    },
    "datastorage.archive.unlocked": {
        "month": "2026-01",
        "manifest_sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    },
    "datastorage.finding.acknowledged": {
        "acknowledged_by": "ada@example.org",
        "reason": "restored from last night's dump",
    },
    "datastorage.finding.recorded": {
        "kind": "removed",
        "log_id": 0,
        "alarm": "rolled_back",
        "subjects": ["checkpoint 300"],
        "correlation_ids": ["rr-payments-api-7c2f"],
        "detail": "removed: no event is at position 7 of the log",
    },
    "datastorage.sink.paused": _SINK_ORDER,
    "datastorage.sink.removed": _SINK_ORDER,
    "datastorage.sink.resumed": _SINK_ORDER,
    "datastorage.sink.rewound": _SINK_ORDER | {"to": "0:0"},
    "datastorage.service.tried": {"purpose": "helm test of the release datastorage"},
    "gateway.config.rejected": {"component": "gateway", "rejection_reason": "rate_limit must be positive"},
    "gateway.config.reloaded": {"component": "gateway"},
    "gateway.signal.deduplicated": {"deduplication_status": "duplicate"},
    "orchestrator.approval.requested": {"decision": "Pending"},
    "signalprocessing.business.classified": {"phase": "Categorizing"},
    "signalprocessing.classification.decision": {"phase": "Classifying"},
    "signalprocessing.enrichment.completed": {"phase": "Enriching"},
    "signalprocessing.error.occurred": {"phase": "Failed"},
    "signalprocessing.phase.transition": {"phase": "Enriching", "from_phase": "Pending", "to_phase": "Enriching"},
    "signalprocessing.signal.processed": {"phase": "Completed"},
    "webhook.notification.acknowledged": {"final_status": "Sent"},
    "workflowexecution.execution.started": {"phase": "Running"},
    "workflowexecution.selection.completed": {"phase": "Pending"},
    "workflowexecution.workflow.started": {"phase": "Running"},
}
