"""Events and notifications as the spool stores them, as JSON, and back without loss.

An event is stored as the columns fixed at acceptance, so that replay writes what was acknowledged: id, times, salt and all.
"""

from datetime import date, datetime
from typing import Any
from uuid import UUID

import orjson

from app.events.record import commitment, committed_jcs, record
from app.ingest.accept import ACCEPTED_COLUMNS, Event
from app.ingest.notifications import Notification

_DATES = ("event_date", "parent_event_date")
_TIMES = ("event_timestamp", "recorded_at")
_IDS = ("event_id", "parent_event_id")
_JSON = ("event_data", "event_metadata")
_NOT_READABLE = ("payload_salt", "digest", "other_ids", "alias")


def encode(events: list[Event]) -> bytes:
    """The events of one request as a JSON array."""
    return orjson.dumps([_members(event) for event in events])


def decode(body: bytes, log_name: str) -> list[Event]:
    """The events that encode() was given, ready to be linked into the log of this name."""
    return [_event(members, log_name) for members in orjson.loads(body)]


def readable(body: bytes) -> list[dict[str, Any]]:
    """The events of encode() for an operator: without salt and digest, with the payload as JSON."""
    return [_readable(members) for members in orjson.loads(body)]


def encode_notification(notification: Notification) -> bytes:
    """One notification as a JSON object."""
    return orjson.dumps(notification)


def decode_notification(body: bytes) -> Notification:
    """The notification that encode_notification() was given."""
    members = orjson.loads(body)
    return Notification(**members | {"sent_at": datetime.fromisoformat(members["sent_at"])})


def _readable(members: dict[str, Any]) -> dict[str, Any]:
    shown = {name: value for name, value in members.items() if name not in _NOT_READABLE and value is not None}
    return shown | {name: orjson.Fragment(shown[name].encode()) for name in _JSON if name in shown}


def _members(event: Event) -> dict[str, Any]:
    row = dict(zip(ACCEPTED_COLUMNS, event.row, strict=True))
    # As a string within the JSON, so that no JSON reader changes the payload's numbers.
    row["event_data"] = row["event_data"].decode()
    row["payload_salt"] = row["payload_salt"].hex()
    for name in _IDS:
        row[name] = row[name] and str(row[name])
    traced = {name: event.record[name] for name in ("trace_id", "span_id")}
    extra: dict[str, Any] = {"digest": event.digest and event.digest.hex()}
    if event.metadata is not None:
        extra["event_metadata"] = event.metadata.decode()
    if event.other_ids:
        extra["other_ids"] = [str(other) for other in event.other_ids]
    if event.alias is not None:
        extra["alias"] = str(event.alias)
    return row | traced | extra


def _event(row: dict[str, Any], log_name: str) -> Event:
    digest, metadata = row.pop("digest"), row.get("event_metadata")
    other_ids = tuple(map(UUID, row.pop("other_ids", ())))
    alias = UUID(text) if (text := row.pop("alias", None)) else None
    row["event_data"] = row["event_data"].encode()
    row["event_metadata"] = metadata = metadata and metadata.encode()
    row["payload_salt"] = bytes.fromhex(row["payload_salt"])
    for names, parse in ((_DATES, date.fromisoformat), (_TIMES, datetime.fromisoformat), (_IDS, UUID)):
        for name in names:
            row[name] = row[name] and parse(row[name])
    hashed = record(row, log_name, commitment(row["payload_salt"], committed_jcs(row)))
    columns = tuple(row[name] for name in ACCEPTED_COLUMNS)
    size = len(row["event_data"])
    digest = digest and bytes.fromhex(digest)
    return Event(row["event_id"], row["correlation_id"], columns, hashed, digest, size, metadata, other_ids, alias)
