"""The rows of one page of events, in the order of time or of the log, read within a time that does not depend on how rare they are.

Where one index has what a query asks for in its order, the page is read at once. Other queries scan: portion by portion in the
order of the page, each a range of so many events, and a page whose scan takes too long ends before it is full, with a cursor from
which the next one goes on. Only a question that the reference could be asked is read to its end, as there. Where that would take too
long because of audit events of Kubernetes, which are left out, the others are read type by type: an index has each in the order of time. A question
without filters is seen to be one of these by its newest events, others by the time that they have taken.
"""

import asyncio
import math
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from time import monotonic
from typing import Any, Literal, NamedTuple
from uuid import UUID

import asyncpg
from sqlalchemy import (
    BigInteger,
    Boolean,
    ColumnElement,
    Text,
    Uuid,
    bindparam,
    case,
    cast,
    column,
    func,
    literal_column,
    or_,
    select,
    text,
    tuple_,
)

from app.db import Connection
from app.errors import DatabaseBusy
from app.events import kubernetes
from app.query.compiled import Statement, compile_statement
from app.query.cursor import Cursor, LogCursor, Position
from app.query.filter import CONDITIONS, IS_SEALED, LEFT_OUT, Columns, EventQuery, conditions_on
from app.query.offset import is_deep, nearer
from app.query.postgres_time import nearest_rfc3339, utc_text, utc_time
from app.sql import fragment, load
from app.tables import audit_events

SQL = load("reports")

PORTION_BYTES = 1024 * 1024
"""Most bytes of payloads that are read at once: in one portion of a scan, or of the rest of a page. A single event may have more."""
_COMPRESSED_TIMES = 32
"""How many times larger than its stored form a compressed payload is taken to be, which few are."""
SCAN_SECONDS = 1.0
"""How long the scan of one page may take."""
_AT_ONCE_SECONDS = 0.25
"""How long a query may take that an index may have the answer to, before it is scanned for."""
_NEWEST = 4000
"""Events among which a page is looked for first that leaves out nothing but self events and audit events of Kubernetes, which may be all of them."""
SCANNED_FIRST, SCANNED_MAX = 1000, 1_000_000
"""Events of the first portion, and of the largest."""
_GROWTH = 4
_e = audit_events.c


@dataclass(frozen=True, slots=True)
class FoundRows:
    """The rows of a page. It is the last one if there is no `next_cursor`; it was cut if there is `scanned_until`, in RFC 3339."""

    rows: list[asyncpg.Record]
    next_cursor: Cursor | LogCursor | None
    scanned_until: str | None = None


class Phase(NamedTuple):
    """A part of the rows in one order: all by time, or of a log by position, or the unsealed ones by time."""

    by: Literal["time", "position"]
    rows: str = "true"
    """SQL: which rows."""
    log_id: int = 0


_ALL = Phase("time")
_UNSEALED = Phase("time", "log_index IS NULL")


_Key = Cursor | Position


class _Part(NamedTuple):
    """What is read of a phase: the rows after one, down to another, which is read too; None is its beginning, or its end."""

    after: _Key | None
    to: _Key | None = None


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


