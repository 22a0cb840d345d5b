"""A retention run: what is over and not held goes, whole months where nothing else is in them, else in bounded batches.

Every purge is told in the log, in the transaction that deletes the rows or, for a month, before it is detached.
"""

import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import date, datetime
from uuid import UUID, uuid4

import asyncpg

from app import schema
from app.db import Connection, connect
from app.errors import AuditError, Fatal
from app.ingest.link import Flush
from app.retention import multirange
from app.retention.logged import acting, commit
from app.retention.policy import Month, MonthContents, Terms
from app.retention.removal import SLOW_SECONDS, RetentionSession, contents, purge_events, remove, resume
from app.settings import Settings
from app.sql import load

SQL = load("retention")
BATCH_ROWS = 1_000
_PASSES_MAX = 100

log = logging.getLogger(__name__)


class RowsChanged(AuditError):
    """Some of the rows to be purged are held, or gone, by now."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run would do with one month."""

    month: Month
    contents: MonthContents

    @property
    def whole(self) -> bool:
        """Whether the month goes as one."""
        return self.contents.total > 0 and not self.contents.held and not self.contents.young


@dataclass(slots=True)
class RetentionRun:
    """What a run did."""

    run_id: UUID
    rows_scanned: int = 0
    rows_deleted: int = 0
    dropped: list[str] = field(default_factory=list)
    restored: list[str] = field(default_factory=list)
    months: list[Month] = field(default_factory=list)

    def columns(self) -> tuple[int, int, list[str], date | None, date | None]:
        first = min((month.first for month in self.months), default=None)
        end = max((month.end for month in self.months), default=None)
        return self.rows_scanned, self.rows_deleted, self.dropped, first, end


async def plan(settings: Settings, moment: datetime) -> list[Plan]:
    """What a run at `moment` would do. Changes nothing, and waits for nobody."""
    async with _session(settings, moment) as session:
        return [Plan(month, await contents(session, month)) for month in await _months(session.connection)]


async def run(settings: Settings, moment: datetime) -> RetentionRun:
    """Purge what is over at `moment`, after what an interrupted run has left. Recorded in retention_operations.

    Fatal when another run is under way, or something keeps a month from being detached.
    """
    async with _session(settings, moment) as session:
        if not await session.connection.fetchval(SQL["lock_retention"]):
            raise Fatal("Another retention run is under way; wait until it has ended.")
        done = RetentionRun(uuid4())
        await session.connection.execute(SQL["begin_run"], done.run_id)
        try:
            await _work(session, done)
        except Exception as error:
            await _record(session, done, "failed", getattr(error, "detail", None) or repr(error))
            raise
        await _record(session, done, "completed", None)
        return done


async def _record(session: RetentionSession, done: RetentionRun, status: str, message: str | None) -> None:
    try:
        await session.connection.execute(SQL["end_run"], done.run_id, status, message, *done.columns())
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
        log.exception("a retention run could not be recorded", extra={"run_id": str(done.run_id)})


@asynccontextmanager
async def _session(settings: Settings, moment: datetime) -> AsyncIterator[RetentionSession]:
    """Both connections are of the role that DATASTORAGE_RETENTION_URL names, else of the service's."""
    if settings.retention_url is not None:
        settings = settings.model_copy(update={"database_url": settings.retention_url})
    connection = await connect(settings, statement_timeout="0", lock_timeout="10s")
    try:
        log_name = await schema.check(connection, settings.log_name)
        async with acting(settings, log_name) as store:
            end = await connection.fetchval(SQL["log_end"]) or 0
            yield RetentionSession(store, connection, Terms.of(settings, moment), end)
    finally:
        await connection.close()


async def _months(connection: Connection) -> list[Month]:
    return [Month(**row) for row in await connection.fetch(SQL["months"])]


async def _work(session: RetentionSession, done: RetentionRun) -> None:
    for month in await _months(session.connection):
        if (gone := await resume(session, month)) is not None:
            (done.dropped if gone else done.restored).append(month.name)
    for month in await _months(session.connection):
        if not month.attached:
            continue
        found = await contents(session, month)
        done.rows_scanned += found.total
        if not found.due:
            continue
        done.months.append(month)
        if Plan(month, found).whole and month.end <= session.terms.moment.date() and await remove(session, month):
            done.dropped.append(month.name)
            done.rows_deleted += found.total
        else:
            done.rows_deleted += await _purge_rows(session, done.run_id, month)


async def _purge_rows(session: RetentionSession, run_id: UUID, month: Month) -> int:
    """The rows of a month that are over, batch by batch; parents after their children, which takes several passes."""
    deleted = 0
    for _ in range(_PASSES_MAX):
        in_pass = await _pass(session, run_id, month, behind=-1) + await _pass(session, run_id, month, behind=None)
        deleted += in_pass
        if not in_pass:
            break
    return deleted


async def _pass(session: RetentionSession, run_id: UUID, month: Month, behind: int | None) -> int:
    """Sealed rows in the order of the log, or unsealed ones with `behind` None."""
    deleted = 0
    while True:
        arguments = month.name, *session.terms.columns(), behind, BATCH_ROWS
        due = await session.connection.fetch(SQL["due_events"], *arguments, timeout=SLOW_SECONDS)
        rows = [row for row in due if row["log_index"] is None or row["log_index"] < session.end]
        if not rows:
            return deleted
        gone = await _purge(session, run_id, rows)
        deleted += gone
        if behind is not None:
            behind = rows[-1]["log_index"]
        elif not gone:
            return deleted


async def _purge(session: RetentionSession, run_id: UUID, rows: Sequence[asyncpg.Record]) -> int:
    """Delete `rows` and tell of it, together; 0 if one of them is held by now, which the next pass leaves out."""
    positions = multirange.of(row["log_index"] for row in rows if row["log_index"] is not None)
    carried = await session.connection.fetchval(SQL["joined"], [r["purged"] for r in rows if r["purged"] is not None])
    unsealed = sum(row["log_index"] is None for row in rows)
    keys = [[row[name] for row in rows] for name in ("event_id", "event_date", "correlation_id")]

    async def act(connection: Connection, flush: Flush) -> None:
        del flush
        try:
            gone = await connection.fetchval(SQL["purge"], *keys)
        except asyncpg.ForeignKeyViolationError as error:  # held, or a parent, since the statement began
            raise RowsChanged from error
        if gone != len(rows):
            raise RowsChanged

    try:
        events = list(purge_events(session, run_id, positions, carried, unsealed=unsealed, month=None))
        await commit(session.store, events, act)
    except RowsChanged:
        return 0
    return len(rows)
