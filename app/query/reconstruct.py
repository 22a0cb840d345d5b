"""A lost RemediationRequest, rebuilt from its events (contract section 15). Pure but for `rows`.

What is rebuilt depends on the events alone, in the order of their times; only the moment of rebuilding is added.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple

import asyncpg
import yaml
from sqlalchemy.ext.asyncio import AsyncEngine

from app.db import fetch
from app.errors import AuditError
from app.events.canonical import canonical, loads, sorted_json
from app.events.record import Row
from app.go_duration import duration_text, parse_duration
from app.query.shapes import shape_fault
from app.sql import load

SQL = load("reports")["reconstruction"]
COMPLETENESS_MIN = 50


class NoEvents(AuditError):
    """There are no events of which a RemediationRequest could be rebuilt."""

    status = 404
    slug = "audit/correlation-not-found"
    title = "Audit Events Not Found"


class NoParseableEvents(AuditError):
    """There are events, but none of them says anything about the RemediationRequest."""

    status = 400
    slug = "reconstruction/no-parseable-events"
    title = "Reconstruction Failed"


class MissingGatewayEvent(AuditError):
    """There is no gateway.signal.received and no apifrontend.rr.created event, with which every remediation begins."""

    status = 400
    slug = "reconstruction/missing-gateway-event"
    title = "Reconstruction Failed"


class IncompleteEvents(AuditError):
    """Too little of the RemediationRequest is known."""

    status = 400
    slug = "reconstruction/incomplete-data"
    title = "Incomplete Reconstruction"


class NotBuilt(AuditError):
    """The RemediationRequest cannot be written as YAML."""

    status = 422
    slug = "reconstruction/unprocessable"
    title = "Build Failed"


class Unreadable(AuditError):
    """The events could not be read; the service's log says why."""

    slug = "reconstruction/query-failed"
    title = "Reconstruction Query Failed"


@dataclass(frozen=True, slots=True)
class Reconstruction:
    """What is answered. `cluster_id` is empty when unknown."""

    yaml: str
    completeness: int
    errors: list[str]
    warnings: list[str]
    cluster_id: str


@dataclass(slots=True)
class _Request:
    """The parts of a RemediationRequest as they are found; a later event overrides, maps merge."""

    spec: dict[str, str] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    annotations: dict[str, str] = field(default_factory=dict)
    timeouts: dict[str, str] = field(default_factory=dict)
    workflow: dict[str, str] = field(default_factory=dict)
    execution: dict[str, str] = field(default_factory=dict)
    completion: dict[str, str] = field(default_factory=dict)
    begun: bool = False

    def set(self, **members: str) -> None:
        self.spec |= _said(members)


async def rows(engine: AsyncEngine, correlation_id: str) -> list[asyncpg.Record]:
    """The events of a correlation that say something about its RemediationRequest, by time."""
    return await fetch(engine, SQL, correlation_id, list(_READERS))


def reconstruct(correlation_id: str, events: Iterable[Row], now: datetime) -> Reconstruction:
    """The RemediationRequest that `events` tell of, or one of the problems above."""
    request = _Request()
    found = parsed = 0
    for event in events:
        found += 1
        parsed += _take(request, event)
    if not found:
        raise NoEvents(f"There are no events of {correlation_id} of which a RemediationRequest could be rebuilt.")
    if not parsed:
        raise NoParseableEvents
    if not request.begun:
        raise MissingGatewayEvent
    request.timeouts = {name: _go_duration(name, text) for name, text in request.timeouts.items()}
    completeness, errors, warnings = _judge(request)
    if completeness < COMPLETENESS_MIN:
        missing = "; ".join([*errors, *warnings])
        raise IncompleteEvents(
            f"Only {completeness}% of the RemediationRequest is known, at least {COMPLETENESS_MIN}% are needed: {missing}"
        )
    text = _yaml(_object(correlation_id, request, now))
    return Reconstruction(text, completeness, errors, warnings, request.spec.get("clusterID", ""))


def _take(request: _Request, event: Row) -> bool:
    """Read one event; whether it said anything. Unreadable when its payload is not what its type is made of."""
    event_type = event["event_type"]
    payload = loads(event["payload"])
    if (fault := shape_fault(event_type, payload)) is not None:
        raise Unreadable(f"The event_data of a {event_type} event cannot be read: {fault}.")
    request.set(clusterID=event["cluster_id"] or "")
    return _READERS[event_type](request, payload, event)


def _signal(request: _Request, payload: Any, _: Row) -> bool:
    if not payload["signal_name"]:
        return False
    request.begun = True
    kind = payload["signal_type"]
    request.set(
        signalName=payload["signal_name"],
        signalType="alert" if kind in {"prometheus-alert", "kubernetes-event"} else kind,
        signalFingerprint=payload["fingerprint"],
    )
    request.labels |= payload.get("signal_labels", {})
    request.annotations |= payload.get("signal_annotations", {})
    if "original_payload" in payload:
        request.set(originalPayload=_json(payload["original_payload"]))
    return True


def _front_end(request: _Request, payload: Any, _: Row) -> bool:
    request.begun = True
    request.set(signalName=payload["signal_name"], signalFingerprint=payload["fingerprint"], signalType="alert")
    return True


def _created(request: _Request, payload: Any, _: Row) -> bool:
    limits = payload.get("timeout_config", {})
    request.timeouts |= _said(
        {name: limits.get(name, "") for name in ("global", "processing", "analyzing", "executing")}
    )
    return True


def _analysed(request: _Request, payload: Any, _: Row) -> bool:
    if "provider_response_summary" in payload:
        request.set(providerData=_json(payload["provider_response_summary"]))
    return True