async def _phases(connection: Connection, query: EventQuery) -> list[tuple[Phase, _Key | None]]:
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
        self._keys = list[_Key]()
        """Of each row."""
        self._cut: tuple[Phase, _Key] | None = None
        """Down to where the scan has read, if it had to end before the page was full."""
        self._has_read = False
        """Whether there is anything that the scan has read: it can end there."""
        self._end = monotonic() + SCAN_SECONDS if query.may_be_cut or not query.includes_kubernetes else math.inf

    def add(self, phase: Phase, rows: list[asyncpg.Record]) -> None:
        self._rows += rows
        self._keys += [_key(phase, row) for row in rows]

    async def found(self) -> FoundRows:
        limit = self._query.limit
        if self._is_full:
            return FoundRows(self._rows[:limit], self._cursor(self._keys[limit - 1]))
        if self._cut is None:
            return FoundRows(self._rows, None)
        phase, key = self._cut
        return FoundRows(self._rows, self._cursor(key), await self._time_of(phase, key))

    async def read(self, phase: Phase, after: _Key | None) -> bool:
        """Read the rows of `phase` after one. Whether the page is full, or the time is over."""
        way = _way(self._query)
        if way == "try types":
            rows = await self._fetch(phase, _Part(after), is_among_newest=True)
            if len(rows) > self._query.limit:
                self.add(phase, rows)
                return True
            if await self._is_by_types(phase):
                return await self._read_by_types(phase, after)
        if phase == _UNSEALED and way == "scan":  # mostly there are few, and the index on positions has them
            way = "try"
        if way != "scan":
            with suppress(TimeoutError):
                async with asyncio.timeout(None if way == "at once" else _AT_ONCE_SECONDS):
                    rows = await self._fetch(phase, _Part(after))
                self.add(phase, rows)
                self._has_read = True
                return self._is_full
        return await self._scan(phase, after)

    async def _is_by_types(self, phase: Phase) -> bool:
        return phase == _ALL and await _leaves_out_many(self._connection, self._query)

    async def _read_by_types(self, phase: Phase, after: _Key | None) -> bool:
        self.add(phase, await self._fetch(phase, _Part(after), is_by_types=True))
        return self._is_full

    @property
    def _is_full(self) -> bool:
        return len(self._rows) > self._query.limit

    async def _scan(self, phase: Phase, after: _Key | None) -> bool:
        """As read(), portion by portion; a first portion that takes too long is tried again with fewer events."""
        size = SCANNED_FIRST
        while True:
            started = monotonic()
            try:
                async with asyncio.timeout(SCAN_SECONDS if self._query.may_be_cut else None):
                    edge = await self._edge(phase, after, size)
                    rows = await self._fetch(phase, _Part(after, edge))
            except TimeoutError:
                if self._has_read:
                    self._cut = phase, after or _before_all(phase)
                    return True
                if size < _GROWTH:
                    raise DatabaseBusy from None
                size //= _GROWTH**2
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

    async def _edge(self, phase: Phase, after: _Key | None, size: int) -> _Key | None:
        """Where a portion of `size` events ends that begins after one; None if there are not as many."""
        query = self._query
        bounds = tuple(name for name in ("since", "until") if getattr(query, name) is not None)
        statement = _edge_statement(phase, bounds if phase.by == "time" else (), is_after=after is not None)
        arguments = query.arguments() | _key_arguments("after", after) | {"events": size - 1}
        row = await self._connection.fetchrow(statement.text, *statement.bind(arguments))
        return None if row is None else _key(phase, row)

    async def _fetch(
        self, phase: Phase, part: _Part, *, is_by_types: bool = False, is_among_newest: bool = False
    ) -> list[asyncpg.Record]:
        statement = _page_statement(
            self._query.page_conditions(),
            phase,
            is_after=part.after is not None,
            has_end=part.to is not None,
            is_by_types=is_by_types,
            is_among_newest=is_among_newest,
        )
        limits = {"rows": self._query.limit + 1 - len(self._rows), "offset": 0}
        keys = _key_arguments("after", part.after) | _key_arguments("to", part.to)
        return await self._connection.fetch(statement.text, *statement.bind(self._query.arguments() | keys | limits))

    def _cursor(self, key: _Key) -> Cursor | LogCursor:
        return key if self._query.order == "time" and isinstance(key, Cursor) else LogCursor(key)

    async def _time_of(self, phase: Phase, key: _Key) -> str:
        """The time of the event that was scanned last: its own, or in the order of a log when it was recorded."""
        if isinstance(key, Cursor):
            return nearest_rfc3339(key.event_timestamp.replace("T", " ", 1))
        recorded = await self._connection.fetchval(_recorded_statement(phase).text, key.log_index)
        return nearest_rfc3339(recorded or "infinity")


_BY_TIME = {"since", "until", *LEFT_OUT.values()}
"""Conditions that the index on time has, or that nearly all events meet."""
_FEW = {
    *("correlation_id", "parent_event_id", "correlation_id_in", "parent_event_id_in"),
    *(name for name in CONDITIONS if name.startswith("detail ")),
}
"""Conditions with an index that only few events meet."""
_MANY = {"event_type", "actor_id", "resource_id"}
"""Conditions with an index in the order of time."""
_MAYBE = {*_MANY, *(f"{name}_in" for name in _MANY)}
"""Conditions with an index, in some order."""


def _way(query: EventQuery) -> Literal["at once", "try", "try types", "scan"]:
    """How to read a page: at once where an index has it, by a scan where none has, and else first the one and then the other.

    What is left out may stand between the rows that an index has: mostly it has them at once.
    """
    conditions = set(query.conditions())
    others = conditions - _BY_TIME
    if not others.isdisjoint(_FEW):
        return "at once"
    if query.order == "time":
        if not others:
            return "at once" if query.includes_kubernetes else "try types"
        if len(others) == 1 and others <= _MANY:
            return "at once" if query.includes_kubernetes else "try"
        return "scan" if others.isdisjoint(_MAYBE) else "try"
    if conditions <= {*LEFT_OUT.values()}:
        return "at once" if query.includes_kubernetes else "try"
    return "scan" if others.isdisjoint(_MAYBE) and "since" not in conditions else "try"


