"""One page of events, newest first, with the number of events in all; and one event by its id."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache, partial
from typing import Any, NamedTuple
from uuid import UUID

import asyncpg
import orjson
from sqlalchemy import ARRAY, Text, bindparam, cast, func, literal_column, select

from app.db import Connection, Engine, Pool, driver_connection, fetch, on_first_connections
from app.errors import DatabaseFailed
from app.events.canonical import sorted_json
from app.events.log import Log
from app.events.record import Row, is_logged
from app.query import page_statements
from app.query.compiled import Statement, compile_statement
from app.query.cursor import Cursor, LogCursor
from app.query.filter import IS_SEALED, EventQuery
from app.query.page_statements import columns_of
from app.query.postgres_time import nearest_rfc3339, rfc3339_or_none
from app.query.rows import rows_of_page
from app.query.total import from_rollup, total
from app.sql import fragment, load
from app.tables import audit_events

SQL = load("reports")

_e = audit_events.c
_UNKNOWN_BEFORE_COMMIT = dict.fromkeys(
    ("event_hash", "previous_event_hash", "legal_hold", "legal_hold_reason", "legal_hold_placed_by", "hold_placed_at")
) | {"sealed": True}
_KEY = ("event_id", "event_date", "correlation_id")
_OMITTED_WHEN_EMPTY = (
    *("resource_type", "resource_id", "namespace", "cluster_id", "severity", "duration_ms", "error_code"),
    *("error_message", "actor_id", "actor_type", "actor_ip"),
)


@dataclass(frozen=True, slots=True)
class Page:
    """Events in the form of the answer, each a JSON object: all of the page, or those that fit into one portion."""

    events: list[dict[str, Any]]
    rest: Sequence[asyncpg.Record]
    """The rows of those after them, without what can be large; `rest_of_page` reads that."""
    next_cursor: Cursor | LogCursor | None
    """None on the last page."""
    scanned_until: str | None
    """RFC 3339. A page that is not full, although it is not the last one, has all that was found from its start down to this time."""
    total: int | None
    """How many events match; None if it was not asked for."""
    total_exact: bool = True

    @property
    def has_more(self) -> bool:
        return self.next_cursor is not None


async def page(pool: Pool, query: EventQuery) -> Page:
    """The events that match `query`. DatabaseAway or DatabaseFailed when Postgres does not answer."""
    async with driver_connection(pool) as connection:
        found = await rows_of_page(connection, query)
        number, exact = await total(connection, query)
    whole = next((number for number, row in enumerate(found.rows) if row["payload"] is None), len(found.rows))
    events = [_event(row) for row in found.rows[:whole]]
    return Page(events, found.rows[whole:], found.next_cursor, found.scanned_until, number, exact)


class KeyedEvent(NamedTuple):
    """An event of a page, with what tells it from others."""

    key: Cursor
    event: dict[str, Any]


@dataclass(frozen=True, slots=True)
class KeyedPage:
    """The beginning of a page in the order of time, without the number of events in all: as much of it as fits into one portion."""

    events: list[KeyedEvent]
    end: Cursor | None
    """Down to where it has all; None on the last page."""
    is_cut: bool
    """Whether it ends before it is full."""


async def keyed_page(pool: Pool, query: EventQuery) -> KeyedPage:
    """As page()."""
    async with driver_connection(pool) as connection:
        found = await rows_of_page(connection, query)
    whole = next((number for number, row in enumerate(found.rows) if row["payload"] is None), len(found.rows))
    events = [KeyedEvent(_cursor_of(row), _event(row)) for row in found.rows[:whole]]
    if whole < len(found.rows):
        return KeyedPage(events, events[-1].key, is_cut=True)
    end = found.next_cursor
    assert not isinstance(end, LogCursor)
    return KeyedPage(events, end, is_cut=found.scanned_until is not None)


def _cursor_of(row: Row) -> Cursor:
    return Cursor(row["timestamp"].replace(" ", "T", 1), row["event_id"])


ReadEvents = Callable[[Callable[[Pool], Awaitable[list[dict[str, Any]]]]], Awaitable[list[dict[str, Any]]]]
"""Has events read from a pool of its choice."""


async def rest_of_page(read: ReadEvents, page: Page) -> AsyncIterator[list[dict[str, Any]]]:
    """The events of `page.rest` in portions, each read when it is asked for; meanwhile no connection is in use.

    DatabaseFailed if one of them was removed since the page was read.
    """
    for rows in _portions(page.rest):
        yield await read(partial(_whole, rows))


async def _whole(rows: Sequence[asyncpg.Record], pool: Pool) -> list[dict[str, Any]]:
    keys = [[row[name] for row in rows] for name in _KEY]
    found = {_key(row): row for row in await fetch(pool, SQL["wide_members"], *keys)}
    if len(found) != len(rows):
        raise DatabaseFailed("An event was removed while its page was read.")
    return [_event(dict(row) | dict(found[_key(row)])) for row in rows]


def _key(row: asyncpg.Record) -> tuple[Any, ...]:
    return tuple(row[name] for name in _KEY)


def _portions(rows: Sequence[asyncpg.Record]) -> Iterator[Sequence[asyncpg.Record]]:
    """`rows` in groups of about PORTION_BYTES."""
    start = size = 0
    for number, row in enumerate(rows):
        size += row["size"]
        if size > page_statements.PORTION_BYTES and number > start:
            yield rows[start:number]
            start, size = number, row["size"]
    if start < len(rows):
        yield rows[start:]


async def event_by_id(pool: Pool, event_id: UUID) -> dict[str, Any] | None:
    """The stored event with this id in the form of the answer, the sealed one if several rows have it; None if absent."""
    async with driver_connection(pool) as connection:
        rows = await connection.fetch(_by_id_statement().text, event_id)
        if len(rows) > 1:
            candidates = await connection.fetch(SQL["rows_with_id"], event_id)
            logged = {
                (str(one["event_date"]), one["correlation_id"])
                for one in candidates
                if is_logged(one, Log(one["last_log"], one["first_name"]))
            }
            rows.sort(key=lambda row: (row["event_date"], row["correlation_id"]) not in logged)
    return _event(rows[0]) if rows else None


async def events_by_id(pool: Pool, correlation_id: str, event_ids: Sequence[str]) -> list[dict[str, Any]]:
    """The events of one correlation with these ids in the form of the answer, in the order of the ids. One that is gone is left out."""
    places = {UUID(event_id): number for number, event_id in enumerate(event_ids)}
    statement = _of_correlation_statement()
    rows = await fetch(pool, statement.text, *statement.bind({"correlation_id": correlation_id, "ids": list(places)}))
    return [_event(row) for row in sorted(rows, key=lambda row: places[row["event_id"]])]


async def warm(engine: Engine) -> None:
    """Run each form of the statements once on the first connections of the pool: the first plan over many partitions is slow."""
    since = datetime.now(UTC) - timedelta(days=7)
    queries = [
        EventQuery(correlation_id="-", total="none"),
        EventQuery(event_type="-", since=since, total="none"),
        EventQuery(since=since, total="none"),
        EventQuery(actor_id="-", total="none"),
        EventQuery(resource_id="-", total="none"),
        EventQuery(event_category="-", total="none"),
        EventQuery(event_outcome="failure", total="none"),
        EventQuery(event_type_in=("-*",), total="none"),
        EventQuery(correlation_id="-", event_type="-"),
        EventQuery(cursor=Cursor("2000-01-01T00:00:00", UUID(int=0)), limit=1, total="none"),
    ]

    async def run_each(connection: Connection) -> None:
        for query in queries:
            await rows_of_page(connection, query)
            await total(connection, query)
        await from_rollup(connection, EventQuery())  # not the total: it may have to be counted
        await connection.fetch(_by_id_statement().text, UUID(int=0))

    await on_first_connections(engine, run_each)


@lru_cache(1)
def _by_id_statement() -> Statement:
    leaf = literal_column(f"({fragment('leaf_of_row')})", Text)
    sealed = func.coalesce(leaf == _e.event_hash, literal_column("false")).label("sealed")
    return compile_statement(
        select(*columns_of(_e), _e.error_message, cast(_e.event_data, Text).label("payload"), sealed)
        .where(_e.event_id == bindparam("event_id"))
        .order_by(_e.log_index, _e.event_date, _e.correlation_id)
    )


@lru_cache(1)
def _of_correlation_statement() -> Statement:
    return compile_statement(
        select(*columns_of(_e), _e.error_message, cast(_e.event_data, Text).label("payload"), IS_SEALED.label("sealed"))
        .where(
            _e.correlation_id == bindparam("correlation_id"),
            _e.event_id == func.any(bindparam("ids", type_=ARRAY(_e.event_id.type))),
        )
        .order_by(_e.log_index, _e.event_date)
    )


def archived_event(row: Mapping[str, Any]) -> dict[str, Any]:
    """An event that is in the archive alone, from its columns there, with `event_hash`, `sealed` and `archive_id`, in the form of the answer."""
    parent_date = row["parent_event_date"]
    texts = {
        "timestamp": postgres_text(row["event_timestamp"]),
        "event_date": row["event_timestamp"].date().isoformat(),
        "parent_event_date": parent_date and parent_date.isoformat(),
        "payload": row["event_data"],
    }
    held = dict.fromkeys(("legal_hold", "legal_hold_reason", "legal_hold_placed_by", "hold_placed_at"))
    return _event(dict(row) | held | texts) | {"archive_id": str(row["archive_id"])}


def postgres_text(time: datetime) -> str:
    """A time in UTC as Postgres writes it."""
    text = time.isoformat(" ").removesuffix("+00:00")
    return text.rstrip("0") if time.microsecond else text


def spooled_event(row: Mapping[str, Any]) -> dict[str, Any]:
    """An event that waits in the spool, from its columns, in the form of the answer. It is in no chain yet, so it has no hash."""
    parent_date = row["parent_event_date"]
    texts = {
        "timestamp": postgres_text(row["event_timestamp"]),
        "event_date": row["event_date"].isoformat(),
        "parent_event_date": parent_date and parent_date.isoformat(),
    }
    return _event(_UNKNOWN_BEFORE_COMMIT | dict(row) | texts | {"payload": row["event_data"]})


def _event(row: Row) -> dict[str, Any]:
    """Members in the order of docs/contract.md, section 9; an unknown one is left out."""
    parent_id, parent_date, held_at = row["parent_event_id"], row["parent_event_date"], row["hold_placed_at"]
    event = {
        "event_id": str(row["event_id"]),
        "event_timestamp": nearest_rfc3339(row["timestamp"]),
        "event_date": row["event_date"],
        "event_type": row["event_type"],
        "version": row["event_version"],
        "event_category": row["event_category"],
        "event_action": row["event_action"],
        "event_outcome": row["event_outcome"],
        "correlation_id": row["correlation_id"],
        "parent_event_id": None if parent_id is None else str(parent_id),
        "parent_event_date": None if parent_date is None else rfc3339_or_none(f"{parent_date}T00:00:00"),
    }
    for name in _OMITTED_WHEN_EMPTY:
        if value := row[name]:
            event[name] = value
    event["retention_days"] = row["retention_days"]
    event["is_sensitive"] = row["is_sensitive"]
    event["event_hash"] = row["event_hash"] or ""
    event["previous_event_hash"] = row["previous_event_hash"] or ""
    event["legal_hold"] = row["legal_hold"] or False
    event["legal_hold_reason"] = row["legal_hold_reason"] or ""
    event["legal_hold_placed_by"] = row["legal_hold_placed_by"] or ""
    event["legal_hold_placed_at"] = None if held_at is None else rfc3339_or_none(held_at)
    event["event_data"] = orjson.Fragment(sorted_json(row["payload"]))
    if not row["sealed"]:
        event["sealed"] = False
    return event
