"""OTLP's JSON encoding: protobuf's mapping to JSON, but ids in hex and enumerations as numbers. Unknown members are ignored.

The package of the extra `otlp` is not used: it reads ids as base64, and refuses unknown members or takes names that OTLP does not allow.
"""

import re
from base64 import b64decode, urlsafe_b64decode
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import orjson

from app.errors import InvalidRequest
from app.events.canonical import kind_of
from app.events.explain import bad_fields, excerpt
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

_DIGITS = re.compile(r"-?[0-9]{1,20}")
_DOUBLE = re.compile(r"-?[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?|NaN|-?Infinity")
_HEX = re.compile(r"[0-9a-fA-F]*")


def records(body: bytes) -> Iterator[tuple[str, LogRecord | Unreadable]]:
    """Each record of an ExportLogsServiceRequest, or why it cannot be read, after its place as a pointer.

    InvalidRequest if the body is no JSON; BadRequest if what holds the records is not as in OTLP.
    """
    try:
        request = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(
            f"body: expected JSON, got an error at line {error.lineno} column {error.colno}: {error.msg}"
        ) from None
    for place, resource_logs in _members(request, "", "resourceLogs"):
        resource = readable(_resource, _dict(resource_logs))
        for scope_place, scope_logs in _members(resource_logs, place, "scopeLogs"):
            scope = readable(_scope, _dict(scope_logs))
            for record_place, log_record in _members(scope_logs, scope_place, "logRecords"):
                yield record_place, readable(partial(_record, resource, scope), log_record)


def _members(holder: Any, place: str, name: str) -> Iterator[tuple[str, Any]]:
    """Each item of the array `name` of an object, after its place."""
    if not isinstance(holder, dict):
        raise bad_fields({place: f"expected an object, got {kind_of(holder)}"})
    items = holder.get(name)
    if items is None:
        return
    if not isinstance(items, list):
        raise bad_fields({f"{place}/{name}": f"expected an array, got {kind_of(items)}"})
    for index, item in enumerate(items):
        yield f"{place}/{name}/{index}", item


def _dict(holder: Any) -> dict[str, Any]:
    return holder if isinstance(holder, dict) else {}  # what is no object is refused by _members


def _resource(resource_logs: dict[str, Any]) -> dict[str, Any]:
    return _attributes(_object(resource_logs, "resource"))


def _scope(scope_logs: dict[str, Any]) -> dict[str, Any]:
    scope = _object(scope_logs, "scope")
    return scope_members(_text(scope, "name"), _text(scope, "version"), _attributes(scope))


def _record(resource: dict[str, Any] | Unreadable, scope: dict[str, Any] | Unreadable, sent: Any) -> LogRecord:
    of_resource, of_scope = members_of(resource), members_of(scope)
    if not isinstance(sent, dict):
        raise _wrong("the log record", "an object", sent)
    return LogRecord(
        of_resource,
        of_scope,
        _attributes(sent),
        _value(sent.get("body"), 0),
        _text(sent, "eventName"),
        _integer(sent, "timeUnixNano", 0, 2**64) or _integer(sent, "observedTimeUnixNano", 0, 2**64),
        _integer(sent, "severityNumber", -(2**31), 2**31),
        _text(sent, "severityText"),
        _identifier(sent, "traceId", 16),
        _identifier(sent, "spanId", 8),
        _integer(sent, "droppedAttributesCount", 0, 2**32),
    )


def _attributes(holder: dict[str, Any], name: str = "attributes", level: int = 0) -> dict[str, Any]:
    pairs = holder.get(name)
    if pairs is None:
        return {}
    if not isinstance(pairs, list):
        raise _wrong(name, "an array", pairs)
    return unique((_text(pair, "key"), _value(pair.get("value"), level)) for pair in map(_pair, pairs))


def _pair(pair: Any) -> dict[str, Any]:
    if not isinstance(pair, dict):
        raise _wrong("an attribute", "an object", pair)
    return pair


def _value(value: Any, level: int) -> Any:
    """An AnyValue."""
    if level > LEVELS_MAX:
        raise too_deep()
    if value is None:
        return None
    if not isinstance(value, dict):
        raise _wrong("a value", 'an object such as {"stringValue": …}', value)
    kinds = [name for name in _READERS if value.get(name) is not None]
    if len(kinds) > 1:
        raise Unreadable(f"expected one value, got {' and '.join(kinds)}")
    return _READERS[kinds[0]](value, kinds[0], level) if kinds else None


def _array(value: dict[str, Any], name: str, level: int) -> list[Any]:
    values = _object(value, name).get("values")
    if values is None:
        return []
    if not isinstance(values, list):
        raise _wrong("values", "an array", values)
    return [_value(one, level + 1) for one in values]


def _map(value: dict[str, Any], name: str, level: int) -> dict[str, Any]:
    return _attributes(_object(value, name), "values", level + 1)


def _double(value: dict[str, Any], name: str, level: int) -> Any:
    del level
    sent = value[name]
    is_number = isinstance(sent, (int, float)) and not isinstance(sent, bool)
    if not is_number and not (isinstance(sent, str) and _DOUBLE.fullmatch(sent)):
        raise _wrong(name, "a number", sent)
    try:
        return number(float(sent))
    except OverflowError:
        raise _wrong(name, "a number that a double can be", sent) from None


def _bytes(value: dict[str, Any], name: str, level: int) -> str:
    """Base64 of either alphabet, with padding or without, as in protobuf's JSON."""
    del level
    sent = _text(value, name)
    padded = sent.rstrip("=") + "=" * (-len(sent.rstrip("=")) % 4)
    try:
        return binary(urlsafe_b64decode(padded) if "-" in sent or "_" in sent else b64decode(padded, validate=True))
    except ValueError:
        raise _wrong(name, "base64", sent) from None


def _bool(value: dict[str, Any], name: str, level: int) -> bool:
    del level
    if not isinstance(value[name], bool):
        raise _wrong(name, "true or false", value[name])
    return value[name]  # type: ignore[no-any-return]  # it is one


_READERS: dict[str, Callable[[dict[str, Any], str, int], Any]] = {
    "stringValue": lambda value, name, _: _text(value, name),
    "boolValue": _bool,
    "intValue": lambda value, name, _: _integer(value, name, -(2**63), 2**63),
    "doubleValue": _double,
    "arrayValue": _array,
    "kvlistValue": _map,
    "bytesValue": _bytes,
}


def _object(holder: dict[str, Any], name: str) -> dict[str, Any]:
    value = holder.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise _wrong(name, "an object", value)
    return value


def _text(holder: dict[str, Any], name: str) -> str:
    value = holder.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise _wrong(name, "a string", value)
    return value


def _integer(holder: dict[str, Any], name: str, low: int, end: int) -> int:
    """A number, or its decimal digits as a string: integers of 64 bits are sent so."""
    sent = holder.get(name)
    value = int(sent) if isinstance(sent, str) and _DIGITS.fullmatch(sent) else 0 if sent is None else sent
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value < end:
        raise _wrong(name, f"an integer from {low} to {end - 1}", sent)
    return value


def _identifier(holder: dict[str, Any], name: str, size: int) -> str:
    sent = _text(holder, name)
    if not _HEX.fullmatch(sent) or len(sent) % 2:
        raise _wrong(name, "hex digits", sent)
    return trace_identifier(bytes.fromhex(sent), size)


def _wrong(what: str, expected: str, value: Any) -> Unreadable:
    return Unreadable(f"{what}: expected {expected}, got {excerpt(value)}")