async def _leaves_out_many(connection: Connection, query: EventQuery) -> bool:
    """Whether audit events of Kubernetes, of which there are some, may be why a page took long."""
    if query.includes_kubernetes or not _FEW.isdisjoint(query.conditions()):
        return False
    return await connection.fetchval(SQL["first_of_types"], list(kubernetes.STAGES.values())) is not None


async def _rows_after_offset(connection: Connection, query: EventQuery) -> list[asyncpg.Record]:
    """Rows after those that `offset` leaves out, however many these are."""
    if query.includes_kubernetes:
        return await _rows_after_any_offset(connection, query)
    if _way(query) == "try types" and query.offset + query.limit < _NEWEST // 2:
        rows = await rows_after_offset(connection, query, is_among_newest=True)
        if len(rows) > query.limit:
            return rows
        if await _leaves_out_many(connection, query):
            return await rows_after_offset(connection, query, is_by_types=True)
    with suppress(TimeoutError):
        async with asyncio.timeout(SCAN_SECONDS):
            return await _rows_after_any_offset(connection, query)
    is_by_types = await _leaves_out_many(connection, query)
    return await _rows_after_any_offset(connection, query, is_by_types=is_by_types)


async def _rows_after_any_offset(
    connection: Connection, query: EventQuery, *, is_by_types: bool = False
) -> list[asyncpg.Record]:
    if is_deep(query):
        with suppress(asyncpg.InsufficientPrivilegeError):  # roles.sql was not run after the migration
            async with connection.transaction(isolation="repeatable_read", readonly=True):
                query_near = await nearer(connection, query)
                return await rows_after_offset(connection, query_near, is_by_types=is_by_types)
    return await rows_after_offset(connection, query, is_by_types=is_by_types)


async def rows_after_offset(
    connection: Connection, query: EventQuery, *, is_by_types: bool = False, is_among_newest: bool = False
) -> list[asyncpg.Record]:
    """The same, read from the newest row on."""
    ways = {"is_by_types": is_by_types, "is_among_newest": is_among_newest}
    statement = _page_statement(query.page_conditions(), _ALL, has_offset=True, **ways)
    arguments = query.arguments() | {"offset": query.offset, "rows": query.limit + 1}
    return await connection.fetch(statement.text, *statement.bind(arguments))


# Keys: what the rows of a phase are ordered by.


def _key(phase: Phase, row: asyncpg.Record) -> _Key:
    if phase.by == "time":
        return Cursor(row["timestamp"].replace(" ", "T", 1), row["event_id"])
    return Position(phase.log_id, row["log_index"], row["event_id"])


def _before_all(phase: Phase) -> _Key:
    highest = UUID(int=2**128 - 1)
    return Cursor("infinity", highest) if phase.by == "time" else Position(phase.log_id, 2**63 - 1, highest)


def _key_arguments(name: str, key: _Key | None) -> dict[str, object]:
    if key is None:
        return {}
    value = key.event_timestamp if isinstance(key, Cursor) else key.log_index
    return {name: value, f"{name}_id": key.event_id}


def _key_bound(phase: Phase, name: str) -> ColumnElement[Any]:
    value = utc_time(name) if phase.by == "time" else bindparam(name, type_=BigInteger)
    return tuple_(value, bindparam(f"{name}_id", type_=_e.event_id.type))


def _key_columns(phase: Phase, c: Columns) -> tuple[ColumnElement[Any], ColumnElement[Any]]:
    return (c.event_timestamp if phase.by == "time" else c.log_index), c.event_id


def _newest_first(phase: Phase, c: Columns) -> list[ColumnElement[Any]]:
    return [column.desc() for column in _key_columns(phase, c)]


# Statements.

_types_of_others = text(fragment("types_of_others")).columns(column("event_type", Text)).subquery("types_of_others")


