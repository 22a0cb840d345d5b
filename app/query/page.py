"""One page of events, newest first, and how many there are in all."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import orjson
from sqlalchemy import ColumnElement, Select, Text, bindparam, cast, func, literal_column, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as SQLAlchemyTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app.db import CONNECTION_ERRORS
from app.errors import DatabaseAway, DatabaseFailed
from app.events.canonical import readable
from app.query.cursor import Cursor
from app.query.filter import CONDITIONS, EventQuery
from app.tables import audit_events

COUNT_TIMEOUT_MS = 1_000
CAPPED_TOTAL = 10_000
_QUERY_CANCELED = "57014"

_e = audit_events.c


def _moment(column: ColumnElement[Any]) -> ColumnElement[str]:
    """As Postgres writes it, in UTC: a row inserted by SQL may hold a moment that Python does not know."""
    return cast(func.timezone(literal_column("'UTC'"), column), Text)


_COLUMNS = (
    *(_e.event_id, _moment(_e.event_timestamp).label("moment"), cast(_e.event_date, Text).label("event_date")),
    *(_e.event_type, _e.event_version, _e.event_category, _e.event_action, _e.event_outcome, _e.correlation_id),
    *(_e.parent_event_id, cast(_e.parent_event_date, Text).label("parent_event_date")),
    *(_e.resource_type, _e.resource_id, _e.namespace, _e.cluster_id, _e.severity, _e.duration_ms, _e.error_code),
    *(_e.error_message, _e.actor_id, _e.actor_type),
    func.host(_e.actor_ip).label("actor_ip"),
    *(_e.retention_days, _e.is_sensitive, _e.event_hash, _e.previous_event_hash, _e.legal_hold),
    *(_e.legal_hold_reason, _e.legal_hold_placed_by, _moment(_e.legal_hold_placed_at).label("held_at")),
    cast(_e.event_data, Text).label("payload"),
)
_OMITTED_WHEN_EMPTY = (
    *("resource_type", "resource_id", "namespace", "cluster_id", "severity", "duration_ms", "error_code"),
    *("error_message", "actor_id", "actor_type", "actor_ip"),
)


@dataclass(frozen=True, slots=True)
class Page:
    """Events as they are answered, each a JSON object."""

    events: list[dict[str, Any]]
    has_more: bool
    next_cursor: Cursor | None
    total: int | None
    """None when it was not asked for."""
    total_exact: bool = True


async def page(engine: AsyncEngine, query: EventQuery) -> Page:
    """The events that `query` asks for. DatabaseAway or DatabaseFailed when there is no answer."""
    async with _connection(engine) as connection:
        rows = (await connection.execute(_select(query), query.arguments())).all()
        total, exact = await _total(connection, query)
    shown = rows[: query.limit]
    has_more = len(rows) > query.limit
    last = Cursor(shown[-1].moment.replace(" ", "T"), shown[-1].event_id) if has_more else None
    return Page([_event(row) for row in shown], has_more, last, total, exact)


async def one(engine: AsyncEngine, event_id: UUID) -> dict[str, Any] | None:
    """The event with this id, whatever its date and correlation."""
    async with _connection(engine) as connection:
        row = (await connection.execute(_ONE, {"event_id": event_id})).first()
    return None if row is None else _event(row)


async def warm(engine: AsyncEngine) -> None:
    """Run each shape of statement once on every connection of the pool: the first plan over many partitions is slow."""
    since = datetime.now(UTC) - timedelta(days=7)
    shapes = [
        EventQuery(correlation_id="-", total="none"),
        EventQuery(event_type="-", since=since, total="none"),
        EventQuery(since=since, total="none"),
        EventQuery(correlation_id="-", event_type="-"),
        EventQuery(cursor=Cursor("2000-01-01T00:00:00", UUID(int=0)), limit=1, total="none"),
    ]

    async def warm_one() -> None:
        async with _connection(engine) as connection:
            await asyncio.sleep(0)  # so that each of these takes a connection of its own
            for shape in shapes:
                await connection.execute(_select(shape), shape.arguments())
                await _total(connection, shape)
            await connection.execute(_ONE, {"event_id": UUID(int=0)})

    await asyncio.gather(*(warm_one() for _ in range(engine.pool.size())))  # type: ignore[attr-defined]  # QueuePool's


@asynccontextmanager
async def _connection(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    try:
        async with engine.connect() as connection:
            yield connection
    except (*CONNECTION_ERRORS, SQLAlchemyTimeout) as error:
        raise DatabaseAway from error
    except DBAPIError as error:
        raise (DatabaseAway if error.connection_invalidated else DatabaseFailed) from error


def _select(query: EventQuery) -> Select[Any]:
    chosen = select(*_COLUMNS).where(*(CONDITIONS[name] for name in query.page_conditions()))
    ordered = chosen.order_by(_e.event_timestamp.desc(), _e.event_id.desc()).limit(bindparam("rows"))
    return ordered.offset(bindparam("offset")) if query.offset else ordered


_ONE = select(*_COLUMNS).where(_e.event_id == bindparam("event_id")).limit(1)


async def _total(connection: AsyncConnection, query: EventQuery) -> tuple[int | None, bool]:
    """(how many events the filters find, whether that is exact)."""
    if query.total == "none":
        return None, True
    matching: Select[Any] = select(literal_column("1")).select_from(audit_events)
    matching = matching.where(*(CONDITIONS[name] for name in query.conditions()))
    if query.total == "capped":
        capped = select(func.count()).select_from(matching.limit(CAPPED_TOTAL + 1).subquery())
        found = (await connection.execute(capped, query.arguments())).scalar_one()
        return min(found, CAPPED_TOTAL), found <= CAPPED_TOTAL
    counted = matching.with_only_columns(func.count())
    await connection.execute(text(f"SET LOCAL statement_timeout = {COUNT_TIMEOUT_MS}"))
    try:
        return (await connection.execute(counted, query.arguments())).scalar_one(), True
    except DBAPIError as error:
        if getattr(error.orig, "sqlstate", None) != _QUERY_CANCELED:
            raise
    await connection.rollback()
    return await _estimate(connection, matching, query), False


async def _estimate(connection: AsyncConnection, matching: Select[Any], query: EventQuery) -> int:
    """What the planner expects, without counting."""
    explained = matching.prefix_with("/* total */")
    compiled = explained.compile(connection.sync_engine, compile_kwargs={"render_postcompile": True})
    arguments = query.arguments()
    values = tuple(arguments[name] for name in compiled.positiontup or ())
    plan = (await connection.exec_driver_sql(f"EXPLAIN (FORMAT JSON) {compiled}", values)).scalar_one()
    return int((orjson.loads(plan) if isinstance(plan, str) else plan)[0]["Plan"]["Plan Rows"])


def _event(row: Any) -> dict[str, Any]:
    """Members in the contract's order (section 9); left out means unknown."""
    members = row._mapping  # noqa: SLF001 - SQLAlchemy's public name for a row as a mapping
    event = {
        "event_id": str(row.event_id),
        "event_timestamp": _zulu(row.moment),
        "event_date": row.event_date,
        "event_type": row.event_type,
        "version": row.event_version,
        "event_category": row.event_category,
        "event_action": row.event_action,
        "event_outcome": row.event_outcome,
        "correlation_id": row.correlation_id,
        "parent_event_id": None if row.parent_event_id is None else str(row.parent_event_id),
        "parent_event_date": None if row.parent_event_date is None else f"{row.parent_event_date}T00:00:00Z",
    }
    event |= {name: members[name] for name in _OMITTED_WHEN_EMPTY if members[name]}
    return event | {
        "retention_days": row.retention_days,
        "is_sensitive": row.is_sensitive,
        "event_hash": row.event_hash or "",
        "previous_event_hash": row.previous_event_hash or "",
        "legal_hold": row.legal_hold or False,
        "legal_hold_reason": row.legal_hold_reason or "",
        "legal_hold_placed_by": row.legal_hold_placed_by or "",
        "legal_hold_placed_at": None if row.held_at is None else _zulu(row.held_at),
        "event_data": orjson.Fragment(readable(row.payload)),
    }


def _zulu(moment: str) -> str:
    return moment.replace(" ", "T", 1) + "Z"
