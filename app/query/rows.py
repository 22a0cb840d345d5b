"""The rows of one page of events, in the order of time or of the log, read within a time that does not depend on how rare they are.

Where one index has what a query asks for in its order, the page is read at once; so it is where the roll-up knows which types have it, and
these are few enough. Other queries scan: portion by portion in the
order of the page, each a range of so many events, and a page whose scan takes too long ends before it is full, with a cursor from
which the next one goes on. Only a question that the reference could be asked is read to its end, as there. Where that would take too
long because of audit events of Kubernetes, which are left out, the others are read type by type: an index has each in the order of time. A question
without filters is seen to be one of these by its newest events, others by the time that they have taken.
"""

import math
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from time import monotonic
from typing import NamedTuple

import asyncpg

from app.db import Connection, limited
from app.errors import DatabaseBusy
from app.events import kubernetes
from app.query.compiled import in_order, planned_once
from app.query.cursor import Cursor, LogCursor
from app.query.filter import EventQuery
from app.query.matching_types import matching_types
from app.query.offset import is_deep, nearer
from app.query.page_statements import (
    Key,
    Merged,
    Phase,
    before_all,
    edge_statement,
    key_arguments,
    key_of,
    page_statement,
    recorded_statement,
)
from app.query.postgres_time import nearest_rfc3339
from app.query.ways import FEW, Way, values_of, way_of
from app.sql import load

SQL = load("reports")

SCAN_SECONDS = 1.0
"""How long the scan of one page may take."""
_AT_ONCE_SECONDS = 0.25
"""How long a query may take that an index may have the answer to, before it is scanned for."""
_NEWEST = 4000
"""Events among which a page is looked for first that leaves out nothing but self events and audit events of Kubernetes, which may be all of them."""
_NEWEST_MATCHING = 10_000
"""Events among which a page is looked for in the order of time, if it should be there by what the roll-up has counted."""
SCANNED_FIRST, SCANNED_MAX = 1000, 1_000_000
"""Events of the first portion, and of the largest."""
_GROWTH = 4


@dataclass(frozen=True, slots=True)
class FoundRows:
    """The rows of a page. It is the last one if there is no `next_cursor`; it was cut if there is `scanned_until`, in RFC 3339."""

    rows: list[asyncpg.Record]
    next_cursor: Cursor | LogCursor | None
    scanned_until: str | None = None


_ALL = Phase("time")
_UNSEALED = Phase("time", "log_index IS NULL")


class _Part(NamedTuple):
    """What is read of a phase: the rows after one, down to another, which is read too; None is its beginning, or its end."""

    after: Key | None
    to: Key | None = None


async def rows_of_page(connection: Connection, query: EventQuery) -> FoundRows:
    """The rows of the page of `query`. DatabaseBusy if not even a small part of them can be read in time."""
    reading = _Reading(connection, query)
    if query.offset:
        reading.add(_ALL, await _rows_after_offset(connection, query))
        return await reading.found()
    for phase, after in await _phases(connection, query):
        if await reading.read(phase, after):
            break
    return await reading.found()


async def _phases(connection: Connection, query: EventQuery) -> list[tuple[Phase, Key | None]]:
    """The phases of the page, each with the row after which it is read: the last log first, then the others, then unsealed rows."""
    if query.order == "time":
        return [(_ALL, query.cursor if isinstance(query.cursor, Cursor) else None)]
    after = query.cursor.after if isinstance(query.cursor, LogCursor) else None
    if isinstance(after, Cursor):
        return [(_UNSEALED, after)]
    phases = await _of_logs(connection)
    if after is None:
        return [*((phase, None) for phase in phases), (_UNSEALED, None)]
    rest = [
        (phase, after if phase.log_id == after.log_id else None) for phase in phases if phase.log_id <= after.log_id
    ]
    return [*rest, (_UNSEALED, None)]


async def _of_logs(connection: Connection) -> list[Phase]:
    """A phase for each log, the last one first, and before them one of rows that name a later log than there is.

    Where there are several logs, the rows of the later ones are found by the index on those with `log_id > 0` alone. Rows that name
    no log at all are among those of the first one.
    """
    later = [row["log_id"] for row in await connection.fetch(SQL["log_ids"]) if row["log_id"] > 0]
    if not later:
        return [_of_log(0, "true")]
    phases = [_of_log(log_id, f"log_id = {log_id} AND log_id > 0") for log_id in later]
    if await connection.fetchval(SQL["unknown_log"], later[0]) is not None:
        unknown = later[0] + 1
        phases.insert(0, _of_log(unknown, f"log_id >= {unknown} AND log_id > 0"))
    return [*phases, _of_log(0, "(log_id > 0) IS NOT TRUE")]


