"""Reads the log in its order, portion by portion, from any place: each sealed event once, and what is said where there is none.

A flush becomes visible whole, and only behind the one before it. So in one snapshot every position up to the end of the flushes that
follow each other has its row, was purged, or is missing; whoever goes on from where a portion ended skips nothing and gets nothing
twice, however slow a commit was and whichever replica wrote it. Replicas of Postgres may show another order of commits than the
primary: `connection` is to the primary.
"""

from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from app.db import Connection
from app.events.log import LOG_POSITIONS, Log
from app.events.positions import Positions
from app.export.row import exported_event
from app.export.select import sealed_rows
from app.query.filter import EventFilter
from app.sql import load
from app.tlog.continued import read_seam
from app.tlog.evidence import NO_EVIDENCE, Evidence, read_evidence

SQL, EXPORT_SQL, TLOG_SQL = load("stream"), load("export"), load("tlog")
EVENTS_MAX = 500
BYTES_MAX = 1024 * 1024
"""Of the payloads of a portion; a single event may have more."""
_POSITIONS_MAX = 50_000
"""Looked at for one portion, however few of them a filter takes."""

FindLog = Callable[[Connection, Log], Awaitable[Log]]
"""Finds the log that events are written to now, which is a known one or continues it (tlog/continued.py)."""


class StreamedEvent(NamedTuple):
    """A sealed event."""

    place: int
    event: dict[str, Any]
    """The members of an exported event (export/file.py). Its event_data and event_metadata are JSON already, as orjson.Fragment."""


class Absent(NamedTuple):
    """Places from `first` up to, not including, `end` that have no event any more."""

    first: int
    end: int
    reason: Literal["purged", "lost", "unknown"]
    """What the log says of it: purged by retention, lost as its continuation admits, or nothing, which is what verification looks at."""


class Seam(NamedTuple):
    """The next log begins here; the one before it was closed."""

    place: int
    log: str
    closed: str
    size: int
    """Positions of the closed log."""


class Checkpoint(NamedTuple):
    """What was signed of the log up to a place."""

    place: int
    """Behind the last event that it covers."""
    note: str
    """C2SP tlog-checkpoint, with its cosignatures."""


Item = StreamedEvent | Absent | Seam | Checkpoint
"""The place of each is its first member."""


@dataclass(frozen=True, slots=True)
class Portion:
    """What there is from one place up to another, in order."""

    items: Sequence[Item]
    next: int
    """The place where the next portion begins."""
    is_end: bool
    """Whether the log had nothing more."""


class NotThereYet(Exception):
    """A place is beyond the end of the log."""

    def __init__(self, end: int) -> None:
        super().__init__()
        self.end = end
        """The place that the next event will have."""


