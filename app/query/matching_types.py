"""Which event types have events that meet a condition on type, category, outcome or severity, as the roll-up knows them.

The index on types has the events of each in the order of time: with few types the page is read from there instead of by a scan. No type
is missing that has such an event. The roll-up's own counts name those of what it has counted; to them come the types of rows that were changed
since, and of rows that it has not counted, if these are few.
"""

from functools import lru_cache
from typing import NamedTuple

from sqlalchemy import (
    ARRAY,
    BigInteger,
    ColumnElement,
    Text,
    and_,
    bindparam,
    cast,
    column,
    func,
    null,
    select,
    union_all,
)
from sqlalchemy import literal_column as literal

from app.db import Connection
from app.query.compiled import Statement, compile_statement
from app.query.filter import EventQuery, conditions_on
from app.query.parts import IS_CURRENT, changed_rows, counted_by_month, counts_with, uncounted_rows

UNCOUNTED_MAX = 5_000
"""Rows that the roll-up has not counted, or that were changed since; with more, it names no types."""
_COLUMNS = ("event_type", "event_category", "event_outcome", "severity")


class MatchingTypes(NamedTuple):
    """The types that have events that match, and about how many events have to be read for a page."""

    types: list[str]
    read_by_types: float
    """Type by type."""
    read_by_time: float
    """In the order of time."""


def is_known(query: EventQuery) -> bool:
    """Whether the roll-up knows which types have events that meet every condition of the query."""
    return counts_with(query.conditions(), *_COLUMNS) is not None


async def matching_types(connection: Connection, query: EventQuery) -> MatchingTypes | None:
    """None while the roll-up does not know. The page has to be read in the same snapshot, which a transaction around both has."""
    uncounted = await connection.fetch(_uncounted_statement().text)
    if not uncounted or sum(row["rows"] for row in uncounted) > UNCOUNTED_MAX:
        return None
    of_uncounted = {
        f"uncounted {name}": [row[name] for row in uncounted if row["events"]] for name in (*_COLUMNS, "events")
    }
    statement = _types_statement(query.conditions())
    types = await connection.fetch(statement.text, *statement.bind(query.arguments() | of_uncounted))
    if not types:
        return MatchingTypes([], 0, 0)
    wanted, matching = query.limit + 1, sum(row["matching"] for row in types)
    by_types = sum(_read(wanted, row["matching"], row["events"]) for row in types)
    return MatchingTypes([row["event_type"] for row in types], by_types, _read(wanted, matching, types[0]["of_all"]))


def _read(wanted: int, matching: int, events: int) -> float:
    """How many of `events` are read until there are as many that match as are `wanted`, if they are spread evenly."""
    return min(events, wanted * events / matching)


@lru_cache(1)
def _uncounted_statement() -> Statement:
    """What rows are of that no count has, how many they are, and how many of them are there. One row has NULL for each column, so that there is
    no row at all only while the counts are not current. It is the same for all questions: planning it takes longer than anything else here.
    """
    few = UNCOUNTED_MAX + 1
    parts = [changed_rows(_COLUMNS, few), *uncounted_rows(_COLUMNS, few)]
    uncounted = union_all(*(select(part.subquery("part")) for part in parts)).subquery("uncounted").c
    columns = [uncounted[name] for name in _COLUMNS]
    events = func.sum(uncounted.events).filter(uncounted.events > literal("0"))
    counted = select(*columns, _number(events).label("events"), func.count().label("rows")).where(IS_CURRENT)
    nothing = *(null() for _ in _COLUMNS), literal("0", BigInteger), literal("0", BigInteger)
    return compile_statement(counted.group_by(*columns).union_all(select(*nothing).where(IS_CURRENT)))


@lru_cache(256)
def _types_statement(conditions: tuple[str, ...]) -> Statement:
    """Each type that has events that match: how many match, how many it has, and how many there are of all types."""
    names = *_COLUMNS, "events"
    types = {name: BigInteger if name == "events" else Text for name in names}
    arrays = (bindparam(f"uncounted {name}", type_=ARRAY(types[name])) for name in names)
    uncounted = func.unnest(*arrays).table_valued(*(column(name, types[name]) for name in names), name="uncounted")
    known = (
        counted_by_month(_COLUMNS, has_since="since" in conditions)
        .union_all(select(uncounted.render_derived()))
        .subquery("known")
    )
    on_known = conditions_on(known)
    is_match = and_(*(on_known[name] for name in conditions if name in on_known))
    events = func.sum(known.c.events)
    of_type = (
        select(
            known.c.event_type,
            _number(events).label("events"),
            _number(events.filter(is_match)).label("matching"),
            _number(func.sum(events).over()).label("of_all"),
        )
        .group_by(known.c.event_type)
        .subquery("of_type")
    )
    return compile_statement(select(of_type).where(of_type.c.matching > literal("0")))


def _number(events: ColumnElement[int]) -> ColumnElement[int]:
    return cast(func.coalesce(events, literal("0")), BigInteger)
