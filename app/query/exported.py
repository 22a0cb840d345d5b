"""One row as it is exported, whole or with what points at people masked."""

from functools import lru_cache
from typing import Any

import orjson

from app.events.canonical import canonical, loads, readable
from app.events.record import Row, commitment, committed, ip_packed, ip_text
from app.integrity.exportfile import JSON_MEMBERS, MEMBERS
from app.integrity.manifest import Place
from app.query import redact

_JSON = ("event_data", "event_metadata")
_NO_TEXT = JSON_MEMBERS | {
    *("event_id", "event_timestamp", "event_date", "recorded_at", "parent_event_id", "parent_event_date", "log"),
    *("payload_salt", "payload_commitment", "legal_hold_placed_at"),
}
_TEXTS = tuple(name for name in MEMBERS if name not in _NO_TEXT)


def exported(row: Row, *, redacted: bool) -> dict[str, Any]:
    """The members of an exported event; event_data and event_metadata are ready JSON."""
    event: dict[str, Any] = dict(row)  # type: ignore[call-overload]  # a record or a dict
    if event["log_index"] is not None and event["actor_ip"] is not None:
        event["actor_ip"] = _our_address(event["actor_ip"])
    if redacted:
        _redact(event)
        return event
    for name in _JSON:
        if event[name] is not None:
            event[name] = orjson.Fragment(readable(event[name]))
    return event


def place(row: Row) -> Place:
    """Where an event stands in the order of exports."""
    if row["log_index"] is not None:
        return Place(row["log_index"])
    return Place(None, row["event_id"], row["event_date"].isoformat())


@lru_cache(4096)
def _our_address(text: str) -> str:
    """As the record has it. One with a mask is none that we write, and stays as it is."""
    try:
        return ip_text(ip_packed(text))
    except ValueError:
        return text


def _redact(event: dict[str, Any]) -> None:
    """The commitment takes the place of the salt: with it the record can still be hashed, and nothing can be guessed."""
    if event["log_index"] is not None and event["payload_commitment"] is None:
        salt = bytes.fromhex(event["payload_salt"] or "")
        event["payload_commitment"] = commitment(salt, committed(event, stored=True)).hex()
    event["payload_salt"] = None
    changed = []
    for name in _TEXTS:
        text = event[name]
        if text is not None and (masked := redact.text(text)) != text:
            event[name] = masked
            changed.append(name)
    for name in _JSON:
        if event[name] is not None:
            value = loads(event[name])
            masked = redacted_tree(value)
            if masked != value:
                changed.append(name)
            event[name] = orjson.Fragment(canonical(masked))
    event["redacted"] = changed or None


def redacted_tree(value: Any) -> Any:
    """A payload that only SQL can have made so deep is masked whole."""
    try:
        return redact.tree(value)
    except RecursionError:
        return redact.MASK
