"""A lost RemediationRequest, rebuilt from its events (docs/contract.md, section 15). Pure, except for `rebuild`.

The result depends on the events alone, in the order of their times; only the time of the reconstruction is added.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple

import yaml

from app.db import Pool, driver_connection
from app.errors import AuditError
from app.events.canonical import canonical, loads, sorted_json
from app.events.record import Row
from app.go_duration import duration_text, parse_duration
from app.query.both import archived_columns
from app.query.shapes import shape_fault
from app.sql import load

SQL = load("reports")
COMPLETENESS_MIN = 50
_EVENTS_AT_ONCE = 4


class NoEvents(AuditError):
    """There are no events from which a RemediationRequest could be rebuilt."""

    status = 404
    slug = "audit/correlation-not-found"
    title = "Audit Events Not Found"


class NoParseableEvents(AuditError):
    """There are events, but none of them has anything about the RemediationRequest."""

    status = 400
    slug = "reconstruction/no-parseable-events"
    title = "Reconstruction Failed"


class MissingGatewayEvent(AuditError):
    """Every remediation begins with a gateway.signal.received or an apifrontend.rr.created event; this one has neither."""

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
    """The rebuilt RemediationRequest as YAML, and how complete it is in percent. `cluster_id` is empty if it is unknown."""

    yaml: str
    completeness: int
    errors: list[str]
    warnings: list[str]
    cluster_id: str
    is_sealed: bool
    """Whether all events are in the log, as far as their rows say."""


@dataclass(slots=True)
class _Request:
    """The parts of a RemediationRequest as they are read; a later event overrides an earlier one, maps are merged."""

    spec: dict[str, str] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    annotations: dict[str, str] = field(default_factory=dict)
    timeouts: dict[str, str] = field(default_factory=dict)
    workflow: dict[str, str] = field(default_factory=dict)
    execution: dict[str, str] = field(default_factory=dict)
    completion: dict[str, str] = field(default_factory=dict)
    has_first_event: bool = False
    count: int = 0
    """Events that were read."""
    parsed: int = 0
    """Of those, the ones that had anything."""
    is_sealed: bool = True

    def read(self, event: Row) -> None:
        self.count += 1
        self.is_sealed = self.is_sealed and event.get("sealed") is not False
        self.parsed += _read_event(self, event)

    def set_spec(self, **members: str) -> None:
        self.spec |= _non_empty(members)


async def rebuild(pool: Pool, correlation_id: str, now: datetime, archived: Sequence[Row] = ()) -> Reconstruction:
    """Rebuild the RemediationRequest from its stored events, of which a few are in memory at a time, and those that are `archived` alone.

    DatabaseAway, DatabaseBusy or DatabaseFailed if they cannot be read, else as reconstruct().
    """
    request = _Request()
    statement = SQL["reconstruction_of_both" if archived else "reconstruction"]
    more = archived_columns(archived) if archived else []
    async with driver_connection(pool) as connection, connection.transaction(readonly=True):
        async for event in connection.cursor(
            statement, correlation_id, list(_READERS), *more, prefetch=_EVENTS_AT_ONCE
        ):
            request.read(event)
    return _reconstruction(correlation_id, request, now)


def reconstruct(correlation_id: str, events: Iterable[Row], now: datetime) -> Reconstruction:
    """Rebuild the RemediationRequest from `events`. Raises one of the errors above if that is not possible."""
    request = _Request()
    for event in events:
        request.read(event)
    return _reconstruction(correlation_id, request, now)


def _reconstruction(correlation_id: str, request: "_Request", now: datetime) -> Reconstruction:
    if not request.count:
        raise NoEvents(f"There are no events of {correlation_id} from which a RemediationRequest could be rebuilt.")
    if not request.parsed:
        raise NoParseableEvents
    if not request.has_first_event:
        raise MissingGatewayEvent
    request.timeouts = {name: _go_duration(name, text) for name, text in request.timeouts.items()}
    completeness, errors, warnings = _completeness(request)
    if completeness < COMPLETENESS_MIN:
        missing = "; ".join([*errors, *warnings])
        raise IncompleteEvents(
            f"Only {completeness}% of the RemediationRequest is known, at least {COMPLETENESS_MIN}% are needed: {missing}"
        )
    text = _yaml(_resource(correlation_id, request, now))
    return Reconstruction(text, completeness, errors, warnings, request.spec.get("clusterID", ""), request.is_sealed)


def _read_event(request: _Request, event: Row) -> bool:
    """Read one event into `request`; whether it had anything. Unreadable if its payload has not the shape of its type."""
    event_type = event["event_type"]
    payload = loads(event["payload"])
    if (fault := shape_fault(event_type, payload)) is not None:
        raise Unreadable(f"The event_data of a {event_type} event cannot be read: {fault}.")
    request.set_spec(clusterID=event["cluster_id"] or "")
    return _READERS[event_type](request, payload, event)


def _read_signal(request: _Request, payload: Any, _: Row) -> bool:
    if not payload["signal_name"]:
        return False
    request.has_first_event = True
    signal_type = payload["signal_type"]
    request.set_spec(
        signalName=payload["signal_name"],
        signalType="alert" if signal_type in {"prometheus-alert", "kubernetes-event"} else signal_type,
        signalFingerprint=payload["fingerprint"],
    )
    request.labels |= payload.get("signal_labels", {})
    request.annotations |= payload.get("signal_annotations", {})
    if "original_payload" in payload:
        request.set_spec(originalPayload=_json(payload["original_payload"]))
    return True


def _read_front_end(request: _Request, payload: Any, _: Row) -> bool:
    request.has_first_event = True
    request.set_spec(signalName=payload["signal_name"], signalFingerprint=payload["fingerprint"], signalType="alert")
    return True


def _read_created(request: _Request, payload: Any, _: Row) -> bool:
    timeouts = payload.get("timeout_config", {})
    request.timeouts |= _non_empty(
        {name: timeouts.get(name, "") for name in ("global", "processing", "analyzing", "executing")}
    )
    return True


def _read_analysis(request: _Request, payload: Any, _: Row) -> bool:
    if "provider_response_summary" in payload:
        request.set_spec(providerData=_json(payload["provider_response_summary"]))
    return True


def _read_selection(request: _Request, payload: Any, _: Row) -> bool:
    request.workflow |= _non_empty(
        {
            "workflowId": payload["workflow_id"],
            "version": payload["workflow_version"],
            "executionBundle": payload["container_image"],
        }
    )
    return True


def _read_execution(request: _Request, payload: Any, event: Row) -> bool:
    if payload["execution_name"]:
        request.execution = {
            "apiVersion": "workflowexecution.kubernaut.ai/v1alpha1",
            "kind": "WorkflowExecution",
            "name": payload["execution_name"],
            "namespace": event["namespace"] or "",
        }
    return True


def _read_end(request: _Request, payload: Any, _: Row) -> bool:
    request.completion |= _non_empty(
        {
            "outcome": payload.get("outcome", ""),
            "failurePhase": payload.get("failure_phase", ""),
            "failureReason": payload.get("error_details", {}).get("message", ""),
        }
    )
    return True


_READERS: dict[str, Callable[[_Request, Any, Row], bool]] = {
    "gateway.signal.received": _read_signal,
    "apifrontend.rr.created": _read_front_end,
    "aianalysis.analysis.completed": _read_analysis,
    "workflowexecution.selection.completed": _read_selection,
    "workflowexecution.execution.started": _read_execution,
    "orchestrator.lifecycle.created": _read_created,
    "orchestrator.lifecycle.completed": _read_end,
    "orchestrator.lifecycle.failed": _read_end,
}


EVENT_TYPES = frozenset(_READERS)
"""Of the events that are read."""


def _non_empty(members: dict[str, str]) -> dict[str, str]:
    """Without empty texts: an unknown value must not override a known one."""
    return {name: text for name, text in members.items() if text}


def _json(value: Any) -> str:
    return sorted_json(canonical(value)).decode()


def _go_duration(name: str, text: str) -> str:
    try:
        return duration_text(parse_duration(text))
    except ValueError as error:
        raise MissingGatewayEvent(f"The timeout_config of the remediation cannot be read: {name}: {error}.") from None


class _Part(NamedTuple):
    """One of the nine parts of a RemediationRequest that completeness counts. A missing essential one is an error."""

    name: str
    is_present: bool
    event_type: str
    """Events of this type have it."""
    is_essential: bool = False


def _completeness(request: _Request) -> tuple[int, list[str], list[str]]:
    """(completeness in percent, errors, warnings)."""
    spec, signal = request.spec, "gateway.signal.received"
    parts = (
        _Part("SignalName", "signalName" in spec, signal, is_essential=True),
        _Part("SignalType", "signalType" in spec, signal, is_essential=True),
        _Part("SignalLabels", bool(request.labels), signal),
        _Part("SignalAnnotations", bool(request.annotations), signal),
        _Part("OriginalPayload", "originalPayload" in spec, signal),
        _Part("TimeoutConfig", bool(request.timeouts), "orchestrator.lifecycle.created"),
        _Part("providerData", "providerData" in spec, "aianalysis.analysis.completed"),
        _Part("selectedWorkflowRef", bool(request.workflow), "workflowexecution.selection.completed"),
        _Part("executionRef", bool(request.execution), "workflowexecution.execution.started"),
    )
    missing = [part for part in parts if not part.is_present]
    errors, warnings = (
        [
            f"{part.name} is missing: no {part.event_type} event has it"
            for part in missing
            if part.is_essential == essential
        ]
        for essential in (True, False)
    )
    return 100 * (len(parts) - len(missing)) // len(parts), errors, warnings


def _resource(correlation_id: str, request: _Request, now: datetime) -> dict[str, Any]:
    maps = {"signalLabels": request.labels, "signalAnnotations": request.annotations}
    workflow = {"selectedWorkflowRef": request.workflow, "executionRef": request.execution}
    status = {
        "timeoutConfig": request.timeouts,
        "workflowSelection": _without_empty(workflow),
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
        | _without_empty(maps),
        "status": _without_empty(status),
    }


def _without_empty(members: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    return {name: value for name, value in members.items() if value}


# Texts that a YAML 1.2 parser, or Go's 1.1 parser, reads as another type although PyYAML reads them as text.
_AMBIGUOUS = re.compile(r"[yYnN]|[-+.~0-9][^\n]*")


class _Dumper(getattr(yaml, "CSafeDumper", yaml.SafeDumper)):  # type: ignore[misc]  # a class found at run time
    """Writes plain objects without anchors."""

    def ignore_aliases(self, data: Any) -> bool:
        del data
        return True


def _text_node(dumper: Any, text: str) -> Any:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="'" if _AMBIGUOUS.fullmatch(text) else None)


_Dumper.add_representer(str, _text_node)


def _yaml(resource: dict[str, Any]) -> str:
    try:
        return str(yaml.dump(resource, Dumper=_Dumper, sort_keys=True, allow_unicode=True, width=2**30))
    except yaml.YAMLError as error:
        raise NotBuilt(f"The RemediationRequest cannot be written as YAML: {error}") from None
