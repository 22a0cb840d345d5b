"""Events of the SignalProcessing controller, which enriches a signal and decides how much it matters."""

from typing import Literal, NotRequired

from typing_extensions import TypedDict

from app.events.catalog.shared import Severity
from app.events.catalog.value_types import Integer, Sha256Hex
from app.events.envelope import Category

CATEGORY: Category = "signalprocessing"


class SignalProcessingPayload(TypedDict):
    """The controller went a step with a signal: changed phase, enriched it, classified it, met an error, or finished.

    Says which rule or label made the signal urgent, and the hash of the policy that was in force.
    """

    event_type: Literal[
        "signalprocessing.signal.processed",
        "signalprocessing.phase.transition",
        "signalprocessing.classification.decision",
        "signalprocessing.business.classified",
        "signalprocessing.enrichment.completed",
        "signalprocessing.error.occurred",
    ]
    phase: Literal["Pending", "Enriching", "Classifying", "Categorizing", "Completed", "Failed"]
    signal: str
    severity: NotRequired[Severity]
    external_severity: NotRequired[str]
    normalized_severity: NotRequired[Severity]
    determination_source: NotRequired[Literal["rego-policy", "fallback", "default"]]
    policy_hash: NotRequired[Sha256Hex]
    environment: NotRequired[Literal["production", "staging", "development"]]
    environment_source: NotRequired[Literal["rego", "labels", "default"]]
    priority: NotRequired[Literal["P0", "P1", "P2", "P3", "P4"]]
    priority_source: NotRequired[Literal["rego", "severity", "default"]]
    criticality: NotRequired[Literal["critical", "high", "warning", "low"]]
    sla_requirement: NotRequired[str]
    has_owner_chain: NotRequired[bool]
    owner_chain_length: NotRequired[Integer]
    degraded_mode: NotRequired[bool]
    duration_ms: NotRequired[Integer]
    has_namespace: NotRequired[bool]
    has_pod: NotRequired[bool]
    has_deployment: NotRequired[bool]
    business_unit: NotRequired[str]
    from_phase: NotRequired[str]
    to_phase: NotRequired[str]
    signal_mode: NotRequired[Literal["reactive", "proactive"]]
    source_signal_name: NotRequired[str]
    error: NotRequired[str]
