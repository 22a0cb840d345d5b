"""Items of a stream as log records of OpenTelemetry. Needs the extra `otlp`.

The names are those of the semantic conventions where they have one, else `audit.` and the member's name, as the service reads
them where it receives log records itself. The body is the item's line: so the copy can be verified, wherever the records go.
"""

import re
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord

from app.events.ids import EPOCH
from app.events.log import LOG_POSITIONS, Log
from app.stream.place import place_text
from app.stream.portion import Item, StreamedEvent
from app.stream.records import control_id, control_record
from app.stream.severity import CRITICAL, DEBUG, ERROR, INFORMATIONAL, NOTICE, WARNING, syslog_severity

SEVERITY_NUMBERS = {CRITICAL: 18, ERROR: 17, WARNING: 13, NOTICE: 10, INFORMATIONAL: 9, DEBUG: 5}
"""By severity of syslog, as the data model of logs maps them."""
CONVENTIONS = {
    "event_id": "log.record.uid",
    "actor_ip": "client.address",
    "namespace": "k8s.namespace.name",
    "cluster_id": "k8s.cluster.name",
    "error_code": "error.type",
}
"""By member: the attribute that the semantic conventions have for it."""
AUDIT_MEMBERS = (
    *("event_category", "event_action", "event_outcome", "correlation_id", "actor_type", "actor_id"),
    *("resource_type", "resource_id", "parent_event_id", "severity", "duration_ms", "error_message"),
)
"""Members that are attributes under `audit.` and their name."""
PROOF_MEMBERS = ("log", "log_index", "event_hash")
"""Members that are attributes under `datastorage.` and their name, beside the place."""
CONTROL_NAMES = "datastorage.stream."
"""What the names of records begin with that are no events."""
_TRACE_ID, _SPAN_ID = re.compile(r"(?!0{32})[0-9a-f]{32}"), re.compile(r"(?!0{16})[0-9a-f]{16}")
_MICROSECOND_NS = 1000


def export_request(items: Sequence[Item], lines: Iterable[bytes], log: Log) -> ExportLogsServiceRequest:
    """The request with a record for each item. `lines` are the bodies, `log` is the last log that is known."""
    request = ExportLogsServiceRequest()
    resource_logs = request.resource_logs.add()
    resource_logs.resource.attributes.append(_attribute("service.name", "datastorage"))
    scope_logs = resource_logs.scope_logs.add()
    scope_logs.scope.name = "datastorage"
    scope_logs.log_records.extend(_record(item, line, log) for item, line in zip(items, lines, strict=True))
    return request


def _record(item: Item, line: bytes, log: Log) -> LogRecord:
    severity = syslog_severity(item)
    record = LogRecord(
        severity_number=SEVERITY_NUMBERS[severity],  # type: ignore[arg-type]  # an enumeration is a number at run time
        body=AnyValue(string_value=line.decode().rstrip("\n")),
    )
    if item[0] >= 0:  # a made-up event has no place
        record.attributes.append(_attribute("datastorage.place", place_text(item[0])))
    if isinstance(item, StreamedEvent):
        _add_event(record, item.event)
    else:
        control = control_record(item)
        name = log.name_of(item[0] // LOG_POSITIONS)
        record.event_name = CONTROL_NAMES + control["stream"]
        record.attributes.append(_attribute("datastorage.log", name))
        record.attributes.append(_attribute("log.record.uid", f"{name}:{control_id(control)}"))
    return record


def _add_event(record: LogRecord, event: dict[str, Any]) -> None:
    record.event_name = event["event_type"]
    record.time_unix_nano = _nanoseconds(event["event_timestamp"])
    record.observed_time_unix_nano = _nanoseconds(event["recorded_at"])
    record.severity_text = event["severity"] or ""
    if _TRACE_ID.fullmatch(event["trace_id"] or ""):
        record.trace_id = bytes.fromhex(event["trace_id"])
    if _SPAN_ID.fullmatch(event["span_id"] or ""):
        record.span_id = bytes.fromhex(event["span_id"])
    names = {
        **CONVENTIONS,
        **{member: f"audit.{member}" for member in AUDIT_MEMBERS},
        **{member: f"datastorage.{member}" for member in PROOF_MEMBERS},
    }
    record.attributes.extend(
        _attribute(name, event[member]) for member, name in names.items() if event[member] not in {None, ""}
    )
    if event["actor_type"] == "user" and event["actor_id"]:
        record.attributes.append(_attribute("user.id", event["actor_id"]))


def _attribute(name: str, value: Any) -> KeyValue:
    if isinstance(value, int):
        return KeyValue(key=name, value=AnyValue(int_value=value))
    return KeyValue(key=name, value=AnyValue(string_value=str(value)))


def _nanoseconds(time: datetime) -> int:
    """Since 1970; 0, which is no time, for what is before."""
    past = time - EPOCH
    return max(0, (past.days * 86_400 + past.seconds) * 10**9 + past.microseconds * _MICROSECOND_NS)
