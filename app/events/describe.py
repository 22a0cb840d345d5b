"""Descriptions of event types, for the API, the command line and docs/events.md: summary, JSON Schema, example."""

import json
from collections.abc import Iterator
from itertools import groupby
from typing import Any

from app.errors import NotFound
from app.events.catalog import DIALECT, EVENT_TYPES, Catalog, CustomType, EventType, nearest
from app.events.catalog.examples import example, freeform_example, json_schema
from app.events.catalog.freeform import FREEFORM, MEANING
from app.events.explain import excerpt

Schema = dict[str, Any]


def summaries(catalog: Catalog, producer: str | None = None) -> list[dict[str, Any]]:
    """Summaries of the types of `producer`, or of all types, sorted by name."""
    types = (catalog.types[name] for name in sorted(catalog.types))
    return [summary(one) for one in types if producer in (None, one.producer)]


def find(catalog: Catalog, name: str) -> EventType:
    """The type of this name; NotFound names the nearest ones."""
    if name not in catalog.types:
        near = ", ".join(nearest(name, catalog.types))
        raise NotFound(f"There is no event type {excerpt(name)}; the nearest names are {near}.")
    return catalog.types[name]


def summary(event_type: EventType) -> dict[str, Any]:
    """Name, producer, category, generation and meaning."""
    return {
        "name": event_type.name,
        "producer": event_type.producer,
        "category": event_type.category,
        "generation": event_type.generation,
        "meaning": event_type.meaning,
    }


def details(event_type: EventType) -> dict[str, Any]:
    """The summary, the JSON Schema of the payload, and an example that is valid by it. A custom type may have no example."""
    description = summary(event_type) | {"schema": _schema(event_type)}
    if isinstance(event_type, CustomType):
        return description if event_type.example is None else description | {"example": event_type.example}
    name = event_type.name
    if event_type.payload is None:
        return description | {"example": freeform_example(name)}
    description["example"] = example(name)
    if name in FREEFORM:
        description["free_form"] = {"schema": _freeform_schema(name), "example": freeform_example(name)}
    return description


def _schema(event_type: EventType) -> Schema:
    if isinstance(event_type, CustomType):
        return event_type.schema
    if event_type.payload is None:
        return _freeform_schema(event_type.name)
    schema = json_schema(event_type.payload)
    only_this_type = {"event_type": {"const": event_type.name, "type": "string"}}
    return {"$schema": DIALECT} | schema | {"properties": schema["properties"] | only_this_type}


def _freeform_schema(name: str) -> Schema:
    """Any object without an event_type. The keys that were seen are listed without a type."""
    known: Schema = {}
    for path in FREEFORM[name]:
        within, _, key = path.rpartition(".")
        node = known.setdefault(within, {}).setdefault("properties", {}) if within else known
        node.setdefault(key, {})
    return {
        "$schema": DIALECT,
        "type": "object",
        "description": MEANING,
        "properties": {"event_type": False} | known,
    }


def table(catalog: Catalog) -> str:
    """The types as an aligned table for a terminal, each with the first sentence of its meaning."""
    head = ("NAME", "CATEGORY", "GENERATION", "MEANING")
    rows = [head, *((t["name"], t["category"] or "-", t["generation"], _first_sentence(t)) for t in summaries(catalog))]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return "".join("  ".join((*map(str.ljust, row[:3], widths), row[3])) + "\n" for row in rows)


def _first_sentence(summary: dict[str, Any]) -> str:
    return str(summary["meaning"]).partition(". ")[0].rstrip(".")


def as_json(body: dict[str, Any], indent: int | None = None) -> str:
    """JSON text with the members in their order. The schema of a custom type may contain numbers that orjson cannot write."""
    return json.dumps(body, indent=indent, ensure_ascii=False, default=float) + "\n"


