"""A made-up event, by which a destination is tried: it says so in every form, and has no place in any log."""

from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import orjson

from app.events.log import Log
from app.export.file import MEMBERS
from app.stream.destination import Delivery
from app.stream.portion import StreamedEvent
from app.stream.sink import Sink

TEST_TYPE = "datastorage.sink.test"
NOWHERE = -1
"""Its place; no log has it."""


def made_up_delivery(sink: Sink, log: Log) -> Delivery:
    """A portion of one made-up event."""
    now = datetime.now(UTC)
    text = f"A made-up event, sent by `datastorage sink test {sink.name}`. It is in no log."
    event: dict[str, Any] = dict.fromkeys(MEMBERS) | {
        "event_id": uuid4(),
        "event_version": "1.0",
        "event_timestamp": now,
        "event_date": now.date(),
        "recorded_at": now,
        "event_type": TEST_TYPE,
        "event_category": "security",
        "event_action": "test",
        "event_outcome": "success",
        "correlation_id": f"datastorage:sink:{sink.name}",
        "actor_type": "service",
        "actor_id": "datastorage",
        "resource_type": "sink",
        "resource_id": sink.name,
        "hash_algorithm": "",
        "log": log.name,
        "event_data": orjson.Fragment(orjson.dumps({"event_type": TEST_TYPE, "text": text})),
        "sealed": False,
    }
    items = [StreamedEvent(NOWHERE, event)]
    return Delivery(sink.name, items, NOWHERE, NOWHERE, log, is_test=True, id=f"test-{event['event_id']}")
