"""Whether a stored payload has the shape of its event type: the required members, and JSON types; nothing else is checked.

Rows inserted by SQL have values outside every enum, unknown members, and another event type inside; they are read all the same.
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
    """The first fault in the shape of a payload of `event_type`, with a JSON pointer to it; None if there is no fault."""
    schema = _schema(event_type)
    return _fault(schema, schema.get("$defs", {}), payload, "event_data")


@lru_cache(64)
def _schema(event_type: str) -> dict[str, Any]:
    """The type's JSON schema, without its member event_type: the column of that name decides."""
    schema = TypeAdapter(EVENT_TYPES[event_type].payload).json_schema()
    schema["properties"].pop("event_type", None)
    schema["required"] = [name for name in schema.get("required", []) if name != "event_type"]
    return schema


def _fault(schema: Any, definitions: dict[str, Any], value: Any, pointer: str) -> str | None:
    if "$ref" in schema:
        schema = definitions[schema["$ref"].rpartition("/")[2]]
    if "anyOf" in schema:
        faults = [_fault(option, definitions, value, pointer) for option in schema["anyOf"]]
        return None if None in faults else faults[0]
    json_type = schema.get("type")
    if json_type is None:
        return None
    if not isinstance(value, _TYPES[json_type]) or (isinstance(value, bool) and json_type in {"integer", "number"}):
        return f"{pointer}: expected {'an' if json_type[0] in 'aio' else 'a'} {json_type}, got {kind_of(value)}"
    if isinstance(value, dict):
        return _member_fault(schema, definitions, value, pointer)
    if isinstance(value, list) and "items" in schema:
        faults_of_items = (_fault(schema["items"], definitions, item, f"{pointer}/{i}") for i, item in enumerate(value))
        return next(filter(None, faults_of_items), None)
    return None


def _member_fault(schema: Any, definitions: dict[str, Any], value: dict[str, Any], pointer: str) -> str | None:
    missing = next((name for name in schema.get("required", []) if name not in value), None)
    if missing is not None:
        return f"{pointer}/{missing}: required, but missing"
    properties, others = schema.get("properties", {}), schema.get("additionalProperties")
    for name, member in value.items():
        subschema = properties.get(name, others)
        if (
            isinstance(subschema, dict)
            and (fault := _fault(subschema, definitions, member, f"{pointer}/{name}")) is not None
        ):
            return fault
    return None
