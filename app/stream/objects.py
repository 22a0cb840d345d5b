"""Portions as objects of a bucket: gzipped lines by hour, and a manifest for each that says what is in it.

    2026/01/31/12/0-000000004711-000000005210-5d41402abc4b.ndjson.gz
    manifests/0-000000004711-5d41402abc4b.json

The hour is that of `recorded_at` of the first event, the numbers are the log and its positions, and the last part is the portion's id: the
same for a repeat, another one after the cursor was moved by hand. So a repeat writes the same keys, and nothing is overwritten.
"""

import gzip
import hashlib
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import islice, pairwise
from typing import Any

import orjson

from app.events.log import LOG_POSITIONS
from app.stream.destination import Delivery
from app.stream.formats.lines import Format, format_line
from app.stream.place import place_text
from app.stream.portion import Absent, Checkpoint, Item, StreamedEvent

_ID_LENGTH = 12
PARTS_MAX = 100
"""Of a portion, which may reach over a year."""


@dataclass(frozen=True, slots=True)
class Part:
    """What one object has of a portion: the items from one place up to another."""

    items: Sequence[Item]
    first: int
    next: int


def parts(delivery: Delivery) -> Iterator[Part]:
    """The parts of a portion in order, a new one with each hour."""
    begins = [0, *_begins(delivery.items), len(delivery.items)]
    for begin, end in pairwise(begins):
        first = delivery.items[begin][0] if begin else delivery.first
        after = delivery.items[end][0] if end < len(delivery.items) else delivery.next
        yield Part(delivery.items[begin:end], first, after)


def items_of_parts(items: Sequence[Item], count: int) -> int:
    """How many items are in the first `count` parts."""
    return next(islice(_begins(items), count - 1, None), len(items))


def _begins(items: Sequence[Item]) -> Iterator[int]:
    """Where each part but the first begins."""
    hour = ""
    for number, item in enumerate(items):
        if isinstance(item, StreamedEvent):
            time = _hour(item.event["recorded_at"])
            if hour and time > hour:  # one that was recorded before the one in front of it needs no object of its own
                yield number
            hour = max(hour, time)


def object_key(part: Part, delivery: Delivery) -> str:
    """Where a part is stored. One without an event has no hour."""
    event = next((item for item in part.items if isinstance(item, StreamedEvent)), None)
    folder = _hour(event.event["recorded_at"]) if event else "others"
    items = [item for item in part.items if not isinstance(item, Checkpoint)] or part.items
    first, last = _key(items[0][0]), _key(_last(items[-1]))
    return f"{folder}/{first}-{last.removeprefix(first[: first.index('-') + 1])}-{_id(delivery)}.ndjson.gz"


def object_body(part: Part, delivery: Delivery, form: Format) -> bytes:
    """The same bytes for the same items."""
    return gzip.compress(b"".join(format_line(item, form, delivery.log) for item in part.items), mtime=0)


def is_of(part: Part, delivery: Delivery, form: Format, body: bytes) -> bool:
    """Whether an object has the part: each event by its hash, since a member that no hash covers (legal_hold) may have changed since."""
    try:
        lines = gzip.decompress(body).splitlines(keepends=True)
    except (OSError, EOFError, zlib.error):
        return False
    return len(lines) == len(part.items) and all(
        str(item.event["event_hash"]).encode() in line
        if isinstance(item, StreamedEvent)
        else line == format_line(item, form, delivery.log)
        for item, line in zip(part.items, lines, strict=True)
    )


def manifest_key(part: Part, delivery: Delivery) -> str:
    """Where the manifest of a part is stored: in the order of the log, whatever the hour."""
    return f"manifests/{_key(part.first)}-{_id(delivery)}.json"


def manifest(part: Part, delivery: Delivery, key: str, body: bytes, form: Format) -> bytes:
    """What is in the object that is stored with `key`: `first` up to, not including, `next`."""
    checkpoints = [item.note for item in part.items if isinstance(item, Checkpoint)]
    content: dict[str, Any] = {
        "first": place_text(part.first),
        "next": place_text(part.next),
        "object": key,
        "sha256": hashlib.sha256(body).hexdigest(),
        "bytes": len(body),
        "lines": len(part.items),
        "events": sum(isinstance(item, StreamedEvent) for item in part.items),
        "format": form,
        "sink": delivery.sink,
        "log": delivery.log.name_of(part.first // LOG_POSITIONS),
        "checkpoint": checkpoints[-1] if checkpoints else None,
    }
    return orjson.dumps(content, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


def test_key(delivery: Delivery) -> str:
    """Where a made-up event is stored."""
    return f"test/{delivery.id}.ndjson.gz"


def _hour(recorded_at: datetime) -> str:
    """In UTC, as every time of an event."""
    return f"{recorded_at:%Y/%m/%d/%H}"


def _key(place: int) -> str:
    log_id, position = divmod(place, LOG_POSITIONS)
    return f"{log_id}-{position:012}"


def _last(item: Item) -> int:
    return item.end - 1 if isinstance(item, Absent) else item[0]


def _id(delivery: Delivery) -> str:
    return delivery.id[:_ID_LENGTH]
