"""Removes from Postgres what is archived: rows of a part that this run has read again as a whole and found as it was signed.

A batch of rows is deleted in one transaction of the log with the purge event that names their positions, the part, and its manifest's
digest: a run that is killed has removed a batch, or not. What stays is what a purge leaves too (what is held, what a sink has yet to be
sent, parents before their children), events by which others are judged, unsealed rows, and rows that are not as the log has them.
"""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from uuid import UUID, uuid4

import asyncpg

from app.archive.check import Checker, PartResult
from app.archive.compare import unlike_recorded
from app.archive.recorded import RecordedPart, read_erasures, removed_positions
from app.archive.session import ArchiveSession, Stage, snapshot
from app.archive.writing import SQL, as_archiver
from app.db import Connection
from app.errors import Fatal
from app.events.log import Log, place_of
from app.events.positions import Positions, Range
from app.ingest.link import Flush
from app.retention.adoption import adopt
from app.retention.awaited import AwaitedSink, AwaitedSinks, SinkMoved
from app.retention.in_force import OrdersChanged
from app.retention.logged import commit_action
from app.retention.policy import Month, Terms
from app.retention.purge import RowsChanged, delete_rows
from app.retention.removal import Purge, RetentionSession, purge_events
from app.retention.space import Space, give_back
from app.settings import Settings
from app.sql import load
from app.tlog.continued import keys_of
from app.tlog.evidence import Erasures, read_evidence
from app.tlog.keys import SigningKey
from app.tlog.note import PublicKey
from app.tlog.orders import Difference
from app.verify.row import Defects, defect_of, row_defects

RETENTION = load("retention")
BATCH_ROWS = 1_000
_PASSES_MAX = 100
_TRIES = 3
_SLOW_SECONDS = 3600.0


@dataclass(frozen=True, slots=True)
class RemovedEvents:
    """What was removed of one part."""

    part: RecordedPart
    events: int


@dataclass(slots=True)
class Removal:
    """What a run has removed from Postgres, and what it has not."""

    run_id: UUID = field(default_factory=uuid4)
    """The operation_id of the purge events."""
    removed: list[RemovedEvents] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    """Of each part of which nothing may be removed: why."""
    left: Defects = field(default_factory=Defects)
    """Rows that are not as the log has them."""
    differences: list[Difference] = field(default_factory=list)
    """Where holds and policies of the tables differ from the log; what such a hold covers stays."""
    held_back_by: list[AwaitedSink] = field(default_factory=list)
    """Sinks because of which events stayed."""
    space: Space = field(default_factory=Space)
    """What the months gave back to the file system."""


async def remove_archived(session: ArchiveSession, settings: Settings, now: datetime, key: SigningKey) -> Removal:
    """Remove what is archived, part by part, newest month first, since children go before their parents.

    Fatal while a retention run is under way. OSError or pa.ArrowException when the storage fails.
    """
    connection, settings = session.connection, as_archiver(settings)
    if not await connection.fetchval(RETENTION["lock_retention"]):
        raise Fatal(
            "A retention run is under way; wait until it has ended. What is due was archived, and nothing removed."
        )
    await adopt(connection, settings, session.open_log)
    retention = await retention_session(session, settings, now)
    result = Removal()
    async with snapshot(connection):
        parts = (await session.recorded()).parts
        removed = removed_positions(parts, (await read_evidence(connection, session.open_log)).archived)
    try:
        for part in sorted(parts, key=lambda one: (one.month, one.place), reverse=True):
            if session.selection.month in {None, date.fromisoformat(f"{part.month}-01")}:
                rows = RowsOfPart(session, retention, settings.archive_after_days, part, result)
                await rows.verify_and_remove(key, removed.get(part.archive_id, Positions()))
    finally:
        result.differences = [*retention.in_force.differences.values()]
        result.held_back_by = [*retention.awaited.holding_back.values()]
    months = {one.part.month.replace("-", "_") for one in result.removed}
    result.space = await give_back(connection, [Month(f"audit_events_{name}") for name in sorted(months)])
    return result


