"""Reads the rows of an export: the sealed ones in the order of the log, then the unsealed ones, which were inserted by SQL.

They are read through a server-side cursor, in portions that fit into memory, as fast as the client reads the answer.
"""

from collections.abc import AsyncGenerator, Mapping
from datetime import date
from functools import lru_cache
from typing import Any, Literal
from uuid import UUID

import asyncpg
from pydantic import Field
from sqlalchemy import (
    ARRAY,
    BigInteger,
    Boolean,
    ColumnElement,
    Date,
    DateTime,
    Select,
    Text,
    bindparam,
    case,
    cast,
    func,
    literal_column,
    or_,
    select,
    tuple_,
)

from app.db import Connection, portions
from app.events.log import Log
from app.export.file import MEMBERS
from app.export.manifest import ExportPosition
from app.query.compiled import Statement, compile_statement
from app.query.filter import ALIASES, CONDITIONS, OFFSET_MAX, EventFilter
from app.sql import fragment, in_log
from app.tables import audit_events

PAGE_MAX = 10_000
_ROWS_AT_ONCE = 128
_KEYS_AT_ONCE = 2_000

_e = audit_events.c
_LEAF = literal_column(f"({fragment('leaf_of_row')})", Text)


class ExportQuery(EventFilter, frozen=True, extra="forbid"):
    """Which events, and in what form. offset, limit and the detached signature belong to json, `after` to the others."""

    format: Literal["json", "ndjson", "csv"] = Field(
        "json", description="json: a signed page; ndjson and csv: all events, with a manifest"
    )
    redact_pii: bool = Field(default=False, description="mask e-mail and IP addresses, telephone and card numbers")
    include_detached_signature: bool = Field(default=False, description="of json: the signature once more, as text")
    offset: int = Field(0, ge=0, le=OFFSET_MAX, description="of json: events to skip")
    limit: int = Field(1000, ge=1, le=PAGE_MAX, description="of json: most events on the page")
    archive: Literal["include", "exclude"] | None = Field(
        None,
        description="include: also events that were removed from Postgres and are in the archive; exclude: without them. If "
        "absent, with them only where Postgres has nothing that is not later than `until`",
    )

    def filters(self) -> dict[str, Any]:
        """The filters that the query has, as JSON values; times by the names that they have in the reference."""
        names = EventFilter.model_fields.keys() - {"zone"}
        dumped = self.model_dump(mode="json", include=set(names), exclude_defaults=True)
        return {_REFERENCE_NAMES.get(name, name): value for name, value in dumped.items()}


_REFERENCE_NAMES = {name: alias for alias, name in ALIASES.items()}

Portions = AsyncGenerator[list[asyncpg.Record]]


def sealed_rows(connection: Connection, query: EventFilter, log: Log, first: int, end: int) -> Portions:
    """Rows of `log` with positions from `first` up to, not including, `end`; `connection` is in a snapshot."""
    statement = _sealed_statement(query.page_conditions(), in_log("{in_log}", log))
    return _portions(connection, statement, query.arguments() | {"log": log.name, "first": first, "end": end})


async def sealed_positions(connection: Connection, query: EventFilter, log: Log, first: int, end: int) -> set[int]:
    """The positions of sealed_rows()."""
    statement = _positions_statement(query.page_conditions(), in_log("{in_log}", log))
    arguments = query.arguments() | {"first": first, "end": end}
    return {row["log_index"] for row in await connection.fetch(statement.text, *statement.bind(arguments))}


def unsealed_rows(connection: Connection, query: ExportQuery, log: Log, after: ExportPosition | None) -> Portions:
    """Rows without a position; if `after` is one of them, those after it."""
    arguments = query.arguments() | {"log": log.name}
    resumed = False
    if after is not None and after.event_id is not None and after.event_date is not None:
        arguments |= {"id": UUID(after.event_id), "date": date.fromisoformat(after.event_date)}
        resumed = True
    return _portions(connection, _unsealed_statement(query.page_conditions(), resumed=resumed), arguments)


