"""The lines of a stream as ndjson: an event as exports have it, and records of what else there is, which have a member `stream`."""

from typing import Any

import orjson

from app.export.file import event_record
from app.stream.place import place_text
from app.stream.portion import Absent, Checkpoint, Item, Seam, StreamedEvent

Control = dict[str, Any]
"""A record that is no event. `stream` says of which kind; no exported event has that member."""


def ndjson_line(item: Item) -> bytes:
    """The line of an item, with its end."""
    if isinstance(item, StreamedEvent):
        return event_record("ndjson", item.event)
    return control_line(control_record(item))


def control_line(record: Control) -> bytes:
    """The line of a record that is no event."""
    return orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE)


def control_record(item: Absent | Seam | Checkpoint) -> Control:
    """What a stream says of its log besides the events."""
    match item:
        case Absent(first, end, reason):
            return {"stream": "absent", "reason": reason, "first": place_text(first), "end": place_text(end)}
        case Seam(place, log, closed, size):
            return {"stream": "seam", "place": place_text(place), "log": log, "closed": closed, "size": size}
        case Checkpoint(place, note):
            return {"stream": "checkpoint", "place": place_text(place), "note": note}


def control_id(record: Control) -> str:
    """What tells a record from all others of its log; the same each time that it is sent."""
    return ":".join(str(record[name]) for name in ("stream", "place", "first", "end", "reason") if name in record)
