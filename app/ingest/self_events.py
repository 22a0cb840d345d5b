"""Self events: events that the service writes about itself (docs/design.md, section 2). Made here, written as any other.

Each has a correlation id of its own, `datastorage:<kind>:<uuid>`, never that of the events it is about.
"""

import asyncio
import os
from datetime import UTC, datetime
from time import time_ns
from typing import Any
from uuid import UUID, uuid4

import orjson

from app.events import ids
from app.events.canonical import parse
from app.events.catalog import Catalog
from app.events.own import CATEGORY, correlation_of
from app.ingest.accept import Acceptance, Event, accept, check_item
from app.ingest.event_writer import EventWriter
from app.ingest.submission import Submission

ACTOR = "datastorage-service"
_CATALOG = Catalog(allow_self_events=True)


def self_event(
    log_name: str,
    payload: dict[str, Any],
    *,
    about: UUID | None = None,
    actor_id: str = ACTOR,
    event_id: UUID | None = None,
) -> Event:
    """The event with `payload`: one of app/events/catalog/self_events.py, with its event_type. Raises BadRequest if it is not valid.

    Events with the same `about` share a chain. `actor_id` is who ordered what the event records, if not the service itself.
    An event with an `event_id` is stored once, whatever its date.
    """
    event_type: str = payload["event_type"]
    action = event_type.rpartition(".")[2]
    now = datetime.now(UTC)
    item = {
        "version": "1.0",
        "event_type": event_type,
        "event_timestamp": now.isoformat(),
        "event_category": CATEGORY,
        "event_action": action,
        "event_outcome": "success",
        "actor_type": "service" if actor_id == ACTOR else "user",
        "actor_id": actor_id,
        "correlation_id": correlation_of(event_type, about or uuid4()),
        "event_data": payload,
    }
    document = parse(orjson.dumps(item))
    draft = check_item(_CATALOG, document.value, "", plain=document.plain, depth=document.depth)
    other_ids = {event_id: (event_id,)} if event_id else {}
    event_id = event_id or ids.random_event_id(time_ns() // 1_000_000, os.urandom(10))
    return accept([draft], [event_id], Acceptance(now, {}, log_name, other_ids=other_ids))[0]


async def write_self_event(writer: EventWriter, event: Event, deadline_ms: int) -> None:
    """Have the pod's writer store `event`, in order with all others. Raises what Writer.submit() raises."""
    deadline = asyncio.get_running_loop().time() + deadline_ms / 1000
    await writer.submit(Submission([event], {}, may_exist=bool(event.other_ids)), deadline)
