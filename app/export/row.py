"""One row as an exported event, complete or redacted, and whether a row has its own hash."""

from functools import lru_cache
from typing import Any

import orjson

from app.events.canonical import canonical, loads, sorted_json
from app.events.log import Log
from app.events.record import Row, commitment_of, ip_packed, ip_text
from app.events.reference import recompute_hash
from app.export import redact
from app.export.file import JSON_MEMBERS, MEMBERS
from app.export.manifest import ExportPosition
from app.export.select import ExportQuery
from app.tlog.evidence import Erasures
from app.verify.row import row_defects

_JSON = ("event_data", "event_metadata")
NOT_TEXT = JSON_MEMBERS | {
    *("event_id", "event_timestamp", "event_date", "recorded_at", "parent_event_id", "parent_event_date", "log"),
    *("payload_salt", "payload_commitment", "legal_hold_placed_at"),
}
_TEXTS = tuple(name for name in MEMBERS if name not in NOT_TEXT)


def exported_event(row: Row, *, redacted: bool) -> dict[str, Any]:
    """The members of an exported event. Its event_data and event_metadata are JSON already, as orjson.Fragment."""
    event: dict[str, Any] = dict(row)  # type: ignore[call-overload]  # a record or a dict
    if event["log_index"] is not None and event["actor_ip"] is not None:
        event["actor_ip"] = record_address(event["actor_ip"])
    if redacted:
        _redact(event)
        return event
    for name in _JSON:
        if event[name] is not None:
            event[name] = orjson.Fragment(sorted_json(event[name]))
    return event


def mask(query: ExportQuery, value: Any) -> Any:
    """A JSON value as this export shows it: personal data masked, if it is a redacted one."""
    return masked_tree(value) if query.redact_pii else value


def export_position(row: Row, *, with_log: bool) -> ExportPosition:
    """The position of a row's event in the order of exports; `with_log` where that has events of several logs."""
    if row["log_index"] is not None:
        return ExportPosition(row["log_index"], log=row["log"] if with_log else None)
    return ExportPosition(None, row["event_id"], row["event_date"].isoformat())


def verdict_on(row: Row, log: Log, hmac_key: bytes | None, erased: Erasures) -> bool | None:
    """Whether a row by itself is as verification wants it: a sealed one has the log's leaf, which the row has as `leaf`.

    None for an unsealed row of which nothing can be said: it has no hash, or one whose algorithm or key is not known. `erased` is
    what was erased, as recorded in the log.
    """
    if row["log_index"] is None:
        return _has_reference_hash(row, hmac_key) if row["event_hash"] else None
    event: dict[str, Any] = dict(row) | {"actor_ip": row["actor_ip"] and record_address(row["actor_ip"])}  # type: ignore[call-overload]  # as above
    return not any(row_defects(event, row["leaf"], log, erased))


def _has_reference_hash(row: Row, hmac_key: bytes | None) -> bool | None:
    try:
        expected = recompute_hash(row, row["previous_event_hash"] or "", hmac_key)
    except ValueError:
        return False  # the reference cannot have written it
    return None if expected is None else bool(expected == row["event_hash"])


@lru_cache(4096)
def record_address(text: str) -> str:
    """As the record has it. One with a netmask, which the service never writes, is returned unchanged."""
    try:
        return ip_text(ip_packed(text))
    except ValueError:
        return text


def _redact(event: dict[str, Any]) -> None:
    """The commitment replaces the salt: with it the record can still be hashed, but masked values cannot be guessed and tested."""
    if event["log_index"] is not None:
        event["payload_commitment"] = commitment_of(event).hex()
    event["payload_salt"] = None
    changed = []
    for name in _TEXTS:
        text = event[name]
        if text is not None and (masked_text := redact.text(text)) != text:
            event[name] = masked_text
            changed.append(name)
    for name in _JSON:
        if event[name] is not None:
            value = loads(event[name])
            masked_value = masked_tree(value)
            if masked_value != value:
                changed.append(name)
            event[name] = orjson.Fragment(canonical(masked_value))
    event["redacted"] = changed or None


def masked_tree(value: Any) -> Any:
    """A payload too deeply nested for recursion, which only SQL can have inserted, is masked as a whole."""
    try:
        return redact.tree(value)
    except RecursionError:
        return redact.MASK
