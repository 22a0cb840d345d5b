"""What one writes in an hour: a FastAPI application that validates an event by a model and stores it with one INSERT.

It has the service's table with all of its indexes, and neither hashes, chains, resends, spool nor rules of payloads.
"""

import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import uvicorn
from fastapi import FastAPI, Request
from pydantic import BaseModel

COLUMNS = {
    "event_id": "uuid",
    "event_date": "date",
    "event_timestamp": "timestamptz",
    **dict.fromkeys(("event_type", "event_category", "event_action", "event_outcome", "actor_type"), "text"),
    **dict.fromkeys(("actor_id", "resource_type", "resource_id", "correlation_id", "namespace", "cluster_id"), "text"),
    "duration_ms": "int",
    "event_data": "jsonb",
}
INSERT = "INSERT INTO audit_events ({}) VALUES ({})".format(
    ", ".join(COLUMNS), ", ".join(f"${number}::{kind}" for number, kind in enumerate(COLUMNS.values(), 1))
)


class Event(BaseModel):
    """The members that the bench sends."""

    event_type: str
    event_timestamp: datetime
    event_category: str
    event_action: str
    event_outcome: str
    actor_type: str
    actor_id: str
    resource_type: str
    resource_id: str
    correlation_id: str
    namespace: str
    cluster_id: str
    duration_ms: int
    event_data: dict[str, Any]

    def row(self, event_id: UUID) -> list[object]:
        """The values of COLUMNS."""
        at = self.event_timestamp.astimezone(UTC)
        given = [getattr(self, name) for name in COLUMNS if name not in {"event_id", "event_date", "event_timestamp"}]
        return [event_id, at.date(), at, *given[:-1], json.dumps(self.event_data)]


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with asyncpg.create_pool(os.environ["DATASTORAGE_DATABASE_URL"], min_size=8, max_size=8) as pool:
        app.state.pool = pool
        yield


app = FastAPI(lifespan=lifespan)


@app.get("/readyz")
async def ready() -> None:
    """Asked by the bench until it answers."""


@app.post("/api/v1/audit/events", status_code=201)
async def post_event(event: Event, request: Request) -> dict[str, str]:
    event_id = uuid4()
    await request.app.state.pool.execute(INSERT, *event.row(event_id))
    return {"event_id": str(event_id)}


@app.post("/api/v1/audit/events/batch", status_code=201)
async def post_batch(events: list[Event], request: Request) -> dict[str, list[str]]:
    ids = [uuid4() for _ in events]
    await request.app.state.pool.executemany(INSERT, [one.row(id_) for one, id_ in zip(events, ids, strict=True)])
    return {"event_ids": [str(one) for one in ids]}


if __name__ == "__main__":
    uvicorn.run(app, port=int(os.environ["DATASTORAGE_PORT"]), log_level="warning", access_log=False)
