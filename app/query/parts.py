"""The events that match a query as parts that add up: what the roll-up (app/rollup.py) has of whole months, days and hours, what was
deleted or changed since, the rows that came after it, unsealed rows, and the rows of the hour at each end of the time asked for.

Whoever adds them does it in one statement, hence one snapshot, and only while `IS_CURRENT`.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    ColumnElement,
    FromClause,
    Select,
    Subquery,
    and_,
    bindparam,
    case,
    cast,
    func,
    select,
)
from sqlalchemy import literal_column as literal
from sqlalchemy.sql.base import ReadOnlyColumnCollection

from app.query.filter import CONDITIONS, conditions_on
from app.query.spans import Span, WholeSpans
from app.sql import fragment
from app.tables import (
    audit_events,
    rollup_changes,
    rollup_counts,
    rollup_log_progress,
    rollup_marginals,
    rollup_months,
    rollup_scopes,
    rollup_tables,
)

LAG_MAX = 100_000
"""Events that may be in the log after those that are counted; with more, all rows are counted."""
_POSITION_MAX: ColumnElement[int] = literal(fragment("position_max"))
_e = audit_events.c

Columns = Callable[[ReadOnlyColumnCollection[str, Any], ColumnElement[Any], Span | None], Sequence[ColumnElement[Any]]]
"""By what the events of a table are grouped: from its columns, the one that has their time, and which span that is the beginning of."""
_SPANS: dict[str, Span] = {"h": "hour", "d": "day", "m": "month"}


def _marginals(dimension: str) -> FromClause:
    """The counts by one column alone, under its name."""
    c = rollup_marginals.c
    columns = c.span, c.start, c.month, c.value.label(dimension), c.is_self_event, c.events
    return select(*columns).where(c.dimension == literal(f"'{dimension}'")).subquery(dimension)


_DIMENSIONS = ("event_outcome", "severity", "event_category", "cluster_id", "event_type", "namespace")
_ON_COUNTS = {counts: conditions_on(counts) for counts in (*map(_marginals, _DIMENSIONS), rollup_counts, rollup_scopes)}
"""The counts with the conditions that they can answer, about in the order of their number."""
_ON_CHANGES = conditions_on(rollup_changes)
_BOUNDS = {"since", "until"}


def counts_with(conditions: Collection[str], *columns: str) -> FromClause | None:
    """The fewest counts that can answer these conditions, and that have these columns; None if the roll-up has none."""
    asked = set(conditions) - _BOUNDS
    fitting = (
        counts for counts, known in _ON_COUNTS.items() if asked <= known.keys() and set(columns) <= set(counts.c.keys())
    )
    return next(fitting, None)


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
_has_later_logs = literal(fragment("has_later_logs"), Boolean)
"""Whether the database has more than one log. While it has not, Postgres skips what depends on that, and there is no index for it."""
_progress = rollup_log_progress.c
_one = rollup_log_progress.alias("one")


def _more_than_lag(*of_log: ColumnElement[bool]) -> ColumnElement[bool]:
    rows = select(_e.log_index).where(*of_log, _e.log_index >= _one.c.position, _e.log_index <= _POSITION_MAX)
    lagging = rows.order_by(_e.log_index).offset(literal(str(LAG_MAX))).limit(literal("1"))
    return lagging.correlate(_one).exists()


_first_is_far = select(_one.c.log_id).where(_one.c.log_id == literal("0"), _more_than_lag()).exists()
_later_is_far = (
    select(_one.c.log_id)
    .where(_has_later_logs, _one.c.log_id > literal("0"))
    .where(_more_than_lag(_e.log_id == _one.c.log_id, _e.log_id > literal("0")))
    .exists()
)
_rollup = (
    select(_progress.log_id, _progress.position)
    .where(
        ~select(_one.c.log_id).where(_one.c.is_same_log.is_not(literal("true", Boolean))).exists(),
        ~_is_detaching,
        ~select(_months.c.month).where(~_months.c.is_counted).exists(),
        ~_first_is_far,
        ~_later_is_far,
    )
    .cte("rollup")
)
"""Up to where the events of each log are counted; no row while the counts are not current."""
IS_CURRENT = select(_rollup.c.log_id).exists()
_first_position = select(_rollup.c.position).where(_rollup.c.log_id == literal("0")).scalar_subquery()


def _position_of(c: ReadOnlyColumnCollection[str, Any]) -> ColumnElement[int]:
    """Up to where the log is counted to which a row belongs; NULL if it says that it is of a later log than there is."""
    of_later = select(_rollup.c.position).where(_rollup.c.log_id == c.log_id).scalar_subquery()
    return case((and_(c.log_id > literal("0"), _has_later_logs), of_later), else_=_first_position)


def no_columns(
    _c: ReadOnlyColumnCollection[str, Any], _time: ColumnElement[Any], _begins: Span | None
) -> Sequence[ColumnElement[Any]]:
    """All events together."""
    return ()


def parts_of(
    counts: FromClause, conditions: tuple[str, ...], spans: WholeSpans, grouped: Columns = no_columns
) -> Iterator[Select[Any]]:
    """Of each part the columns of `grouped`, and `events`: how many meet `conditions`. `counts` is counts_with() both. Bind parameters
    are those of the conditions, and the times of `spans`.
    """
    matching = rows_of(conditions, grouped)
    yield from (_counts_of(counts, conditions, grouped, within) for within in _spans(conditions, spans.longest))
    yield _changes_of(conditions, grouped)
    yield from _rows_after(matching, _sum_of_each)
    yield matching.where(_e.log_index.is_(None))
    yield matching.where(_e.log_index < literal("0"))
    # An expression: with the bare column Postgres would find them by their positions instead of their times.
    position = func.coalesce(_e.log_index, literal("-1"))
    is_counted = position >= literal("0"), position < _position_of(_e)
    if "since" in conditions:
        yield matching.where(*is_counted, _e.event_timestamp < bindparam("hour_from"))
    if "until" in conditions and not spans.has_rest:
        yield matching.where(*is_counted, _e.event_timestamp >= bindparam("hour_to"))
    elif "until" in conditions:
        rest = _e.event_timestamp > bindparam("until"), _e.event_timestamp < bindparam("hour_to")
        others = tuple(name for name in conditions if name != "until")
        yield rows_of(others, grouped, -func.count()).where(*is_counted, *rest)


def counted_by_month(columns: Sequence[str], *, has_since: bool) -> Select[Any]:
    """Of the counts by type these columns, and `events`, of each month, and of those that are gone but not yet discarded; with the bind
    parameter `since` not of months before it.
    """
    c = rollup_counts.c
    selected = select(*(c[name] for name in columns), c.events).where(c.span == literal("'m'"), c.events > literal("0"))
    first = func.date_trunc(literal("'month'"), bindparam("since", type_=c.start.type), literal("'UTC'"))
    return selected.where(c.start >= first) if has_since else selected


def changed_rows(columns: Sequence[str], rows_max: int) -> Select[Any]:
    """These columns of rows that were deleted or changed since they were counted, and `events`: 1 of what a row has become."""
    c = rollup_changes.c
    selected = select(*(c[name] for name in columns), cast(c.events, BigInteger).label("events"))
    return selected.where(c.month.in_(select(_months.c.month))).limit(literal(str(rows_max)))


def uncounted_rows(columns: Sequence[str], rows_max: int) -> Iterator[Select[Any]]:
    """These columns of rows that no count has, and `events`, which is 1; of each part no more than `rows_max`."""
    most: ColumnElement[int] = literal(str(rows_max))
    rows = select(*(_e[name] for name in columns), literal("1", BigInteger).label("events"))

    def of_each(logs: Subquery, of_log: Select[Any]) -> Select[Any]:
        newest = of_log.order_by(_e.log_id, _e.log_index).limit(most).correlate(logs).lateral("rows")
        return select(*newest.c).select_from(logs.join(newest, literal("true")))

    # In their order: the planner, who does not know the position, would read all rows for the few that are after it.
    of_first, *of_others = _rows_after(rows, of_each)
    yield of_first.order_by(_e.log_index).limit(most)
    yield from of_others
    yield rows.where(_e.log_index.is_(None)).limit(most)
    yield rows.where(_e.log_index < literal("0")).order_by(_e.log_index).limit(most)


def _rows_after(
    matching: Select[Any], of_each: Callable[[Subquery, Select[Any]], Select[Any]]
) -> Iterator[Select[Any]]:
    """The rows after those that are counted: of the first log, of each later one, and of those that no log is. Lateral for each log: where
    there are no such logs, nothing is read, nor a process started to read it.
    """
    is_first = case((and_(_e.log_id > literal("0"), _has_later_logs), literal("false")), else_=literal("true", Boolean))
    yield matching.where(_e.log_index >= _first_position, _e.log_index <= _POSITION_MAX, is_first)
    of_later = matching.where(_e.log_id > literal("0"))
    later = select(_rollup.c.log_id, _rollup.c.position).where(_rollup.c.log_id > literal("0")).subquery("later")
    yield of_each(later, of_later.where(_e.log_id == later.c.log_id, _e.log_index >= later.c.position))
    last = select(func.max(_rollup.c.log_id).label("log_id")).having(func.max(_rollup.c.log_id) > literal("0"))
    of_last = last.subquery("last")
    yield of_each(of_last, of_later.where(_e.log_id > of_last.c.log_id, _e.log_index >= literal("0")))


def _sum_of_each(logs: Subquery, of_log: Select[Any]) -> Select[Any]:
    """The rows of each log together."""
    rows = of_log.correlate(logs).lateral("rows")
    columns = [column for column in rows.c if column.name != "events"]
    return select(*columns, _sum(rows.c.events)).select_from(logs.join(rows, literal("true"))).group_by(*columns)


def _sum(events: ColumnElement[int]) -> ColumnElement[int]:
    """Of whole numbers Postgres makes a numeric, which takes longer to add up further."""
    return cast(func.coalesce(func.sum(events), literal("0")), BigInteger).label("events")


def rows_of(
    conditions: tuple[str, ...], grouped: Columns = no_columns, number: ColumnElement[int] | None = None
) -> Select[Any]:
    """The same of rows alone, for any conditions; or another `number` of them."""
    columns = grouped(_e, _e.event_timestamp, None)
    selected = select(*columns, (func.count() if number is None else number).label("events")).select_from(audit_events)
    return selected.where(*(CONDITIONS[name] for name in conditions)).group_by(*columns)


_Within = tuple[str, str | None, str | None]
"""(span of the counts, from when, until when), the times as names of whole_spans()."""


def _spans(conditions: tuple[str, ...], longest: Span) -> Iterator[_Within]:
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


def _counts_of(counts: FromClause, conditions: tuple[str, ...], grouped: Columns, within: _Within) -> Select[Any]:
    c, (span, start, end) = counts.c, within
    selected = _events_of(counts, _ON_COUNTS[counts], conditions, grouped(c, c.start, _SPANS[span]))
    return selected.where(c.span == literal(f"'{span}'"), *_between(c.start, start, end))


def _changes_of(conditions: tuple[str, ...], grouped: Columns) -> Select[Any]:
    c = rollup_changes.c
    start, end = "hour_from" if "since" in conditions else None, "hour_to" if "until" in conditions else None
    selected = _events_of(rollup_changes, _ON_CHANGES, conditions, grouped(c, c.event_timestamp, None))
    return selected.where(c.log_index < _position_of(c), *_between(c.event_timestamp, start, end))


def _events_of(
    table: FromClause,
    on_table: dict[str, ColumnElement[bool]],
    conditions: tuple[str, ...],
    columns: Sequence[ColumnElement[Any]],
) -> Select[Any]:
    is_marginal = table not in {rollup_counts, rollup_scopes, rollup_changes}
    filters = (on_table[name] for name in conditions if name in on_table)
    matching = select(*columns).where(table.c.month.in_(select(_months.c.month)), *filters)
    if columns and is_marginal:  # of these each group has one count or two: whoever adds up the parts groups them
        return matching.add_columns(table.c.events)
    return matching.add_columns(_sum(table.c.events)).group_by(*columns)


def _between(time: ColumnElement[Any], start: str | None, end: str | None) -> Iterator[ColumnElement[bool]]:
    if start is not None:
        yield time >= bindparam(start)
    if end is not None:
        yield time < bindparam(end)
