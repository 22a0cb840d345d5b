"""Events of the gateway, which receives signals and creates remediations from them."""

from typing import Any, Literal, NotRequired

from typing_extensions import TypedDict

from app.events.catalog.shared import ErrorDetails
from app.events.catalog.value_types import Int32
from app.events.envelope import Category

CATEGORY: Category = "gateway"


class GatewaySignalPayload(TypedDict):
    """A signal came in, was found to be known already, or became a RemediationRequest (or failed to).

    Every remediation that an alert raised begins here, with the alert as it was received.
    """

    event_type: Literal[
        "gateway.signal.received", "gateway.signal.deduplicated", "gateway.crd.created", "gateway.crd.failed"
    ]
    signal_type: Literal["alert"]
    signal_name: str
    namespace: str
    fingerprint: str
    original_payload: NotRequired[dict[str, Any]]
    signal_labels: NotRequired[dict[str, str]]
    signal_annotations: NotRequired[dict[str, str]]
    severity: NotRequired[str]
    resource_kind: NotRequired[str]
    resource_name: NotRequired[str]
    remediation_request: NotRequired[str]
    deduplication_status: NotRequired[Literal["new", "duplicate"]]
    occurrence_count: NotRequired[Int32]
    error_details: NotRequired[ErrorDetails]


class GatewayConfigReloadedPayload(TypedDict):
    """The gateway took a changed configuration: signals are handled by other rules from here on."""

    event_type: Literal["gateway.config.reloaded"]
    component: str
    config_version: NotRequired[str]


class GatewayConfigRejectedPayload(TypedDict):
    """The gateway refused a changed configuration and goes on with the one that it had."""

    event_type: Literal["gateway.config.rejected"]
    component: str
    rejection_reason: str
