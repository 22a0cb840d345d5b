"""A whole month leaves the table: its purge is told in the log, it is detached, looked at again, and dropped.

DETACH CONCURRENTLY, which keeps nobody from reading or writing, cannot be part of a transaction. So each step is one of its
own, and what a crash between two of them leaves is finished by the next run:

1. the purge event is committed, which says that the month's positions are gone; the month is attached still;
2. the month is detached, in two steps of Postgres's own; nobody reads it any more;
3. in one transaction it is locked, looked at again, and dropped. If something in it has to stay after all, it is attached again
   together with an event that takes the purge back.
"""

import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from uuid import UUID, uuid4

import asyncpg

from app.db import Connection
from app.errors import AuditError, Fatal
from app.ingest.accept import Event
from app.ingest.link import Flush
from app.ingest.self_events import self_event
from app.ingest.store import Store
from app.retention import multirange
from app.retention.logged import commit
from app.retention.policy import Month, MonthContents, Terms
from app.sql import load

SQL = load("retention")
SLOW_SECONDS = 3600.0
_NAME = re.compile(r"audit_events_\d{4}_\d{2}", re.ASCII)
_log = logging.getLogger(__name__)
_DETACHING = "Detaching of {} did not finish ({}): another session keeps the table in use. Run it again later."


class MonthChanged(AuditError):
    """Something was written to the month, or held, since it was read: it is looked at again."""


@dataclass(frozen=True, slots=True)
class RetentionSession:
    """What a run works with: a store for what it tells the log, a connection for all that is slow, and its terms."""

    store: Store
    connection: Connection
    terms: Terms
    end: int
    """Where the log ended when the run began: it does not purge what it tells itself."""


async def contents(session: RetentionSession, month: Month) -> MonthContents:
    row = await session.connection.fetchrow(
        SQL["month_contents"], month.name, *session.terms.columns(), timeout=SLOW_SECONDS
    )
    assert row is not None
    return MonthContents(*row)


async def remove(session: RetentionSession, month: Month) -> bool:
    """Purge a month of which nothing is held or young. False if something was, by the time it was told."""
    if not await _tell(session, month):
        return False
    return await _finish(session, month)


async def resume(session: RetentionSession, month: Month) -> bool | None:
    """Finish what an interrupted run began: True if the month is gone, False if it was put back, None if there was nothing."""
    whole = month.attached and not month.detaching
    standing = await _standing(session, month)
    if whole and standing == "{}":
        return None
    if not await session.connection.fetch(SQL["operations_of"], month.name):
        _log.error(
            "a month was detached, and no purge tells of it: attach it again by hand", extra={"month": month.name}
        )
        return None
    found = await contents(session, month)
    if whole and (found.held or found.young or found.positions != standing):
        await _restore(session, month)  # what is due of it goes row by row
        return False
    return await _finish(session, month)


async def _standing(session: RetentionSession, month: Month) -> str:
    arguments = month.name, *session.terms.columns()
    return str(await session.connection.fetchval(SQL["standing"], *arguments, timeout=SLOW_SECONDS))


async def _tell(session: RetentionSession, month: Month) -> bool:
    """Step 1. Its conditions hold at the moment of the commit, since nobody else writes to the log meanwhile."""
    connection, terms = session.connection, session.terms
    next_index = await connection.fetchval(SQL["log_end"]) or 0
    version = await connection.fetchrow(SQL["holds_version"])
    assert version is not None
    found = await contents(session, month)
    if found.held or found.young:
        return False
    carried = await connection.fetchval(SQL["carried"], month.name, *terms.columns(), timeout=SLOW_SECONDS)
    operation = uuid4()

    async def act(connection: Connection, flush: Flush) -> None:
        del flush
        if not await connection.fetchval(SQL["month_is_as_it_was"], month.first, month.end, next_index, *version):
            raise MonthChanged

    events = list(purge_events(session, operation, found.positions, carried, unsealed=found.unsealed, month=month.name))
    try:
        await commit(session.store, events, act)
    except MonthChanged:
        return False
    return True


def purge_events(
    session: RetentionSession, operation: UUID, positions: str, carried: str, *, unsealed: int, month: str | None
) -> Iterator[Event]:
    """What is told of a purge: the positions that it removes, and those that the purge events among them had named."""
    told = [(portion, multirange.count(portion)) for portion in multirange.portions(positions)]
    told += [(portion, 0) for portion in multirange.portions(carried) if portion != "{}"]
    for number, (portion, count) in enumerate(told):
        payload = {
            "event_type": "datastorage.retention.purged",
            "operation_id": str(operation),
            "positions": portion,
            "event_count": count,
            "unsealed_count": 0 if number else unsealed,
            "partition": month,
            "cutoff": session.terms.moment.isoformat(),
        }
        yield self_event(session.store.log_name, payload, about=operation)


async def _finish(session: RetentionSession, month: Month) -> bool:
    """Steps 2 and 3."""
    await _detach(session.connection, month)
    gone = await session.connection.fetchval(
        SQL["drop_month"], month.name, *session.terms.columns(), timeout=SLOW_SECONDS
    )
    if not gone:
        await _restore(session, month, detached=True)
    return bool(gone)


async def _detach(connection: Connection, month: Month) -> None:
    """Whatever state it is in: attached, half detached, detached."""
    assert _NAME.fullmatch(month.name)
    for row in await connection.fetch(SQL["months"]):
        if row["name"] == month.name and row["attached"]:
            how = "FINALIZE" if row["detaching"] else "CONCURRENTLY"
            try:
                await connection.execute(f"ALTER TABLE audit_events DETACH PARTITION {month.name} {how}")
            except (asyncpg.LockNotAvailableError, asyncpg.QueryCanceledError) as error:
                raise Fatal(_DETACHING.format(month.name, error)) from error


async def _restore(session: RetentionSession, month: Month, *, detached: bool = False) -> None:
    """Take back what was told of the month, and attach it if need be, in one transaction."""
    standing = await _standing(session, month)
    operations = await session.connection.fetch(SQL["operations_of"], month.name)

    async def act(connection: Connection, flush: Flush) -> None:
        del flush
        if detached:
            await connection.fetchval(SQL["attach_month"], month.name)

    events = [
        self_event(
            session.store.log_name,
            {
                "event_type": "datastorage.retention.restored",
                "operation_id": row["operation_id"],
                "positions": portion,
                "partition": month.name,
                "reason": "something in it is held, or kept for longer, or was written after it was told to be gone",
            },
            about=UUID(row["operation_id"]),
        )
        for row in operations
        for portion in multirange.portions(standing)
    ]
    await commit(session.store, events, act)