def _of_log(log_id: int, rows: str) -> Phase:
    return Phase("position", f"{rows} AND log_index IS NOT NULL", log_id)


class _Reading:
    """The reading of one page: what was found, and where it has to end."""

    def __init__(self, connection: Connection, query: EventQuery) -> None:
        self._connection = connection
        self._query = query
        self._rows = list[asyncpg.Record]()
        self._keys = list[Key]()
        """Of each row."""
        self._cut: tuple[Phase, Key] | None = None
        """Down to where the scan has read, if it had to end before the page was full."""
        self._has_read = False
        """Whether there is anything that the scan has read: it can end there."""
        self._end = monotonic() + SCAN_SECONDS if query.may_be_cut or not query.includes_kubernetes else math.inf

    def add(self, phase: Phase, rows: list[asyncpg.Record]) -> None:
        self._rows += rows
        self._keys += [key_of(phase, row) for row in rows]

    async def found(self) -> FoundRows:
        limit = self._query.limit
        if self._is_full:
            return FoundRows(self._rows[:limit], self._cursor(self._keys[limit - 1]))
        if self._cut is None:
            return FoundRows(self._rows, None)
        phase, key = self._cut
        return FoundRows(self._rows, self._cursor(key), await self._time_of(phase, key))

    async def read(self, phase: Phase, after: Key | None) -> bool:
        """Read the rows of `phase` after one. Whether the page is full, or the time is over."""
        way = way_of(self._query)
        if way.how == "try types":
            async with in_order(self._connection):
                rows = await self._fetch(phase, _Part(after), newest=_NEWEST)
            if len(rows) > self._query.limit:
                self.add(phase, rows)
                return True
            if await self._is_by_types(phase):
                return await self._read_by_types(phase, after)
        if phase == _UNSEALED and way.how == "scan":  # mostly there are few, and the index on positions has them
            way = Way("try")
        if way.how != "scan":
            with suppress(TimeoutError):
                async with limited(self._connection, None if way.how == "at once" else _AT_ONCE_SECONDS):
                    found = await self._by_index(phase, _Part(after), way)
                if found is not None:
                    self.add(phase, found)
                    self._has_read = True
                    return self._is_full
        return await self._scan(phase, after)

    async def _by_index(self, phase: Phase, part: _Part, way: Way) -> list[asyncpg.Record] | None:
        """The rows, if an index has them; None if it is the types that have them, and these are not known, or take longer than a scan."""
        if way.how == "try matching types":
            with suppress(asyncpg.InsufficientPrivilegeError):  # roles.sql was not run after the migration
                return await self._of_matching_types(phase, part)
            return None
        if way.merged is None:
            async with in_order(self._connection) if way.in_order and phase != _UNSEALED else nullcontext():
                return await self._fetch(phase, part)
        async with planned_once(self._connection):
            return await self._fetch(phase, part, merged=way.merged, values=values_of(self._query, way.merged))

    async def _of_matching_types(self, phase: Phase, part: _Part) -> list[asyncpg.Record] | None:
        async with planned_once(self._connection):
            matching = await matching_types(self._connection, self._query)
            if matching is None:
                return None
            is_by_types = matching.read_by_types <= matching.read_by_time
            if not is_by_types and matching.read_by_time > _NEWEST_MATCHING:
                return None
            if not is_by_types:
                rows = await self._fetch(phase, part, newest=_NEWEST_MATCHING)
                if len(rows) > self._query.limit:
                    return rows
            return await self._fetch(phase, part, merged="event_type", values=matching.types)

    async def _is_by_types(self, phase: Phase) -> bool:
        return phase == _ALL and await _leaves_out_many(self._connection, self._query)

    async def _read_by_types(self, phase: Phase, after: Key | None) -> bool:
        self.add(phase, await self._fetch(phase, _Part(after), merged="types of others"))
        return self._is_full

    @property
    def _is_full(self) -> bool:
        return len(self._rows) > self._query.limit

    async def _scan(self, phase: Phase, after: Key | None) -> bool:
        """As read(), portion by portion; a first portion that takes too long is tried again with fewer events."""
        size = SCANNED_FIRST
        while True:
            started = monotonic()
            planned = nullcontext() if phase == _UNSEALED else in_order(self._connection)  # these few are sorted
            try:
                async with limited(self._connection, SCAN_SECONDS if self._query.may_be_cut else None), planned:
                    edge = await self._edge(phase, after, size)
                    rows = await self._fetch(phase, _Part(after, edge))
            except TimeoutError:
                if self._has_read:
                    self._cut = phase, after or before_all(phase)
                    return True
                size //= _GROWTH**2
                if size == 0:
                    raise DatabaseBusy from None
                continue
            self.add(phase, rows)
            self._has_read = True
            if edge is None or self._is_full:
                return self._is_full
            after, left, taken = edge, self._end - monotonic(), monotonic() - started
            if left <= 0 and self._query.may_be_cut:
                self._cut = phase, edge
                return True
            if left <= 0 and await self._is_by_types(phase):
                return await self._read_by_types(phase, edge)
            if left <= 0:
                self._end = left = math.inf
            affordable = size * min(_GROWTH, left / taken) if taken else size * _GROWTH
            size = max(SCANNED_FIRST, min(int(affordable), SCANNED_MAX))

    async def _edge(self, phase: Phase, after: Key | None, size: int) -> Key | None:
        """Where a portion of `size` events ends that begins after one; None if there are not as many."""
        query = self._query
        bounds = tuple(name for name in ("since", "until") if getattr(query, name) is not None)
        statement = edge_statement(phase, bounds if phase.by == "time" else (), is_after=after is not None)
        arguments = query.arguments() | key_arguments("after", after) | {"events": size - 1}
        row = await self._connection.fetchrow(statement.text, *statement.bind(arguments))
        return None if row is None else key_of(phase, row)

    async def _fetch(
        self,
        phase: Phase,
        part: _Part,
        *,
        merged: Merged | None = None,
        values: Sequence[str] = (),
        newest: int | None = None,
    ) -> list[asyncpg.Record]:
        statement = page_statement(
            self._query.page_conditions(),
            phase,
            is_after=part.after is not None,
            has_end=part.to is not None,
            newest=newest,
            merged=merged,
        )
        limits = {"rows": self._query.limit + 1 - len(self._rows), "values": values}
        keys = key_arguments("after", part.after) | key_arguments("to", part.to)
        return await self._connection.fetch(statement.text, *statement.bind(self._query.arguments() | keys | limits))

    def _cursor(self, key: Key) -> Cursor | LogCursor:
        return key if self._query.order == "time" and isinstance(key, Cursor) else LogCursor(key)

    async def _time_of(self, phase: Phase, key: Key) -> str:
        """The time of the event that was scanned last: its own, or in the order of a log when it was recorded."""
        if isinstance(key, Cursor):
            return nearest_rfc3339(key.event_timestamp.replace("T", " ", 1))
        recorded = await self._connection.fetchval(recorded_statement(phase).text, key.log_index)
        return nearest_rfc3339(recorded or "infinity")