class LogReader:
    """Reads portions. It may be used by several tasks, each with a connection of its own."""

    def __init__(self, log: Log, find_log: FindLog) -> None:
        self.log = log
        """The last log that is known."""
        self._find_log = find_log
        self._evidence: Evidence = NO_EVIDENCE
        """Of what is absent, as far as it was needed."""

    async def end(self, connection: Connection) -> int:
        """The place that the next event will have."""
        self.log = await self._find_log(connection, self.log)
        return await end_place(connection, self.log)

    async def checkpoint(self, connection: Connection, place: int) -> Checkpoint | None:
        """The newest published checkpoint of the log of `place` that covers nothing from there on; None without one."""
        log = self._log_of(place)
        row = await connection.fetchrow(TLOG_SQL.of(log)["published_up_to"], place - log.place(0))
        return None if row is None else Checkpoint(log.place(row["size"]), row["note"])

    async def read(
        self,
        connection: Connection,
        first: int,
        query: EventFilter,
        *,
        events_max: int = EVENTS_MAX,
        bytes_max: int = BYTES_MAX,
    ) -> Portion:
        """The events from the place `first` on that match `query`. Raises NotThereYet.

        A portion may have no events although there are more: `is_end` says whether to wait.
        """
        if first >= self.log.place(0):  # at the end of the log that is known, perhaps of another one
            self.log = await self._find_log(connection, self.log)
        if first >= self.log.next.place(0):
            raise NotThereYet(await self.end(connection))
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            log = self._log_of(first)
            position = first - log.place(0)
            end = await self._end(connection, log, position)
            if log.id == self.log.id and position > end:
                raise NotThereYet(log.place(end))
            if log.id == self.log.id and position == end:
                return Portion((), first, is_end=True)
            if position >= end:  # whoever has got more of a closed log has what was lost
                seam = Seam(log.next.place(0), log.next.name, log.name, end)
                return Portion((seam,), seam.place, is_end=False)
            stop = min(end, position + _POSITIONS_MAX)
            events, stop = await _events(
                connection, query, log, position, stop, events_max=events_max, bytes_max=bytes_max
            )
            items: list[Item] = [*events, *await self._absent(connection, log, position, stop)]
        items.sort(key=_place)
        return Portion(items, log.place(stop), is_end=stop == end and log.id == self.log.id)

    def _log_of(self, place: int) -> Log:
        log_id = place // LOG_POSITIONS
        return self.log if log_id == self.log.id else Log(log_id, self.log.first_name, is_open=False)

    async def _end(self, connection: Connection, log: Log, position: int) -> int:
        """The position behind the last one that can be read from `position` on, or near it; of a closed log its size."""
        if not log.is_open and (seam := await read_seam(connection, log.next)) is not None:
            end = seam.size  # what was lost may have no flushes either
        else:
            end = await connection.fetchval(SQL.of(log)["end_from"], position, _POSITIONS_MAX)
            if end is None:
                end = await connection.fetchval(EXPORT_SQL.of(log)["log_size"])
        return int(end)

    async def _absent(self, connection: Connection, log: Log, first: int, end: int) -> list[Absent]:
        """What is missing between two positions, and why."""
        rows = await connection.fetch(SQL.of(log)["absent"], first, end)
        ranges = [(log.place(row["first"]), log.place(row["end"])) for row in rows]
        absent = list(self._explained(ranges))
        if any(one.reason == "unknown" for one in absent):  # or it was removed since the evidence was read
            self._evidence = await read_evidence(connection, self.log)
            absent = list(self._explained(ranges))
        return absent

    def _explained(self, ranges: Sequence[tuple[int, int]]) -> Iterator[Absent]:
        for first, end in ranges:
            purged, lost = self._evidence.purged, self._evidence.lost.without(self._evidence.purged)
            yield from (Absent(a, b, "purged") for a, b in purged.within(first, end))
            yield from (Absent(a, b, "lost") for a, b in lost.within(first, end))
            unknown = Positions([(first, end)]).without(self._evidence.missing)
            yield from (Absent(a, b, "unknown") for a, b in unknown.ranges)


async def end_place(connection: Connection, log: Log) -> int:
    """The place that the next event of a log will have, if it is the last one."""
    return log.place(await connection.fetchval(EXPORT_SQL.of(log)["log_size"]))


async def _events(
    connection: Connection, query: EventFilter, log: Log, first: int, end: int, *, events_max: int, bytes_max: int
) -> tuple[list[StreamedEvent], int]:
    """The events that match between two positions, and the position behind the last one that was looked at."""
    events: list[StreamedEvent] = []
    size = 0
    async with aclosing(sealed_rows(connection, query, log, first, end)) as portions:
        async for rows in portions:
            for row in rows:
                if row["sealed"]:  # another row may say that it is at this position; the log says which one is
                    event = exported_event(row, redacted=False)
                    events.append(StreamedEvent(log.place(row["log_index"]), event))
                    size += len(row["event_data"])
                if len(events) >= events_max or size >= bytes_max:
                    return events, row["log_index"] + 1
    return events, end


def _place(item: Item) -> int:
    return item[0]
