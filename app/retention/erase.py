"""Erasure on request: the personal content of events is removed; their records, their positions in the log and every proof stay.

The rows are changed in one transaction of the log with the self event that names them, and never while one of them is held. An event that
is in the archive only has no row: the self event names it, and the next run of the archive takes its content from the files.
"""

from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any
from uuid import UUID, uuid4

import asyncpg

from app.db import Connection, connect
from app.errors import AuditError, Conflict, Fatal
from app.events.canonical import canonical, loads
from app.events.catalog import Catalog
from app.events.log import Log
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
from app.tlog.evidence import left_digest, read_evidence
from app.tlog.orders import Difference

SQL = load("retention")
BATCH_ROWS = 500
_SLOW_SECONDS = 3600.0


class UnderHold(Conflict):
    """Some of these events are under legal hold; release it first."""


class EventsChanged(AuditError):
    """Some of these events were erased, purged, or removed since they are archived, meanwhile: run it again."""


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
    archived: int = 0
    """How many of the erased ones are in the archive only."""
    differences: list[Difference] = field(default_factory=list)
    """Where holds and policies of the tables differ from the log; what such a hold covers is not erased."""


@dataclass(frozen=True, slots=True)
class ArchivedEvent:
    """An event that is in the archive only: what an erasure, and a hold, have to know of it."""

    event_id: UUID
    log_id: int
    log_index: int
    event_type: str
    correlation_id: str
    actor_id: str
    resource_type: str
    resource_id: str
    event_timestamp: datetime
    left: bytes
    """What of its payload the archive will have, in canonical form."""

    def held_columns(self) -> tuple[Any, ...]:
        """In the order of the statement held_archived."""
        of_hold = self.correlation_id, self.actor_id, self.resource_type, self.resource_id, self.event_timestamp
        return *of_hold, self.event_type


SearchArchive = Callable[[Connection, Log, Positions, Erasure], Awaitable[list[ArchivedEvent]]]
"""Finds the events at some places that an erasure selects, and whose content is in the archive. `connection` is in a snapshot."""


class ArchiveNotSearched(Fatal):
    """Nothing was erased: some events are in the archive only, and may be among these."""

    def __init__(self) -> None:
        super().__init__(
            f"{self.__doc__} Set DATASTORAGE_ARCHIVE_URL, so that they can be looked for, or name events that Postgres has with --event-id."
        )


async def erase(
    settings: Settings,
    catalog: Catalog,
    erasure: Erasure,
    *,
    dry_run: bool,
    search_archive: SearchArchive | None = None,
) -> Erased:
    """Erase what `erasure` selects, in batches, except what is erased already.

    UnderHold, before anything is erased, if any of it is held; after some batches only if a hold is placed meanwhile. ArchiveNotSearched,
    or what `search_archive` raises, before anything is erased.
    """
    if settings.retention_url is not None:
        settings = settings.model_copy(update={"database_url": settings.retention_url})
    erased = Erased(uuid4())
    connection = await connect(settings, statement_timeout="0", idle_in_transaction_session_timeout="0")
    try:
        log = await read_open_log(connection, settings)
        arguments = erasure.event_ids, erasure.actor_id, erasure.correlation_id
        in_force = InForce()
        async with connection.transaction(isolation="repeatable_read"):
            await in_force.refresh(connection, log)
            rows = await connection.fetch(SQL["erasable"], *arguments, timeout=_SLOW_SECONDS)
            archived = await _find_archived(connection, log, erasure, search_archive)
            under_hold = await _held(connection, archived)
        erased.differences = [*in_force.differences.values()]
        if held := sorted({row["correlation_id"] for row in rows if row["held"]} | under_hold):
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
                await _require_not_archived(connection, log, {*batch} - {row["event_id"] for row in found})
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
            for events in _batches(archived):
                if not dry_run:
                    await _erase_archived(store, erased.erasure_id, erasure, events, in_force)
                erased.events += [event.event_id for event in events]
                erased.archived += len(events)
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
    payload = _payload(erasure_id, erasure, rows[0]["log_id"], list(zip(positions, ids, payloads, strict=True)))

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


