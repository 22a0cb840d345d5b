"""One page of correlations, the one with the newest event first.

No table lists them by time. So the events are scanned from the newest on, and the first event of a correlation that the scan
meets is its newest. A scan is bounded: a page may end before it is full, or empty, with a cursor from which the next one goes on.
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
from app.query.filter import TimeBound
from app.query.postgres_time import nearest_rfc3339
from app.sql import load

SQL = load("reports")
LIMIT_MAX = 1000
SCANNED_CORRELATIONS_MAX = 1000
"""How many correlations the scan of one page meets at most."""
_SCANNED_ROWS_MAX = 10_000
SCANS = {rows: SQL["scan"].replace("$4", str(rows)) for rows in (200, 1000, 4000)}
"""The statement by its LIMIT, which is a literal in it: the planner has to know how few rows are wanted."""
_HIGHEST_ID = UUID(int=2**128 - 1)


class CorrelationQuery(BaseModel, frozen=True, extra="forbid"):
    """A question about correlations: query string, command line and scan have the same fields."""

    since: TimeBound = Field(None, description="earliest time of a correlation's newest event: a time, or how long ago")
    until: TimeBound = Field(None, description="latest time of a correlation's newest event: a time, or how long ago")
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
        """The event after which the scan begins."""
        if self.cursor is not None:
            return self.cursor
        return Cursor("infinity" if self.until is None else _utc_text(self.until), _HIGHEST_ID)

    @property
    def filters_by_any_event(self) -> bool:
        """Whether any event of a correlation can make it match, not only its newest one."""
        return any(value is not None for value in (self.event_category, self.namespace, self.cluster_id))


def _utc_text(time: Any) -> str:
    return time.astimezone(UTC).isoformat().removesuffix("+00:00")  # type: ignore[no-any-return]  # a datetime


@dataclass(frozen=True, slots=True)
class CorrelationPage:
    """Correlations in the form of the answer; without `next_cursor` it is the last page."""

    correlations: list[dict[str, Any]]
    next_cursor: Cursor | None


async def page(engine: AsyncEngine, query: CorrelationQuery) -> CorrelationPage:
    """The correlations that match `query`, all read in one snapshot. DatabaseAway or DatabaseFailed when Postgres does not answer."""
    async with (
        driver_connection(engine) as connection,
        connection.transaction(isolation="repeatable_read", readonly=True),
    ):
        await connection.execute(SQL["use_generic_plans"])
        scan = _Scan(connection, query)
        newest = await scan.run()
        summaries = {
            row["correlation_id"]: row
            for row in await connection.fetch(SQL["summaries"], [r["correlation_id"] for r in newest])
        }
    return CorrelationPage([_correlation(row, summaries[row["correlation_id"]]) for row in newest], scan.cursor)


class _Scan:
    """The scan of one page through the events, from the newest on."""

    def __init__(self, connection: Connection, query: CorrelationQuery) -> None:
        self._connection = connection
        self._query = query
        self._met: set[str] = set()
        """Correlations that the scan has met."""
        self._rows = 0
        """Rows that the scan has read."""
        self.cursor: Cursor | None = query.start
        """The event after which the scan goes on; None when it has read the last one."""

    async def run(self) -> list[asyncpg.Record]:
        """The newest event of each correlation on the page."""
        query, newest = self._query, list[asyncpg.Record]()
        while self.cursor is not None and len(newest) < query.limit and not self._is_exhausted:
            rows = await self._next_rows(self.cursor)
            candidates = self._first_of_each(rows)
            matching = await self._matching(candidates)
            newest += matching[: query.limit - len(newest)]
            self._advance(rows, candidates, newest[-1] if len(newest) == query.limit else None)
        return newest

    @property
    def _is_exhausted(self) -> bool:
        return len(self._met) >= SCANNED_CORRELATIONS_MAX or self._rows >= _SCANNED_ROWS_MAX

    async def _next_rows(self, cursor: Cursor) -> list[asyncpg.Record]:
        since = "-infinity" if self._query.since is None else _utc_text(self._query.since)
        wanted = max(2 * self._query.limit, 4 * self._rows)
        self._rows_limit = next((limit for limit in SCANS if limit >= wanted), max(SCANS))
        rows = await self._connection.fetch(SCANS[self._rows_limit], cursor.event_timestamp, cursor.event_id, since)
        self._rows += len(rows)
        return rows

    def _first_of_each(self, rows: Iterable[asyncpg.Record]) -> list[asyncpg.Record]:
        """The first row of each correlation that the scan meets now, up to the bound of a page."""
        first = []
        for row in rows:
            if len(self._met) < SCANNED_CORRELATIONS_MAX and row["correlation_id"] not in self._met:
                if row["is_self_event"] and self._query.event_category is None:
                    continue
                self._met.add(row["correlation_id"])
                first.append(row)
        return first

    async def _matching(self, candidates: list[asyncpg.Record]) -> list[asyncpg.Record]:
        """Those that are the newest event of their correlation, and whose correlation the filters match."""
        query = self._query
        if (
            query.cursor is not None or query.until is not None
        ):  # the correlation may have newer events, before the scan's start
            columns = [
                [r["correlation_id"] for r in candidates],
                [r["timestamp"] for r in candidates],
                [r["event_id"] for r in candidates],
            ]
            newest = await self._connection.fetch(SQL["newest"], *columns)
            candidates = [candidates[row["number"] - 1] for row in newest]
        if query.event_outcome is not None:
            candidates = [row for row in candidates if row["event_outcome"] == query.event_outcome]
        if query.filters_by_any_event and candidates:
            filters = (query.event_category, query.namespace, query.cluster_id)
            ids = [row["correlation_id"] for row in candidates]
            matching = {row["correlation_id"] for row in await self._connection.fetch(SQL["matching"], ids, *filters)}
            candidates = [row for row in candidates if row["correlation_id"] in matching]
        return candidates

    def _advance(
        self, rows: list[asyncpg.Record], candidates: list[asyncpg.Record], last_shown: asyncpg.Record | None
    ) -> None:
        """Move the cursor to the last row that the next page need not read again; `last_shown` is None if the page is not full."""
        if last_shown is not None:
            last: asyncpg.Record | None = last_shown
        elif len(self._met) >= SCANNED_CORRELATIONS_MAX and candidates:
            last = candidates[-1]
        else:
            last = rows[-1] if len(rows) == self._rows_limit else None
        self.cursor = None if last is None else Cursor(last["timestamp"].replace(" ", "T", 1), last["event_id"])


def _correlation(newest: asyncpg.Record, summary: asyncpg.Record) -> dict[str, Any]:
    first = {"event_timestamp": nearest_rfc3339(summary["first"])}
    if summary["event_id"] is not None:
        first = {"event_id": str(summary["event_id"])} | first | {"event_type": summary["event_type"]}
    correlation = {
        "correlation_id": newest["correlation_id"],
        "first_event": first,
        "last_event": {
            "event_id": str(newest["event_id"]),
            "event_timestamp": nearest_rfc3339(newest["timestamp"]),
            "event_type": newest["event_type"],
        },
        "event_count": summary["events"],
        "last_outcome": newest["event_outcome"],
        "categories": summary["categories"],
    }
    return correlation | {name: newest[name] for name in ("namespace", "cluster_id") if newest[name]}