async def _leaves_out_many(connection: Connection, query: EventQuery) -> bool:
    """Whether audit events of Kubernetes, of which there are some, may be why a page took long."""
    if query.includes_kubernetes or not FEW.isdisjoint(query.conditions()):
        return False
    return await connection.fetchval(SQL["first_of_types"], list(kubernetes.STAGES.values())) is not None


async def _rows_after_offset(connection: Connection, query: EventQuery) -> list[asyncpg.Record]:
    """Rows after those that `offset` leaves out, however many these are."""
    if query.includes_kubernetes:
        return await _rows_after_any_offset(connection, query)
    if way_of(query).how == "try types" and query.offset + query.limit < _NEWEST // 2:
        rows = await rows_after_offset(connection, query, newest=_NEWEST)
        if len(rows) > query.limit:
            return rows
        if await _leaves_out_many(connection, query):
            return await rows_after_offset(connection, query, merged="types of others")
    with suppress(TimeoutError):
        async with limited(connection, SCAN_SECONDS):
            return await _rows_after_any_offset(connection, query)
    merged: Merged | None = "types of others" if await _leaves_out_many(connection, query) else None
    return await _rows_after_any_offset(connection, query, merged=merged)


async def _rows_after_any_offset(
    connection: Connection, query: EventQuery, *, merged: Merged | None = None
) -> list[asyncpg.Record]:
    if is_deep(query):
        with suppress(asyncpg.InsufficientPrivilegeError):  # roles.sql was not run after the migration
            async with connection.transaction(isolation="repeatable_read", readonly=True):
                query_near = await nearer(connection, query)
                return await rows_after_offset(connection, query_near, merged=merged)
    return await rows_after_offset(connection, query, merged=merged)


async def rows_after_offset(
    connection: Connection, query: EventQuery, *, merged: Merged | None = None, newest: int | None = None
) -> list[asyncpg.Record]:
    """The same, read from the newest row on."""
    statement = page_statement(query.page_conditions(), _ALL, has_offset=True, merged=merged, newest=newest)
    arguments = query.arguments() | {"offset": query.offset, "rows": query.limit + 1}
    async with in_order(connection) if way_of(query).in_order else nullcontext():
        return await connection.fetch(statement.text, *statement.bind(arguments))
