"""What replaces an erased payload: its type, and the required members of its schema with values that reveal nothing.

The replacement is still valid by the schema of its type, since a typed client that cannot decode one payload fails for the
whole page.
"""

import re
from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from app.events.catalog import Catalog

ERASED = "erased"
_BY_FORMAT = {"uuid": "00000000-0000-0000-0000-000000000000", "date-time": "1970-01-01T00:00:00Z"}
_HASH = "0" * 64
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}")
Schema = dict[str, Any]


def neutral_payload(catalog: "Catalog", payload: dict[str, Any]) -> dict[str, Any]:
    """The payload that replaces `payload`. Of a free-form payload, and of one of an unknown type, at most the type is left."""
    name = payload.get("event_type")
    if not isinstance(name, str):
        return {}
    from app.events.catalog import CustomType  # noqa: PLC0415 -- as below
    from app.events.catalog.examples import json_schema  # noqa: PLC0415

    known = catalog.types.get(name)
    if isinstance(known, CustomType):
        schema: Schema = known.schema
    elif known is not None and known.payload is not None:
        schema = json_schema(known.payload)
    else:
        return {"event_type": name}
    members = _object(schema, schema.get("$defs", {})) if "properties" in schema else {}
    return members | {"event_type": name}


@lru_cache(256)
def neutral_words(event_type: Any) -> frozenset[str]:
    """Every text that a replacement of a payload of this type can contain, by the present schema or an earlier one."""
    # A log without erased events is verified in less time than the catalog is built.
    from app.events.catalog import EVENT_TYPES  # noqa: PLC0415
    from app.events.catalog.examples import json_schema  # noqa: PLC0415

    known = EVENT_TYPES.get(event_type) if isinstance(event_type, str) else None
    schema = json_schema(known.payload) if known is not None and known.payload is not None else {}
    return frozenset({ERASED, _HASH, *_BY_FORMAT.values(), event_type, *_enumerated(schema)})


def is_neutral(value: Any, words: frozenset[str]) -> bool:
    """Whether `value` reveals nothing: its only texts are `words`, its only numbers 0 and 1, and its keys are short names."""
    if isinstance(value, dict):
        return all(_NAME.fullmatch(key) and is_neutral(member, words) for key, member in value.items())
    if isinstance(value, list):
        return all(is_neutral(member, words) for member in value)
    return value in words if isinstance(value, str) else value in {None, False, 1}


def _enumerated(schema: Any) -> Iterator[str]:
    if isinstance(schema, dict):
        yield from (word for word in (*schema.get("enum", ()), schema.get("const")) if isinstance(word, str))
    for member in schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ():
        yield from _enumerated(member)


def _object(schema: Schema, definitions: Schema) -> dict[str, Any]:
    members = schema["properties"]
    return {key: _value(members.get(key, {}), definitions) for key in schema.get("required", ())}


def _value(schema: Schema, definitions: Schema) -> Any:
    if "$ref" in schema:
        return _value(definitions.get(schema["$ref"].rpartition("/")[2], {}), definitions)
    if "anyOf" in schema:
        return _value(schema["anyOf"][0], definitions)  # the other alternative is null
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
            return _HASH if "pattern" in schema else _BY_FORMAT.get(schema.get("format", ""), ERASED)
        case _:
            return None
