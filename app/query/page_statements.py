"""The SQL of one page of events, or of a portion of a scan for it, and the keys by which its rows are ordered."""

from functools import lru_cache
from typing import Any, Literal, NamedTuple
from uuid import UUID

import asyncpg
from sqlalchemy import (
    ARRAY,
    BigInteger,
    Boolean,
    ColumnElement,
    Select,
    Subquery,
    Text,
    Uuid,
    bindparam,
    case,
    cast,
    column,
    func,
    literal_column,
    or_,
    select,
    text,
    tuple_,
)

from app.query.compiled import Statement, compile_statement
from app.query.cursor import Cursor, Position
from app.query.filter import CONDITIONS, IS_SEALED, Columns, conditions_on
from app.query.postgres_time import utc_text, utc_time
from app.sql import fragment
from app.tables import audit_events

PORTION_BYTES = 1024 * 1024
"""Most bytes of payloads that are read at once: in one portion of a scan, or of the rest of a page. A single event may have more."""
_COMPRESSED_TIMES = 32
"""How many times larger than its stored form a compressed payload is taken to be, which few are."""
_e = audit_events.c

Merged = Literal["types of others", "event_type", "actor_id", "resource_id"]
"""A column whose values are read one by one, each in the order of time by an index that begins with it; of types all but those of
Kubernetes, or else the values that are the argument `values`, each once.
"""


class Phase(NamedTuple):
    """A part of the rows in one order: all by time, or of a log by position, or the unsealed ones by time."""

    by: Literal["time", "position"]
    rows: str = "true"
    """SQL: which rows."""
    log_id: int = 0


Key = Cursor | Position


def key_of(phase: Phase, row: asyncpg.Record) -> Key:
    if phase.by == "time":
        return Cursor(row["timestamp"].replace(" ", "T", 1), row["event_id"])
    return Position(phase.log_id, row["log_index"], row["event_id"])


def before_all(phase: Phase) -> Key:
    highest = UUID(int=2**128 - 1)
    return Cursor("infinity", highest) if phase.by == "time" else Position(phase.log_id, 2**63 - 1, highest)


def key_arguments(name: str, key: Key | None) -> dict[str, object]:
    if key is None:
        return {}
    value = key.event_timestamp if isinstance(key, Cursor) else key.log_index
    return {name: value, f"{name}_id": key.event_id}


def _key_bound(phase: Phase, name: str) -> ColumnElement[Any]:
    value = utc_time(name) if phase.by == "time" else bindparam(name, type_=BigInteger)
    return tuple_(value, bindparam(f"{name}_id", type_=_e.event_id.type))


def _key_columns(phase: Phase, c: Columns) -> tuple[ColumnElement[Any], ColumnElement[Any]]:
    return (c.event_timestamp if phase.by == "time" else c.log_index), c.event_id


def _newest_first(phase: Phase, c: Columns) -> list[ColumnElement[Any]]:
    return [column.desc() for column in _key_columns(phase, c)]


# Statements.

_types_of_others = text(fragment("types_of_others")).columns(column("event_type", Text)).subquery("types_of_others")
_values = select(func.unnest(bindparam("values", type_=ARRAY(Text))).label("value")).subquery("one_of")


@lru_cache(512)
def page_statement(
    conditions: tuple[str, ...],
    phase: Phase,
    *,
    is_after: bool = False,
    has_end: bool = False,
    has_offset: bool = False,
    newest: int | None = None,
    merged: Merged | None = None,
) -> Statement:
    """The rows of a page, or of a portion. What can be large is NULL in those after the first that together have PORTION_BYTES.

    `newest`: only those among so many newest ones that the page's times and cursor have.
    """
    key = tuple_(*_key_columns(phase, _e))
    bounds = [name for name in conditions if _applies_first(name, newest, merged)]
    on_page = select(*_e).where(*(CONDITIONS[name] for name in bounds), literal_column(phase.rows, Boolean))
    if is_after:
        on_page = on_page.where(key < _key_bound(phase, "after"))
    if has_end:
        on_page = on_page.where(key >= _key_bound(phase, "to"))
    rows, offset = bindparam("rows", type_=BigInteger), bindparam("offset", type_=BigInteger)
    order = _newest_first(phase, _e)
    if newest is not None:
        newest_of_all = on_page.order_by(*order).limit(literal_column(str(newest))).subquery("newest_of_all")
        others = conditions_on(newest_of_all)
        on_page = select(*newest_of_all.c).where(*(others[name] for name in conditions if name not in bounds))
        order = _newest_first(phase, newest_of_all.c)
    if merged is not None:
        of_each = _of_each(merged, on_page, order, rows + offset if has_offset else rows)
        on_page, order = select(*of_each.c), _newest_first(phase, of_each.c)
    if has_offset:
        on_page = on_page.offset(offset)
    c = on_page.order_by(*order).limit(rows).subquery("e").c
    size = _size(c)
    before = func.sum(size).over(order_by=_newest_first(phase, c), rows=(None, 0)) - size
    is_whole = before + size <= literal_column(str(PORTION_BYTES))
    wide = {"error_message": c.error_message, "payload": cast(c.event_data, Text)}
    shown = [case((or_(before == literal_column("0"), is_whole), value)).label(name) for name, value in wide.items()]
    columns = *columns_of(c), c.log_index, *shown, size.label("size"), IS_SEALED.label("sealed")
    return compile_statement(select(*columns).order_by(*_newest_first(phase, c)))


