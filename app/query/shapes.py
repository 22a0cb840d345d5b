"""Whether a stored payload is made of what its type is made of: required keys and JSON types, nothing else.

Rows that others inserted hold values outside every enum, unknown keys and other event types inside; that is no reason
not to read them.
"""

from decimal import Decimal
from functools import lru_cache
from typing import Any

from pydantic import TypeAdapter

from app.events.canonical import kind_of
from app.events.catalog import EVENT_TYPES

_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "boolean": (bool,),
    "integer": (int,),
    "number": (int, float, Decimal),
    "null": (type(None),),
}


def shape_fault(event_type: str, payload: Any) -> str | None:
    """What is wrong with a payload of the typed `event_type`, or None."""
    schema = _schema(event_type)
    return _fault(schema, schema.get("$defs", {}), payload, "event_data")


@lru_cache(64)
def _schema(event_type: str) -> dict[str, Any]:
    """The type's JSON schema, without the event_type inside: the column's counts."""
    schema = TypeAdapter(EVENT_TYPES[event_type].payload).json_schema()
    schema["properties"].pop("event_type", None)
    schema["required"] = [name for name in schema.get("required", []) if name != "event_type"]
    return schema


def _fault(schema: Any, named: dict[str, Any], value: Any, place: str) -> str | None:
    if "$ref" in schema:
        schema = named[schema["$ref"].rpartition("/")[2]]
    if "anyOf" in schema:
        faults = [_fault(option, named, value, place) for option in schema["anyOf"]]
        return None if None in faults else faults[0]
    kind = schema.get("type")
    if kind is None:
        return None
    if not isinstance(value, _TYPES[kind]) or (isinstance(value, bool) and kind in {"integer", "number"}):
        return f"{place}: expected {'an' if kind[0] in 'aio' else 'a'} {kind}, got {kind_of(value)}"
    if isinstance(value, dict):
        return _member_fault(schema, named, value, place)
    if isinstance(value, list) and "items" in schema:
        return next(
            (f for i, item in enumerate(value) if (f := _fault(schema["items"], named, item, f"{place}/{i}"))), None
        )
    return None


def _member_fault(schema: Any, named: dict[str, Any], value: dict[str, Any], place: str) -> str | None:
    missing = next((name for name in schema.get("required", []) if name not in value), None)
    if missing is not None:
        return f"{place}/{missing}: required, but missing"
    known, others = schema.get("properties", {}), schema.get("additionalProperties")
    for name, member in value.items():
        rule = known.get(name, others)
        if isinstance(rule, dict) and (fault := _fault(rule, named, member, f"{place}/{name}")) is not None:
            return fault
    return None
