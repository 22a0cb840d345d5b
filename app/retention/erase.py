"""Erasure on request: what events say of people goes; their records, their places in the log and every proof stay.

The rows are changed in one transaction of the log with the event that names them, and never while one of them is held.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid4

import asyncpg

from app import schema
from app.db import Connection, connect
from app.errors import AuditError, Conflict
from app.events.canonical import canonical, loads
from app.events.catalog import Catalog
from app.events.neutral import neutral_payload
from app.events.record import commitment_of
from app.ingest.link import Flush
from app.ingest.self_events import self_event
from app.ingest.store import Store
from app.retention import multirange
from app.retention.logged import acting, commit
from app.settings import Settings
from app.sql import load

SQL = load("retention")
BATCH_ROWS = 500
_SLOW_SECONDS = 3600.0


class Held(Conflict):
    """Some of these events are under legal hold; release it first."""


class EventsChanged(AuditError):
    """Some of these events were erased or purged meanwhile."""


@dataclass(frozen=True, slots=True)
class Erasure:
    """Whose events, and why: exactly one of the first three is set."""

    reason: str
    by: str
    event_ids: Sequence[UUID] | None = None
    actor_id: str | None = None
    correlation_id: str | None = None


@dataclass(slots=True)
class Erased:
    """What was done, or would be: ids of events, and of rows that others inserted by SQL, which have no proof to keep."""

    erasure_id: UUID
    events: list[UUID] = field(default_factory=list)
    unsealed: list[UUID] = field(default_factory=list)


async def erase(settings: Settings, catalog: Catalog, erasure: Erasure, *, dry_run: bool) -> Erased:
    """Erase what `erasure` names, unless it is erased already. Held, and nothing is done, if any of it is held."""
    if settings.retention_url is not None:
        settings = settings.model_copy(update={"database_url": settings.retention_url})
    done = Erased(uuid4())
    connection = await connect(settings, statement_timeout="0")
    try:
        log_name = await schema.check(connection, settings.log_name)
        arguments = erasure.event_ids, erasure.actor_id, erasure.correlation_id
        rows = await connection.fetch(SQL["erasable"], *arguments, timeout=_SLOW_SECONDS)
        if held := sorted({row["correlation_id"] for row in rows if row["held"]}):
            raise Held(
                f"Nothing was erased, since events of {', '.join(held[:10])} are under legal hold: release it first."
            )
        done.unsealed = [row["event_id"] for row in rows if row["log_index"] is None]
        sealed = [row for row in rows if row["log_index"] is not None]
        async with acting(settings, log_name) as store:
            for start in range(0, len(sealed), BATCH_ROWS):
                batch = [row["event_id"] for row in sealed[start : start + BATCH_ROWS]]
                if not dry_run:
                    whole = await connection.fetch(SQL["to_erase"], batch, timeout=_SLOW_SECONDS)
                    await _erase(store, catalog, (done.erasure_id, erasure), whole)
                done.events += batch
    finally:
        await connection.close()
    return done


async def _erase(store: Store, catalog: Catalog, wanted: tuple[UUID, Erasure], rows: Sequence[asyncpg.Record]) -> None:
    erasure_id, erasure = wanted
    ids = [row["event_id"] for row in rows]
    payloads = [canonical(neutral_payload(catalog, loads(row["event_data"]))) for row in rows]
    commitments = [commitment_of(row) for row in rows]
    payload: dict[str, Any] = {
        "event_type": "datastorage.event.erased",
        "erasure_id": str(erasure_id),
        "event_ids": [str(event_id) for event_id in ids],
        "positions": multirange.of(row["log_index"] for row in rows),
        "erased_by": erasure.by,
        "reason": erasure.reason,
    }

    async def act(connection: Connection, flush: Flush) -> None:
        del flush
        try:
            erased = await connection.fetch(SQL["erase"], ids, payloads, commitments)
        except asyncpg.ForeignKeyViolationError as error:
            raise Held from error
        if len(erased) != len(rows):
            raise EventsChanged

    await commit(store, [self_event(store.log_name, payload, about=erasure_id)], act)
