"""Which member of the envelope comes from where in a log record (docs/receivers.md has the table, and a test holds it to this one).

The result is an item as a controller would post it; it goes through the same checks as every other item.
"""

from contextlib import suppress
from datetime import timedelta
from typing import Any, NamedTuple

from app.errors import BadRequest
from app.events.catalog import Catalog
from app.events.envelope import ZERO_TIME, PostedEvent, parse_address, parse_uuid
from app.events.ids import EPOCH
from app.events.otlp.log_record import LogRecord, Unreadable

PREFIX = "audit."
"""Every member of the envelope but the time, the payload and the old name of the cluster can be given as the attribute of this prefix and its name."""
MEMBERS = tuple(
    name for name in PostedEvent.__annotations__ if name not in {"event_timestamp", "event_data", "cluster_name"}
)
CONVENTIONS: dict[str, tuple[str, ...]] = {
    "event_type": ("event.name",),
    "event_id": ("log.record.uid",),
    "actor_id": ("user.id", "enduser.id"),
    "actor_ip": ("client.address",),
    "namespace": ("k8s.namespace.name",),
    "cluster_id": ("k8s.cluster.name",),
    "error_code": ("error.type",),
    "error_message": ("exception.message",),
}
"""By member: the attributes of a record that it comes from where its own one is absent, the first that is there."""
RESOURCE_CONVENTIONS = {"actor_id": "service.name", "namespace": "k8s.namespace.name", "cluster_id": "k8s.cluster.name"}
"""By member: the attribute of the resource that it comes from where the record has none."""
SEVERITIES = ((21, "critical"), (17, "error"), (13, "warning"), (9, "info"), (1, "debug"))
"""From which severity number on a record has which severity."""
REST = "otel"
"""The member of the payload with what a record has beyond envelope and payload."""
_ERROR_TYPE = "error.type"
_ERROR_CODE_MAX = 50
_UNKNOWN_SERVICE = "unknown_service"  # what an SDK calls a service without a name


class Mapped(NamedTuple):
    """What a log record becomes."""

    item: dict[str, Any]
    """As a controller would post it."""
    names: dict[str, str]
    """By member: how what it comes from is called."""
    trace: tuple[str | None, str | None]
    """Trace and span id."""


def mapped(record: LogRecord, catalog: Catalog) -> Mapped:
    """The item that `record` becomes; Unreadable where its payload has a name that is the service's own."""
    attributes = dict(record.attributes)
    item: dict[str, Any] = {}
    names = {"event_type": "event_name", "event_timestamp": "time_unix_nano"}
    for member in MEMBERS:
        if (name := PREFIX + member) in attributes:
            item[member] = attributes.pop(name)
            names[member] = name
    if record.event_name:
        item.setdefault("event_type", record.event_name)
    if (
        _ERROR_TYPE in attributes
    ):  # the conventions: it is set where something has ended with an error, and nowhere else
        item.setdefault("event_outcome", "failure")
    _add_conventional(item, names, attributes, record)
    _complete(item, record, catalog)
    item["event_data"] = _payload(item, record, attributes, catalog)
    return Mapped(item, names, (record.trace_id or None, record.span_id or None))


def _add_conventional(
    item: dict[str, Any], names: dict[str, str], attributes: dict[str, Any], record: LogRecord
) -> None:
    """Move attributes that the semantic conventions name to the members that are absent."""
    for member, conventional in CONVENTIONS.items():
        for name in conventional:
            if member not in item and name in attributes and _fits(member, attributes[name]):
                item[member] = attributes.pop(name)
                names[member] = name
                if member == "actor_id":
                    item.setdefault("actor_type", "user")
    for member, name in RESOURCE_CONVENTIONS.items():
        value = record.resource.get(name)
        if member not in item and isinstance(value, str) and not value.startswith(_UNKNOWN_SERVICE):
            item[member] = value
            names[member] = f"{name} of the resource"


def _fits(member: str, value: Any) -> bool:
    """Whether a conventional attribute has a value of its member; else it stays in the payload."""
    if not isinstance(value, str):
        return False
    if member == "error_code":
        return len(value) <= _ERROR_CODE_MAX
    if member in {"actor_ip", "event_id"}:  # the conventions allow host names and sockets, and ids of other kinds
        with suppress(BadRequest):
            (parse_address if member == "actor_ip" else parse_uuid)(value, "")
            return True
        return False
    return True


def _complete(item: dict[str, Any], record: LogRecord, catalog: Catalog) -> None:
    """Set the members that do not come from an attribute."""
    item.setdefault("version", "1.0")
    if record.trace_id:
        item.setdefault("correlation_id", record.trace_id)
    kind = item.get("event_type")
    if isinstance(kind, str):
        item.setdefault("event_action", kind.rpartition(".")[2])
        if kind in catalog.types and (category := catalog.types[kind].category):
            item.setdefault("event_category", category)
    for number, severity in SEVERITIES:
        if record.severity_number >= number:
            item.setdefault("severity", severity)
    time = EPOCH + timedelta(microseconds=record.time_ns // 1000)
    item["event_timestamp"] = time.isoformat().replace("+00:00", "Z") if record.time_ns else ZERO_TIME


def _payload(item: dict[str, Any], record: LogRecord, attributes: dict[str, Any], catalog: Catalog) -> dict[str, Any]:
    """The body if it is a map, else the attributes that are left; beside it the rest of the record."""
    is_map = isinstance(record.body, dict)
    payload = dict(record.body) if is_map else attributes
    if REST in payload:
        raise Unreadable(f"the payload has a member {REST!r}, which is the service's own: give it another name")
    kind = item.get("event_type")
    if isinstance(kind, str) and kind in catalog.typed and "event_type" not in payload:
        payload = {"event_type": kind} | payload
    rest = {
        "attributes": attributes if is_map else {},
        "body": None if is_map else record.body,
        "resource": record.resource,
        "scope": record.scope,
        "severity_text": record.severity_text,
        "dropped_attributes": record.dropped_attributes,
        "event_name": record.event_name if record.event_name != kind else "",
    }
    # False is a body too.
    rest = {name: value for name, value in rest.items() if value or (name == "body" and value is not None)}
    return payload | ({REST: rest} if rest else {})
