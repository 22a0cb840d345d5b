"""Deep offsets: instead of reading thousands of rows to leave them out, skip the hours whose events the roll-up has counted."""

from datetime import UTC, datetime, timedelta
from functools import lru_cache

from sqlalchemy import BigInteger, FromClause, bindparam, cast, func, select

from app.db import Connection
from app.query.compiled import Statement, compile_statement
from app.query.filter import EventQuery, conditions_on
from app.query.parts import counts_with
from app.query.total import from_rollup

_DEEP = 10_000
_DEEP_UNINDEXED = 1_000
"""As _DEEP, with a filter for which each row has to be looked at."""
_UNINDEXED = {
    f"{name}{kind}"
    for name in ("event_category", "severity", "event_outcome", "namespace", "cluster_id")
    for kind in ("", "_in", "_not")
}
_TICK = timedelta(microseconds=1)
_FIRST, _LAST = datetime(1, 2, 1, tzinfo=UTC), datetime(9999, 12, 31, tzinfo=UTC)
"""Events of other months are not skipped: Python need not have a time before them, or theirs."""
_SPANS = ("m", "d", "h")


def is_deep(query: EventQuery) -> bool:
    """Whether to leave out rows by reading them costs more than the statements here."""
    return query.offset >= (_DEEP if _UNINDEXED.isdisjoint(query.conditions()) else _DEEP_UNINDEXED)


async def nearer(connection: Connection, query: EventQuery) -> EventQuery:
    """A query with the same page and a smaller offset, or `query` itself if none is known.

    They have the same page in one snapshot: the connection has to be in a transaction that keeps it.
    """
    if (counts := counts_with(query.conditions())) is None:
        return query
    time = await _hour_before_page(connection, counts, query)
    if time is None or (query.since is not None and time <= query.since):
        return query
    skipped = await from_rollup(connection, query.model_copy(update={"since": time}))
    if skipped is None or skipped > query.offset:
        return query
    return query.model_copy(update={"until": time - _TICK, "offset": query.offset - skipped})


async def _hour_before_page(connection: Connection, counts: FromClause, query: EventQuery) -> datetime | None:
    """The earliest beginning of an hour from which on there are no more events than the offset, as far as the counts alone tell."""
    time, skipped = None, 0
    start, end = _FIRST, _LAST if query.until is None else min(query.until, _LAST)
    statement = _counts_statement(counts, query.conditions())
    for span in _SPANS:
        arguments = query.arguments() | {"span": span, "start": start, "end": end}
        for row in await connection.fetch(statement.text, *statement.bind(arguments)):
            if skipped + row["events"] > query.offset:
                start = row["start"]  # the next span looks into this one
                break
            skipped += row["events"]
            time = end = row["start"]
        else:
            break
    return time


@lru_cache(256)
def _counts_statement(counts: FromClause, conditions: tuple[str, ...]) -> Statement:
    """Events by spans, the newest span first."""
    c, on_counts = counts.c, conditions_on(counts)
    selected = select(c.start, cast(func.sum(c.events), BigInteger).label("events")).where(
        c.span == bindparam("span"), c.start >= bindparam("start"), c.start < bindparam("end")
    )
    filters = (on_counts[name] for name in conditions if name in on_counts)
    return compile_statement(selected.where(*filters).group_by(c.start).order_by(c.start.desc()))
