"""Audit events of Kubernetes, as a kube-apiserver's webhook sends them to POST /api/v1/audit/kubernetes. Nobody else may send them.

The members are those of `audit.k8s.io/v1`, Event, which it names itself; `cut`, `received_from` and `event_type` are ours.
"""

from typing import Any, Literal, NotRequired

from typing_extensions import TypedDict

from app.events import kubernetes
from app.events.catalog.value_types import Count

CATEGORY = kubernetes.CATEGORY


class KubernetesCut(TypedDict):
    """What is not stored as it was sent, for one reason: in how many places, and the first ten of them."""

    reason: Literal["secret", "managed_fields", "depth", "size", "text", "number", "type", "time", "length"]
    count: Count
    members: list[str]


class KubernetesAuditPayload(TypedDict):
    """A kube-apiserver was asked for something, at one stage of its work on that request: who asked, for what, from where, and how it ended.

    `cut` names what was left out or altered, by JSON pointers.
    """

    event_type: Literal[
        "kubernetes.audit.request_received",
        "kubernetes.audit.response_started",
        "kubernetes.audit.response_complete",
        "kubernetes.audit.panic",
    ]
    auditID: str
    stage: Literal["RequestReceived", "ResponseStarted", "ResponseComplete", "Panic"]
    level: NotRequired[str]
    requestURI: NotRequired[str]
    verb: NotRequired[str]
    user: NotRequired[dict[str, Any]]
    impersonatedUser: NotRequired[dict[str, Any]]
    sourceIPs: NotRequired[list[str]]
    userAgent: NotRequired[str]
    objectRef: NotRequired[dict[str, Any]]
    responseStatus: NotRequired[dict[str, Any]]
    requestObject: NotRequired[Any]
    responseObject: NotRequired[Any]
    requestReceivedTimestamp: NotRequired[str]
    stageTimestamp: NotRequired[str]
    annotations: NotRequired[dict[str, Any]]
    received_from: NotRequired[str]
    cut: NotRequired[list[KubernetesCut]]
