"""Items of a stream as portions have them, and deliveries of them."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import orjson

from app.events.canonical import sorted_json
from app.export.file import MEMBERS
from app.stream.destination import Delivery
from app.stream.portion import Item, StreamedEvent
from tests.logs import FIRST_LOG

BEGIN = datetime(2026, 1, 31, 12, 59, 59, 900_000, tzinfo=UTC)
NASTY = 'line\nfeed \x1b[31mred\x1b[0m \x7f \x85 "quote" \\ ] ü 🎉 \u202e'


def streamed_event(position: int, payload: Any = None, **members: Any) -> StreamedEvent:
    """An event that was recorded a millisecond after the one before it."""
    time = BEGIN + timedelta(milliseconds=position)
    event: dict[str, Any] = dict.fromkeys(MEMBERS) | {
        "event_id": UUID(int=position),
        "event_version": "1.0",
        "event_timestamp": time,
        "event_date": time.date(),
        "recorded_at": time,
        "event_type": "orchestrator.lifecycle.transitioned",
        "event_category": "orchestration",
        "event_action": "transitioned",
        "event_outcome": "success",
        "correlation_id": "rr-1",
        "actor_type": "service",
        "actor_id": "orchestrator",
        "is_sensitive": False,
        "hash_algorithm": "sha256-rfc6962",
        "log": FIRST_LOG.name,
        "log_index": position,
        "chain_index": position,
        "previous_event_hash": "",
        "event_hash": f"{position:064x}",
        "event_data": {"n": position} if payload is None else payload,
        "sealed": True,
    }
    event |= members
    event["event_data"] = orjson.Fragment(sorted_json(orjson.dumps(event["event_data"])))
    return StreamedEvent(FIRST_LOG.place(position), event)


def delivery(*items: Item, first: int | None = None, end: int | None = None, sink: str = "soc") -> Delivery:
    """A portion of these items."""
    begin = items[0][0] if first is None else first
    return Delivery(sink, items, begin, items[-1][0] + 1 if end is None else end, FIRST_LOG)


def portion(first: int, end: int) -> Delivery:
    """A portion with an event at each position."""
    return delivery(*map(streamed_event, range(first, end)))
