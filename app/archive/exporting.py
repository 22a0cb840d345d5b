"""The archive as an export reads it: what the log records of it in the export's snapshot, by a process of the export's own.

So nobody waits for another's export, and none is cut by the deadline of a query. What the export's snapshot shows of Postgres and of the log's record
belong together: a removal that commits later is in neither, one that has committed is in both.
"""

from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, nullcontext
from dataclasses import dataclass

from app.archive.export_process import OldestOfArchive, answer, asked, exported_rows, oldest_of
from app.archive.question import ALL_READ, FoundRow, PartToRead, Question
from app.archive.reading import (
    ARCHIVE_SHARE,
    ArchiveAway,
    ArchiveReader,
    PartGone,
    is_of_time,
    left_out_of,
    prefilter_of,
)
from app.db import Connection, Pool
from app.events.log import Log
from app.events.positions import Positions
from app.export.archived import FromArchive
from app.export.manifest import LeftOut
from app.query.filter import EventFilter

WINDOW_BYTES = 128 * 1024**2
"""Of rows that the process has in memory."""
_TRIES = 3
"""Without an event between them, before files count as missing."""


@dataclass(slots=True)
class ArchiveOfExport:
    """What one export reads of the archive, or leaves out."""

    reader: ArchiveReader
    pool: Pool
    """Of the primary: what the log records now, where a part that the snapshot names has been replaced."""
    log: Log
    query: EventFilter
    is_read: bool
    _parts: Sequence[PartToRead] = ()

    async def begin(self, connection: Connection, sizes: Mapping[int, int]) -> LeftOut | None:
        """Read what the archive alone has, of logs of these sizes or of all; what is left out."""
        if self.query.sealed is False:
            return None
        self._parts = [
            part for part in await self.reader.parts_in(connection, self.log) if is_of_time(part.month, self.query)
        ]
        if self.is_read:
            return None
        return left_out_of(self._parts, sizes)

    async def rows(self, connection: Connection, log: Log, first: int, end: int) -> AsyncGenerator[list[FromArchive]]:
        """Events with positions from `first` up to, not including, `end`, that match, in their order. ArchiveAway or ArchiveDamaged if not all of them
        can be read, as when a part expires meanwhile.
        """
        parts = list(_within(self._parts if self.is_read else (), log, first, end))
        tries = 0
        while parts:
            try:
                async with aclosing(_portions(self.reader, self.query, parts)) as portions:
                    async for portion in portions:
                        tries, first = 0, portion[-1].row["log_index"] + 1
                        if rows := await self._rows(connection, portion, parts):
                            yield rows
                parts = []
            except PartGone:
                tries += 1
                if tries == _TRIES:
                    raise ArchiveAway from None
                parts = await self._as_recorded_now(log, list(_within(parts, log, first, end)))

    async def _as_recorded_now(self, log: Log, parts: Sequence[PartToRead]) -> list[PartToRead]:
        """The same events in parts that are there now. ArchiveAway if some are in none any more."""
        wanted = _all(parts)
        now = [
            part._replace(wanted=positions)
            for part in await self.reader.parts(self.pool, self.log)
            if part.log_id == log.id and (positions := Positions(_common(part.wanted, wanted)))
        ]
        if wanted.without(_all(now)):
            raise ArchiveAway("Events that the export is about have expired meanwhile: begin it again.")
        return now

    async def _rows(
        self, connection: Connection, portion: Sequence[FoundRow], parts: Sequence[PartToRead]
    ) -> list[FromArchive]:
        rows = await exported_rows(connection, self.log, portion, parts)
        return [row for row in rows if row["sealed"]] if self.query.sealed else rows

    def oldest(self, count: int) -> AbstractAsyncContextManager[OldestOfArchive | None]:
        """As a page reads them: the oldest events that match, at most `count`. ArchiveAway, ArchiveDamaged or DatabaseBusy if they cannot be read in time."""
        if not self.is_read or not self._parts:
            return nullcontext()
        seconds = self.reader.settings.query_deadline_ms / 1000 * ARCHIVE_SHARE
        return oldest_of(self.reader, self.log, _question(self.query, self._parts, rows=count, seconds=seconds))


async def _portions(
    reader: ArchiveReader, query: EventFilter, parts: Sequence[PartToRead]
) -> AsyncGenerator[list[FoundRow]]:
    """What a process answers that is started for it. It has ended when this has."""
    async with asked(reader, "app.archive.in_order", _question(query, parts)) as process:
        while portion := await answer(process):
            yield portion


def _question(query: EventFilter, parts: Sequence[PartToRead], *, rows: int = 0, seconds: float = 0.0) -> Question:
    arguments = {name: value for name, value in query.arguments().items() if value is not None}
    return Question(
        *(query.conditions(), arguments, prefilter_of(query), None, ALL_READ, rows),
        *(tuple(parts), seconds, WINDOW_BYTES, True),
    )


def _all(parts: Sequence[PartToRead]) -> Positions:
    return Positions(one for part in parts for one in part.wanted.ranges)


def _common(one: Positions, other: Positions) -> Iterator[tuple[int, int]]:
    return (found for first, end in one.ranges for found in other.within(first, end))


def _within(parts: Sequence[PartToRead], log: Log, first: int, end: int) -> Iterator[PartToRead]:
    """The parts of a log that have some of its events between two positions, with these alone."""
    for part in parts:
        if part.log_id == log.id and (wanted := Positions(part.wanted.within(first, end))):
            yield part._replace(wanted=wanted)
