"""Items of a stream as events of OCSF 1.9 (docs/ocsf.md has the table): API Activity, with all that has no place there in `unmapped`.

One class for all events, since each says who did what to which resource; what a stream says besides them is a Base Event. The
profile record_integrity is not used: its attestation is over the OCSF event itself, and our hash is over the event that we have stored.
"""

from datetime import UTC, datetime, timedelta
from typing import Any

from app.events.log import LOG_POSITIONS, Log
from app.events.record import time_text
from app.stream.place import place_text
from app.stream.portion import Absent, Checkpoint, Item, Seam, StreamedEvent
from app.stream.records import control_id, control_record

VERSION = "1.9.0"
"""Of the schema."""
UNMAPPED = "datastorage"
"""The member of `unmapped` that has what is ours."""
Enumerated = tuple[int, str]
"""An id of the schema with its caption."""

OTHER = 99
ACTIVITIES: dict[str, Enumerated] = {
    **dict.fromkeys(("create", "created", "placed", "stored", "workflow_created"), (1, "Create")),
    **dict.fromkeys(("get", "list", "watch", "accessed", "discovery"), (2, "Read")),
    **dict.fromkeys(("actions_listed", "workflow_retrieved", "workflows_listed"), (2, "Read")),
    **dict.fromkeys(("update", "updated", "patch", "set", "timeout_modified"), (3, "Update")),
    **dict.fromkeys(("delete", "deleted", "deletecollection", "erased", "purged", "removed"), (4, "Delete")),
}
"""By event_action. Any other one is 99, with the action itself as its caption."""
SEVERITIES: dict[str, Enumerated] = {
    **dict.fromkeys(("debug", "info", "informational", "none", "normal"), (1, "Informational")),
    **dict.fromkeys(("low", "minor", "notice"), (2, "Low")),
    **dict.fromkeys(("medium", "moderate", "warn", "warning"), (3, "Medium")),
    **dict.fromkeys(("error", "high", "major"), (4, "High")),
    **dict.fromkeys(("alert", "critical"), (5, "Critical")),
    **dict.fromkeys(("emergency", "fatal"), (6, "Fatal")),
}
"""By severity in lower case. Without one it is 0, Unknown; any other one is 99, with the text itself as its caption."""
STATUSES: dict[str, Enumerated] = {"success": (1, "Success"), "failure": (2, "Failure")}
"""By event_outcome; any other one is 99."""
ACTORS: dict[str, Enumerated] = {
    "user": (1, "User"),
    "admin": (2, "Admin"),
    "system": (3, "System"),
    "service": (4, "Service"),
}
"""By actor_type; any other one is 99."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_UNKNOWN: Enumerated = 0, "Unknown"
_PRODUCT = {"name": "DataStorage", "vendor_name": "Kubernaut"}


def render(item: Item, log: Log) -> dict[str, Any]:
    """The OCSF event of an item, for orjson. `log` is the last log that is known."""
    if isinstance(item, StreamedEvent):
        return _api_activity(item)
    return _base_event(item, log.name_of(item[0] // LOG_POSITIONS), datetime.now(UTC))


def _api_activity(item: StreamedEvent) -> dict[str, Any]:
    event = item.event
    action, severity = event["event_action"], event["severity"]
    activity_id, activity = ACTIVITIES.get(action, (OTHER, action))
    severity_id, severity_caption = SEVERITIES.get(severity.lower(), (OTHER, severity)) if severity else _UNKNOWN
    status_id, status = STATUSES.get(event["event_outcome"], (OTHER, event["event_outcome"]))
    rendered = {
        "category_uid": 6,
        "category_name": "Application Activity",
        "class_uid": 6003,
        "class_name": "API Activity",
        "activity_id": activity_id,
        "activity_name": activity,
        "type_uid": 600300 + activity_id,
        "type_name": f"API Activity: {'Other' if activity_id == OTHER else activity}",
        "time": _milliseconds(event["event_timestamp"]),
        "severity_id": severity_id,
        "severity": severity_caption,
        "status_id": status_id,
        "status": status,
        "status_code": event["error_code"],
        "status_detail": event["error_message"],
        "duration": event["duration_ms"],
        "actor": _actor(event),
        "src_endpoint": _source(event),
        "api": {"operation": event["event_type"], "service": {"name": event["event_category"]}},
        "resources": _resources(event),
        "metadata": _metadata(event),
        "unmapped": {UNMAPPED: {"place": place_text(item.place) if item.place >= 0 else None, "event": event}},
    }
    return {name: value for name, value in rendered.items() if value is not None and value != []}


def _metadata(event: dict[str, Any]) -> dict[str, Any]:
    metadata = {
        "version": VERSION,
        "product": _PRODUCT,
        "uid": str(event["event_id"]),
        "original_event_uid": str(event["event_id"]),
        "correlation_uid": event["correlation_id"],
        "event_code": event["event_type"],
        "log_name": event["log"],
        "sequence": event["log_index"],
        "original_time": time_text(event["event_timestamp"]),
        "logged_time": _milliseconds(event["recorded_at"]),
    }
    if event["log_index"] is None:  # a made-up event
        del metadata["sequence"]
    return metadata


def _actor(event: dict[str, Any]) -> dict[str, Any]:
    kind, name = event["actor_type"], event["actor_id"]
    if not name:  # a user of the schema has a name
        return {"app_name": kind or "unknown"}
    type_id, caption = ACTORS.get(kind, (OTHER, kind)) if kind else _UNKNOWN
    return {"user": {"name": name, "type_id": type_id, "type": caption}}


def _source(event: dict[str, Any]) -> dict[str, Any]:
    """Where it came from: the schema requires something, also where nobody has said it."""
    if event["actor_ip"]:
        return {"ip": event["actor_ip"]}
    if event["actor_type"] == "service" and event["actor_id"]:
        return {"svc_name": event["actor_id"]}
    return {"name": "unknown"}


def _resources(event: dict[str, Any]) -> list[dict[str, Any]]:
    """The one resource, if it has an id or a name."""
    resource = {
        "uid": event["resource_id"],
        "name": event["resource_name"],
        "type": event["resource_type"],
        "namespace": event["namespace"],
    }
    named = {name: value for name, value in resource.items() if value}
    return [named] if {"uid", "name"} & named.keys() else []


def _base_event(item: Absent | Seam | Checkpoint, log: str, now: datetime) -> dict[str, Any]:
    record = control_record(item)
    return {
        "category_uid": 0,
        "category_name": "Uncategorized",
        "class_uid": 0,
        "class_name": "Base Event",
        "activity_id": OTHER,
        "activity_name": record["stream"],
        "type_uid": OTHER,
        "type_name": "Base Event: Other",
        "time": _milliseconds(now),
        "severity_id": 1,
        "severity": "Informational",
        "metadata": {
            "version": VERSION,
            "product": _PRODUCT,
            "uid": control_id(record),
            "log_name": log,
        },
        "unmapped": {UNMAPPED: record},
    }


def _milliseconds(time: datetime) -> int:
    return (time - _EPOCH) // timedelta(milliseconds=1)


def parse(sent: dict[str, Any]) -> tuple[dict[str, Any], str | None, list[str]]:
    """What render() has made an OCSF event of: the exported event, or a record that has `stream`; the text of its place; and the paths
    of values beside it that are not the event's. LookupError, TypeError or ValueError if it is no such OCSF event.
    """
    own = sent["unmapped"][UNMAPPED]
    if "stream" in own:
        return own, None, []
    event = own["event"]
    wrong = [path for path, member in _SAME_AS.items() if _at(sent, path) not in (None, event[member])]
    if sent["time"] != _milliseconds(datetime.fromisoformat(event["event_timestamp"])):
        wrong.append("time")
    return event, own["place"], wrong


_SAME_AS = {
    "actor.user.name": "actor_id",
    "src_endpoint.ip": "actor_ip",
    "api.operation": "event_type",
    "api.service.name": "event_category",
    "resources.0.uid": "resource_id",
    "resources.0.type": "resource_type",
    "resources.0.namespace": "namespace",
    "status_code": "error_code",
    "status_detail": "error_message",
    "duration": "duration_ms",
    "metadata.uid": "event_id",
    "metadata.correlation_uid": "correlation_id",
    "metadata.event_code": "event_type",
    "metadata.log_name": "log",
    "metadata.sequence": "log_index",
}
"""Values that are members as they are. Ids and captions are not among them: a later release may have more of them."""


def _at(sent: Any, path: str) -> Any:
    """The value at a path; None without one."""
    for step in path.split("."):
        if isinstance(sent, list):
            sent = sent[int(step)] if int(step) < len(sent) else None
        else:
            sent = sent.get(step) if isinstance(sent, dict) else None
    return sent
