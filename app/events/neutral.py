"""What stands in the place of an erased payload: its type, and its schema's required members with values that say nothing.

Typed clients fail a whole page for one payload that they cannot decode, so an erased one has to be of its type still.
"""

from typing import Any

from app.events.catalog import Catalog, CustomType
from app.events.catalog.examples import json_schema

ERASED = "erased"
_BY_FORMAT = {"uuid": "00000000-0000-0000-0000-000000000000", "date-time": "1970-01-01T00:00:00Z"}
Schema = dict[str, Any]


def neutral(catalog: Catalog, payload: dict[str, Any]) -> dict[str, Any]:
    """The payload that replaces `payload`. Of the free-form generation, and of types that nobody knows, nothing is left."""
    name = payload.get("event_type")
    if not isinstance(name, str):
        return {}
    known = catalog.types.get(name)
    if isinstance(known, CustomType):
        schema: Schema = known.schema
    elif known is not None and known.payload is not None:
        schema = json_schema(known.payload)
    else:
        return {"event_type": name}
    made = _object(schema, schema.get("$defs", {})) if "properties" in schema else {}
    return made | {"event_type": name}


def _object(schema: Schema, definitions: Schema) -> dict[str, Any]:
    members = schema["properties"]
    return {key: _value(members.get(key, {}), definitions) for key in schema.get("required", ())}


def _value(schema: Schema, definitions: Schema) -> Any:
    if "$ref" in schema:
        return _value(definitions.get(schema["$ref"].rpartition("/")[2], {}), definitions)
    if "anyOf" in schema:
        return _value(schema["anyOf"][0], definitions)  # the other one is null
    if "enum" in schema or "const" in schema:
        return schema["enum"][0] if "enum" in schema else schema["const"]
    match schema.get("type"):
        case "object":
            return _object(schema, definitions) if "properties" in schema else {}
        case "array":
            return [_value(schema["items"], definitions)] * schema.get("minItems", 0)
        case "boolean":
            return False
        case "integer" | "number":
            return min(max(0, schema.get("minimum", 0)), schema.get("maximum", 0))
        case "string":
            return "0" * 64 if "pattern" in schema else _BY_FORMAT.get(schema.get("format", ""), ERASED)
        case _:
            return None
