"""Reads the log in its order, portion by portion, from any place: each sealed event once, and what is said where there is none.

A flush becomes visible whole, and only behind the one before it. So in one snapshot every position up to the end of the flushes that
follow each other has its row, was purged, or is missing; whoever goes on from where a portion ended skips nothing and gets nothing
twice, however slow a commit was and whichever replica wrote it. Replicas of Postgres may show another order of commits than the
primary: `connection` is to the primary.
"""

from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Self

from app.db import Connection
from app.events.log import LOG_POSITIONS, Log
from app.events.positions import Positions
from app.export.row import exported_event
from app.export.select import sealed_rows
from app.query.filter import EventFilter
from app.sql import load
from app.standby import Confirm
from app.tlog.continued import read_seam
from app.tlog.evidence import NO_EVIDENCE, Evidence, read_evidence

SQL, TLOG_SQL = load("stream"), load("tlog")
EVENTS_MAX = 500
"""Items of a portion, of any kind."""
BYTES_MAX = 1024 * 1024
"""Of the payloads of a portion; a single event may have more."""
_ABSENT_BYTES = 100
_FLUSHES_MAX = 1000
"""Followed from the last known one; if there are more, the last checkpoint is nearer to the end."""
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
_Found = tuple[Item, int]
"""An item, and how many bytes of a portion it counts as."""


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
    """Reads portions. It may be used by several tasks, each with a connection of its own.

    With `confirm` nothing is returned that a failover could take away: a reader who has it would go on behind what the log then has there.
    """

    def __init__(self, log: Log, find_log: FindLog, confirm: Confirm | None = None) -> None:
        self.log = log
        """The last log that is known."""
        self._find_log = find_log
        self._confirm = confirm
        self._missing = _Missing.of(NO_EVIDENCE)
        """Why positions are absent, as far as it was needed."""
        self._missing_at: tuple[Log, int] | None = None
        """The last log, and where it ended, when that was read."""
        self._last_flush: dict[int, int] = {}
        """By id of the log: where the last of its flushes begins that was seen. What others insert beside it leads nobody astray."""

    async def end(self, connection: Connection) -> int:
        """The place that the next event will have. Raises StandbyMissing."""
        self.log = await self._find_log(connection, self.log)
        end = self.log.place(await self._flushes_end(connection, self.log))
        await self._confirmed(connection)
        return end

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
        """The events from the place `first` on that match `query`, and what is absent. Raises NotThereYet, and StandbyMissing.

        It has at most `events_max` items of any kind. A portion may have no events although there are more: `is_end` says whether to wait.
        """
        portion = await self._read(connection, first, query, events_max=events_max, bytes_max=bytes_max)
        await self._confirmed(connection)
        return portion

    async def _confirmed(self, connection: Connection) -> None:
        if self._confirm is not None:
            await self._confirm(connection)

    async def _read(
        self, connection: Connection, first: int, query: EventFilter, *, events_max: int, bytes_max: int
    ) -> Portion:
        if first >= self.log.place(0):  # at the end of the log that is known, perhaps of another one
            self.log = await self._find_log(connection, self.log)
        if first >= self.log.next.place(0):
            raise NotThereYet(await self.end(connection))
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            log = self._log_of(first)
            position = first - log.place(0)
            end = await self._end(connection, log)
            if log.id == self.log.id and position > end:
                raise NotThereYet(log.place(end))
            if log.id == self.log.id and position == end:
                return Portion((), first, is_end=True)
            if position >= end:  # whoever has got more of a closed log has what was lost
                seam = Seam(log.next.place(0), log.next.name, log.name, end)
                return Portion((seam,), seam.place, is_end=False)
            stop = min(end, position + _POSITIONS_MAX)
            found, unsealed, stop = await _events(
                connection, query, log, position, stop, events_max=events_max, bytes_max=bytes_max
            )
            unsealed = await _without_row(connection, log, unsealed)
            absent, stop = await self._absent(connection, log, position, stop, unsealed=unsealed, ranges_max=events_max)
        items, next_place = _cut([*found, *absent], log.place(stop), events_max=events_max, bytes_max=bytes_max)
        return Portion(items, next_place, is_end=next_place == log.place(end) and log.id == self.log.id)

    def _log_of(self, place: int) -> Log:
        log_id = place // LOG_POSITIONS
        return self.log if log_id == self.log.id else Log(log_id, self.log.first_name, is_open=False)

    async def _end(self, connection: Connection, log: Log) -> int:
        """The position behind the last one of a log; of a closed log its size."""
        if not log.is_open and (seam := await read_seam(connection, log.next)) is not None:
            return seam.size  # what was lost may have no flushes either
        return await self._flushes_end(connection, log)

    async def _flushes_end(self, connection: Connection, log: Log) -> int:
        """Where the flushes end that follow each other from the last known one on: a step for each that is new."""
        row = None
        if (known := self._last_flush.get(log.id)) is not None:
            row = await connection.fetchrow(SQL.of(log)["end_from"], known, _FLUSHES_MAX)
        if row is None or row["flushes"] == _FLUSHES_MAX:  # it is no longer there, as after a restore, or far behind
            row = await connection.fetchrow(SQL.of(log)["log_end"])
        if row is None:
            return 0
        self._last_flush[log.id] = row["first_index"]
        return int(row["end"])

    async def _absent(
        self, connection: Connection, log: Log, first: int, end: int, *, unsealed: set[int], ranges_max: int
    ) -> tuple[list[_Found], int]:
        """What is missing between two positions, and why, up to the position that is returned. `unsealed` have no row of the log's."""
        rows = await connection.fetch(SQL.of(log)["absent"], first, end, ranges_max)
        if len(rows) == ranges_max:
            end = rows[-1]["end"]
        alone = Positions.of(position for position in unsealed if position < end)
        positions = Positions([*((row["first"], row["end"]) for row in rows), *alone.ranges])
        absent = Positions((log.place(a), log.place(b)) for a, b in positions.ranges)
        if absent.without(self._missing.all):  # or it was removed since the evidence was read
            await self._read_evidence(connection)
        return [(one, _ABSENT_BYTES) for one in self._missing.explain(absent)], end

    async def _read_evidence(self, connection: Connection) -> None:
        """Read what was removed, and why, if the log has grown since that was read last."""
        at = self.log, await self._flushes_end(connection, self.log)
        if at != self._missing_at:
            self._missing, self._missing_at = _Missing.of(await read_evidence(connection, self.log)), at


