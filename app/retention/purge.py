"""A retention run: what is due and not held is purged, whole months where nothing else is in them, otherwise in bounded batches.

Every purge has self events in the log: for a batch in the transaction that deletes its rows, for a month before it is detached.
"""

import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import date, datetime
from uuid import UUID, uuid4

import asyncpg

from app.db import Connection, connect
from app.errors import AuditError, Fatal
from app.events.log import place_of
from app.events.positions import Positions
from app.ingest.link import Flush
from app.retention.adoption import adopt
from app.retention.awaited import AwaitedSink, AwaitedSinks, SinkMoved
from app.retention.in_force import OrdersChanged
from app.retention.logged import action_store, commit_action, read_open_log
from app.retention.policy import Month, MonthContents, Terms
from app.retention.removal import (
    SLOW_SECONDS,
    Purge,
    RetentionSession,
    purge_events,
    purged_by,
    read_contents,
    remove_month,
    resume_month,
)
from app.retention.space import Space, give_back
from app.settings import Settings
from app.sql import load
from app.tlog.orders import Difference

SQL = load("retention")
BATCH_ROWS = 1_000
_PASSES_MAX = 100
_PURGES = "datastorage:retention:"
"""How the correlations of purge events begin."""

log = logging.getLogger(__name__)


class RowsChanged(AuditError):
    """Some of the rows to be purged were held or deleted meanwhile."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run would do with one month."""

    month: Month
    contents: MonthContents

    @property
    def whole(self) -> bool:
        """Whether the whole month is purged."""
        return self.contents.total > 0 and not self.contents.held and not self.contents.not_due


@dataclass(slots=True)
class RetentionRun:
    """What a run did."""

    run_id: UUID
    rows_scanned: int = 0
    rows_deleted: int = 0
    dropped: list[str] = field(default_factory=list)
    restored: list[str] = field(default_factory=list)
    months: list[Month] = field(default_factory=list)
    """Those with due rows."""
    differences: list[Difference] = field(default_factory=list)
    """Where holds and policies of the tables differ from the log: not followed, and what such a hold covers not purged."""

    held_back_by: list[AwaitedSink] = field(default_factory=list)
    """Sinks because of which events stayed that are due."""
    space: Space = field(default_factory=Space)
    """What months gave back to the file system of which rows have stayed."""

    def columns(self) -> tuple[int, int, list[str], date | None, date | None]:
        first = min((month.first for month in self.months), default=None)
        end = max((month.end for month in self.months), default=None)
        return self.rows_scanned, self.rows_deleted, self.dropped, first, end


async def plan(settings: Settings, now: datetime) -> tuple[list[Plan], list[Difference]]:
    """What a run at `now` would do, and where holds and policies differ. Changes nothing, and does not wait for other runs."""
    async with _session(settings, now) as session:
        months = [Plan(month, await read_contents(session, month)) for month in await _months(session.connection)]
        return months, [*session.in_force.differences.values()]


async def run(settings: Settings, now: datetime) -> RetentionRun:
    """Finish what an interrupted run has left, then purge what is due at `now`. Recorded in retention_operations.

    Raises Fatal when another run is under way, or when another session prevents the detaching of a month.
    """
    async with _session(settings, now, adopts=True) as session:
        if not await session.connection.fetchval(SQL["lock_retention"]):
            raise Fatal("Another retention run is under way; wait until it has ended.")
        result = RetentionRun(uuid4())
        await session.connection.execute(SQL["begin_run"], result.run_id)
        try:
            try:
                await _purge_months(session, result)
                emptied = [month for month in result.months if month.name not in result.dropped]
                result.space = await give_back(session.connection, emptied)
            finally:
                result.differences = [*session.in_force.differences.values()]
                result.held_back_by = [*session.awaited.holding_back.values()]
        except Exception as error:
            await _record(session, result, "failed", getattr(error, "detail", None) or repr(error))
            raise
        for one in result.differences:
            log.critical(one.message, extra={"kind": one.kind, "correlation_id": one.correlation_id})
        for sink in result.held_back_by:
            log.warning("a sink holds back what is due", extra={"sink": sink.name, "place": sink.place_text})
        messages = [one.message for one in result.differences] + [one.message for one in result.held_back_by]
        await _record(session, result, "completed", "; ".join(messages) or None)
        return result


async def _record(session: RetentionSession, result: RetentionRun, status: str, message: str | None) -> None:
    try:
        await session.connection.execute(SQL["end_run"], result.run_id, status, message, *result.columns())
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
        log.exception("a retention run could not be recorded", extra={"run_id": str(result.run_id)})


@asynccontextmanager
async def _session(settings: Settings, now: datetime, *, adopts: bool = False) -> AsyncIterator[RetentionSession]:
    """Both connections use the role of DATASTORAGE_RETENTION_URL if it is set, else the service's role."""
    if settings.retention_url is not None:
        settings = settings.model_copy(update={"database_url": settings.retention_url})
    connection = await connect(settings, statement_timeout="0", lock_timeout="10s")
    try:
        of_log = await read_open_log(connection, settings)
        if adopts:
            await adopt(connection, settings, of_log)
        async with action_store(settings, of_log) as store:
            log_size = await connection.fetchval(SQL.of(of_log)["log_size"]) or 0
            awaited = AwaitedSinks(settings.retention_awaits_sinks)
            session = RetentionSession(store, connection, Terms.of(settings, now), log_size, awaited=awaited)
            await session.refresh()
            yield session
    finally:
        await connection.close()


