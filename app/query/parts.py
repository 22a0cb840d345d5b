"""The events that match a query as parts that add up: what the roll-up (app/rollup.py) has of whole months, days and hours, what was
deleted or changed since, the rows that came after it, unsealed rows, and the rows of the hour at each end of the time asked for.

Whoever adds them does it in one statement, hence one snapshot, and only while `IS_CURRENT`.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from sqlalchemy import Boolean, ColumnElement, Select, Table, and_, bindparam, func, select
from sqlalchemy import literal_column as literal
from sqlalchemy.sql.base import ReadOnlyColumnCollection

from app.query.filter import CONDITIONS, conditions_on
from app.query.spans import Span
from app.tables import audit_events, rollup_changes, rollup_counts, rollup_months, rollup_progress, rollup_tables

LAG_MAX = 100_000
"""Events that may be in the log after those that are counted; with more, all rows are counted."""
_POSITION_MAX = 2**63 - 1
_e = audit_events.c

Columns = Callable[[ReadOnlyColumnCollection[str, Any], ColumnElement[Any]], Sequence[ColumnElement[Any]]]
"""By what the events of a table are grouped: from its columns, and the one that has their time."""

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
IS_CURRENT = _position.is_not(None)


def no_columns(_c: ReadOnlyColumnCollection[str, Any], _time: ColumnElement[Any]) -> Sequence[ColumnElement[Any]]:
    """All events together."""
    return ()


def parts_of(
    conditions: tuple[str, ...], grouped: Columns = no_columns, longest: Span = "month"
) -> Iterator[Select[Any]]:
    """Of each part the columns of `grouped`, and `events`: how many meet `conditions`, which are some of IN_ROLLUP. Bind parameters are
    those of the conditions, and the times of whole_spans() with the same `longest`.
    """
    matching = rows_of(conditions, grouped)
    yield from (_counts_of(conditions, grouped, *span) for span in _spans(conditions, longest))
    yield _changes_of(conditions, grouped)
    yield matching.where(_e.log_index >= _position, _e.log_index <= literal(str(_POSITION_MAX)))
    yield matching.where(_e.log_index.is_(None))
    yield matching.where(_e.log_index < literal("0"))
    # An expression: with the bare column Postgres would find them by their positions instead of their times.
    position = func.coalesce(_e.log_index, literal("-1"))
    yield from (matching.where(position >= literal("0"), position < _position, end) for end in _ends(conditions))


def rows_of(conditions: tuple[str, ...], grouped: Columns = no_columns) -> Select[Any]:
    """The same of rows alone, for any conditions."""
    columns = grouped(_e, _e.event_timestamp)
    selected = select(*columns, func.count().label("events")).select_from(audit_events)
    return selected.where(*(CONDITIONS[name] for name in conditions)).group_by(*columns)


def _spans(conditions: tuple[str, ...], longest: Span) -> Iterator[tuple[str, str | None, str | None]]:
    """(span of the counts, from when, until when), the times as names of whole_spans()."""
    since, until = "since" in conditions, "until" in conditions
    if longest == "month":
        yield "m", "month_from" if since else None, "month_to" if until else None
    if longest in {"month", "day"}:
        if since:
            yield "d", "day_from", "month_from"
        if until:
            yield "d", "month_to", "day_to"
    if since:
        yield "h", "hour_from", "day_from"
    if until:
        yield "h", "day_to", "hour_to"


def _counts_of(
    conditions: tuple[str, ...], grouped: Columns, span: str, start: str | None, end: str | None
) -> Select[Any]:
    c = rollup_counts.c
    selected = _events_of(rollup_counts, _ON_COUNTS, conditions, grouped(c, c.start))
    return selected.where(c.span == literal(f"'{span}'"), *_between(c.start, start, end))


def _changes_of(conditions: tuple[str, ...], grouped: Columns) -> Select[Any]:
    c = rollup_changes.c
    start, end = "hour_from" if "since" in conditions else None, "hour_to" if "until" in conditions else None
    selected = _events_of(rollup_changes, _ON_CHANGES, conditions, grouped(c, c.event_timestamp))
    return selected.where(c.log_index < _position, *_between(c.event_timestamp, start, end))


def _events_of(
    table: Table,
    on_table: dict[str, ColumnElement[bool]],
    conditions: tuple[str, ...],
    columns: Sequence[ColumnElement[Any]],
) -> Select[Any]:
    selected = select(*columns, func.coalesce(func.sum(table.c.events), literal("0")).label("events"))
    filters = (on_table[name] for name in conditions if name in on_table)
    return selected.where(table.c.month.in_(select(_months.c.month)), *filters).group_by(*columns)


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
