"""How a page is read: which of its conditions an index has in the order of the page, and which of them the roll-up knows."""

from collections.abc import Collection
from typing import Literal, NamedTuple

from app.query.filter import CONDITIONS, LEFT_OUT, EventQuery
from app.query.matching_types import is_known
from app.query.page_statements import Merged

_BY_TIME = {"since", "until", *LEFT_OUT.values()}
"""Conditions that the index on time has, or that nearly all events meet."""
FEW = {
    *("correlation_id", "parent_event_id", "correlation_id_in", "parent_event_id_in"),
    *(name for name in CONDITIONS if name.startswith("detail ")),
}
"""Conditions with an index that only few events meet."""
_MERGED: tuple[Merged, ...] = ("event_type", "actor_id", "resource_id")
_MAYBE = {name for column in _MERGED for name in (column, f"{column}_in")}
"""Conditions with an index in the order of time for each value, that many events may meet."""


class Way(NamedTuple):
    """At once where an index has the page, by a scan where none has, and else first the one, for a while, and then the other."""

    how: Literal["at once", "try", "try types", "try matching types", "scan"]
    merged: Merged | None = None
    """The column whose values are read one by one."""
    in_order: bool = False
    """Whether an index is to be read in the order of the page, whatever Postgres expects of the conditions: none has them."""


def has_index(conditions: Collection[str]) -> bool:
    """Whether one of the conditions has an index beside the one on time."""
    return not (FEW | _MAYBE).isdisjoint(conditions)


def way_of(query: EventQuery) -> Way:
    """How to read the page. What is left out may stand between the rows that an index has: mostly it has them at once."""
    conditions = set(query.conditions())
    others = conditions - _BY_TIME
    if not others.isdisjoint(FEW):  # the planner keeps its plan by itself: it costs the same for any argument
        return Way("at once")
    if query.order == "time":
        return _way_by_time(query, others)
    if conditions <= {*LEFT_OUT.values()}:
        return Way("at once" if query.includes_kubernetes else "try", in_order=True)
    return Way("scan" if others.isdisjoint(_MAYBE) and "since" not in conditions else "try")


def _way_by_time(query: EventQuery, others: set[str]) -> Way:
    if not others:
        return Way("at once" if query.includes_kubernetes else "try types", in_order=True)
    merged = [column for column in _MERGED if not others.isdisjoint({column, f"{column}_in"})]
    if len(others) == 1 and others <= {*_MERGED}:
        return Way("at once" if query.includes_kubernetes else "try", merged[0])
    if len(others) > 1 and is_known(query):
        return Way("try matching types", in_order=True)
    if merged:
        return Way("try", merged[0] if len(merged) == 1 else None)
    return Way("try matching types" if is_known(query) else "scan", in_order=True)


def values_of(query: EventQuery, column: Merged) -> list[str]:
    """The values of `column` that are asked for, each once; those of both filters where there are both. Types that are asked for by how they
    begin are no values.
    """
    one = getattr(query, column)
    if f"{column}_in" not in query.conditions():
        return [one]
    any_of = list(dict.fromkeys(getattr(query, f"{column}_in")))
    return any_of if one is None else [one] * (one in any_of)