_TIMES = {"since", "until", "since_date", "until_date"}


def _applies_first(condition: str, newest: int | None, merged: Merged | None) -> bool:
    """Whether a condition is part of what an index is asked for: not if it is for those among the newest, or what the values say."""
    if newest is not None:
        return condition in _TIMES
    return condition not in {merged, f"{merged}_in"}


def _of_each(
    merged: Merged, on_page: Select[Any], order: list[ColumnElement[Any]], rows: ColumnElement[int]
) -> Subquery:
    """The newest rows of each value. Not `=`, and by the value first: no other index than the one that begins with it has this order,
    whatever the planner expects of the filters.
    """
    values, of = (_types_of_others, _e.event_type) if merged == "types of others" else (_values, _e[merged])
    (one,) = values.c
    of_value = on_page.where(of >= one, of <= one).order_by(of.desc(), *order)
    newest = of_value.limit(rows).correlate(values).lateral("newest")
    return select(*newest.c).select_from(values.join(newest, literal_column("true"))).subquery("of_each")


@lru_cache(64)
def edge_statement(phase: Phase, bounds: tuple[str, ...], *, is_after: bool) -> Statement:
    """The key of the event behind as many others, whichever match: an index has it. Unsealed rows are scanned among all rows."""
    if phase.by == "time":
        columns: list[ColumnElement[Any]] = [utc_text(_e.event_timestamp).label("timestamp"), _e.event_id]
        order = _newest_first(phase, _e)
        selected = select(*columns).where(*(CONDITIONS[name] for name in bounds))
        if is_after:
            selected = selected.where(tuple_(*_key_columns(phase, _e)) < _key_bound(phase, "after"))
    else:  # without the id, which that index has not: the portion ends between two positions
        lowest = literal_column("'00000000-0000-0000-0000-000000000000'::uuid", Uuid).label("event_id")
        order = [_e.log_index.desc()]
        selected = select(_e.log_index, lowest).where(literal_column(phase.rows, Boolean))
        if is_after:
            selected = selected.where(_e.log_index < bindparam("after", type_=BigInteger))
    return compile_statement(
        selected.order_by(*order).offset(bindparam("events", type_=BigInteger)).limit(literal_column("1"))
    )


@lru_cache(16)
def recorded_statement(phase: Phase) -> Statement:
    of_log = literal_column(phase.rows, Boolean)
    at = _e.log_index == bindparam("log_index", type_=BigInteger)
    return compile_statement(select(utc_text(_e.recorded_at)).where(of_log, at).limit(literal_column("1")))


def columns_of(c: Columns) -> list[ColumnElement[Any]]:
    """What an answer shows of an event, but for what can be large."""
    return [
        *(c.event_id, utc_text(c.event_timestamp).label("timestamp"), cast(c.event_date, Text).label("event_date")),
        *(c.event_type, c.event_version, c.event_category, c.event_action, c.event_outcome, c.correlation_id),
        *(c.parent_event_id, cast(c.parent_event_date, Text).label("parent_event_date")),
        *(c.resource_type, c.resource_id, c.namespace, c.cluster_id, c.severity, c.duration_ms, c.error_code),
        *(c.actor_id, c.actor_type, func.host(c.actor_ip).label("actor_ip")),
        *(c.retention_days, c.is_sensitive, c.event_hash, c.previous_event_hash, c.legal_hold),
        *(c.legal_hold_reason, c.legal_hold_placed_by, utc_text(c.legal_hold_placed_at).label("hold_placed_at")),
    ]


def _size(c: Columns) -> ColumnElement[int]:
    """About how many bytes an event has in memory: found without reading what is stored beside its row."""
    is_plain = func.pg_column_compression(c.event_data).is_(None)
    times = case((is_plain, literal_column("1")), else_=literal_column(str(_COMPRESSED_TIMES)))
    return func.pg_column_size(c.event_data) * times + func.coalesce(
        func.octet_length(c.error_message), literal_column("0")
    )
