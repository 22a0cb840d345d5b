"""Self events: written as any other event, and left out of the pages of clients that did not ask for them."""

from typing import Any
from uuid import uuid4

import pytest
from pydantic import SecretStr

from app import db
from app.errors import BadRequest
from app.events.catalog import SELF_EVENT_TYPES
from app.events.catalog.examples import example
from app.ingest.self_events import self_event, write_self_event
from app.ingest.store import Store
from app.ingest.writer import Writer
from app.query.filter import EventQuery
from app.query.page import page
from app.settings import Settings
from tests.logs import FIRST_LOG

LOG = "test.example/datastorage"


async def test_self_events_are_written_and_left_out(database_url: str, connection: Any) -> None:
    """A self event is not sealed as others are, is in the chain of what it is about, or is in the pages of every client."""
    settings = Settings(database_url=SecretStr(database_url))
    writer = Writer(Store(settings, FIRST_LOG), settings)
    writer.start()
    about = uuid4()
    for name in sorted(SELF_EVENT_TYPES):
        await write_self_event(writer, self_event(LOG, example(name), about=about, actor_id="ada"), 5_000)
    await writer.close()
    rows = await connection.fetch("SELECT event_type, correlation_id, log_index FROM audit_events ORDER BY log_index")
    assert [row["event_type"] for row in rows] == sorted(SELF_EVENT_TYPES)
    assert {row["correlation_id"] for row in rows} == {
        f"datastorage:{n.split('.')[1]}:{about}" for n in SELF_EVENT_TYPES
    }
    engine = db.create_engine(settings)
    assert (await page(engine, EventQuery())).total == 0
    assert (await page(engine, EventQuery(include="self"))).total == len(SELF_EVENT_TYPES)
    assert (await page(engine, EventQuery(event_category="security"))).total == len(SELF_EVENT_TYPES)
    await engine.dispose()


def test_self_event_is_checked() -> None:
    """The service writes an event about itself that its own catalog refuses."""
    with pytest.raises(BadRequest, match="/event_data/operation_id"):
        self_event(LOG, {"event_type": "datastorage.retention.purged", "positions": "{}", "event_count": 0})
