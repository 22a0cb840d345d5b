"""The filters of events on columns of the archive's files: each condition of app/query/filter.py, by the same name, with the same result.

Conditions on columns are computed for all rows of a row group at once; those on payloads row by row, of the rows that meet the others.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

import pyarrow as pa
import pyarrow.compute as pc

from app.archive.columns import NAMES
from app.archive.jsonb import jsonb_text, member_text
from app.events.canonical import loads
from app.events.own import KUBERNETES_CATEGORY

ReadColumn = Callable[[str], pa.Array]
"""The values of a column; ids as 16 bytes."""
_TIMES = ("since", "until")
_LEFT_OUT = ("neither self event nor kubernetes", "not self event", "not kubernetes")
_IDS = ("event_id", "parent_event_id")
_TEXTS = ("event_type", "event_action", "actor_id", "resource_id", "error_message")
"""Columns that `q` looks into, beside the payload."""


def is_on_payload(condition: str) -> bool:
    """Whether a condition can only be decided with the payload."""
    return condition == "q" or condition.startswith("detail")


def columns_for(conditions: Iterable[str]) -> set[str]:
    """The columns that conditions need which are not on the payload."""
    needed = set()
    for name in conditions:
        if name in _LEFT_OUT:
            needed |= {"event_type", "event_category"}
        elif name in _TIMES:
            needed.add("event_timestamp")
        elif not is_on_payload(name) and name != "sealed":
            needed.add(column_of(name))
    return needed


def column_of(condition: str) -> str:
    """The column of a condition on the values of one."""
    name = condition.removesuffix(" prefix")
    name = name.removesuffix("_in").removesuffix("_not")
    if name not in NAMES:
        raise KeyError(condition)
    return name


def matching(conditions: Iterable[str], arguments: Mapping[str, Any], column: ReadColumn) -> pa.Array | None:
    """Which rows meet all conditions that are not on the payload; None if there is no such condition."""
    found = None
    for name in conditions:
        if is_on_payload(name) or name == "sealed":  # all events of the archive are
            continue
        one = pc.fill_null(_one(name, arguments, column), fill_value=False)
        found = one if found is None else pc.and_(found, one)
    return found


def _one(name: str, arguments: Mapping[str, Any], column: ReadColumn) -> pa.Array:
    if name in _TIMES:
        times = column("event_timestamp")
        bound = pa.scalar(arguments[name], times.type)
        return pc.greater_equal(times, bound) if name == "since" else pc.less_equal(times, bound)
    if name in _LEFT_OUT:
        return _left_out(name, column("event_type"), column("event_category"))
    values = column(column_of(name))
    if name in NAMES:
        return pc.equal(values, pa.scalar(_value(name, arguments[name]), values.type))
    key = name.removesuffix(" prefix")
    among = pa.array([_value(column_of(name), one) for one in arguments[key]], values.type)
    is_any = pc.fill_null(pc.is_in(values, value_set=among), fill_value=False)
    for prefix in arguments[f"{key}_prefixes"] if name.endswith(" prefix") else ():
        is_any = pc.or_(is_any, pc.fill_null(pc.starts_with(values, prefix), fill_value=False))
    return pc.invert(is_any) if key.endswith("_not") else is_any


def _value(column: str, value: Any) -> Any:
    return value.bytes if column in _IDS else value


def _left_out(name: str, types: pa.Array, categories: pa.Array) -> pa.Array:
    is_self = pc.and_(pc.equal(categories, "security"), pc.starts_with(types, "datastorage."))
    is_self = pc.and_(is_self, pc.not_equal(types, "datastorage.ratelimit.denied"))
    is_kubernetes = pc.or_(pc.equal(categories, KUBERNETES_CATEGORY), pc.starts_with(types, "kubernetes.audit."))
    left_out = {"not self event": is_self, "not kubernetes": is_kubernetes}
    return pc.invert(left_out.get(name, pc.or_(is_self, is_kubernetes)))


def may_have_text(prefilter: str, arguments: Mapping[str, Any], column: ReadColumn) -> pa.Array:
    """Which rows may meet the condition `q`: the others do not. `prefilter` is for payloads."""
    found = pc.match_substring_regex(column("event_data"), prefilter)
    for name in _TEXTS:
        in_text = pc.match_substring_regex(column(name), arguments["q"])
        found = pc.or_(found, pc.fill_null(in_text, fill_value=False))
    return found


TEXT_COLUMNS = frozenset(_TEXTS)


def meets_on_payload(conditions: Iterable[str], arguments: Mapping[str, Any], row: Mapping[str, Any]) -> bool:
    """Whether one row meets the conditions on the payload; `row` has it, as JSON, and TEXT_COLUMNS."""
    for name in conditions:
        if name == "q" and not _has_text(arguments, row):
            return False
        if name.startswith("detail") and not _has_detail(name, arguments, row):
            return False
    return True


def _has_detail(name: str, arguments: Mapping[str, Any], row: Mapping[str, Any]) -> bool:
    key = name.removeprefix("detail").lstrip() or arguments["detail_key"]
    payload = loads(row["event_data"])
    return isinstance(payload, dict) and member_text(payload.get(key)) == arguments["detail_value"]


def _has_text(arguments: Mapping[str, Any], row: Mapping[str, Any]) -> bool:
    pattern = re.compile(arguments["q"])
    if any(row[name] is not None and pattern.search(row[name]) for name in _TEXTS):
        return True
    return re.search(arguments["q_in_payload"], jsonb_text(loads(row["event_data"]))) is not None


def may_have(
    conditions: Iterable[str], arguments: Mapping[str, Any], bounds: Callable[[str], tuple[Any, Any] | None]
) -> bool:
    """Whether rows whose columns are between `bounds`, the smallest and the largest value, can meet all conditions."""
    for name in conditions:
        if name in _TIMES:
            lowest, highest = bounds("event_timestamp") or (None, None)
            bound = arguments[name]
            if highest is not None and (highest < bound if name == "since" else lowest > bound):
                return False
        elif name in NAMES or (name.endswith("_in") and not name.endswith(" prefix")):
            column = column_of(name)
            values = [arguments[name]] if name in NAMES else arguments[name]
            if (found := bounds(column)) is not None:
                lowest, highest = found
                if not any(lowest <= _value(column, one) <= highest for one in values):
                    return False
    return True


def id_bytes(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    """A column as one array, ids as bytes."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if isinstance(array, pa.ChunkedArray):  # as some versions give an empty one
        array = pa.concat_arrays(array.chunks)
    return cast(pa.Array, array.storage) if isinstance(array, pa.ExtensionArray) else array
