"""Reads the filters of events from a query string: the same on every route that has them."""

from collections.abc import Callable, Collection, Mapping
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, TypeVar, get_origin

from pydantic import BaseModel

from app.api.parameters import (
    Reader,
    bad_query,
    build_query,
    documented,
    query_parameters,
    read_fields,
    repeated_parameters,
    time_or_age,
    time_zone,
    true_or_false,
    uuid,
)
from app.events.explain import bad_fields
from app.query.filter import ALIASES, EventFilter

Query = TypeVar("Query", bound=BaseModel)
Filter = TypeVar("Filter", bound=EventFilter)
_LISTS = {name for name, field in EventFilter.model_fields.items() if get_origin(field.annotation) is tuple}


def parameters_of(model: type[EventFilter]) -> Collection[str]:
    """Names of the parameters that a question with these fields has."""
    return [*model.model_fields, *ALIASES]


def read_filter(
    query_string: bytes,
    model: type[Filter],
    now: datetime,
    readers: Mapping[str, Reader],
    *,
    when_empty: Mapping[str, Any] = MappingProxyType({}),
    check: Callable[[bytes, dict[str, Any]], None] = lambda *_: None,
) -> Filter:
    """The question in a query string. `readers` are those of the fields that `model` has beside the filters, or for one of these.

    Faults of single fields are refused first, in the model's order, then those of pairs; `check` has the rules of the route. Unknown
    parameters are ignored, empty ones as in read_fields(), and of a repeated one the first counts, but for those that are lists.
    """
    sent = query_parameters(query_string, {*model.model_fields, *ALIASES} - _LISTS)
    lists = repeated_parameters(query_string, _LISTS)
    readers = {**time_readers(sent, now), "sealed": true_or_false(), "parent_event_id": uuid, **readers}
    in_order = {name: sent[name] for name in (*model.model_fields, *ALIASES) if name in sent}
    fields = read_fields(in_order, readers, when_empty=when_empty)
    for name, values in lists.items():
        fields[name] = tuple(uuid(name, value) for value in values) if name.startswith("parent_") else values
    merge_aliases(fields)
    if ("detail_key" in fields) != ("detail_value" in fields):
        raise bad_query("detail_key and detail_value belong together: send both or neither")
    check(query_string, fields)
    query = build_query(model, fields)
    if query.q is not None and not query.is_bounded:
        raise bad_fields(
            {"q": "belongs together with since, correlation_id or correlation_id_in: it reads every payload"}
        )
    return query


def read_times_query(query_string: bytes, model: type[Query], now: datetime, readers: Mapping[str, Reader]) -> Query:
    """The question in a query string, about something else than events, whose fields `since`, `until` and `zone` are as in a filter."""
    sent = query_parameters(query_string, {*model.model_fields, *ALIASES})
    fields = read_fields(sent, {**time_readers(sent, now), **readers})
    merge_aliases(fields)
    return build_query(model, fields)


def time_readers(sent: Mapping[str, str], now: datetime) -> dict[str, Reader]:
    """Readers of times by all their names, in the zone that was sent."""
    zone = time_zone("zone", sent["zone"]) if sent.get("zone") else UTC
    since, until = time_or_age(now, zone), time_or_age(now, zone, is_end=True)
    return {"since": since, "start_time": since, "until": until, "end_time": until}


def merge_aliases(fields: dict[str, Any]) -> None:
    """Give values the names of their fields. BadRequest if both names were sent, with different values."""
    for alias, name in ALIASES.items():
        if alias in fields:
            value = fields.pop(alias)
            if fields.setdefault(name, value) != value:
                raise bad_fields({alias: f"another time than {name}, which is the same filter: send one of them"})


def documented_filter(model: type[BaseModel]) -> list[dict[str, Any]]:
    """The OpenAPI parameters of a question with times, each by all its names."""
    parameters = documented(model)
    by_name = {one["name"]: one for one in parameters}
    aliases = [by_name[name] | {"name": alias, "description": f"as {name}"} for alias, name in ALIASES.items()]
    return [*parameters, *aliases]
