"""The removal of a whole month: its purge is written to the log, then its table is detached, checked, and dropped.

DETACH CONCURRENTLY lets others read and write meanwhile, but cannot run in a transaction. So each step is a transaction of its
own, and the next run finishes what a crash between two steps has left:

1. the purge events are committed: the log records that the month's positions are purged, while the month is still attached;
2. the month is detached, in two transactions of Postgres's own; nobody reads it any more;
3. in one transaction the table is locked, checked once more, and dropped. If something in it has to stay, it is attached again
   in one transaction with an event that reverts the purge.
"""

import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid4

import asyncpg

from app.db import Connection
from app.errors import AuditError, Fatal
from app.events.log import LOG_POSITIONS, Log
from app.events.positions import NO_POSITIONS, Positions
from app.ingest.accept import Event
from app.ingest.link import Flush
from app.ingest.self_events import self_event
from app.ingest.store import Store
from app.retention.awaited import AwaitedSinks, SinkMoved
from app.retention.in_force import InForce, OrdersChanged
from app.retention.logged import commit_action
from app.retention.policy import Month, MonthContents, Terms
from app.sql import load
from app.tlog.evidence import RESTORED, read_evidence, read_records

SQL = load("retention")
SLOW_SECONDS = 3600.0
_NAME = re.compile(r"audit_events_\d{4}_\d{2}", re.ASCII)
log = logging.getLogger(__name__)
_DETACHING = "Detaching of {} did not finish ({}): another session uses the table. Run it again later."
_REASON_RESTORED = "something in it is held, or is not due yet, or was written after its purge was recorded"


class MonthChanged(AuditError):
    """An event of the month was written or held since its contents were read."""


@dataclass(frozen=True, slots=True)
class RetentionSession:
    """What a run works with: a store for what it writes to the log, a connection for slow statements, and its terms."""

    store: Store
    connection: Connection
    terms: Terms
    log_size: int
    """Size of the log when the run began: a run does not purge the events that it writes itself."""
    in_force: InForce = field(default_factory=InForce)
    """The holds and policies that it follows."""
    awaited: AwaitedSinks = field(default_factory=lambda: AwaitedSinks(is_awaited=True))
    """The sinks that have yet to be sent something."""

    async def refresh(self) -> None:
        """Follow the holds and policies that the log records by now, and see where sinks are."""
        await self.in_force.refresh(self.connection, self.store.log)
        await self.awaited.refresh(self.connection)


async def read_contents(session: RetentionSession, month: Month) -> MonthContents:
    row = await session.connection.fetchrow(
        SQL["month_contents"], month.name, *session.terms.columns(), timeout=SLOW_SECONDS
    )
    assert row is not None
    return MonthContents(*row)


async def remove_month(session: RetentionSession, month: Month) -> bool:
    """Purge a whole month. False, with nothing lost, if some of it was held, written or inserted before its purge was committed."""
    return await _write_purge(session, month) and await _detach_and_drop(session, month)


async def resume_month(session: RetentionSession, month: Month) -> bool | None:
    """Finish what an interrupted run began with a month.

    True: it was dropped. False: it was restored. None: there was nothing to finish, or the log has no purge of the month; then an
    error is logged.
    """
    intact = month.attached and not month.detaching
    still_stored = await _still_stored(session, month)
    # With several logs whole months are not removed, and positions of one log say nothing about those of another.
    if intact and (still_stored == "{}" or session.store.log.id):
        return None
    if not await _purges_of(session, month):
        if not intact:
            message = "a month is detached, and the log has no purge of it: attach it again by hand"
            log.error(message, extra={"month": month.name})
        return None
    rows = await read_contents(session, month)
    if intact and (rows.held or rows.not_due or rows.positions != still_stored):
        await _restore(session, month)  # its due rows are purged in batches
        return False
    return await _detach_and_drop(session, month)


