"""The platform's older hash, under which rows stand that others wrote by SQL (contract section 10). For verification only."""

import hashlib
import hmac
from datetime import date, datetime
from decimal import Decimal
from typing import Any, Protocol

import orjson

from app.events.canonical import loads
from app.events.record import address_text

_SHORT = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t", "\b": "\\b", "\f": "\\f"}
_ESCAPED = {chr(code): f"\\u{code:04x}" for code in (*range(0x20), 0x2028, 0x2029, *map(ord, "<>&"))} | _SHORT
_TRANSLATION = str.maketrans(_ESCAPED)


class Row(Protocol):
    """A row of audit_events as asyncpg returns it, event_data as jsonb's text."""

    def __getitem__(self, name: str, /) -> Any: ...


def reference_hash(row: Row, previous: str, key: bytes | None = None) -> str:
    """SHA-256 of the previous hash's hex text and the canonical JSON; HMAC-SHA-256 with `key`."""
    message = previous.encode() + reference_json(row).encode()
    return (hmac.new(key, message, "sha256") if key else hashlib.sha256(message)).hexdigest()


def reference_json(row: Row) -> str:
    """The text that is hashed: the members of a query answer in their order, some of them fixed."""
    members: dict[str, Any] = {
        "event_id": str(row["event_id"]),
        "event_timestamp": moment(row["event_timestamp"]),
        "event_date": None,
        "event_type": row["event_type"],
        "version": row["event_version"],
        "event_category": row["event_category"],
        "event_action": row["event_action"],
        "event_outcome": row["event_outcome"],
        "correlation_id": row["correlation_id"],
        "parent_event_id": None if row["parent_event_id"] is None else str(row["parent_event_id"]),
        "parent_event_date": _midnight(row["parent_event_date"]),
    }
    for name in _OMITTED_WHEN_EMPTY:
        value = address_text(row[name]) if name == "actor_ip" else row[name]
        if value:
            members[name] = value
    members |= {
        "retention_days": row["retention_days"],
        "is_sensitive": row["is_sensitive"],
        "event_hash": "",
        "previous_event_hash": "",
        "legal_hold": False,
        "legal_hold_reason": "",
        "legal_hold_placed_by": "",
        "legal_hold_placed_at": None,
        "event_data": _doubles(loads(row["event_data"])),
    }
    return _text(members)


_OMITTED_WHEN_EMPTY = (
    *("resource_type", "resource_id", "namespace", "cluster_id", "severity", "duration_ms", "error_code"),
    *("error_message", "actor_id", "actor_type", "actor_ip"),
)


def moment(time: datetime) -> str:
    """RFC 3339, as many fraction digits as are needed."""
    text = time.strftime("%Y-%m-%dT%H:%M:%S").rjust(19, "0")
    return text + (f".{time.microsecond:06d}".rstrip("0") if time.microsecond else "") + "Z"


def _midnight(day: date | None) -> str | None:
    return None if day is None else f"{day.isoformat()}T00:00:00Z"


def _doubles(value: Any) -> Any:
    """The reference reads every number as a double, and sorts keys by their UTF-8 bytes."""
    if isinstance(value, dict):
        return {key: _doubles(value[key]) for key in sorted(value)}
    if isinstance(value, list):
        return [_doubles(item) for item in value]
    if isinstance(value, (int, float, Decimal)) and not isinstance(value, bool):
        return float(value)
    return value


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ",".join(f"{_text(key)}:{_text(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_text, value)) + "]"
    if isinstance(value, str):
        return f'"{value.translate(_TRANSLATION)}"'
    if isinstance(value, float):
        return _number(value)
    return orjson.dumps(value).decode()


def _number(value: float) -> str:
    """Go's shortest form: plain, but for very small and very large numbers."""
    if value and not 1e-6 <= abs(value) < 1e21:
        mantissa, _, power = f"{Decimal(repr(value)):e}".lower().partition("e")
        return f"{mantissa}e{power}"
    digits = f"{Decimal(repr(value)):f}"
    return digits.rstrip("0").rstrip(".") if "." in digits else digits
