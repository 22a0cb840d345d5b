"""Log records of OpenTelemetry as a collector sends them: in protobuf by OpenTelemetry's own package, in JSON by hand."""

import math
import time
from base64 import b64encode
from typing import Any
from uuid import uuid4

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, InstrumentationScope, KeyValue, KeyValueList
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord, ResourceLogs, ScopeLogs
from opentelemetry.proto.resource.v1.resource_pb2 import Resource

JSON, PROTOBUF = "application/json", "application/x-protobuf"
RESOURCE = {"service.name": "payments", "k8s.namespace.name": "shop", "k8s.cluster.name": "prod-eu-1"}
SCOPE = InstrumentationScope(name="payments.audit", version="1.2.0")
TYPE = "orchestrator.lifecycle.transitioned"
BODY = {"rr_name": "rr-1", "namespace": "shop", "from_phase": "Processing", "to_phase": "Analyzing"}
TRACE, SPAN = bytes(range(1, 17)), bytes(range(1, 9))


def any_value(value: Any) -> AnyValue:
    """A Python value as OTLP has it."""
    if isinstance(value, AnyValue):
        return value
    if isinstance(value, bool):
        return AnyValue(bool_value=value)
    if isinstance(value, dict):
        return AnyValue(kvlist_value=KeyValueList(values=pairs(value)))
    if isinstance(value, list):
        return AnyValue(array_value=ArrayValue(values=map(any_value, value)))
    kinds = {str: "string_value", int: "int_value", float: "double_value", bytes: "bytes_value"}
    return AnyValue() if value is None else AnyValue(**{kinds[type(value)]: value})


def pairs(values: dict[str, Any]) -> list[KeyValue]:
    return [KeyValue(key=key, value=any_value(value)) for key, value in values.items()]


def record(body: Any = BODY, /, attributes: dict[str, Any] | None = None, **members: Any) -> LogRecord:
    """A log record that is an audit event, of now and with a correlation of its own; members and attributes replace its own."""
    own = {"audit.event_outcome": "success", "audit.correlation_id": f"rr-{uuid4()}"}
    values = own | (attributes or {})
    values = {name: value for name, value in values.items() if value is not None or not name.startswith("audit.")}
    own_members: dict[str, Any] = {"event_name": TYPE, "time_unix_nano": time.time_ns()}
    return LogRecord(body=any_value(body), attributes=pairs(values), **(own_members | members))


def request(*records: LogRecord, resource: dict[str, Any] | None = None) -> ExportLogsServiceRequest:
    """A request with these records, all of one scope of one resource."""
    scope_logs = ScopeLogs(scope=SCOPE, log_records=records)
    one = ResourceLogs(
        resource=Resource(attributes=pairs(RESOURCE if resource is None else resource)), scope_logs=[scope_logs]
    )
    return ExportLogsServiceRequest(resource_logs=[one])


def as_json(message: Any) -> Any:
    """A message in OTLP's JSON encoding, which is not protobuf's own: ids are hex, enumerations numbers, integers of 64 bits strings."""
    if isinstance(message, AnyValue):
        kind = message.WhichOneof("value")
        if kind is None:
            return {}
        value = getattr(message, kind)
        if kind in {"array_value", "kvlist_value"}:
            return {_camel(kind): {"values": [as_json(one) for one in value.values]}}
        shown: Any = {"int_value": str, "bytes_value": lambda raw: b64encode(raw).decode(), "double_value": _double}
        return {_camel(kind): shown.get(kind, lambda same: same)(value)}
    return {_camel(field.name): _member_as_json(field, value) for field, value in message.ListFields()}


def _member_as_json(field: Any, value: Any) -> Any:
    if field.message_type is not None:
        return [as_json(one) for one in value] if hasattr(value, "append") else as_json(value)
    if field.name in {"trace_id", "span_id"}:
        return value.hex()
    return str(value) if field.name.endswith("unix_nano") else value


def _double(value: float) -> float | str:
    if math.isnan(value):
        return "NaN"
    return value if math.isfinite(value) else f"{'-' if value < 0 else ''}Infinity"


def _camel(name: str) -> str:
    first, *others = name.split("_")
    return first + "".join(map(str.title, others))
