"""Notifications that were recorded, newest first, page by page."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any

import asyncpg
from pydantic import BaseModel, Field, WithJsonSchema
from sqlalchemy import BigInteger, ColumnElement, DateTime, Text, bindparam, cast, func, literal_column, select, tuple_
from sqlalchemy.ext.asyncio import AsyncEngine

from app.db import driver_connection
from app.query.compiled import Statement, compiled
from app.query.cursor import NumberedCursor
from app.query.filter import LIMIT_MAX, Moment
from app.query.postgres_time import nearest
from app.tables import notification_audit

_n = notification_audit.c
_EQUAL = ("remediation_id", "channel", "status")


class NotificationQuery(BaseModel, frozen=True, extra="forbid"):
    """A question about notifications: query string and WHERE clause in one place."""

    remediation_id: str | None = Field(None, description="the remediation that it tells of")
    channel: str | None = Field(None, description="any text; an unknown channel gives an empty page")
    status: str | None = Field(None, description="any text; an unknown status gives an empty page")
    since: Moment = Field(None, description="earliest sent_at: a time, or how long ago")
    until: Moment = Field(None, description="latest sent_at: a time, or how long ago")
    limit: int = Field(50, ge=1, le=LIMIT_MAX, description="most notifications on the page")
    cursor: Annotated[NumberedCursor | None, WithJsonSchema({"type": "string"})] = Field(
        None, description="next_cursor of an earlier answer"
    )

    def conditions(self) -> tuple[str, ...]:
        """Names in CONDITIONS of what a notification on the page must fulfil."""
        return tuple(name for name in CONDITIONS if getattr(self, name) is not None)

    def arguments(self) -> dict[str, object]:
        """A value for each bind parameter. One row more tells whether there are more."""
        sent = {name: getattr(self, name) for name in (*_EQUAL, "since", "until")}
        return sent | {
            "cursor_moment": self.cursor and self.cursor.moment,
            "cursor_id": self.cursor and self.cursor.number,
            "rows": self.limit + 1,
        }


def _behind_cursor() -> ColumnElement[bool]:
    # Sent as text, since the moment need not be one that Python knows.
    moment = func.timezone(
        literal_column("'UTC'"), cast(cast(bindparam("cursor_moment"), Text), DateTime(timezone=False))
    )
    return tuple_(_n.sent_at, _n.id) < tuple_(moment, bindparam("cursor_id", type_=BigInteger))


CONDITIONS: dict[str, ColumnElement[bool]] = {
    **{name: _n[name] == bindparam(name, type_=_n[name].type) for name in _EQUAL},
    "since": _n.sent_at >= bindparam("since"),
    "until": _n.sent_at <= bindparam("until"),
    "cursor": _behind_cursor(),
}


@dataclass(frozen=True, slots=True)
class NotificationPage:
    """Notifications as they are answered."""

    notifications: list[dict[str, Any]]
    next_cursor: NumberedCursor | None


def _text(name: str) -> ColumnElement[str]:
    return cast(func.timezone(literal_column("'UTC'"), _n[name]), Text).label(name)


_MOMENTS = ("sent_at", "created_at", "updated_at")
_MEMBERS = tuple(str(column.name) for column in _n)
_COLUMNS = tuple(_text(column.name) if column.name in _MOMENTS else column for column in _n)


@lru_cache(64)
def _statement(conditions: tuple[str, ...]) -> Statement:
    chosen = select(*_COLUMNS).where(*(CONDITIONS[name] for name in conditions))
    return compiled(chosen.order_by(_n.sent_at.desc(), _n.id.desc()).limit(bindparam("rows", type_=BigInteger)))


async def page(engine: AsyncEngine, query: NotificationQuery) -> NotificationPage:
    """The notifications that `query` asks for."""
    statement, arguments = _statement(query.conditions()), query.arguments()
    async with driver_connection(engine) as connection:
        rows = await connection.fetch(statement.text, *(arguments[name] for name in statement.parameters))
    shown = rows[: query.limit]
    last = (
        NumberedCursor(shown[-1]["sent_at"].replace(" ", "T", 1), shown[-1]["id"]) if len(rows) > query.limit else None
    )
    return NotificationPage([notification(row) for row in shown], last)


def notification(row: asyncpg.Record) -> dict[str, Any]:
    """Members in the contract's order (section 14); left out means unknown."""
    return dict(_members(row))


def _members(row: asyncpg.Record) -> Iterator[tuple[str, Any]]:
    for name in _MEMBERS:
        value = row[name]
        if name in _MOMENTS:
            yield name, nearest(value)
        elif name == "escalation_level":
            yield name, value or 0
        elif value or name not in {"delivery_status", "error_message"}:
            yield name, value
