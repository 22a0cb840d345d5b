"""One page of events, newest first, with the number of events in all; and one event by its id."""

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any
from uuid import UUID

import asyncpg
import orjson
from sqlalchemy import BigInteger, ColumnElement, Select, Text, bindparam, case, cast, func, literal_column, or_, select
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.sql.base import ReadOnlyColumnCollection

from app.db import Connection, driver_connection, fetch, on_first_connections
from app.errors import DatabaseFailed
from app.events.canonical import sorted_json
from app.events.log import Log
from app.events.record import Row, is_logged
from app.query.compiled import Statement, compile_statement
from app.query.cursor import Cursor
from app.query.filter import CONDITIONS, IS_SEALED, EventQuery
from app.query.offset import is_deep, nearer
from app.query.postgres_time import nearest_rfc3339, rfc3339_or_none, utc_text
from app.query.total import from_rollup, total
from app.sql import fragment, load
from app.tables import audit_events

SQL = load("reports")

_e = audit_events.c
PORTION_BYTES = 1024 * 1024
"""Most bytes of payloads that are in memory for one page, but for a single event that has more."""
_COMPRESSED_TIMES = 32
"""How many times larger than its stored form a compressed payload is taken to be, which few are."""


def _columns(c: ReadOnlyColumnCollection[str, Any]) -> list[ColumnElement[Any]]:
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
    has_more: bool
    next_cursor: Cursor | None
    total: int | None
    """How many events match; None if it was not asked for."""
    total_exact: bool = True


async def page(engine: AsyncEngine, query: EventQuery) -> Page:
    """The events that match `query`. DatabaseAway or DatabaseFailed when Postgres does not answer."""
    async with driver_connection(engine) as connection:
        rows = await page_rows(connection, query)
        number, exact = await total(connection, query)
    shown = rows[: query.limit]
    has_more = len(rows) > query.limit
    next_cursor = Cursor(shown[-1]["timestamp"].replace(" ", "T", 1), shown[-1]["event_id"]) if has_more else None
    whole = next((number for number, row in enumerate(shown) if row["payload"] is None), len(shown))
    return Page([_event(row) for row in shown[:whole]], shown[whole:], has_more, next_cursor, number, exact)


async def rest_of_page(engine: AsyncEngine, page: Page) -> AsyncIterator[list[dict[str, Any]]]:
    """The events of `page.rest` in portions, each read when it is asked for; meanwhile no connection is in use.

    DatabaseFailed if one of them was removed since the page was read.
    """
    for rows in _portions(page.rest):
        keys = [[row[name] for row in rows] for name in _KEY]
        found = {_key(row): row for row in await fetch(engine, SQL["wide_members"], *keys)}
        if len(found) != len(rows):
            raise DatabaseFailed("An event was removed while its page was read.")
        yield [_event(dict(row) | dict(found[_key(row)])) for row in rows]


def _key(row: asyncpg.Record) -> tuple[Any, ...]:
    return tuple(row[name] for name in _KEY)


def _portions(rows: Sequence[asyncpg.Record]) -> Iterator[Sequence[asyncpg.Record]]:
    """`rows` in groups of about PORTION_BYTES."""
    start = size = 0
    for number, row in enumerate(rows):
        size += row["size"]
        if size > PORTION_BYTES and number > start:
            yield rows[start:number]
            start, size = number, row["size"]
    if start < len(rows):
        yield rows[start:]


async def event_by_id(engine: AsyncEngine, event_id: UUID) -> dict[str, Any] | None:
    """The stored event with this id in the form of the answer, the sealed one if several rows have it; None if absent."""
    async with driver_connection(engine) as connection:
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