@dataclass(frozen=True, slots=True)
class _Missing:
    """Places that may have no event: the sets of an Evidence, each computed once."""

    purged: Positions
    lost: Positions
    """And not purged."""
    all: Positions

    @classmethod
    def of(cls, evidence: Evidence) -> Self:
        return cls(evidence.purged, evidence.lost.without(evidence.purged), evidence.missing)

    def explain(self, absent: Positions) -> Iterator[Absent]:
        for first, end in absent.ranges:
            yield from (Absent(a, b, "purged") for a, b in self.purged.within(first, end))
            yield from (Absent(a, b, "lost") for a, b in self.lost.within(first, end))
        yield from (Absent(a, b, "unknown") for a, b in absent.without(self.all).ranges)


async def end_place(connection: Connection, log: Log) -> int:
    """The place that the next event of a log will have, if it is the last one."""
    row = await connection.fetchrow(SQL.of(log)["log_end"])
    return log.place(0 if row is None else row["end"])


async def _events(
    connection: Connection, query: EventFilter, log: Log, first: int, end: int, *, events_max: int, bytes_max: int
) -> tuple[list[_Found], set[int], int]:
    """The events that match between two positions, the positions of rows that are not the log's, and the position behind all these."""
    found: list[_Found] = []
    unsealed = set[int]()
    size = 0
    async with aclosing(sealed_rows(connection, query, log, first, end)) as portions:
        async for rows in portions:
            for row in rows:
                position = row["log_index"]
                if row["sealed"]:
                    event = StreamedEvent(log.place(position), exported_event(row, redacted=False))
                    found.append((event, len(row["event_data"])))
                    size += len(row["event_data"])
                    if len(found) + len(unsealed) >= events_max or size >= bytes_max:
                        return found, unsealed, position + 1
                elif len(found) + len(unsealed) >= events_max and position not in unsealed:
                    return found, unsealed, position
                else:
                    unsealed.add(position)
    return found, unsealed, end


async def _without_row(connection: Connection, log: Log, unsealed: set[int]) -> set[int]:
    """Those of these positions of which no row is the log's, whether a filter takes it or not."""
    if not unsealed:
        return unsealed
    rows = await connection.fetch(SQL.of(log)["sealed_at"], sorted(unsealed))
    return unsealed - {row["log_index"] for row in rows}


def _cut(found: list[_Found], end: int, *, events_max: int, bytes_max: int) -> tuple[list[Item], int]:
    """The first items before the place `end`, in order, as many as a portion may have; and the place behind what they are about."""
    items: list[Item] = []
    size = 0
    for item, item_size in sorted(found, key=_place):
        if item[0] >= end:
            break
        items.append(item)
        size += item_size
        if len(items) >= events_max or size >= bytes_max:
            return items, item.end if isinstance(item, Absent) else item[0] + 1
    return items, end


def _place(found: _Found) -> int:
    return found[0][0]
