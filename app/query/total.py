"""How many events match a query: from the roll-up, which follows the log (app/rollup.py), where it has the answer; else from the rows.

One statement, hence one snapshot, adds what the roll-up has of whole months, days and hours, what was deleted or changed since, the
rows that came after it, unsealed rows, and the rows of the hour at each end of the time asked for.
"""

import asyncio
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any

import asyncpg
from sqlalchemy import BigInteger, Boolean, ColumnElement, Select, Table, and_, bindparam, case, cast, func, select
from sqlalchemy import literal_column as literal

from app.db import Connection
from app.query.compiled import Statement, compile_statement
from app.query.filter import CONDITIONS, EventQuery, conditions_on
from app.tables import audit_events, rollup_changes, rollup_counts, rollup_months, rollup_progress, rollup_tables

COUNT_SECONDS = 1.0
CAPPED_TOTAL = 10_000
LAG_MAX = 100_000
"""Events that may be in the log after those that are counted; with more, all rows are counted."""
_POSITION_MAX = 2**63 - 1
_HOUR, _DAY = timedelta(hours=1), timedelta(days=1)
_e = audit_events.c


async def total(connection: Connection, query: EventQuery) -> tuple[int | None, bool]:
    """(how many events match or None if that was not asked for, whether it is exact)."""
    if query.total == "none":
        return None, True
    if query.total == "capped":
        count = await from_rows(connection, query, CAPPED_TOTAL + 1)
        return min(count, CAPPED_TOTAL), count <= CAPPED_TOTAL
    try:
        async with asyncio.timeout(COUNT_SECONDS):
            rolled_up = await from_rollup(connection, query)
            return (await from_rows(connection, query) if rolled_up is None else rolled_up), True
    except TimeoutError:
        return await _estimate(connection, query), False


async def from_rollup(connection: Connection, query: EventQuery) -> int | None:
    """How many events match, exactly; None if the roll-up has no answer to this query, or none at this moment."""
    conditions = query.conditions()
    spans = whole_spans(query.since, query.until)
    if spans is None or not IN_ROLLUP.issuperset(conditions):
        return None
    try:
        count: int | None = await _fetchval(connection, _rollup_statement(conditions), query.arguments() | spans)
    except asyncpg.InsufficientPrivilegeError:  # roles.sql was not run after the migration
        return None
    return count


async def from_rows(connection: Connection, query: EventQuery, rows_max: int | None = None) -> int:
    """How many events match, counted up to `rows_max` if there is one."""
    statement = _count_statement(query.conditions(), rows_max)
    count: int = await _fetchval(connection, statement, query.arguments())
    return count


def whole_spans(since: datetime | None, until: datetime | None) -> dict[str, datetime | None] | None:
    """The hours, days and months that lie between two times: days between `day_from` and `day_to` but for the months between
    `month_from` and `month_to`, and so on. None when there is no whole hour between them.
    """
    try:
        hour_from = None if since is None else _ceil(since.astimezone(UTC), "hour")
        hour_to = None if until is None else _floor(until.astimezone(UTC), "hour")
        if _is_empty(hour_from, hour_to):
            return None
        day_from, day_to = hour_from and _ceil(hour_from, "day"), hour_to and _floor(hour_to, "day")
        if _is_empty(day_from, day_to):
            day_from = day_to = hour_to
        month_from, month_to = day_from and _ceil(day_from, "month"), day_to and _floor(day_to, "month")
        if _is_empty(month_from, month_to):
            month_from = month_to = day_to
    except OverflowError:
        return None
    starts = {"hour_from": hour_from, "day_from": day_from, "month_from": month_from}
    return starts | {"month_to": month_to, "day_to": day_to, "hour_to": hour_to}


def _is_empty(start: datetime | None, end: datetime | None) -> bool:
    return start is not None and end is not None and start >= end


def _floor(time: datetime, span: str) -> datetime:
    hour = time.replace(minute=0, second=0, microsecond=0)
    return {"hour": hour, "day": hour.replace(hour=0), "month": hour.replace(hour=0, day=1)}[span]


def _ceil(time: datetime, span: str) -> datetime:
    start = _floor(time, span)
    if start == time:
        return time
    return _floor(start + {"hour": _HOUR, "day": _DAY, "month": 31 * _DAY}[span], span)


async def _fetchval(connection: Connection, statement: Statement, arguments: Mapping[str, object]) -> Any:
    return await connection.fetchval(statement.text, *statement.bind(arguments))


async def _estimate(connection: Connection, query: EventQuery) -> int:
    """How many rows the planner expects to match, without counting them."""
    matching = _matching_statement(query.conditions())
    explain = Statement(f"EXPLAIN (FORMAT JSON) {matching.text}", matching.parameters)
    # SQLAlchemy has set its own codec for json on the connections of its pool.
    return int((await _fetchval(connection, explain, query.arguments()))[0]["Plan"]["Plan Rows"])


def _matching(conditions: tuple[str, ...]) -> Select[Any]:
    return select(literal("1")).select_from(audit_events).where(*(CONDITIONS[name] for name in conditions))


@lru_cache(256)
def _matching_statement(conditions: tuple[str, ...]) -> Statement:
    return compile_statement(_matching(conditions))