def _payload(
    erasure_id: UUID, erasure: Erasure, log_id: int, events: Sequence[tuple[int, UUID, bytes]]
) -> dict[str, Any]:
    """What the log records of erased events: of each its position, its id, and the payload that is left."""
    return {
        "event_type": "datastorage.event.erased",
        "erasure_id": str(erasure_id),
        "event_ids": [str(event_id) for _, event_id, _ in events],
        "positions": str(Positions.of(position for position, _, _ in events)),
        "left": [left_digest(payload) for _, _, payload in sorted(events)],
        "log_id": log_id,
        "erased_by": erasure.by,
        "reason": erasure.reason,
    }


async def _find_archived(
    connection: Connection, log: Log, erasure: Erasure, search_archive: SearchArchive | None
) -> list[ArchivedEvent]:
    """The selected events that are in the archive only and are not erased yet; none by which others are judged."""
    wanted = erasure
    if erasure.event_ids is not None:
        stored = {row["event_id"] for row in await connection.fetch(SQL["stored_ids"], erasure.event_ids)}
        wanted = replace(erasure, event_ids=[one for one in erasure.event_ids if one not in stored])
        if not wanted.event_ids:
            return []
    evidence = await read_evidence(connection, log)
    if not evidence.archived:
        return []
    if search_archive is None:
        raise ArchiveNotSearched
    found = await search_archive(connection, log, evidence.archived.without(evidence.erased.positions), wanted)
    judged = await connection.fetch(SQL["held_archived"], *_columns(found)) if found else []
    return [event for event, row in zip(found, judged, strict=True) if not row["judging"]]


async def _require_not_archived(connection: Connection, log: Log, missing: set[UUID]) -> None:
    """EventsChanged if some events, which had rows a moment ago, may be in the archive only by now."""
    if missing and len(await connection.fetch(SQL["stored_ids"], missing)) < len(missing):
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            if (await read_evidence(connection, log)).archived:
                raise EventsChanged


async def _held(connection: Connection, events: Sequence[ArchivedEvent]) -> set[str]:
    """The correlations of events that a hold covers."""
    rows = await connection.fetch(SQL["held_archived"], *_columns(events)) if events else []
    return {event.correlation_id for event, row in zip(events, rows, strict=True) if row["held"]}


def _columns(events: Sequence[ArchivedEvent]) -> list[list[Any]]:
    return [list(column) for column in zip(*(event.held_columns() for event in events), strict=True)]


def _batches(events: Sequence[ArchivedEvent]) -> Iterator[Sequence[ArchivedEvent]]:
    """The events in batches, each of one log."""
    for log_id in sorted({one.log_id for one in events}):
        of_log = [one for one in events if one.log_id == log_id]
        yield from (of_log[start : start + BATCH_ROWS] for start in range(0, len(of_log), BATCH_ROWS))


async def _erase_archived(
    store: Store, erasure_id: UUID, erasure: Erasure, events: Sequence[ArchivedEvent], in_force: InForce
) -> None:
    """Record that events without rows are erased. UnderHold if a hold covers one of them by now."""
    left = [(one.log_index, one.event_id, one.left) for one in events]
    event = self_event(store.log.first_name, _payload(erasure_id, erasure, events[0].log_id, left), about=erasure_id)

    async def check(connection: Connection, flush: Flush) -> None:
        del flush
        await in_force.require_unchanged(connection)
        if await _held(connection, events):
            raise UnderHold

    while True:
        try:
            return await commit_action(store, [event], check)
        except OrdersChanged:  # perhaps by a hold on these events; then they are refused next
            connection = await store.connection()
            async with connection.transaction(isolation="repeatable_read"):
                await in_force.refresh(connection, store.log)
