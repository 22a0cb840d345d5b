"""One page of notifications, newest first."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any

import asyncpg
from pydantic import BaseModel, Field, WithJsonSchema
from sqlalchemy import BigInteger, ColumnElement, bindparam, select, tuple_

from app.db import Pool, driver_connection
from app.query.compiled import Statement, compile_statement
from app.query.cursor import NumberedCursor
from app.query.filter import LIMIT_MAX, TimeBound, Zone
from app.query.postgres_time import nearest_rfc3339, utc_text, utc_time
from app.tables import notification_audit

_n = notification_audit.c
_EQUAL = ("remediation_id", "channel", "status")


class NotificationQuery(BaseModel, frozen=True, extra="forbid"):
    """A question about notifications: query string and WHERE clause in one place."""

    remediation_id: str | None = Field(None, description="the remediation that it tells of")
    channel: str | None = Field(None, description="any text; an unknown channel gives an empty page")
    status: str | None = Field(None, description="any text; an unknown status gives an empty page")
    since: TimeBound = Field(None, description="earliest sent_at: a time, or how long ago")
    until: TimeBound = Field(None, description="latest sent_at: a time, or how long ago")
    zone: Zone = None
    limit: int = Field(50, ge=1, le=LIMIT_MAX, description="most notifications on the page")
    cursor: Annotated[NumberedCursor | None, WithJsonSchema({"type": "string"})] = Field(
        None, description="next_cursor of an earlier answer"
    )

    def conditions(self) -> tuple[str, ...]:
        """Names in CONDITIONS that a notification on the page must meet."""
        return tuple(name for name in CONDITIONS if getattr(self, name) is not None)

    def arguments(self) -> dict[str, object]:
        """A value for each bind parameter; one row more shows whether there are more."""
        filters = {name: getattr(self, name) for name in (*_EQUAL, "since", "until")}
        return filters | {
            "cursor_timestamp": self.cursor and self.cursor.timestamp,
            "cursor_id": self.cursor and self.cursor.number,
            "rows": self.limit + 1,
        }


def _after_cursor() -> ColumnElement[bool]:
    last = tuple_(utc_time("cursor_timestamp"), bindparam("cursor_id", type_=BigInteger))
    return tuple_(_n.sent_at, _n.id) < last


CONDITIONS: dict[str, ColumnElement[bool]] = {
    **{name: _n[name] == bindparam(name, type_=_n[name].type) for name in _EQUAL},
    "since": _n.sent_at >= bindparam("since"),
    "until": _n.sent_at <= bindparam("until"),
    "cursor": _after_cursor(),
}


@dataclass(frozen=True, slots=True)
class NotificationPage:
    """Notifications in the form of the answer; without `next_cursor` it is the last page."""

    notifications: list[dict[str, Any]]
    next_cursor: NumberedCursor | None


_TIMES = ("sent_at", "created_at", "updated_at")
_MEMBERS = tuple(str(column.name) for column in _n if column.name not in {"salt", "log_id", "log_index"})
_COLUMNS = (
    *(utc_text(_n[name]).label(name) if name in _TIMES else _n[name] for name in _MEMBERS),
    (_n.salt.is_not(None) & _n.log_index.is_not(None)).label("sealed"),
)


@lru_cache(64)
def _statement(conditions: tuple[str, ...]) -> Statement:
    selected = select(*_COLUMNS).where(*(CONDITIONS[name] for name in conditions))
    return compile_statement(
        selected.order_by(_n.sent_at.desc(), _n.id.desc()).limit(bindparam("rows", type_=BigInteger))
    )


async def page(pool: Pool, query: NotificationQuery) -> NotificationPage:
    """The notifications that match `query`. DatabaseAway or DatabaseFailed when Postgres does not answer."""
    statement = _statement(query.conditions())
    async with driver_connection(pool) as connection:
        rows = await connection.fetch(statement.text, *statement.bind(query.arguments()))
    shown = rows[: query.limit]
    next_cursor = (
        NumberedCursor(shown[-1]["sent_at"].replace(" ", "T", 1), shown[-1]["id"]) if len(rows) > query.limit else None
    )
    return NotificationPage([notification(row) for row in shown], next_cursor)


def notification(row: asyncpg.Record) -> dict[str, Any]:
    """Members in the order of docs/contract.md, section 14; an unknown one is left out. `sealed` is there, and False, if the row itself
    says that the log has no digest of it; whether the log has, verification finds out.
    """
    return dict(_members(row))


def _members(row: asyncpg.Record) -> Iterator[tuple[str, Any]]:
    for name in _MEMBERS:
        value = row[name]
        if name in _TIMES:
            yield name, nearest_rfc3339(value)
        elif name == "escalation_level":
            yield name, value or 0
        elif value or name not in {"delivery_status", "error_message"}:
            yield name, value
    if not row["sealed"]:
        yield "sealed", False
