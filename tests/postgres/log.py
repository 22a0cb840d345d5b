"""Events of any time, written through the writer, for tests of what happens to them later."""

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
from app.tlog.continued import newest_log
from tests.logs import FIRST_LOG

LOG = "test.example/datastorage"


async def write(url: str, *items: dict[str, Any]) -> list[UUID]:
    """Write one event after another; `items` are the members that differ from the usual ones. Returns their ids."""
    settings = Settings(database_url=SecretStr(url))
    writer = Writer(Store(settings, FIRST_LOG, find_log=newest_log), settings)
    writer.start()
    written = []
    try:
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
                "event_data": {
                    "event_type": "orchestrator.lifecycle.started",
                    "rr_name": "rr",
                    "namespace": "payments",
                },
            } | members
            draft = check_item(Catalog(), item, "", plain=False, depth=3)
            parents = {draft.parent_id: now.date()} if draft.parent_id else {}
            event = accept([draft], [single_id(draft)], Acceptance(now, parents, LOG))[0]
            submission = Submission([event], {}, may_exist=event.digest is not None)
            await writer.submit(submission, asyncio.get_running_loop().time() + 30)
            written.append(event.id)
    finally:
        await writer.close()
    return written
