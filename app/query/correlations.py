"""One page of correlations, the one with the newest event first.

No table lists them by time. So the events are scanned from the newest on, and the first event of a correlation that the scan
meets is its newest. A scan is bounded: a page may end before it is full, or empty, with a cursor from which the next one goes on.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC
from functools import lru_cache
from typing import Annotated, Any
from uuid import UUID

import asyncpg
from pydantic import Field, WithJsonSchema
from sqlalchemy import ARRAY, ColumnElement, Select, Text, bindparam, func, literal_column, select

from app.db import Connection, Pool, driver_connection
from app.query.compiled import Statement, compile_statement
from app.query.cursor import Cursor
from app.query.filter import CONDITIONS, LEFT_OUT, EventFilter
from app.query.postgres_time import nearest_rfc3339
from app.sql import load
from app.tables import audit_events

SQL = load("reports")
LIMIT_MAX = 1000
SCANNED_CORRELATIONS_MAX = 1000
"""How many correlations the scan of one page meets at most."""
_SCANNED_ROWS_MAX = 10_000
SCANS = {rows: SQL["scan"].replace("$4", str(rows)) for rows in (200, 1000, 4000)}
"""The statement by its LIMIT, which is a literal in it: the planner has to know how few rows are wanted."""
NAMED_SCANS = {rows: SQL["scan_named"].replace("$5", str(rows)) for rows in (200, 1000, 4000)}
"""The same of correlations that are named."""
_OF_NEWEST = {"since", "until", *LEFT_OUT.values(), "event_outcome", "event_outcome_in", "event_outcome_not"}
"""Conditions for the newest event of a correlation, and what the scan itself leaves out."""
_HIGHEST_ID = UUID(int=2**128 - 1)


class CorrelationQuery(EventFilter, frozen=True, extra="forbid"):
    """A question about correlations: query string, command line and scan have the same fields.

    A correlation matches if one of its events meets every filter, but that times and outcomes are those of its newest event.
    """

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

    def any_conditions(self) -> tuple[str, ...]:
        """Names in CONDITIONS that one event of the correlation has to meet."""
        return tuple(name for name in self.conditions() if name not in _OF_NEWEST)

    def has_outcome(self, outcome: str) -> bool:
        """Whether this outcome, of the newest event, is one that was asked for."""
        return (
            self.event_outcome in {None, outcome}
            and (not self.event_outcome_in or outcome in self.event_outcome_in)
            and outcome not in self.event_outcome_not
        )


def _utc_text(time: Any) -> str:
    return time.astimezone(UTC).isoformat().removesuffix("+00:00")  # type: ignore[no-any-return]  # a datetime


@dataclass(frozen=True, slots=True)
class CorrelationPage:
    """Correlations in the form of the answer; without `next_cursor` it is the last page."""

    correlations: list[dict[str, Any]]
    next_cursor: Cursor | None
    scanned_until: str | None
    """RFC 3339. The page is not full, although it is not the last one: it has what was found from its start down to this time."""


async def page(pool: Pool, query: CorrelationQuery) -> CorrelationPage:
    """The correlations that match `query`, all read in one snapshot. DatabaseAway or DatabaseFailed when Postgres does not answer."""
    async with (
        driver_connection(pool) as connection,
        connection.transaction(isolation="repeatable_read", readonly=True),
    ):
        await connection.execute(f"{SQL['use_generic_plans']}; {SQL['follow_index']}")  # one way to the server and back
        scan = _Scan(connection, query)
        newest = await scan.run()
        await connection.execute(SQL["may_sort"])
        summaries = {
            row["correlation_id"]: row
            for row in await connection.fetch(SQL["summaries"], [r["correlation_id"] for r in newest])
        }
    correlations = [_correlation(row, summaries[row["correlation_id"]]) for row in newest]
    is_cut = scan.cursor is not None and len(correlations) < query.limit
    until = nearest_rfc3339(scan.cursor.event_timestamp.replace("T", " ", 1)) if scan.cursor and is_cut else None
    return CorrelationPage(correlations, scan.cursor, until)


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

    @property
    def _named(self) -> list[str] | None:
        """The correlations that were asked for by their ids; None if none were."""
        if self._query.correlation_id is not None:
            return [self._query.correlation_id]
        return list(self._query.correlation_id_in) or None

    async def _next_rows(self, cursor: Cursor) -> list[asyncpg.Record]:
        since = "-infinity" if self._query.since is None else _utc_text(self._query.since)
        wanted = max(2 * self._query.limit, 4 * self._rows)
        self._rows_limit = next((limit for limit in SCANS if limit >= wanted), max(SCANS))
        names = self._named
        scan = SCANS[self._rows_limit] if names is None else NAMED_SCANS[self._rows_limit]
        arguments = (cursor.event_timestamp, cursor.event_id, since, *(() if names is None else (names,)))
        rows = await self._connection.fetch(scan, *arguments)
        self._rows += len(rows)
        return rows

    def _first_of_each(self, rows: Iterable[asyncpg.Record]) -> list[asyncpg.Record]:
        """The first row of each correlation that the scan meets now, up to the bound of a page."""
        first = []
        for row in rows:
            if len(self._met) < SCANNED_CORRELATIONS_MAX and row["correlation_id"] not in self._met:
                if row["is_self_event"] and not self._query.includes_self_events:
                    continue
                if row["is_kubernetes"] and not self._query.includes_kubernetes:
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
            includes = query.includes_self_events, query.includes_kubernetes
            newest = await self._connection.fetch(SQL["newest"], *columns, *includes)
            candidates = [candidates[row["number"] - 1] for row in newest]
        candidates = [row for row in candidates if query.has_outcome(row["event_outcome"])]
        if (conditions := query.any_conditions()) and candidates:
            statement = _matching_statement(conditions)
            arguments = query.arguments() | {"correlation_ids": [row["correlation_id"] for row in candidates]}
            found = await self._connection.fetch(statement.text, *statement.bind(arguments))
            matching: set[str] = {row["correlation_id"] for row in found}
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


@lru_cache(256)
def _matching_statement(conditions: tuple[str, ...]) -> Statement:
    """Which of some correlations have an event that meets all of `conditions`."""
    candidate: ColumnElement[str] = func.unnest(bindparam("correlation_ids", type_=ARRAY(Text))).column_valued(
        "candidate"
    )
    matching: Select[Any] = (
        select(literal_column("true"))
        .select_from(audit_events)
        .where(audit_events.c.correlation_id == candidate, *(CONDITIONS[name] for name in conditions))
    )
    has_one = matching.limit(literal_column("1")).scalar_subquery()
    return compile_statement(select(candidate.label("correlation_id")).where(has_one))


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