@lru_cache(512)
def _page_statement(
    conditions: tuple[str, ...],
    phase: Phase,
    *,
    is_after: bool = False,
    has_end: bool = False,
    has_offset: bool = False,
    is_by_types: bool = False,
    is_among_newest: bool = False,
) -> Statement:
    """The rows of a page, or of a portion. What can be large is NULL in those after the first that together have PORTION_BYTES.

    `is_among_newest`: only those among the NEWEST that the page's times and cursor have.
    """
    key = tuple_(*_key_columns(phase, _e))
    bounds = [name for name in conditions if not is_among_newest or name not in LEFT_OUT.values()]
    on_page = select(*_e).where(*(CONDITIONS[name] for name in bounds), literal_column(phase.rows, Boolean))
    if is_after:
        on_page = on_page.where(key < _key_bound(phase, "after"))
    if has_end:
        on_page = on_page.where(key >= _key_bound(phase, "to"))
    rows, offset = bindparam("rows", type_=BigInteger), bindparam("offset", type_=BigInteger)
    order = _newest_first(phase, _e)
    if is_among_newest:
        newest_of_all = on_page.order_by(*order).limit(literal_column(str(_NEWEST))).subquery("newest_of_all")
        others = conditions_on(newest_of_all)
        on_page = select(*newest_of_all.c).where(*(others[name] for name in conditions if name not in bounds))
        order = _newest_first(phase, newest_of_all.c)
    if is_by_types:
        # Not `=`, and by type first: no other index than that on types has this order, whatever the planner expects of the filters.
        one = _types_of_others.c.event_type
        of_type = on_page.where(_e.event_type >= one, _e.event_type <= one).order_by(_e.event_type.desc(), *order)
        newest = of_type.limit(rows + offset).correlate(_types_of_others).lateral("newest")
        on_page = select(*newest.c).select_from(_types_of_others.join(newest, literal_column("true")))
        order = _newest_first(phase, newest.c)
    if has_offset:
        on_page = on_page.offset(offset)
    c = on_page.order_by(*order).limit(rows).subquery("e").c
    size = _size(c)
    before = func.sum(size).over(order_by=_newest_first(phase, c), rows=(None, 0)) - size
    is_whole = before + size <= literal_column(str(PORTION_BYTES))
    wide = {"error_message": c.error_message, "payload": cast(c.event_data, Text)}
    shown = [case((or_(before == literal_column("0"), is_whole), value)).label(name) for name, value in wide.items()]
    columns = *columns_of(c), c.log_index, *shown, size.label("size"), IS_SEALED.label("sealed")
    return compile_statement(select(*columns).order_by(*_newest_first(phase, c)))


@lru_cache(64)
def _edge_statement(phase: Phase, bounds: tuple[str, ...], *, is_after: bool) -> Statement:
    """The key of the event behind as many others, whichever match: an index has it. Unsealed rows are scanned among all rows."""
    if phase.by == "time":
        columns: list[ColumnElement[Any]] = [utc_text(_e.event_timestamp).label("timestamp"), _e.event_id]
        order = _newest_first(phase, _e)
        selected = select(*columns).where(*(CONDITIONS[name] for name in bounds))
        if is_after:
            selected = selected.where(tuple_(*_key_columns(phase, _e)) < _key_bound(phase, "after"))
    else:  # without the id, which that index has not: the portion ends between two positions
        lowest = literal_column("'00000000-0000-0000-0000-000000000000'::uuid", Uuid).label("event_id")
        order = [_e.log_index.desc()]
        selected = select(_e.log_index, lowest).where(literal_column(phase.rows, Boolean))
        if is_after:
            selected = selected.where(_e.log_index < bindparam("after", type_=BigInteger))
    return compile_statement(
        selected.order_by(*order).offset(bindparam("events", type_=BigInteger)).limit(literal_column("1"))
    )


@lru_cache(16)
def _recorded_statement(phase: Phase) -> Statement:
    of_log = literal_column(phase.rows, Boolean)
    at = _e.log_index == bindparam("log_index", type_=BigInteger)
    return compile_statement(select(utc_text(_e.recorded_at)).where(of_log, at).limit(literal_column("1")))


def columns_of(c: Columns) -> list[ColumnElement[Any]]:
    """What an answer shows of an event, but for what can be large."""
    return [
        *(c.event_id, utc_text(c.event_timestamp).label("timestamp"), cast(c.event_date, Text).label("event_date")),
        *(c.event_type, c.event_version, c.event_category, c.event_action, c.event_outcome, c.correlation_id),
        *(c.parent_event_id, cast(c.parent_event_date, Text).label("parent_event_date")),
        *(c.resource_type, c.resource_id, c.namespace, c.cluster_id, c.severity, c.duration_ms, c.error_code),
        *(c.actor_id, c.actor_type, func.host(c.actor_ip).label("actor_ip")),
        *(c.retention_days, c.is_sensitive, c.event_hash, c.previous_event_hash, c.legal_hold),
        *(c.legal_hold_reason, c.legal_hold_placed_by, utc_text(c.legal_hold_placed_at).label("hold_placed_at")),
    ]


def _size(c: Columns) -> ColumnElement[int]:
    """About how many bytes an event has in memory: found without reading what is stored beside its row."""
    is_plain = func.pg_column_compression(c.event_data).is_(None)
    times = case((is_plain, literal_column("1")), else_=literal_column(str(_COMPRESSED_TIMES)))
    return func.pg_column_size(c.event_data) * times + func.coalesce(
        func.octet_length(c.error_message), literal_column("0")
    )
