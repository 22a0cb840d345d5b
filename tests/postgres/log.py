"""Events written as the writer writes them, whatever their time, for tests of what becomes of them later."""

import asyncio
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from pydantic import SecretStr

from app.events.catalog import Catalog
from app.ingest.accept import Acceptance, accept, check_item, single_id
from app.ingest.store import Store
from app.ingest.submission import Submission
from app.ingest.writer import Writer
from app.settings import Settings

LOG = "test.example/datastorage"


async def write(url: str, *items: dict[str, Any]) -> list[UUID]:
    """Write one event after another: the members that each has beside the usual ones. Answers their ids."""
    settings = Settings(database_url=SecretStr(url))
    writer = Writer(Store(settings, LOG), settings)
    writer.start()
    written = []
    for members in items:
        now = datetime.now(UTC)
        item = {
            "version": "1.0",
            "event_type": "orchestrator.lifecycle.started",
            "event_timestamp": now.isoformat(),
            "event_category": "orchestration",
            "event_action": "started",
            "event_outcome": "success",
            "correlation_id": "rr-1",
            "event_data": {"event_type": "orchestrator.lifecycle.started", "rr_name": "rr", "namespace": "payments"},
        } | members
        drafted = check_item(Catalog(), item, "", plain=False, depth=3)
        parents = {drafted.parent_id: now.date()} if drafted.parent_id else {}
        event = accept([drafted], [single_id(drafted)], Acceptance(now, parents, LOG))[0]
        submission = Submission([event], {}, may_exist=event.digest is not None)
        await writer.submit(submission, asyncio.get_running_loop().time() + 30)
        written.append(event.id)
    await writer.close()
    return written