async def retention_session(session: ArchiveSession, settings: Settings, now: datetime) -> RetentionSession:
    """What a retention run at `now` works with, on the connections of this one."""
    awaited = AwaitedSinks(settings.retention_awaits_sinks)
    size = await session.log_size()
    return RetentionSession(session.store, session.connection, Terms.of(settings, now), size, awaited=awaited)


class _Erased(Exception):
    """Something of the part was erased, and is in it still."""


class RowsOfPart:
    """The removal of what is in one part."""

    def __init__(
        self, session: ArchiveSession, retention: RetentionSession, after_days: int, part: RecordedPart, result: Removal
    ) -> None:
        self._session = session
        self._retention = retention
        self._after_days = after_days
        self._part = part
        self._result = result
        [self._log] = [one for one in session.open_log.and_earlier() if one.id == part.log_id]
        self._read_in: Log | None = None
        self._open_size = 0
        """Of the log that events are written to, when it was read what is erased."""
        self._erased = Erasures()
        self._remaining = part.positions
        """Those that may have rows."""
        self._removed = 0
        self._met: set[int] = set()
        """Positions whose rows are not as the log has them, and are named already."""

    async def verify_and_remove(self, key: SigningKey, removed: Positions) -> None:
        """Remove all that may be, if the part is as it was signed; `removed` are those that are already."""
        self._remaining = self._part.positions.without(removed)
        await self._retention.refresh()
        if not await self._has_rows():
            return
        try:
            await self.read_erasures()
            checked = await asyncio.to_thread(self._read_back, list(keys_of(self._log, key.all_public)))
            if problem := next(iter([*checked.problems, *unlike_recorded(self._part, checked)]), None):
                self._refuse(problem)
                return
            self._session.on_step("part verified")
            await self._remove_rows()
        except _Erased:
            self._refuse("something of it was erased, and is in it still")
        finally:
            if self._removed:
                self._result.removed.append(RemovedEvents(self._part, self._removed))

    def _refuse(self, why: str) -> None:
        what = "nothing more" if self._removed else "nothing"
        self._result.refused.append(f"{what} of {self._part.month} {self._part.archive_id} is removed: {why}")

    def _read_back(self, keys: list[PublicKey]) -> PartResult:
        folder = self._session.storage.name_of(self._part.location)
        if folder is None:
            result = PartResult(self._part.location)
            result.add(f"unverifiable: it is at {self._part.location}, not in this archive")
            return result
        progress = Stage(self._session, "verifying", self._part.month, self._part.positions.size)
        with Checker(keys, 1, progress.add) as checker:
            return checker.check(self._session.storage, folder)

    async def read_erasures(self) -> None:
        """_Erased if the part has content that was erased since."""
        connection = self._session.connection
        async with snapshot(connection):
            self._read_in, self._open_size = self._session.open_log, await self._session.log_size()
            if self._part.pending(await read_erasures(connection, self._session.open_log)):
                raise _Erased
            self._erased = await self._session.erased()

    async def remove(self) -> int:
        """Remove rows in batches, after read_erasures(), without a look at the files; how many. Parents go after their children, which takes several passes."""
        with suppress(_Erased):
            await self._remove_rows()
        return self._removed

    async def _remove_rows(self) -> None:
        progress = Stage(self._session, "removing", self._part.month, self._remaining.size)
        for _ in range(_PASSES_MAX):
            removed: list[Range] = []
            for window in _from_the_end(self._remaining, BATCH_ROWS):
                done = await self._remove_window(window)
                self._removed += done.size
                progress.add(done.size)
                removed += done.ranges
            if not removed:
                break
            self._remaining = self._remaining.without(Positions(removed))

    async def _remove_window(self, window: Positions) -> Positions:
        """Remove what may be of a few positions; which."""
        for _ in range(_TRIES):  # after a change the next reading leaves out what is held by now
            await self._retention.refresh()
            rows = await self._sound(await self._rows(window))
            wanted = [row for row in rows if self._retention.awaited.allow(_place(row) + 1)]
            if not wanted or await self._remove(wanted):
                return Positions.of(row["log_index"] for row in wanted)
        return Positions()

    async def _has_rows(self) -> bool:
        """Whether there is anything that the rules let go."""
        for window in _from_the_end(self._remaining, BATCH_ROWS):
            if await self._rows(window):
                return True
        return False

    async def _rows(self, window: Positions) -> list[asyncpg.Record]:
        """The rows at a few positions that the rules let go."""
        first, ends = date.fromisoformat(f"{self._part.month}-01"), self._ends()
        rows = await self._session.connection.fetch(
            SQL.of(self._log)["removable"],
            *(first, (first + timedelta(days=32)).replace(day=1), window.ranges[0][0], window.ranges[-1][1]),
            *(self._before(None), list(ends), list(ends.values())),
            timeout=_SLOW_SECONDS,
        )
        return [row for row in rows if row["log_index"] in window]

    def _before(self, floor_days: int | None) -> datetime:
        """Until when events have happened that may be removed, if they have to stay for `floor_days`, or as the settings say."""
        terms = self._retention.terms
        return terms.now - timedelta(days=max(self._after_days, terms.floor_days if floor_days is None else floor_days))

    def _ends(self) -> dict[str, datetime]:
        """The same by category, of those whose policy says for how many days no event goes, whatever else is set."""
        policies = self._retention.in_force.orders.policies()
        floors = {category: one.policy.floor_days for category, one in policies.items() if one.policy is not None}
        return {category: self._before(days) for category, days in floors.items() if days is not None}

    async def _sound(self, rows: Sequence[asyncpg.Record]) -> list[asyncpg.Record]:
        """The rows that are as the log has them, at positions that no other row has; the others are named."""
        connection, log = self._session.connection, self._session.open_log
        alone = await connection.fetch(RETENTION["single_positions"], [row["log_index"] for row in rows])
        places = {(row["log_id"], row["log_index"]) for row in alone}
        sound = []
        for row in rows:
            if row["payload_commitment"] is not None and _place(row) not in self._erased:
                continue  # erased since it was read what is: the next pass knows
            defects = list(row_defects(row, row["leaf"], log, self._erased))
            if not defects and (row["log_id"], row["log_index"]) in places and row["log_id"] == self._log.id:
                sound.append(row)
            elif row["log_index"] not in self._met:
                self._met.add(row["log_index"])
                doubled = defect_of(row, "inserted", f"another event is at position {row['log_index']} of the log too")
                for defect in defects or [doubled]:
                    self._result.left.add(defect)
        return sound

    async def _remove(self, rows: Sequence[asyncpg.Record]) -> bool:
        """Delete rows and write their purge events, together. False if something has changed since they were read."""
        places = Positions.of(_place(row) for row in rows)
        keys = [[row[name] for row in rows] for name in ("event_id", "event_date", "correlation_id")]

        async def delete(connection: Connection, flush: Flush) -> None:
            assert self._read_in is not None
            if flush.log != self._read_in or await connection.fetchval(
                SQL.of(self._read_in)["is_erased"], self._open_size
            ):
                raise RowsChanged
            await delete_rows(self._retention, connection, keys, places)
            self._session.on_step("removing")

        named = [(self._part.archive_id, self._part.manifest_sha256)]
        purge = Purge(places, Positions(), 0, (), archives=named)
        try:
            await commit_action(
                self._retention.store, list(purge_events(self._retention, self._result.run_id, purge)), delete
            )
        except (RowsChanged, OrdersChanged, SinkMoved):
            await self.read_erasures()
            return False
        self._session.on_step("removed")
        return True


def _place(row: asyncpg.Record) -> int:
    return place_of(row["log_id"], row["log_index"])


def _from_the_end(positions: Positions, count: int) -> Iterator[Positions]:
    """The set in portions of at most `count` positions, the last ones first."""
    portion: list[Range] = []
    size = 0
    for first, end in reversed(positions.ranges):
        at = end
        while at > first:
            start = max(first, at - (count - size))
            portion.append((start, at))
            size, at = size + at - start, start
            if size == count:
                yield Positions(portion)
                portion, size = [], 0
    if portion:
        yield Positions(portion)
