"""A log record as both encodings give it: JSON values only, so that one record has one form and one digest."""

import hashlib
import math
from base64 import b64encode
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, TypeVar

from app.errors import BadRequest
from app.events.canonical import canonical

_S = TypeVar("_S")
_T = TypeVar("_T")
LEVELS_MAX = 20
"""Of maps and arrays in one value: more than a payload may have, whose check then names its limit."""


class Unreadable(BadRequest):
    """A log record, or its resource or scope, that has no JSON form; nothing of the record can be stored."""


@dataclass(slots=True)
class LogRecord:
    """One log record with its resource and scope. Empty text and 0 are: not given."""

    resource: dict[str, Any] = field(default_factory=dict)
    """Attributes of what has sent the record."""
    scope: dict[str, Any] = field(default_factory=dict)
    """`name`, `version` and `attributes` of the part of it that did, those that are there."""
    attributes: dict[str, Any] = field(default_factory=dict)
    body: Any = None
    event_name: str = ""
    time_ns: int = 0
    """Since 1970: when it happened, else when it was observed."""
    severity_number: int = 0
    severity_text: str = ""
    trace_id: str = ""
    span_id: str = ""
    """In hex; empty also for ids that W3C trace context does not allow."""
    dropped_attributes: int = 0

    def digest(self) -> str:
        """Hex SHA-256 of the JCS of the record. Ids are computed from it, so this never changes."""
        members = [
            *(self.resource, self.scope, self.attributes, self.body, self.event_name, self.time_ns),
            *(self.severity_number, self.severity_text, self.trace_id, self.span_id, self.dropped_attributes),
        ]
        return hashlib.sha256(canonical(members)).hexdigest()


def readable(read: Callable[[_S], _T], sent: _S) -> _T | Unreadable:
    """What `read` makes of it, or why it cannot be read."""
    try:
        return read(sent)
    except Unreadable as error:
        return error


def members_of(part: dict[str, Any] | Unreadable) -> dict[str, Any]:
    """A resource or scope that was read. Raises why it cannot be."""
    if isinstance(part, Unreadable):
        raise part.with_traceback(None)  # it is raised for each record, and would remember every time
    return part


def scope_members(name: str, version: str, attributes: dict[str, Any]) -> dict[str, Any]:
    """The members of LogRecord.scope."""
    members = {"name": name, "version": version, "attributes": attributes}
    return {name: value for name, value in members.items() if value}


def number(value: float) -> Any:
    """A double as JSON has it: an integer if it is one; text for what JSON has no number for, as in protobuf's JSON."""
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    if value.is_integer():  # the digits of its shortest form, as everywhere: 10^23 for 1e23, whose double is less
        return int(value) if abs(value) < 2**53 else int(Decimal(repr(value)))
    return value


def binary(value: bytes) -> str:
    """Bytes as JSON has them: base64 with padding."""
    return b64encode(value).decode()


def trace_identifier(value: bytes, size: int) -> str:
    """A trace or span id in hex; empty if it is not a valid one, since OTLP has receivers read such a one as absent."""
    return value.hex() if len(value) == size and any(value) else ""


def unique(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Attributes, or a map. Unreadable if a key is there twice: nobody can know which value is meant."""
    values: dict[str, Any] = {}
    for key, value in pairs:
        if key in values:
            raise Unreadable(f"the attribute {key[:100]!r} is there twice: send it once")
        values[key] = value
    return values


def too_deep() -> Unreadable:
    """The refusal of a value with more levels than can be stored."""
    return Unreadable(f"expected a nesting of at most {LEVELS_MAX} levels")