async def _purges_of(session: RetentionSession, month: Month) -> list[str]:
    """The operations that have purged the whole month, as the log records it, and have not put it back."""
    rows = await session.connection.fetch(SQL["purges_of_month"], month.name)
    purges: list[str] = []
    restored: set[str] = set()
    async with session.connection.transaction(isolation="repeatable_read", readonly=True):
        correlation_ids = [row["correlation_id"] for row in rows]
        async for payload, _ in read_records(session.connection, session.store.log, correlation_ids):
            operation = payload["operation_id"]
            if payload["event_type"] == RESTORED:
                restored.add(operation)
            elif payload.get("partition") == month.name and operation not in purges:
                purges.append(operation)
    return [operation for operation in purges if operation not in restored]


async def _still_stored(session: RetentionSession, month: Month) -> str:
    """Positions that purge events name and that the month still has, as the text of an int8multirange."""
    arguments = month.name, *session.terms.columns()
    return str(await session.connection.fetchval(SQL["still_stored"], *arguments, timeout=SLOW_SECONDS))


async def _write_purge(session: RetentionSession, month: Month) -> bool:
    """Step 1. Its conditions are true at the commit, since nobody else can write to the log meanwhile.

    Not done if somebody has inserted a row at a position that another row has too: the event would name that position.
    """
    connection, terms = session.connection, session.terms
    await session.refresh()
    read_in = session.store.log
    log_size = await connection.fetchval(SQL.of(read_in)["log_size"]) or 0
    version = await connection.fetchrow(SQL.of(read_in)["holds_version"])
    assert version is not None
    rows = await read_contents(session, month)
    positions = Positions.parse(rows.positions)
    named = await connection.fetchval(SQL["rows_at_positions"], rows.positions, timeout=SLOW_SECONDS)
    if rows.held or rows.not_due or not positions.size == rows.total - rows.unsealed == named:
        return False
    end = positions.ranges[-1][1] if positions else 0  # with several logs whole months are not removed
    arguments = month.name, *terms.columns()
    due = await connection.fetch(SQL["purges_in_month"], *arguments, timeout=SLOW_SECONDS)
    repeated = await purged_by(session, [row["correlation_id"] for row in due])
    categories = await connection.fetch(SQL["month_categories"], month.first, month.end, timeout=SLOW_SECONDS)
    operation = uuid4()

    async def check_unchanged(connection: Connection, flush: Flush) -> None:
        await session.in_force.require_unchanged(connection)
        await session.awaited.require_sent(connection, end)
        statement = SQL.of(flush.log)["month_unchanged"]
        if flush.log != read_in or not await connection.fetchval(statement, month.first, month.end, log_size, *version):
            raise MonthChanged

    purge = Purge(positions, repeated, rows.unsealed, categories, month.name)
    try:
        await commit_action(session.store, list(purge_events(session, operation, purge)), check_unchanged)
    except (MonthChanged, OrdersChanged, SinkMoved):
        return False
    return True


async def purged_by(session: RetentionSession, correlation_ids: Sequence[str]) -> Positions:
    """The positions that were purged by the operations with these correlations, as the log records it.

    A row that only looks like a purge event, because somebody inserted it, adds none.
    """
    if not correlation_ids:
        return NO_POSITIONS
    async with session.connection.transaction(isolation="repeatable_read", readonly=True):
        return (await read_evidence(session.connection, session.store.log, correlation_ids)).purged


@dataclass(frozen=True, slots=True)
class Purge:
    """What a purge removes."""

    places: Positions
    """Positions of any log (place_of); each event has those of one log."""
    repeated: Positions
    """Those that purge events among the removed ones name."""
    unsealed: int
    categories: Sequence[asyncpg.Record]
    """Of the sealed rows: category and newest event_timestamp as text."""
    month: str | None = None
    """None if it is not a whole month."""
    archives: Sequence[tuple[UUID, str]] = ()
    """The parts of the archive that have all of it, each with the digest of its manifest; then no policy decides."""


