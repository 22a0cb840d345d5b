"""Events as they are exported: the sealed ones in the order of the log, behind them those that others wrote by SQL.

Rows come through a cursor of the server, in portions that fit into memory, as fast as they are taken.
"""

from collections.abc import AsyncIterator, Mapping
from datetime import date
from functools import lru_cache
from typing import Any, Literal
from uuid import UUID

import asyncpg
from pydantic import AwareDatetime, BaseModel, Field
from sqlalchemy import (
    BigInteger,
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

from app.db import Connection
from app.export.file import MEMBERS
from app.export.manifest import ExportPosition
from app.query.compiled import Statement, compiled
from app.query.filter import CONDITIONS, OFFSET_MAX, EventQuery
from app.tables import audit_events
from app.verify.snapshot import portions

PAGE_MAX = 10_000
_ROWS_AT_ONCE = 128

_e = audit_events.c


class ExportQuery(BaseModel, frozen=True, extra="forbid"):
    """Which events, and in what form. offset, limit and the detached signature belong to json, `after` to the others."""

    format: Literal["json", "ndjson", "csv"] = Field(
        "json", description="json: a signed page; ndjson and csv: all events, with a manifest"
    )
    start_time: AwareDatetime | None = Field(None, description="earliest event_timestamp, RFC 3339")
    end_time: AwareDatetime | None = Field(None, description="latest event_timestamp, RFC 3339")
    correlation_id: str | None = Field(None, description="the remediation that the events belong to")
    event_category: str | None = Field(None, description="any text; an unknown category gives an empty export")
    include: Literal["self"] | None = Field(
        None, description="self: the service's own events too, if neither category nor correlation is asked for"
    )
    redact_pii: bool = Field(default=False, description="mask e-mail and IP addresses, telephone and card numbers")
    include_detached_signature: bool = Field(default=False, description="of json: the signature once more, as text")
    offset: int = Field(0, ge=0, le=OFFSET_MAX, description="of json: events to skip")
    limit: int = Field(1000, ge=1, le=PAGE_MAX, description="of json: most events on the page")

    @property
    def events(self) -> EventQuery:
        return EventQuery(
            correlation_id=self.correlation_id,
            event_category=self.event_category,
            since=self.start_time,
            until=self.end_time,
            include=self.include,
        )

    def filters(self) -> dict[str, Any]:
        """Those that were given, as JSON."""
        names = {"start_time", "end_time", "correlation_id", "event_category", "include"}
        return self.model_dump(mode="json", include=names, exclude_none=True)


Portions = AsyncIterator[list[asyncpg.Record]]


def sealed(connection: Connection, query: ExportQuery, log: str, first: int, end: int) -> Portions:
    """Events with positions from `first` up to, not including, `end`; `connection` is in a snapshot."""
    statement = _sealed(query.events.page_conditions())
    return _portions(connection, statement, query.events.arguments() | {"log": log, "first": first, "end": end})


def unsealed(connection: Connection, query: ExportQuery, log: str, after: ExportPosition | None) -> Portions:
    """Events without a position; those behind the one at `after`, if it is one of them."""
    arguments = query.events.arguments() | {"log": log}
    behind = after is not None and after.event_id is not None and after.event_date is not None
    if after is not None and after.event_id is not None and after.event_date is not None:
        arguments |= {"id": UUID(after.event_id), "date": date.fromisoformat(after.event_date)}
    return _portions(connection, _unsealed(query.events.page_conditions(), behind=behind), arguments)


def page(connection: Connection, query: ExportQuery, log: str) -> Portions:
    """The events of one page of `json`, those of a correlation together."""
    arguments = query.events.arguments() | {"log": log, "skipped": query.offset, "most": query.limit}
    return _portions(connection, _page(query.events.page_conditions()), arguments)


async def places(connection: Connection, query: ExportQuery) -> list[asyncpg.Record]:
    """Where the events of that page stand in their chains, with their stored hashes and what they link to."""
    statement = _places(query.events.page_conditions())
    arguments = query.events.arguments() | {"skipped": query.offset, "most": query.limit}
    return await connection.fetch(statement.text, *(arguments[name] for name in statement.parameters))


def _portions(connection: Connection, statement: Statement, arguments: Mapping[str, object]) -> Portions:
    """Rows of a statement in portions that fit into memory."""
    values = (arguments[name] for name in statement.parameters)
    return portions(connection, statement.text, *values, widest="event_data", rows_max=_ROWS_AT_ONCE)


# Statements. A moment or date that Python cannot hold comes out as infinity, which no event of the log has.


def _literal(text: str) -> ColumnElement[Any]:
    return literal_column(text)


def _moment(column: ColumnElement[Any]) -> ColumnElement[Any]:
    low, high, other = map(
        _literal, ("timestamptz '0001-01-02Z'", "timestamptz '9999-12-31Z'", "timestamptz 'infinity'")
    )
    return case((or_(column < low, column >= high), other), else_=column).label(column.name)


def _day(column: ColumnElement[Any]) -> ColumnElement[Any]:
    low, high, other = map(_literal, ("date '0001-01-01'", "date '9999-12-31'", "date 'infinity'"))
    return case((or_(column <= low, column >= high), other), else_=column).label(column.name)


def _columns() -> list[ColumnElement[Any]]:
    """One for each member, by its name."""
    made: dict[str, ColumnElement[Any]] = {
        "log": cast(bindparam("log"), Text),
        "redacted": literal_column("NULL::text"),
        "actor_ip": func.nullif(func.format(literal_column("'%s'"), _e.actor_ip), literal_column("''")),
        "payload_salt": func.encode(_e.payload_salt, literal_column("'hex'")),
        "payload_commitment": func.encode(_e.payload_commitment, literal_column("'hex'")),
    }
    made |= {name: cast(_e[name], Text) for name in ("event_id", "parent_event_id", "event_data", "event_metadata")}
    made |= {c.name: _moment(c) for c in _e if isinstance(c.type, DateTime)}
    made |= {c.name: _day(c) for c in _e if isinstance(c.type, Date)}
    return [made[name].label(name) if name in made else _e[name] for name in MEMBERS]


def _chosen(conditions: tuple[str, ...], *columns: ColumnElement[Any]) -> Select[Any]:
    return select(*columns).where(*(CONDITIONS[name] for name in conditions))


@lru_cache(64)
def _sealed(conditions: tuple[str, ...]) -> Statement:
    first, end = bindparam("first", type_=BigInteger), bindparam("end", type_=BigInteger)
    chosen = _chosen(conditions, *_columns()).where(_e.log_index >= first, _e.log_index < end)
    return compiled(chosen.order_by(_e.log_index))


@lru_cache(64)
def _unsealed(conditions: tuple[str, ...], *, behind: bool) -> Statement:
    chosen = _chosen(conditions, *_columns()).where(_e.log_index.is_(None)).order_by(_e.event_id, _e.event_date)
    last = tuple_(bindparam("id", type_=_e.event_id.type), bindparam("date", type_=Date))
    return compiled(chosen.where(tuple_(_e.event_id, _e.event_date) > last) if behind else chosen)


@lru_cache(64)
def _page(conditions: tuple[str, ...]) -> Statement:
    on_page = _on_page(_chosen(conditions, *_columns(), _e.event_timestamp.label("moment"))).subquery()
    shown = select(*(on_page.c[name] for name in MEMBERS))
    return compiled(shown.order_by(on_page.c.correlation_id, on_page.c.moment, on_page.c.event_id))


@lru_cache(64)
def _places(conditions: tuple[str, ...]) -> Statement:
    columns = (_e.correlation_id, _e.chain_index, _e.event_hash, _e.previous_event_hash)
    return compiled(_on_page(_chosen(conditions, *columns)))


def _on_page(chosen: Select[Any]) -> Select[Any]:
    ordered = chosen.order_by(_e.event_timestamp, _e.event_id)
    return ordered.limit(bindparam("most", type_=BigInteger)).offset(bindparam("skipped", type_=BigInteger))