def correlation_rows(connection: Connection, correlation_id: str) -> Portions:
    """Every row of a correlation, with its `log_id`: those with a position in the order of the logs, then the others. `log` is NULL."""
    return _portions(connection, _correlation_statement(), {"log": None, "correlation_id": correlation_id})


async def rows_at(connection: Connection, log_id: int, positions: list[int]) -> list[asyncpg.Record]:
    """Rows with these positions of one log, in their order, as correlation_rows()."""
    statement = _rows_at_statement()
    arguments = {"log": None, "log_id": log_id, "positions": positions}
    return await connection.fetch(statement.text, *statement.bind(arguments))


def page_rows(connection: Connection, query: ExportQuery, log: Log, offset: int, limit: int) -> Portions:
    """The rows of one page of `json`, those of a correlation together, in the order of time and id; that time as `time`."""
    arguments = query.arguments() | {"log": log.name, "offset": offset, "limit": limit}
    return _portions(connection, _page_statement(query.page_conditions()), arguments)


async def page_links(connection: Connection, query: ExportQuery, offset: int, limit: int) -> list[asyncpg.Record]:
    """Of the events on that page: id, correlation, log and positions, stored hash, the hash to which it links, and whether it is erased."""
    statement = _links_statement(query.page_conditions())
    arguments = query.arguments() | {"offset": offset, "limit": limit}
    return await connection.fetch(statement.text, *statement.bind(arguments))


def page_keys(connection: Connection, query: ExportQuery, limit: int) -> Portions:
    """What tells the first rows of all pages, in the order of time and id: `time`, `event_id`, log_id, log_index and event_hash."""
    statement = _keys_statement(query.page_conditions())
    arguments = query.arguments() | {"offset": 0, "limit": limit}
    values = (arguments[name] for name in statement.parameters)
    return portions(connection, statement.text, *values, widest="event_hash", rows_max=_KEYS_AT_ONCE)


def _portions(connection: Connection, statement: Statement, arguments: Mapping[str, object]) -> Portions:
    """Rows of a statement in portions that fit into memory."""
    values = (arguments[name] for name in statement.parameters)
    return portions(connection, statement.text, *values, widest="event_data", rows_max=_ROWS_AT_ONCE)


# Statements. A time or date that Python cannot represent is read as infinity, which no event of the log has.


def _literal(text: str) -> ColumnElement[Any]:
    return literal_column(text)


def _time_or_infinity(column: ColumnElement[Any]) -> ColumnElement[Any]:
    low, high, infinity = map(
        _literal, ("timestamptz '0001-01-02Z'", "timestamptz '9999-12-31Z'", "timestamptz 'infinity'")
    )
    return case((or_(column < low, column >= high), infinity), else_=column).label(column.name)


def _nearest_time(column: ColumnElement[Any]) -> ColumnElement[Any]:
    """In the same order, with the nearest time that Python can represent."""
    low, high = _literal("timestamptz '0001-01-02Z'"), _literal("timestamptz '9999-12-30Z'")
    return func.least(func.greatest(column, low), high).label("time")


def _date_or_infinity(column: ColumnElement[Any]) -> ColumnElement[Any]:
    low, high, infinity = map(_literal, ("date '0001-01-01'", "date '9999-12-31'", "date 'infinity'"))
    return case((or_(column <= low, column >= high), infinity), else_=column).label(column.name)


def _columns() -> list[ColumnElement[Any]]:
    """A column for each member of an exported event, by its name."""
    special: dict[str, ColumnElement[Any]] = {
        "log": cast(bindparam("log"), Text),
        "sealed": func.coalesce(_e.event_hash == _LEAF, literal_column("false")),
        "redacted": literal_column("NULL::text"),
        "actor_ip": func.nullif(func.format(literal_column("'%s'"), _e.actor_ip), literal_column("''")),
        "payload_salt": func.encode(_e.payload_salt, literal_column("'hex'")),
        "payload_commitment": func.encode(_e.payload_commitment, literal_column("'hex'")),
    }
    special |= {name: cast(_e[name], Text) for name in ("event_id", "parent_event_id", "event_data", "event_metadata")}
    special |= {c.name: _time_or_infinity(c) for c in _e if isinstance(c.type, DateTime)}
    special |= {c.name: _date_or_infinity(c) for c in _e if isinstance(c.type, Date)}
    return [special[name].label(name) if name in special else _e[name] for name in MEMBERS]


