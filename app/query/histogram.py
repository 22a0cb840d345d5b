"""Events by time, as a chart draws them: from the roll-up where it has the answer, else from the rows, as many as a second allows."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, Literal

import asyncpg
from pydantic import Field
from sqlalchemy import (
    CTE,
    BigInteger,
    ColumnElement,
    FromClause,
    Select,
    cast,
    collate,
    func,
    null,
    select,
    union_all,
)
from sqlalchemy import literal_column as literal
from sqlalchemy.sql.base import ReadOnlyColumnCollection

from app.db import Connection, Engine, Pool, driver_connection, limited, on_first_connections
from app.query.compiled import Statement, compile_statement, fetch_planned_once, planned_once
from app.query.filter import EventFilter
from app.query.parts import IS_CURRENT, Columns, counts_with, parts_of, rows_of
from app.query.spans import SPANS, Span, WholeSpans, floor, following, number_of, whole_spans
from app.query.total import COUNT_SECONDS
from app.query.ways import has_index

DAYS_DEFAULT = 7
BUCKETS_MAX = 2_000
AUTO_BUCKETS_MAX = 170
"""A week by hours; with more, `auto` has the next longer buckets."""
GROUPS_MAX = 20
OTHER = "other"
_TICK = timedelta(microseconds=1)
_FIRST_PORTIONS = 64
"""Rows are counted from the newest on: first of this part of the time, then each time of twice as much."""

By = Literal["outcome", "category", "type", "severity", "cluster", "namespace"]
_COLUMNS: dict[By, str] = {
    "outcome": "event_outcome",
    "category": "event_category",
    "type": "event_type",
    "severity": "severity",
    "cluster": "cluster_id",
    "namespace": "namespace",
}
_LONGEST: dict[Span, Span] = {"hour": "hour", "day": "day", "week": "day", "month": "month"}
"""The longest spans of the roll-up that are wholly in one bucket. It has no minutes."""


class HistogramQuery(EventFilter, frozen=True, extra="forbid"):
    """Which events to count, and by what."""

    bucket: Literal["auto", "minute", "hour", "day", "week", "month"] = Field(
        "auto", description=f"length of a bucket, in UTC; auto: the shortest with at most {AUTO_BUCKETS_MAX} buckets"
    )
    by: By | None = Field(
        None, description=f"count by this too: the {GROUPS_MAX} most frequent values, and the rest as `{OTHER}`"
    )

    @property
    def span(self) -> Span:
        """What a bucket is; `since` and `until` have to be set."""
        if self.bucket != "auto":
            return self.bucket
        return next((span for span in SPANS if number_of(*self.bounds, span) <= AUTO_BUCKETS_MAX), "month")

    @property
    def bounds(self) -> tuple[datetime, datetime]:
        """`since` and `until`, which have to be set, in UTC."""
        assert self.since is not None, "whoever asks sets it"
        assert self.until is not None, "whoever asks sets it"
        return self.since.astimezone(UTC), self.until.astimezone(UTC)


@dataclass(frozen=True, slots=True)
class Histogram:
    """Buckets in the form of the answer, oldest first; the empty ones too. Their ends are clipped to the time asked for."""

    bucket: Span
    since: datetime
    until: datetime
    buckets: list[dict[str, Any]]
    exact: bool
    """False: buckets before `scanned_from` were not counted, and are not there."""
    scanned_from: datetime


_Counts = dict[datetime, Counter[str]]
"""Events by the beginning of their bucket and by their group, of which there are GROUPS_MAX and the rest when they are shown."""


async def histogram(pool: Pool, query: HistogramQuery) -> Histogram:
    """The events that match, whose `since` and `until` are there. DatabaseAway or DatabaseFailed when Postgres does not answer."""
    since, until = query.bounds
    span = query.span
    async with driver_connection(pool) as connection:
        counts, scanned_from = await from_rollup(connection, query, span), since
        if counts is None:
            counts, scanned_from = await from_rows(connection, query, span)
    starts = list(_starts(max(since, scanned_from), until, span))
    buckets = list(_buckets(counts, starts, until, grouped=query.by is not None))
    return Histogram(span, since, until, buckets, scanned_from <= since, scanned_from)


def _starts(since: datetime, until: datetime, span: Span) -> Iterator[datetime]:
    """Where the buckets begin that have the times from `since` to `until`. What happens at `until` is in the last one."""
    if since > until:
        return
    start = floor(since, span)
    yield since
    try:
        while (start := following(start, span)) < until:
            yield start
    except OverflowError:
        return


def _buckets(
    counts: _Counts, starts: Sequence[datetime], until: datetime, *, grouped: bool
) -> Iterator[dict[str, Any]]:
    found = [Counter[str]() for _ in starts]
    number = -1
    for start in sorted(counts):
        while number + 1 < len(starts) and (number < 0 or starts[number + 1] <= start):
            number += 1
        for group, events in counts[start].items():
            found[number][group] += events
    for start, end, groups in zip(starts, (*starts, until)[1:], found, strict=True):
        bucket: dict[str, Any] = {"start": start, "end": end, "events": groups.total()}
        yield bucket | ({"groups": dict(groups.most_common())} if grouped else {})


def _with_other(counts: _Counts) -> _Counts:
    """The counts of the most frequent groups, and of the rest together, as `_most_frequent` has them."""
    totals = Counter[str]()
    for groups in counts.values():
        totals.update(groups)
    if len(totals) <= GROUPS_MAX:
        return counts
    ordered = sorted(totals, key=lambda group: (-totals[group], group))
    frequent = set(ordered[:GROUPS_MAX])
    cut: _Counts = {start: Counter() for start in counts}
    for start, groups in counts.items():
        for group, events in groups.items():
            cut[start][group if group in frequent else OTHER] += events
    return cut


async def warm(engine: Engine) -> None:
    """Ask what the page of events does, of all events and of an actor, once on the first connections of the pool: the first plan is slow."""
    until = datetime.now(UTC)
    query = HistogramQuery(since=until - timedelta(days=DAYS_DEFAULT), until=until, by="outcome")

    async def ask_both(connection: Connection) -> None:
        await from_rollup(connection, query, query.span)
        await from_rows(connection, query.model_copy(update={"actor_id": "-"}), query.span)

    await on_first_connections(engine, ask_both)


async def from_rollup(connection: Connection, query: HistogramQuery, span: Span) -> _Counts | None:
    """The counts, exactly, of no more than GROUPS_MAX groups and the rest; None if the roll-up has no answer to this query, or none at
    this moment.
    """
    conditions, longest = query.conditions(), _LONGEST.get(span)
    if longest is None:
        return None
    counts = counts_with(conditions, *([_COLUMNS[query.by]] if query.by else []))
    spans = whole_spans(query.since, query.until, longest)
    if counts is None or spans is None:
        return None
    statement = _rollup_statement(counts, conditions, spans[0], span, query.by)
    try:
        rows = await fetch_planned_once(connection, statement, query.arguments() | spans[1])
    except asyncpg.InsufficientPrivilegeError:  # roles.sql was not run after the migration
        return None
    return _counts(row for row in rows if row["start"] is not None) if rows else None


async def from_rows(connection: Connection, query: HistogramQuery, span: Span) -> tuple[_Counts, datetime]:
    """The counts, and from when on they are counted: from the newest event back, as far as COUNT_SECONDS allow."""
    since, until = query.bounds
    counts: _Counts = {}
    statement = _rows_statement(query.conditions(), span, query.by)
    scanned_from, end = max(since, until), until
    # What no index has is planned with its times: where they are long, a month is read as a whole, and by several processes.
    planned = planned_once(connection) if has_index(query.conditions()) else nullcontext()
    try:
        async with limited(connection, COUNT_SECONDS), planned:
            for start in _portions(since, until, span):
                portion = query.model_copy(update={"since": start, "until": end})
                counts |= _counts(await _fetch(connection, statement, portion.arguments()))
                scanned_from = start
                end = start - _TICK if start > since else start
    except TimeoutError:
        pass
    return _with_other(counts), scanned_from


def _portions(since: datetime, until: datetime, span: Span) -> Iterator[datetime]:
    """Where the portions begin, each at the beginning of a bucket; the newest first."""
    length = max((until - since) / _FIRST_PORTIONS, _TICK)
    start = until
    while start > since:
        start = max(since, floor(start - min(length, start - since), span))
        yield start
        length *= 2
    if since == until:
        yield since


def _counts(rows: Iterable[asyncpg.Record]) -> _Counts:
    counts: _Counts = {}
    for row in rows:
        if row["events"]:
            counts.setdefault(row["start"], Counter())[row["group"]] += row["events"]
    return counts


async def _fetch(connection: Connection, statement: Statement, arguments: Mapping[str, object]) -> list[asyncpg.Record]:
    return await connection.fetch(statement.text, *statement.bind(arguments))


def _grouped(span: Span, by: By | None) -> Columns:
    """The beginning of the bucket, and the group."""

    def columns(
        c: ReadOnlyColumnCollection[str, Any], time: ColumnElement[Any], begins: Span | None
    ) -> Sequence[ColumnElement[Any]]:
        truncated = func.date_trunc(literal(f"'{span}'"), time, literal("'UTC'"))  # costs more than the rest of a row
        start = (time if begins == span else truncated).label("start")
        if by is None:
            return [start]
        # Byte by byte: to compare texts by the rules of the database's language takes as long as the rest.
        return [start, collate(func.coalesce(c[_COLUMNS[by]], literal("''")), "C").label("group")]

    return columns


@lru_cache(256)
def _rows_statement(conditions: tuple[str, ...], span: Span, by: By | None) -> Statement:
    return compile_statement(_with_group(rows_of(conditions, _grouped(span, by)), by))


def _with_group(selected: Select[Any], by: By | None) -> Select[Any]:
    return selected if by else selected.add_columns(literal("''").label("group"))


@lru_cache(256)
def _rollup_statement(
    counts: FromClause, conditions: tuple[str, ...], spans: WholeSpans, span: Span, by: By | None
) -> Statement:
    """The parts of the counts, and one row without `start`; no row at all while the counts are not current."""
    parts = [
        _with_group(part, by).where(IS_CURRENT) for part in parts_of(counts, conditions, spans, _grouped(span, by))
    ]
    all_parts = union_all(*parts).cte("part").prefix_with("MATERIALIZED", dialect="postgresql")
    nothing: list[ColumnElement[Any]] = [null().label("start"), null().label("group"), literal("0").label("events")]
    is_current = select(*nothing).where(IS_CURRENT)
    return compile_statement(_by_bucket(all_parts, by).union_all(is_current))


def _by_bucket(parts: CTE, by: By | None) -> Select[Any]:
    """The events of each bucket and group, of the groups that have most in all buckets, and of the rest together."""
    c = parts.c
    group: ColumnElement[Any] = c.group
    frequent = select(c.group).group_by(c.group).order_by(func.sum(c.events).desc(), c.group)
    shown = frequent.limit(literal(str(GROUPS_MAX))).subquery("shown")
    if by:
        group = func.coalesce(shown.c.group, literal(f"'{OTHER}'"))
    selected = select(c.start, group.label("group"), cast(func.sum(c.events), BigInteger).label("events"))
    joined = parts.outerjoin(shown, shown.c.group == c.group) if by else parts
    return selected.select_from(joined).group_by(c.start, group)