def purge_events(session: RetentionSession, operation: UUID, purge: Purge) -> Iterator[Event]:
    """The self events of a purge. They name the purged positions, and repeat those that purge events among them named."""
    policies = [followed(session, row["category"], row["newest"]) for row in purge.categories]
    logs = list(session.store.log.and_earlier())
    portions = [(one.id, portion, portion.size) for one in logs for portion in _of_log(purge.places, one) if portion]
    portions += [(one.id, portion, 0) for one in logs for portion in _of_log(purge.repeated, one) if portion]
    for number, (log_id, portion, count) in enumerate(portions or [(logs[-1].id, NO_POSITIONS, 0)]):
        payload: dict[str, Any] = {
            "event_type": "datastorage.retention.purged",
            "operation_id": str(operation),
            "positions": str(portion),
            "log_id": log_id,
            "event_count": count,
            "unsealed_count": 0 if number else purge.unsealed,
            "partition": purge.month,
            "cutoff": session.terms.now.isoformat(),
            "policies": policies if count else [],
        }
        if purge.archives:
            named = [{"archive_id": str(one), "manifest_sha256": digest} for one, digest in purge.archives]
            payload["archives"] = named
        yield self_event(session.store.log.first_name, payload, about=operation)


def followed(session: RetentionSession, category: str, newest: str) -> dict[str, Any]:
    """What decided about the purged events of one category; `newest` is when the newest of them has happened."""
    change, terms = session.in_force.orders.policies().get(category), session.terms
    policy = change.policy if change is not None else None
    days = {} if policy is None else {"retention_days": policy.retention_days}
    floor = terms.floor_days if policy is None or policy.floor_days is None else policy.floor_days
    ceiling = terms.ceiling_days if policy is None or policy.ceiling_days is None else policy.ceiling_days
    return {
        "category": category,
        **days,
        "floor_days": floor,
        "ceiling_days": ceiling,
        "newest": newest,
    }


def _of_log(places: Positions, log: Log) -> Iterator[Positions]:
    """The positions of one log among places, in portions for one event each."""
    start = log.place(0)
    return Positions((a - start, b - start) for a, b in places.within(start, log.place(LOG_POSITIONS))).portions()


async def _detach_and_drop(session: RetentionSession, month: Month) -> bool:
    """Steps 2 and 3. Whether the month was dropped; if not, it is attached again."""
    await _detach(session.connection, month)
    await session.refresh()
    arguments = month.name, *session.terms.columns()
    dropped = await session.connection.fetchval(SQL["drop_month"], *arguments, timeout=SLOW_SECONDS)
    if not dropped:
        await _restore(session, month, detached=True)
    return bool(dropped)


async def _detach(connection: Connection, month: Month) -> None:
    """Detach a month that is attached, half detached, or detached already."""
    assert _NAME.fullmatch(month.name)
    for row in await connection.fetch(SQL["months"]):
        if row["name"] == month.name and row["attached"]:
            how = "FINALIZE" if row["detaching"] else "CONCURRENTLY"
            try:
                await connection.execute(f"ALTER TABLE audit_events DETACH PARTITION {month.name} {how}")
            except (asyncpg.LockNotAvailableError, asyncpg.QueryCanceledError) as error:
                raise Fatal(_DETACHING.format(month.name, error)) from error


async def _restore(session: RetentionSession, month: Month, *, detached: bool = False) -> None:
    """Revert the purge of a month in the log, and attach the month if it is detached, in one transaction."""
    still_stored = Positions.parse(await _still_stored(session, month))
    purges = await _purges_of(session, month)

    async def attach(connection: Connection, flush: Flush) -> None:
        del flush
        if detached:
            await connection.fetchval(SQL["attach_month"], month.name)
            await connection.execute(SQL["mark_month"], month.first, month.end)

    events = [
        self_event(
            session.store.log.first_name,
            {
                "event_type": "datastorage.retention.restored",
                "operation_id": operation,
                "positions": str(portion),
                "log_id": 0,  # only in a database with one log a whole month is removed
                "partition": month.name,
                "reason": _REASON_RESTORED,
            },
            about=UUID(operation),
        )
        for operation in purges
        for portion in still_stored.portions()
    ]
    await commit_action(session.store, events, attach)