async def warm(engine: AsyncEngine) -> None:
    """Run each form of the statements once on the first connections of the pool: the first plan over many partitions is slow."""
    since = datetime.now(UTC) - timedelta(days=7)
    queries = [
        EventQuery(correlation_id="-", total="none"),
        EventQuery(event_type="-", since=since, total="none"),
        EventQuery(since=since, total="none"),
        EventQuery(correlation_id="-", event_type="-"),
        EventQuery(cursor=Cursor("2000-01-01T00:00:00", UUID(int=0)), limit=1, total="none"),
    ]

    async def run_each(connection: Connection) -> None:
        for query in queries:
            await _fetch(connection, _page_statement(query.page_conditions(), offset=False), query)
            await total(connection, query)
        await from_rollup(connection, EventQuery())  # not the total: it may have to be counted
        await connection.fetch(_by_id_statement().text, UUID(int=0))

    await on_first_connections(engine, run_each)


@lru_cache(256)
def _page_statement(conditions: tuple[str, ...], *, offset: bool) -> Statement:
    """The rows of a page. What can be large is NULL in those after the first that together have PORTION_BYTES."""
    on_page = _newest_first(select(*_e).where(*(CONDITIONS[name] for name in conditions)), _e)
    on_page = on_page.limit(bindparam("rows", type_=BigInteger))
    c = (on_page.offset(bindparam("offset", type_=BigInteger)) if offset else on_page).subquery("e").c
    size = _size(c)
    before = func.sum(size).over(order_by=(c.event_timestamp.desc(), c.event_id.desc()), rows=(None, 0)) - size
    is_whole = before + size <= literal_column(str(PORTION_BYTES))
    wide = {"error_message": c.error_message, "payload": cast(c.event_data, Text)}
    shown = [case((or_(before == literal_column("0"), is_whole), value)).label(name) for name, value in wide.items()]
    columns = *_columns(c), *shown, size.label("size"), IS_SEALED.label("sealed")
    return compile_statement(_newest_first(select(*columns), c))


def _newest_first(selected: Select[Any], c: ReadOnlyColumnCollection[str, Any]) -> Select[Any]:
    return selected.order_by(c.event_timestamp.desc(), c.event_id.desc())


def _size(c: ReadOnlyColumnCollection[str, Any]) -> ColumnElement[int]:
    """About how many bytes an event has in memory: found without reading what is stored beside its row."""
    is_plain = func.pg_column_compression(c.event_data).is_(None)
    times = case((is_plain, literal_column("1")), else_=literal_column(str(_COMPRESSED_TIMES)))
    return func.pg_column_size(c.event_data) * times + func.coalesce(
        func.octet_length(c.error_message), literal_column("0")
    )


@lru_cache(1)
def _by_id_statement() -> Statement:
    leaf = literal_column(f"({fragment('leaf_of_row')})", Text)
    sealed = func.coalesce(leaf == _e.event_hash, literal_column("false")).label("sealed")
    return compile_statement(
        select(*_columns(_e), _e.error_message, cast(_e.event_data, Text).label("payload"), sealed)
        .where(_e.event_id == bindparam("event_id"))
        .order_by(_e.log_index, _e.event_date, _e.correlation_id)
    )


async def page_rows(connection: Connection, query: EventQuery) -> list[asyncpg.Record]:
    """The rows of the page, and one more if there are more."""
    if is_deep(query):
        # roles.sql was not run after the migration; the second follows where total.py has seen the first.
        with suppress(asyncpg.InsufficientPrivilegeError, asyncpg.InFailedSQLTransactionError):
            async with connection.transaction(isolation="repeatable_read", readonly=True):
                return await rows_after_offset(connection, await nearer(connection, query))
    return await rows_after_offset(connection, query)


async def rows_after_offset(connection: Connection, query: EventQuery) -> list[asyncpg.Record]:
    """The same, read from the newest row on."""
    return await _fetch(connection, _page_statement(query.page_conditions(), offset=bool(query.offset)), query)


async def _fetch(connection: Connection, statement: Statement, query: EventQuery) -> list[asyncpg.Record]:
    return await connection.fetch(statement.text, *statement.bind(query.arguments()))


def spooled_event(row: Mapping[str, Any]) -> dict[str, Any]:
    """An event that waits in the spool, from its columns, in the form of the answer. It is in no chain yet, so it has no hash."""
    parent_date = row["parent_event_date"]
    texts = {
        "timestamp": row["event_timestamp"].strftime("%Y-%m-%d %H:%M:%S.%f").rstrip("0").rstrip("."),
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
