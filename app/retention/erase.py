"""Erasure on request: the personal content of events is removed; their records, their positions in the log and every proof stay.

The rows are changed in one transaction of the log with the self event that names them, and never while one of them is held.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid4

import asyncpg

from app.db import Connection, connect
from app.errors import AuditError, Conflict
from app.events.canonical import canonical, loads
from app.events.catalog import Catalog
from app.events.neutral import neutral_payload
from app.events.positions import Positions
from app.events.record import commitment_of, is_logged
from app.ingest.link import Flush
from app.ingest.self_events import self_event
from app.ingest.store import Store
from app.retention.in_force import InForce, OrdersChanged
from app.retention.logged import action_store, commit_action, read_open_log
from app.settings import Settings
from app.sql import load
from app.tlog.evidence import left_digest
from app.tlog.orders import Difference

SQL = load("retention")
BATCH_ROWS = 500
_SLOW_SECONDS = 3600.0


class UnderHold(Conflict):
    """Some of these events are under legal hold; release it first."""


class EventsChanged(AuditError):
    """Some of these events were erased or purged meanwhile."""


@dataclass(frozen=True, slots=True)
class Erasure:
    """Whose events to erase, and why: exactly one of the last three is set."""

    reason: str
    by: str
    event_ids: Sequence[UUID] | None = None
    actor_id: str | None = None
    correlation_id: str | None = None


@dataclass(slots=True)
class Erased:
    """What was erased, or would be: event ids. Those of rows that are not what the log has are only listed.

    Such rows have no proof to protect, and the erasure event would excuse that the log's own event at their position is changed.
    """

    erasure_id: UUID
    events: list[UUID] = field(default_factory=list)
    unsealed: list[UUID] = field(default_factory=list)
    differences: list[Difference] = field(default_factory=list)
    """Where holds and policies of the tables differ from the log; what such a hold covers is not erased."""


async def erase(settings: Settings, catalog: Catalog, erasure: Erasure, *, dry_run: bool) -> Erased:
    """Erase what `erasure` selects, in batches, except what is erased already.

    UnderHold, before anything is erased, if any of it is held; after some batches only if a hold is placed meanwhile.
    """
    if settings.retention_url is not None:
        settings = settings.model_copy(update={"database_url": settings.retention_url})
    erased = Erased(uuid4())
    connection = await connect(settings, statement_timeout="0")
    try:
        log = await read_open_log(connection, settings)
        arguments = erasure.event_ids, erasure.actor_id, erasure.correlation_id
        in_force = InForce()
        async with connection.transaction(isolation="repeatable_read"):
            await in_force.refresh(connection, log)
            rows = await connection.fetch(SQL["erasable"], *arguments, timeout=_SLOW_SECONDS)
        erased.differences = [*in_force.differences.values()]
        if held := sorted({row["correlation_id"] for row in rows if row["held"]}):
            named = "".join(f" {one.message}." for one in erased.differences[:10])
            raise UnderHold(
                f"Nothing was erased, since events of {', '.join(held[:10])} are under legal hold: release it first.{named}"
            )
        erased.unsealed = [row["event_id"] for row in rows if row["log_index"] is None]
        sealed = [row for row in rows if row["log_index"] is not None]
        async with action_store(settings, log) as store:
            for start in range(0, len(sealed), BATCH_ROWS):
                batch = [row["event_id"] for row in sealed[start : start + BATCH_ROWS]]
                found = await connection.fetch(SQL["to_erase"], batch, timeout=_SLOW_SECONDS)
                logged = [row for row in found if is_logged(row, log)]
                by_log = [[row for row in logged if row["log_id"] == one.id] for one in log.and_earlier()]
                for of_log in (rows for rows in by_log if rows and not dry_run):
                    while True:
                        try:
                            await _erase(store, catalog, erased.erasure_id, erasure, of_log, in_force)
                        except OrdersChanged:  # perhaps by a hold on these events; then they are refused next
                            async with connection.transaction(isolation="repeatable_read"):
                                await in_force.refresh(connection, log)
                        else:
                            break
                erased.events += [row["event_id"] for row in logged]
                erased.unsealed += sorted({row["event_id"] for row in found} - {row["event_id"] for row in logged})
    finally:
        await connection.close()
    return erased


async def _erase(  # noqa: PLR0917 -- what is erased, and what has to be true for it
    store: Store,
    catalog: Catalog,
    erasure_id: UUID,
    erasure: Erasure,
    rows: Sequence[asyncpg.Record],
    in_force: InForce,
) -> None:
    ids = [row["event_id"] for row in rows]
    payloads = [canonical(neutral_payload(catalog, loads(row["event_data"]))) for row in rows]
    commitments = [commitment_of(row) for row in rows]
    positions = [row["log_index"] for row in rows]
    payload: dict[str, Any] = {
        "event_type": "datastorage.event.erased",
        "erasure_id": str(erasure_id),
        "event_ids": [str(event_id) for event_id in ids],
        "positions": str(Positions.of(positions)),
        "left": [left_digest(payload) for _, payload in sorted(zip(positions, payloads, strict=True))],
        "log_id": rows[0]["log_id"],
        "erased_by": erasure.by,
        "reason": erasure.reason,
    }

    async def erase_rows(connection: Connection, flush: Flush) -> None:
        del flush
        await in_force.require_unchanged(connection)
        try:
            updated = await connection.fetch(SQL["erase"], ids, payloads, commitments)
        except asyncpg.ForeignKeyViolationError as error:
            raise UnderHold from error
        if len(updated) != len(rows):
            raise EventsChanged

    await commit_action(store, [self_event(store.log.first_name, payload, about=erasure_id)], erase_rows)