def _selected(request: _Request, payload: Any, _: Row) -> bool:
    request.workflow |= _said(
        {
            "workflowId": payload["workflow_id"],
            "version": payload["workflow_version"],
            "executionBundle": payload["container_image"],
        }
    )
    return True


def _executed(request: _Request, payload: Any, event: Row) -> bool:
    if payload["execution_name"]:
        request.execution = {
            "apiVersion": "workflowexecution.kubernaut.ai/v1alpha1",
            "kind": "WorkflowExecution",
            "name": payload["execution_name"],
            "namespace": event["namespace"] or "",
        }
    return True


def _ended(request: _Request, payload: Any, _: Row) -> bool:
    request.completion |= _said(
        {
            "outcome": payload.get("outcome", ""),
            "failurePhase": payload.get("failure_phase", ""),
            "failureReason": payload.get("error_details", {}).get("message", ""),
        }
    )
    return True


_READERS: dict[str, Callable[[_Request, Any, Row], bool]] = {
    "gateway.signal.received": _signal,
    "apifrontend.rr.created": _front_end,
    "aianalysis.analysis.completed": _analysed,
    "workflowexecution.selection.completed": _selected,
    "workflowexecution.execution.started": _executed,
    "orchestrator.lifecycle.created": _created,
    "orchestrator.lifecycle.completed": _ended,
    "orchestrator.lifecycle.failed": _ended,
}


def _said(members: dict[str, str]) -> dict[str, str]:
    """An empty text says nothing, and so overrides nothing."""
    return {name: text for name, text in members.items() if text}


def _json(value: Any) -> str:
    return sorted_json(canonical(value)).decode()


def _go_duration(name: str, text: str) -> str:
    try:
        return duration_text(parse_duration(text))
    except ValueError as error:
        raise MissingGatewayEvent(f"The timeout_config of the remediation cannot be read: {name}: {error}.") from None


class _Part(NamedTuple):
    """One of the nine parts that completeness counts. Without an essential one the request is not valid."""

    name: str
    present: bool
    source: str
    essential: bool = False


def _judge(request: _Request) -> tuple[int, list[str], list[str]]:
    """(completeness in percent, errors, warnings)."""
    spec, signal = request.spec, "gateway.signal.received"
    parts = (
        _Part("SignalName", "signalName" in spec, signal, essential=True),
        _Part("SignalType", "signalType" in spec, signal, essential=True),
        _Part("SignalLabels", bool(request.labels), signal),
        _Part("SignalAnnotations", bool(request.annotations), signal),
        _Part("OriginalPayload", "originalPayload" in spec, signal),
        _Part("TimeoutConfig", bool(request.timeouts), "orchestrator.lifecycle.created"),
        _Part("providerData", "providerData" in spec, "aianalysis.analysis.completed"),
        _Part("selectedWorkflowRef", bool(request.workflow), "workflowexecution.selection.completed"),
        _Part("executionRef", bool(request.execution), "workflowexecution.execution.started"),
    )
    told = {
        essential: [
            f"{p.name} is missing: no {p.source} event tells it"
            for p in parts
            if not p.present and p.essential == essential
        ]
        for essential in (True, False)
    }
    return 100 * sum(part.present for part in parts) // len(parts), told[True], told[False]


def _object(correlation_id: str, request: _Request, now: datetime) -> dict[str, Any]:
    maps = {"signalLabels": request.labels, "signalAnnotations": request.annotations}
    workflow = {"selectedWorkflowRef": request.workflow, "executionRef": request.execution}
    status = {
        "timeoutConfig": request.timeouts,
        "workflowSelection": _filled(workflow),
        "completionStatus": request.completion,
    }
    return {
        "apiVersion": "remediation.kubernaut.ai/v1alpha1",
        "kind": "RemediationRequest",
        "metadata": {
            "name": f"rr-reconstructed-{correlation_id}-{int(now.timestamp())}",
            "namespace": "kubernaut-system",
            "labels": {
                "app.kubernetes.io/managed-by": "kubernaut-datastorage",
                "kubernaut.ai/reconstructed": "true",
                "kubernaut.ai/correlation-id": correlation_id,
            },
            "annotations": {
                "kubernaut.ai/reconstructed-at": f"{now:%Y-%m-%dT%H:%M:%SZ}",
                "kubernaut.ai/reconstruction-source": "audit-trail",
                "kubernaut.ai/correlation-id": correlation_id,
            },
            "finalizers": ["kubernaut.ai/audit-retention"],
        },
        "spec": {
            "firingTime": None,
            "receivedTime": None,
            "severity": "",
            "targetType": "",
            "targetResource": {"kind": "", "name": ""},
        }
        | request.spec
        | _filled(maps),
        "status": _filled(status),
    }


def _filled(members: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    return {name: value for name, value in members.items() if value}


# Texts that a reader of YAML 1.2, or Go's of 1.1, would take for something else where PyYAML sees a text.
_DOUBTFUL = re.compile(r"[yYnN]|[-+.~0-9][^\n]*")


class _Dumper(getattr(yaml, "CSafeDumper", yaml.SafeDumper)):  # type: ignore[misc]  # a class found at run time
    """Writes plain objects without anchors."""

    def ignore_aliases(self, data: Any) -> bool:
        del data
        return True


def _text_node(dumper: Any, text: str) -> Any:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="'" if _DOUBTFUL.fullmatch(text) else None)


_Dumper.add_representer(str, _text_node)


def _yaml(built: dict[str, Any]) -> str:
    try:
        return str(yaml.dump(built, Dumper=_Dumper, sort_keys=True, allow_unicode=True, width=2**30))
    except yaml.YAMLError as error:
        raise NotBuilt(f"The RemediationRequest cannot be written as YAML: {error}") from None
