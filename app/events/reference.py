"""The hash of the platform's earlier service, which rows inserted by SQL have (docs/contract.md, section 10).

For verification only: the write path never computes it.
"""

import hashlib
import hmac
import math
from datetime import date, datetime
from decimal import Decimal
from typing import Any

import orjson

from app.events.canonical import loads
from app.events.record import Row

UNKEYED_ALGORITHMS = frozenset({"", "sha256-unkeyed"})
KEYED_ALGORITHM = "hmac-sha256"

_SHORT_ESCAPES = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t", "\b": "\\b", "\f": "\\f"}
_UNICODE_ESCAPES = {chr(code): f"\\u{code:04x}" for code in (*range(0x20), *map(ord, "<>&"), 0x2028, 0x2029)}
_ESCAPES = str.maketrans(_UNICODE_ESCAPES | _SHORT_ESCAPES)
_OMITTED_WHEN_EMPTY = (
    *("resource_type", "resource_id", "namespace", "cluster_id", "severity", "duration_ms", "error_code"),
    *("error_message", "actor_id", "actor_type", "actor_ip"),
)


def reference_hash(row: Row, previous: str, key: bytes | None = None) -> str:
    """SHA-256 of the previous hash's hex text and the reference's JSON of `row`; HMAC-SHA-256 with `key`.

    actor_ip and event_data are Postgres's text. ValueError for a payload that the reference cannot have written.
    """
    message = (previous + reference_json(row)).encode()
    return hashlib.sha256(message).hexdigest() if key is None else hmac.new(key, message, "sha256").hexdigest()


def recompute_hash(row: Row, previous: str, hmac_key: bytes | None) -> str | None:
    """The hash of `row` by its own hash_algorithm; None if that is unknown or needs a key that is not configured.

    ValueError as `reference_hash`.
    """
    algorithm = row["hash_algorithm"]
    if algorithm in UNKEYED_ALGORITHMS:
        return reference_hash(row, previous)
    return reference_hash(row, previous, hmac_key) if algorithm == KEYED_ALGORITHM and hmac_key is not None else None


def reference_json(row: Row) -> str:
    """The text that is hashed: the members of a query's answer in their order; those that can change later have fixed values."""
    get = row.get
    parent_event_id = get("parent_event_id")
    members: dict[str, Any] = {
        "event_id": str(get("event_id")),
        "event_timestamp": trimmed_rfc3339(get("event_timestamp")),
        "event_date": None,
        "event_type": get("event_type"),
        "version": get("event_version"),
        "event_category": get("event_category"),
        "event_action": get("event_action"),
        "event_outcome": get("event_outcome"),
        "correlation_id": get("correlation_id"),
        "parent_event_id": None if parent_event_id is None else str(parent_event_id),
        "parent_event_date": _midnight(get("parent_event_date")),
        **{name: value for name in _OMITTED_WHEN_EMPTY if (value := get(name))},
        "retention_days": get("retention_days"),
        "is_sensitive": get("is_sensitive"),
        "event_hash": "",
        "previous_event_hash": "",
        "legal_hold": False,
        "legal_hold_reason": "",
        "legal_hold_placed_by": "",
        "legal_hold_placed_at": None,
    }
    try:
        event_data = _payload(loads(get("event_data")))
    except (RecursionError, OverflowError) as error:
        raise ValueError("event_data is nested too deeply, or contains a number that is not a double") from error
    return f'{{{",".join(f"{_scalar(k)}:{_scalar(v)}" for k, v in members.items())},"event_data":{event_data}}}'


def trimmed_rfc3339(time: datetime) -> str:
    """RFC 3339 text of a UTC time, without needless zeros at the end of the fraction."""
    text = time.isoformat(timespec="microseconds")[:26]
    return text.rstrip("0").rstrip(".") + "Z"


def _midnight(day: date | None) -> str | None:
    return None if day is None else f"{day.isoformat()}T00:00:00Z"


def _payload(value: Any) -> str:
    """JSON with keys in the order of their UTF-8 bytes, which is that of their code points; every number is a double."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{_scalar(key)}:{_payload(value[key])}" for key in sorted(value)) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_payload, value)) + "]"
    if isinstance(value, (int, float, Decimal)) and not isinstance(value, bool):
        return _number(float(value))
    return _scalar(value)


def _scalar(value: Any) -> str:
    return f'"{value.translate(_ESCAPES)}"' if isinstance(value, str) else orjson.dumps(value).decode()


def _number(value: float) -> str:
    """Go's shortest form: plain digits, except for very small and very large numbers."""
    if not math.isfinite(value):
        raise OverflowError
    digits = Decimal(repr(value))
    if value and not 1e-6 <= abs(value) < 1e21:
        return f"{digits.normalize():e}"
    plain = f"{digits:f}"
    return plain.rstrip("0").rstrip(".") if "." in plain else plain