async def _months(connection: Connection) -> list[Month]:
    return [Month(**row) for row in await connection.fetch(SQL["months"])]


async def _purge_months(session: RetentionSession, result: RetentionRun) -> None:
    for month in await _months(session.connection):
        if (dropped := await resume_month(session, month)) is not None:
            (result.dropped if dropped else result.restored).append(month.name)
    for month in await _months(session.connection):
        if not month.attached:
            continue
        await session.awaited.refresh(session.connection)
        rows = await read_contents(session, month)
        result.rows_scanned += rows.total
        if not rows.due:
            continue
        result.months.append(month)
        if (
            Plan(month, rows).whole
            and month.end <= session.terms.now.date()
            and not session.store.log.id
            and session.awaited.allow(_end(rows))
            and await remove_month(session, month)
        ):
            result.dropped.append(month.name)
            result.rows_deleted += rows.total
        else:
            result.rows_deleted += await _purge_rows(session, result.run_id, month)


def _end(rows: MonthContents) -> int:
    """The position behind the last one of a month."""
    positions = Positions.parse(rows.positions)
    return positions.ranges[-1][1] if positions else 0


async def _purge_rows(session: RetentionSession, run_id: UUID, month: Month) -> int:
    """Purge the due rows of a month in batches. Parents can go only after their children, which takes several passes."""
    deleted = 0
    for _ in range(_PASSES_MAX):
        in_pass = await _pass(session, run_id, month, after=-1) + await _pass(session, run_id, month, after=None)
        deleted += in_pass
        if not in_pass:
            break
    return deleted


async def _pass(session: RetentionSession, run_id: UUID, month: Month, after: int | None) -> int:
    """Purge sealed rows in the order of the log, from the position after `after`; or unsealed ones if that is None."""
    deleted = 0
    while True:
        await session.refresh()
        arguments = month.name, *session.terms.columns(), after, BATCH_ROWS
        due = await session.connection.fetch(SQL["due_events"], *arguments, timeout=SLOW_SECONDS)
        rows = (
            due
            if after is None
            else [row for row in await _purgeable(session, due) if session.awaited.allow(_place(row) + 1)]
        )
        purged = await _purge(session, run_id, rows) if rows else 0
        deleted += purged
        if not due or (after is None and not purged):
            return deleted
        if after is not None:
            after = due[-1]["log_index"]


async def _purgeable(session: RetentionSession, due: Sequence[asyncpg.Record]) -> list[asyncpg.Record]:
    """Sealed rows whose positions the purge event may name: those that the log had when the run began, and that no other row has.

    Else somebody could insert a row that is due at the position of an event that is not, and the log would excuse its removal.
    """
    alone = await session.connection.fetch(SQL["single_positions"], [row["log_index"] for row in due])
    log_id = session.store.log.id
    places = {
        (row["log_id"], row["log_index"])
        for row in alone
        if row["log_id"] is not None
        and (0 <= row["log_id"] < log_id or (row["log_id"] == log_id and row["log_index"] < session.log_size))
    }
    return [row for row in due if (row["log_id"], row["log_index"]) in places]


def _place(row: asyncpg.Record) -> int:
    return place_of(row["log_id"], row["log_index"])


def _may_be_purge(row: asyncpg.Record) -> bool:
    return row["log_index"] is not None and row["correlation_id"].startswith(_PURGES)


async def delete_rows(
    session: RetentionSession, connection: Connection, keys: Sequence[Sequence[object]], places: Positions
) -> None:
    """Delete rows in the transaction of their purge events: `keys` are their columns event_id, event_date, correlation_id.

    RowsChanged, OrdersChanged or SinkMoved if something has changed since they were read.
    """
    await session.in_force.require_unchanged(connection)
    if places:
        await session.awaited.require_sent(connection, places.ranges[-1][1])
    try:
        deleted = await connection.fetchval(SQL["purge"], *keys)
    except asyncpg.ForeignKeyViolationError as error:  # held, or a parent, since the rows were read
        raise RowsChanged from error
    if deleted != len(keys[0]):
        raise RowsChanged


async def _purge(session: RetentionSession, run_id: UUID, rows: Sequence[asyncpg.Record]) -> int:
    """Delete `rows` and write their purge events, together. 0 if one of them is held now; the next pass omits it."""
    places = Positions.of(_place(row) for row in rows if row["log_index"] is not None)
    repeated = await purged_by(session, sorted({row["correlation_id"] for row in rows if _may_be_purge(row)}))
    unsealed = sum(row["log_index"] is None for row in rows)
    keys = [[row[name] for row in rows] for name in ("event_id", "event_date", "correlation_id")]
    categories = await session.connection.fetch(SQL["purged_categories"], *keys)

    async def delete(connection: Connection, flush: Flush) -> None:
        del flush
        await delete_rows(session, connection, keys, places)

    try:
        events = list(purge_events(session, run_id, Purge(places, repeated, unsealed, categories)))
        await commit_action(session.store, events, delete)
    except (RowsChanged, OrdersChanged, SinkMoved):
        return 0
    return len(rows)
