"""OTLP's binary encoding. The package of the extra `otlp` reads records, resources and scopes; what holds them is split here.

Given a whole request, the package makes objects of all of it at once: some 150 bytes for each empty record, of which a body of 50 MiB has
26 million, in seconds in which nobody else is answered. So a request is split into its records, and these are read one by one.
"""

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any, TypeVar

from google.protobuf.message import DecodeError, Message
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, InstrumentationScope, KeyValue
from opentelemetry.proto.logs.v1 import logs_pb2
from opentelemetry.proto.resource.v1.resource_pb2 import Resource

from app.errors import BatchTooLarge, InvalidRequest
from app.events.otlp.log_record import (
    LEVELS_MAX,
    LogRecord,
    Unreadable,
    binary,
    members_of,
    number,
    readable,
    scope_members,
    too_deep,
    trace_identifier,
    unique,
)

RECORD_BYTES_MAX = 320 * 1024
"""A payload of 256 KiB and the envelope fit into it."""
SHARED_BYTES_MAX = 64 * 1024
"""Of a resource, and of a scope."""
_PARTS_PER_RECORD_MAX = 6
"""A record alone in its scope, which is alone in its resource: each in a part, with a schema URL."""
_RESOURCE_LOGS = 1
_SHARED, _MEMBERS = 1, 2
"""Fields of ResourceLogs: the resource, and what is of it; of ScopeLogs: the scope, and its records."""
_VARINT, _BYTES = 0, 2
_FIXED_BYTES = {1: 8, 5: 4}

_M = TypeVar("_M", bound=Message)


def records(body: bytes, records_max: int) -> Iterator[tuple[str, LogRecord | Unreadable]]:
    """Each record of an ExportLogsServiceRequest, or why it cannot be read, after its place as a pointer into the JSON encoding.

    InvalidRequest if it is no protobuf; BatchTooLarge if it has more parts than a request of `records_max` records can have.
    """
    splitter = _Splitter(_PARTS_PER_RECORD_MAX * records_max + 1000)
    for i, resource_logs in enumerate(splitter.split(memoryview(body), _RESOURCE_LOGS)[0]):
        scopes, of_resource = splitter.split(resource_logs, _MEMBERS, _SHARED)
        resource = None
        for j, scope_logs in enumerate(scopes):
            log_records, of_scope = splitter.split(scope_logs, _MEMBERS, _SHARED)
            if not log_records:  # whoever asks for the next record would wait for what no record has
                continue
            if resource is None:
                resource = readable(_resource, of_resource)
            scope = readable(_scope, of_scope)
            for k, log_record in enumerate(log_records):
                yield (
                    f"/resourceLogs/{i}/scopeLogs/{j}/logRecords/{k}",
                    readable(partial(_record, resource, scope), log_record),
                )


class _Splitter:
    """Splits messages into their fields. All that it is given may together have `fields_max` of them."""

    def __init__(self, fields_max: int) -> None:
        self._fields_left = fields_max

    def split(self, message: memoryview, *wanted: int) -> list[list[memoryview]]:
        """For each number in `wanted`: the fields of this number, which are bytes. Others are skipped."""
        found: dict[int, list[memoryview]] = {number: [] for number in wanted}
        position, end = 0, len(message)
        while position < end:
            self._fields_left -= 1
            if self._fields_left < 0:
                raise BatchTooLarge(
                    "the request has too many log records, resources and scopes: send it in several requests"
                )
            key, position = _varint(message, position)
            kind, start = key & 7, position
            if kind == _BYTES:
                size, start = _varint(message, position)
                position = start + size
            elif kind == _VARINT:
                _, position = _varint(message, position)
            elif kind in _FIXED_BYTES:
                position += _FIXED_BYTES[kind]
            else:
                raise _no_protobuf()
            if position > end or key < 8:
                raise _no_protobuf()
            if kind == _BYTES and key >> 3 in found:
                found[key >> 3].append(message[start:position])
        return [found[number] for number in wanted]


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    """The number at `position`, and where it ends."""
    value = 0
    for shift, byte in zip(range(0, 70, 7), message[position : position + 10], strict=False):
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position + shift // 7 + 1
    raise _no_protobuf()


def _no_protobuf() -> InvalidRequest:
    return InvalidRequest(
        "body: expected an ExportLogsServiceRequest in protobuf's binary encoding, got something else, or a part of one"
    )


def _parsed(kind: type[_M], message: bytes, bytes_max: int) -> _M:
    if len(message) > bytes_max:
        raise Unreadable(f"expected a {kind.DESCRIPTOR.name} of at most {bytes_max} bytes, got {len(message)}")
    try:
        parsed: _M = kind.FromString(message)
    except DecodeError:
        raise Unreadable(
            f"expected a {kind.DESCRIPTOR.name} in protobuf, with text in UTF-8 and at most 100 levels"
        ) from None
    return parsed


def _resource(parts: Iterable[memoryview]) -> dict[str, Any]:
    # A message that is there several times is one whose parts stand one after the other.
    return _attributes(_parsed(Resource, b"".join(parts), SHARED_BYTES_MAX).attributes)


def _scope(parts: Iterable[memoryview]) -> dict[str, Any]:
    scope = _parsed(InstrumentationScope, b"".join(parts), SHARED_BYTES_MAX)
    return scope_members(scope.name, scope.version, _attributes(scope.attributes))


def _record(
    resource: dict[str, Any] | Unreadable, scope: dict[str, Any] | Unreadable, message: memoryview
) -> LogRecord:
    of_resource, of_scope = members_of(resource), members_of(scope)
    sent = _parsed(logs_pb2.LogRecord, bytes(message), RECORD_BYTES_MAX)
    return LogRecord(
        of_resource,
        of_scope,
        _attributes(sent.attributes),
        _value(sent.body, 0),
        sent.event_name,
        sent.time_unix_nano or sent.observed_time_unix_nano,
        sent.severity_number,
        sent.severity_text,
        trace_identifier(sent.trace_id, 16),
        trace_identifier(sent.span_id, 8),
        sent.dropped_attributes_count,
    )


def _attributes(pairs: Iterable[KeyValue], level: int = 0) -> dict[str, Any]:
    return unique((pair.key, _value(pair.value, level)) for pair in pairs)


def _value(value: AnyValue, level: int) -> Any:
    kind = value.WhichOneof("value")
    if level > LEVELS_MAX:
        raise too_deep()
    if kind is None:
        return None
    if kind == "double_value":
        return number(value.double_value)
    if kind == "bytes_value":
        return binary(value.bytes_value)
    if kind == "array_value":
        return [_value(one, level + 1) for one in value.array_value.values]
    if kind == "kvlist_value":
        return _attributes(value.kvlist_value.values, level + 1)
    if kind in {"string_value", "bool_value", "int_value"}:
        return getattr(value, kind)
    raise Unreadable(f"a value is a {kind}, which log records do not have")
