"""An accepted event as the spool keeps it: the columns fixed at acceptance as one JSON object, and back, without loss."""

from datetime import date, datetime
from typing import Any
from uuid import UUID

import orjson

from app.events.record import commitment, committed_jcs, record
from app.ingest.accept import ACCEPTED_COLUMNS, Event

_DATES = ("event_date", "parent_event_date")
_TIMES = ("event_timestamp", "recorded_at")
_IDS = ("event_id", "parent_event_id")


def keep(events: list[Event]) -> bytes:
    """The events of one request."""
    return orjson.dumps([_members(event) for event in events])


def revive(kept: bytes, log: str) -> list[Event]:
    """The same events, ready to be linked into the log named `log`."""
    return [_event(members, log) for members in orjson.loads(kept)]


def shown(kept: bytes) -> list[dict[str, Any]]:
    """The events as an operator reads them: without salt, the payload as JSON."""
    return [_shown(members) for members in orjson.loads(kept)]


def _shown(members: dict[str, Any]) -> dict[str, Any]:
    left_out = {"payload_salt", "digest"}
    kept = {name: value for name, value in members.items() if name not in left_out and value is not None}
    return kept | {"event_data": orjson.Fragment(members["event_data"].encode())}


def _members(event: Event) -> dict[str, Any]:
    row = dict(zip(ACCEPTED_COLUMNS, event.row, strict=True))
    # As a text within the text: no reader of JSON gets to touch the payload's numbers.
    row["event_data"] = row["event_data"].decode()
    row["payload_salt"] = row["payload_salt"].hex()
    for name in _IDS:
        row[name] = row[name] and str(row[name])
    traced = {name: event.record[name] for name in ("trace_id", "span_id")}
    return row | traced | {"digest": event.digest and event.digest.hex()}


def _event(row: dict[str, Any], log: str) -> Event:
    digest = row.pop("digest")
    row["event_data"] = row["event_data"].encode()
    row["payload_salt"] = bytes.fromhex(row["payload_salt"])
    for names, read in ((_DATES, date.fromisoformat), (_TIMES, datetime.fromisoformat), (_IDS, UUID)):
        for name in names:
            row[name] = row[name] and read(row[name])
    hashed = record(row, log, commitment(row["payload_salt"], committed_jcs(row)))
    columns = tuple(row[name] for name in ACCEPTED_COLUMNS)
    size = len(row["event_data"])
    return Event(row["event_id"], row["correlation_id"], columns, hashed, digest and bytes.fromhex(digest), size)
