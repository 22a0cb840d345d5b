"""Audit events as a kube-apiserver writes them."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4


def audit_event(**members: Any) -> dict[str, Any]:
    """What a kube-apiserver's webhook sends about a Deployment that was patched, at level RequestResponse; None leaves a member out."""
    now = datetime.now(UTC)
    event = {
        "level": "RequestResponse",
        "auditID": str(uuid4()),
        "stage": "ResponseComplete",
        "requestURI": "/apis/apps/v1/namespaces/payments/deployments/api?fieldManager=kubectl-patch",
        "verb": "patch",
        "user": {"username": "ada@example.org", "groups": ["sre", "system:authenticated"]},
        "sourceIPs": ["10.0.0.7"],
        "userAgent": "kubectl/v1.37.2 (linux/amd64) kubernetes/8a3d5c4",
        "objectRef": {
            "resource": "deployments",
            "namespace": "payments",
            "name": "api",
            "apiGroup": "apps",
            "apiVersion": "v1",
        },
        "responseStatus": {"metadata": {}, "code": 200},
        "requestObject": {"spec": {"replicas": 3}},
        "responseObject": {
            "kind": "Deployment",
            "apiVersion": "apps/v1",
            "metadata": {"name": "api", "namespace": "payments", "managedFields": [{"manager": "kubectl-patch"}]},
            "spec": {"replicas": 3},
        },
        "requestReceivedTimestamp": micro_time(now - timedelta(milliseconds=7)),
        "stageTimestamp": micro_time(now),
        "annotations": {"authorization.k8s.io/decision": "allow", "authorization.k8s.io/reason": ""},
    }
    return {name: value for name, value in (event | members).items() if value is not None}


def micro_time(time: datetime) -> str:
    """A time as Kubernetes writes one with microseconds."""
    return f"{time.astimezone(UTC):%Y-%m-%dT%H:%M:%S.%f}Z"


def event_list(*items: Any) -> dict[str, Any]:
    """The body of a request of the webhook."""
    return {"kind": "EventList", "apiVersion": "audit.k8s.io/v1", "metadata": {}, "items": list(items)}