def _select(conditions: tuple[str, ...], *columns: ColumnElement[Any]) -> Select[Any]:
    return select(*columns).where(*(CONDITIONS[name] for name in conditions))


@lru_cache(64)
def _sealed_statement(conditions: tuple[str, ...], of_log: str) -> Statement:
    first, end = bindparam("first", type_=BigInteger), bindparam("end", type_=BigInteger)
    selected = _select(conditions, *_columns()).where(_e.log_index >= first, _e.log_index < end)
    return compile_statement(selected.where(literal_column(of_log, Boolean)).order_by(_e.log_index))


@lru_cache(64)
def _positions_statement(conditions: tuple[str, ...], of_log: str) -> Statement:
    first, end = bindparam("first", type_=BigInteger), bindparam("end", type_=BigInteger)
    selected = _select(conditions, _e.log_index).where(_e.log_index >= first, _e.log_index < end)
    return compile_statement(selected.where(literal_column(of_log, Boolean)))


@lru_cache(64)
def _unsealed_statement(conditions: tuple[str, ...], *, resumed: bool) -> Statement:
    selected = _select(conditions, *_columns()).where(_e.log_index.is_(None)).order_by(_e.event_id, _e.event_date)
    last = tuple_(bindparam("id", type_=_e.event_id.type), bindparam("date", type_=Date))
    return compile_statement(selected.where(tuple_(_e.event_id, _e.event_date) > last) if resumed else selected)


@lru_cache(1)
def _correlation_statement() -> Statement:
    wanted = _e.correlation_id == bindparam("correlation_id", type_=_e.correlation_id.type)
    order = _e.log_id.nulls_last(), _e.log_index.nulls_last(), _e.event_id, _e.event_date
    return compile_statement(_select((), *_columns(), _e.log_id).where(wanted).order_by(*order))


@lru_cache(1)
def _rows_at_statement() -> Statement:
    wanted = func.any(bindparam("positions", type_=ARRAY(BigInteger)))
    of_log = _e.log_id == bindparam("log_id", type_=_e.log_id.type)
    selected = _select((), *_columns(), _e.log_id).where(of_log, _e.log_index == wanted)
    return compile_statement(selected.order_by(_e.log_index))


@lru_cache(64)
def _page_statement(conditions: tuple[str, ...]) -> Statement:
    more = _e.event_timestamp.label("order_time"), _nearest_time(_e.event_timestamp), _e.log_id, _LEAF.label("leaf")
    on_page = _on_page(_select(conditions, *_columns(), *more)).subquery()
    shown = select(*(on_page.c[name] for name in (*MEMBERS, "time", "log_id", "leaf")))
    return compile_statement(shown.order_by(on_page.c.correlation_id, on_page.c.order_time, on_page.c.event_id))


@lru_cache(64)
def _links_statement(conditions: tuple[str, ...]) -> Statement:
    columns = (
        _e.event_id,
        _e.correlation_id,
        _e.chain_index,
        _e.log_id,
        _e.log_index,
        _e.event_hash,
        _e.previous_event_hash,
    )
    erased = _e.payload_commitment.is_not(None).label("erased")
    return compile_statement(_on_page(_select(conditions, *columns, erased)))


@lru_cache(64)
def _keys_statement(conditions: tuple[str, ...]) -> Statement:
    columns = _nearest_time(_e.event_timestamp), _e.event_id, _e.log_id, _e.log_index, _e.event_hash
    return compile_statement(_on_page(_select(conditions, *columns)))


def _on_page(selected: Select[Any]) -> Select[Any]:
    ordered = selected.order_by(_e.event_timestamp, _e.event_id)
    return ordered.limit(bindparam("limit", type_=BigInteger)).offset(bindparam("offset", type_=BigInteger))
