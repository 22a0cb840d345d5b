"""Correlations, the one with the newest event first.

There is no list of them by time: the events are walked from the newest on, and the first of a correlation that turns up is
its newest. A page so ends behind a number of correlations or events looked at, full or not, and says where to go on.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC
from typing import Annotated, Any
from uuid import UUID

import asyncpg
from pydantic import BaseModel, Field, WithJsonSchema
from sqlalchemy.ext.asyncio import AsyncEngine

from app.db import Connection, driver_connection
from app.events.envelope import Outcome
from app.query.cursor import Cursor
from app.query.filter import Moment
from app.query.postgres_time import nearest
from app.sql import load

SQL = load("reports")
LIMIT_MAX = 1000
LOOKED_AT_MAX = 1000
"""Correlations that one page looks at."""
_ROWS_MAX = 10_000
WALKS = {rows: SQL["walk"].replace("$4", str(rows)) for rows in (200, 1000, 4000)}
"""By the rows that are asked for: the planner has to know how few they are."""
_BEHIND_ALL = UUID(int=2**128 - 1)


class CorrelationQuery(BaseModel, frozen=True, extra="forbid"):
    """A question about correlations: query string, command line and walk have the same fields."""

    since: Moment = Field(None, description="earliest time of a correlation's newest event: a time, or how long ago")
    until: Moment = Field(None, description="latest time of a correlation's newest event: a time, or how long ago")
    event_category: str | None = Field(None, description="the correlation has an event of this category")
    event_outcome: Outcome | None = Field(None, description="outcome of the newest event")
    namespace: str | None = Field(None, description="the correlation has an event in this namespace")
    cluster_id: str | None = Field(None, description="the correlation has an event in this cluster")
    limit: int = Field(25, ge=1, le=LIMIT_MAX, description="most correlations on the page; it may be shorter")
    cursor: Annotated[Cursor | None, WithJsonSchema({"type": "string"})] = Field(
        None, description="next_cursor of an earlier answer"
    )

    @property
    def start(self) -> Cursor:
        """The place behind which the walk begins."""
        if self.cursor is not None:
            return self.cursor
        return Cursor("infinity" if self.until is None else _text(self.until), _BEHIND_ALL)

    @property
    def is_filtered(self) -> bool:
        """Whether more than the walked event decides."""
        return any(value is not None for value in (self.event_category, self.namespace, self.cluster_id))


def _text(moment: Any) -> str:
    return moment.astimezone(UTC).isoformat().removesuffix("+00:00")  # type: ignore[no-any-return]  # a datetime


@dataclass(frozen=True, slots=True)
class CorrelationPage:
    """Correlations as they are answered; without cursor there are no more."""

    correlations: list[dict[str, Any]]
    next_cursor: Cursor | None


async def page(engine: AsyncEngine, query: CorrelationQuery) -> CorrelationPage:
    """The correlations that `query` asks for, of one moment."""
    async with (
        driver_connection(engine) as connection,
        connection.transaction(isolation="repeatable_read", readonly=True),
    ):
        await connection.execute(SQL["plan_once"])
        walk = _Walk(connection, query)
        shown = await walk.find()
        told = {
            row["correlation_id"]: row
            for row in await connection.fetch(SQL["summaries"], [r["correlation_id"] for r in shown])
        }
    return CorrelationPage([_correlation(row, told[row["correlation_id"]]) for row in shown], walk.place)


class _Walk:
    """One page's way along the events."""

    def __init__(self, connection: Connection, query: CorrelationQuery) -> None:
        self._connection = connection
        self._query = query
        self._seen: set[str] = set()
        self._rows = 0
        self.place: Cursor | None = query.start
        """Where the walk stands; None behind the last event."""

    async def find(self) -> list[asyncpg.Record]:
        """The newest event of each correlation on the page."""
        query, found = self._query, list[asyncpg.Record]()
        while self.place is not None and len(found) < query.limit and not self._is_tired:
            rows = await self._rows_behind(self.place)
            fresh = self._fresh(rows)
            wanted = await self._wanted(fresh)
            found += wanted[: query.limit - len(found)]
            self._go_on(rows, fresh, found if len(found) == query.limit else [])
        return found

    @property
    def _is_tired(self) -> bool:
        return len(self._seen) >= LOOKED_AT_MAX or self._rows >= _ROWS_MAX

    async def _rows_behind(self, place: Cursor) -> list[asyncpg.Record]:
        since = "-infinity" if self._query.since is None else _text(self._query.since)
        wanted = max(2 * self._query.limit, 4 * self._rows)
        self._asked = next((rows for rows in WALKS if rows >= wanted), max(WALKS))
        rows = await self._connection.fetch(WALKS[self._asked], place.event_timestamp, place.event_id, since)
        self._rows += len(rows)
        return rows

    def _fresh(self, rows: Iterable[asyncpg.Record]) -> list[asyncpg.Record]:
        """The first row of each correlation that the walk meets, as many as a page may look at."""
        fresh = []
        for row in rows:
            if len(self._seen) < LOOKED_AT_MAX and row["correlation_id"] not in self._seen:
                if row["own"] and self._query.event_category is None:
                    continue
                self._seen.add(row["correlation_id"])
                fresh.append(row)
        return fresh

    async def _wanted(self, fresh: list[asyncpg.Record]) -> list[asyncpg.Record]:
        query = self._query
        if query.cursor is not None or query.until is not None:  # newer events may stand before the place
            walked = [
                [r["correlation_id"] for r in fresh],
                [r["moment"] for r in fresh],
                [r["event_id"] for r in fresh],
            ]
            fresh = [fresh[row["place"] - 1] for row in await self._connection.fetch(SQL["newest"], *walked)]
        if query.event_outcome is not None:
            fresh = [row for row in fresh if row["event_outcome"] == query.event_outcome]
        if query.is_filtered and fresh:
            asked = (query.event_category, query.namespace, query.cluster_id)
            matching = await self._connection.fetch(SQL["matching"], [r["correlation_id"] for r in fresh], *asked)
            ids = {row["correlation_id"] for row in matching}
            fresh = [row for row in fresh if row["correlation_id"] in ids]
        return fresh

    def _go_on(self, rows: list[asyncpg.Record], fresh: list[asyncpg.Record], full: list[asyncpg.Record]) -> None:
        """Move to the last row that needs no second look."""
        if full:
            last: asyncpg.Record | None = full[-1]
        elif len(self._seen) >= LOOKED_AT_MAX and fresh:
            last = fresh[-1]
        else:
            last = rows[-1] if len(rows) == self._asked else None
        self.place = None if last is None else Cursor(last["moment"].replace(" ", "T", 1), last["event_id"])


def _correlation(row: asyncpg.Record, told: asyncpg.Record) -> dict[str, Any]:
    first = {"event_timestamp": nearest(told["first"])}
    if told["event_id"] is not None:
        first = {"event_id": str(told["event_id"])} | first | {"event_type": told["event_type"]}
    correlation = {
        "correlation_id": row["correlation_id"],
        "first_event": first,
        "last_event": {
            "event_id": str(row["event_id"]),
            "event_timestamp": nearest(row["moment"]),
            "event_type": row["event_type"],
        },
        "event_count": told["events"],
        "last_outcome": row["event_outcome"],
        "categories": told["categories"],
    }
    return correlation | {name: row[name] for name in ("namespace", "cluster_id") if row[name]}