@lru_cache(256)
def _count_statement(conditions: tuple[str, ...], rows_max: int | None) -> Statement:
    matching = _matching(conditions)
    if rows_max is None:
        return compile_statement(matching.with_only_columns(func.count()))
    return compile_statement(select(func.count()).select_from(matching.limit(literal(str(rows_max))).subquery()))


_ON_COUNTS, _ON_CHANGES = conditions_on(rollup_counts), conditions_on(rollup_changes)
IN_ROLLUP = _ON_COUNTS.keys() | {"since", "until"}
"""Names of the conditions that the roll-up can answer."""

_months = (
    select(rollup_tables.c.month, rollup_months.c.month.is_not(None).label("is_counted"))
    .select_from(
        rollup_tables.outerjoin(
            rollup_months,
            and_(
                rollup_months.c.month == rollup_tables.c.month,
                rollup_months.c.identity == rollup_tables.c.identity,
                rollup_months.c.building.is_(None),
            ),
        )
    )
    .cte("months")
)
"""The attached months, and whether all their counts are there."""
_is_detaching = literal(
    "EXISTS (SELECT FROM pg_inherits WHERE inhparent = 'audit_events'::regclass AND inhdetachpending)", Boolean
)
"""Whether a month is being detached. If Postgres has planned before that began, rows of it are found that no count has."""
_progress = rollup_progress.c
_too_far = (
    select(_e.log_index)
    .where(_e.log_index >= _progress.position, _e.log_index <= literal(str(_POSITION_MAX)))
    .order_by(_e.log_index)
    .offset(literal(str(LAG_MAX)))
    .limit(literal("1"))
    .correlate(rollup_progress)
    .exists()
)
_rollup = (
    select(_progress.position)
    .where(
        _progress.log_id == literal("0"),
        _progress.is_same_log,
        ~_is_detaching,
        ~select(_months.c.month).where(~_months.c.is_counted).exists(),
        ~_too_far,
    )
    .cte("rollup")
)
"""Up to where the events are counted; no row while the counts are not current."""
_position = select(_rollup.c.position).scalar_subquery()


@lru_cache(256)
def _rollup_statement(conditions: tuple[str, ...]) -> Statement:
    """The number of events that meet `conditions`, which are some of IN_ROLLUP; NULL while the counts are not current."""
    matching = _matching(conditions).with_only_columns(func.count())
    counted = [_counts_of(conditions, *span) for span in _spans(conditions)]
    after = matching.where(_e.log_index >= _position, _e.log_index <= literal(str(_POSITION_MAX)))
    unsealed = matching.where(_e.log_index.is_(None)), matching.where(_e.log_index < literal("0"))
    # An expression: with the bare column Postgres would find them by their positions instead of their times.
    position = func.coalesce(_e.log_index, literal("-1"))
    ends = [matching.where(position >= literal("0"), position < _position, end) for end in _ends(conditions)]
    parts = [*counted, _changes_of(conditions), after, *unsealed, *ends]
    number: ColumnElement[int] = literal("0", BigInteger)
    for part in parts:
        number += part.scalar_subquery()
    return compile_statement(select(case((_position.is_not(None), cast(number, BigInteger)))))


def _spans(conditions: tuple[str, ...]) -> Iterator[tuple[str, str | None, str | None]]:
    """(span of the counts, from when, until when), the times as names of whole_spans()."""
    since, until = "since" in conditions, "until" in conditions
    yield "m", "month_from" if since else None, "month_to" if until else None
    if since:
        yield "d", "day_from", "month_from"
        yield "h", "hour_from", "day_from"
    if until:
        yield "d", "month_to", "day_to"
        yield "h", "day_to", "hour_to"


def _counts_of(conditions: tuple[str, ...], span: str, start: str | None, end: str | None) -> Select[Any]:
    c = rollup_counts.c
    selected = _events_of(rollup_counts, _ON_COUNTS, conditions).where(c.span == literal(f"'{span}'"))
    return selected.where(*_between(c.start, start, end))


def _changes_of(conditions: tuple[str, ...]) -> Select[Any]:
    c = rollup_changes.c
    start, end = "hour_from" if "since" in conditions else None, "hour_to" if "until" in conditions else None
    selected = _events_of(rollup_changes, _ON_CHANGES, conditions).where(c.log_index < _position)
    return selected.where(*_between(c.event_timestamp, start, end))


def _events_of(table: Table, on_table: dict[str, ColumnElement[bool]], conditions: tuple[str, ...]) -> Select[Any]:
    selected = select(func.coalesce(func.sum(table.c.events), literal("0")))
    filters = (on_table[name] for name in conditions if name in on_table)
    return selected.where(table.c.month.in_(select(_months.c.month)), *filters)


def _between(time: ColumnElement[Any], start: str | None, end: str | None) -> Iterator[ColumnElement[bool]]:
    if start is not None:
        yield time >= bindparam(start)
    if end is not None:
        yield time < bindparam(end)


def _ends(conditions: tuple[str, ...]) -> Iterator[ColumnElement[bool]]:
    """Of rows, which hour they are in beside the whole ones."""
    if "since" in conditions:
        yield _e.event_timestamp < bindparam("hour_from")
    if "until" in conditions:
        yield _e.event_timestamp >= bindparam("hour_to")