def markdown() -> str:
    """docs/events.md: every built-in type, by producer and payload."""
    types = sorted(EVENT_TYPES.values(), key=lambda one: (one.producer, one.name))
    text = [_INTRODUCTION]
    for producer, group in groupby(types, lambda one: one.producer):
        ours = list(group)
        text.append(f"## {producer}\n")
        for payload in dict.fromkeys(one.payload for one in ours if one.payload is not None):
            text += _payload_section([one for one in ours if one.payload is payload])
        if freeform := [one for one in ours if one.name in FREEFORM]:
            text.append(_FREEFORM_HEADING)
            text += [f"- `{one.name}`{_known_keys(one.name)}" for one in freeform]
            text.append("")
    return "\n".join(text)


_INTRODUCTION = """# Event types

<!-- Written by `make openapi` from app/events/catalog; do not edit. -->

Every built-in event type by its producer: what it means, and what its payload (`event_data`) holds. A payload names its type
in `event_type`. Members that are not listed are kept as they were sent, unless an object is called closed.
`datastorage event-types NAME` and `GET /api/v1/audit/event-types/NAME` give the JSON Schema of one type and an example.
"""
_FREEFORM_HEADING = """### Free form

Taken without an `event_type` in the payload, which may be any object (December 2025). Keys that were seen:
"""


def _known_keys(name: str) -> str:
    return ": " + ", ".join(f"`{key}`" for key in FREEFORM[name]) if FREEFORM[name] else ""


def _payload_section(types: list[EventType]) -> Iterator[str]:
    """The section of one payload class: the types that it serves, their meaning and the table of members."""
    schema = json_schema(types[0].payload)
    category = types[0].category
    yield f"### {schema['title']}\n"
    yield "\n".join(f"- `{one.name}`" for one in types) + "\n"
    yield types[0].meaning + (f" Category `{category}`.\n" if category else " No category of its own.\n")
    yield "| member | value | |\n|---|---|---|"
    for path, value, required in _members(schema, schema.get("$defs", {}), ""):
        yield f"| `{path}` | {value} | {'required' if required else ''} |"
    yield ""


def _members(schema: Schema, definitions: dict[str, Schema], within: str) -> Iterator[tuple[str, str, bool]]:
    """Every member below `schema`: its path, its value in words, and whether it is required."""
    for key, member in schema["properties"].items():
        if within or key != "event_type":
            path, node = within + key, member
            value, inner, step = _value_in_words(node, definitions)
            yield path, value, key in schema.get("required", ())
            if inner is not None:
                yield from _members(inner, definitions, f"{path}{step}.")


def _value_in_words(node: Schema, definitions: dict[str, Schema]) -> tuple[str, Schema | None, str]:
    """A value in words; the schema of the object that it is or contains, if its members are known; and the path to that object."""
    if "$ref" in node:
        return _value_in_words(definitions[node["$ref"].rpartition("/")[2]], definitions)
    if "anyOf" in node:
        words, inner, step = _value_in_words(node["anyOf"][0], definitions)
        return words + ", or null", inner, step
    if "properties" in node:
        return "closed object" if node.get("additionalProperties") is False else "object", node, ""
    if node.get("type") == "array":
        words, inner, step = _value_in_words(node["items"], definitions)
        return f"array: {words}", inner, "[]" + step
    if node.get("type") == "object":
        values = node["additionalProperties"]
        if values is True:
            return "object of any members", None, ""
        words, inner, step = _value_in_words(values, definitions)
        return f"object of any keys: {words}", inner, ".*" + step
    options = node.get("enum") or ([node["const"]] if "const" in node else [])
    if options:
        return " ".join(f"`{option}`" for option in options), None, ""
    limits = ", ".join(
        f"{words} {node[key]}" for key, words in _LIMITS.items() if key in node and abs(node[key]) < 2**31 - 1
    )
    name = str(node.get("type", "any value"))
    if node.get("format") in ("date-time", "uuid"):
        name = node["format"]
    pattern = f", matching `{node['pattern']}`" if "pattern" in node else ""
    return name + (f", {limits}" if limits else "") + pattern, None, ""


_LIMITS = {
    "minimum": "at least",
    "maximum": "at most",
    "minLength": "characters, at least",
    "maxLength": "characters, at most",
}
