"""The catalog compared with the facts: the platform's own schema of each type, stored as it was received."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from app.errors import BadRequest
from app.events.catalog import EVENT_TYPES, PAYLOAD_CHECKS, PAYLOADS, RECEIVED_TYPES, SELF_EVENT_TYPES, Catalog
from app.events.catalog.examples import json_schema
from app.events.catalog.freeform import FREEFORM

FILE = Path(__file__).parents[1] / "facts" / "event-catalog.json"
FACTS = json.loads(FILE.read_bytes())
TYPES: dict[str, dict[str, Any]] = FACTS["event_types"]
SCHEMAS: dict[str, dict[str, Any]] = FACTS["schemas"]
OURS: set[str] = {*SELF_EVENT_TYPES, *RECEIVED_TYPES, "datastorage.service.tried"}
"""Names that the platform's facts do not have: a new type that is not the platform's is named here."""
TYPED_FACTS = {name: fact for name, fact in TYPES.items() if fact["schema"]}
ANYTHING = {"type": None}
# Keywords that do not affect what is valid. `float` and `double` are Go's way to read a number.
IDLE = {"title", "description", "$defs"}


def test_facts_are_as_received() -> None:
    """Somebody changed the facts to fit the catalog."""
    assert hashlib.sha256(FILE.read_bytes()).hexdigest() == (
        "58cf07ed452e2d08c3fa49dc76cd85276e823527e80ecb3d3458a89a22034747"
    )


def test_names_are_the_platforms() -> None:
    """A type that the platform sends is refused, or an unknown one is accepted."""
    assert set(EVENT_TYPES) - OURS == set(TYPES)
    assert set(PAYLOAD_CHECKS) - OURS == set(TYPED_FACTS)
    assert set(FREEFORM) == {name for name, fact in TYPES.items() if fact["since"] != "head"}


def test_no_shape_is_written_twice() -> None:
    """Two classes describe one schema, or one class describes two."""
    pairs = {(fact["schema"], EVENT_TYPES[name].payload.__name__) for name, fact in TYPED_FACTS.items()}
    platforms = [payload for payload in PAYLOADS if any(EVENT_TYPES[name].payload is payload for name in TYPED_FACTS)]
    assert (
        len(platforms) == len(pairs) == len({schema for schema, _ in pairs}) == len({ours for _, ours in pairs}) == 94
    )


@pytest.mark.parametrize("name", sorted(TYPES))
def test_category_and_generation(name: str) -> None:
    """Discovery shows a category or a generation that the platform does not know for this name."""
    event_type = EVENT_TYPES[name]
    assert (event_type.category, event_type.generation) == (TYPES[name]["category"], TYPES[name]["since"])


@pytest.mark.parametrize("name", sorted(FREEFORM))
def test_known_keys_of_free_form(name: str) -> None:
    """The documentation of a free-form event leaves out a key that was seen, or makes one up."""
    fact = TYPES[name]
    seen = [*fact.get("observed_payload_keys", ()), *fact.get("dec_2025_test_payload_keys", ())]
    assert list(FREEFORM[name]) == list(dict.fromkeys(seen))


@pytest.mark.parametrize("name", sorted(TYPED_FACTS))
def test_shape_is_the_platforms(name: str) -> None:
    """A payload that the platform's schema accepts is refused, or one that it refuses is accepted."""
    fact = SCHEMAS[TYPED_FACTS[name]["schema"]]
    ours = json_schema(EVENT_TYPES[name].payload)
    assert shape(ours, ours.get("$defs", {})) == with_event_type(shape(fact, SCHEMAS), TYPED_FACTS[name]["schema"])


def with_event_type(fact: dict[str, Any], schema: str) -> dict[str, Any]:
    """The eleven schemas that do not declare event_type are reached by it all the same."""
    served = sorted(name for name, one in TYPED_FACTS.items() if one["schema"] == schema)
    declared = fact["members"].setdefault("event_type", (True, {"type": "string", "enum": served}))
    assert declared == (True, {"type": "string", "enum": served})
    return fact


def shape(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> dict[str, Any]:
    """What is valid by `schema`, in one form for OpenAPI 3.0 (the facts) and JSON Schema 2020-12 (ours)."""
    words = {key: value for key, value in schema.items() if key not in IDLE}
    if "$ref" in words:
        assert set(words) == {"$ref"}
        return shape(definitions[words["$ref"].rpartition("/")[2]], definitions)
    if "allOf" in words:
        (only,) = words.pop("allOf")
        assert not words
        return shape(only, definitions)
    if "anyOf" in words:
        one, null = words.pop("anyOf")
        assert (null, words) == ({"type": "null"}, {})
        return shape(one, definitions) | {"nullable": True}
    found = _nullable(words) | _SHAPES[words.pop("type", None)](words, definitions)
    assert not words, f"words that this test does not understand: {words}"
    return found


def _nullable(words: dict[str, Any]) -> dict[str, Any]:
    return {"nullable": True} if words.pop("nullable", False) else {}


def _object(words: dict[str, Any], definitions: Mapping[str, Any]) -> dict[str, Any]:
    members, extra = words.pop("properties", None), words.pop("additionalProperties", None)
    if members is None:
        values = ANYTHING if extra in (True, None) else shape(extra, definitions)
        return {"type": "map", "values": values}
    assert extra in (None, False)
    required = words.pop("required", [])
    assert set(required) <= set(members)
    return {
        "type": "object",
        "closed": extra is False,
        "members": {key: (key in required, shape(member, definitions)) for key, member in members.items()},
    }


def _array(words: dict[str, Any], definitions: Mapping[str, Any]) -> dict[str, Any]:
    limits = {key: words.pop(key) for key in ("minItems", "maxItems") if key in words}
    return {"type": "array", "items": shape(words.pop("items"), definitions)} | limits


def _string(words: dict[str, Any], _definitions: object) -> dict[str, Any]:
    limits = {key: words.pop(key) for key in ("format", "pattern", "minLength", "maxLength") if key in words}
    if "const" in words:
        words["enum"] = [words.pop("const")]
    return {"type": "string"} | limits | ({"enum": sorted(words.pop("enum"))} if "enum" in words else {})


def _integer(words: dict[str, Any], _definitions: object) -> dict[str, Any]:
    """Without a format, 64 bits are the bounds: that is what those who read it have."""
    kind = words.pop("format", None)
    limit = 2 ** (31 if kind == "int32" else 63)
    bounds = (words.pop("minimum", -limit), words.pop("maximum", limit - 1))
    return {"type": "integer", "format": kind, "bounds": bounds}


def _number(words: dict[str, Any], _definitions: object) -> dict[str, Any]:
    assert words.pop("format", "double") in ("float", "double")
    return {"type": "number", "bounds": (words.pop("minimum", None), words.pop("maximum", None))}


_SHAPES: dict[str | None, Callable[[dict[str, Any], Mapping[str, Any]], dict[str, Any]]] = {
    "object": _object,
    "array": _array,
    "string": _string,
    "integer": _integer,
    "number": _number,
    "boolean": lambda _words, _definitions: {"type": "boolean"},
    None: lambda _words, _definitions: dict(ANYTHING),
}


def test_meanings_differ() -> None:
    """An auditor who reads about one payload gets the text of another, or none."""
    meanings = Counter(" ".join((payload.__doc__ or "").split()) for payload in PAYLOADS)
    assert {text: count for text, count in meanings.items() if count > 1 or len(text) < 30} == {}
    assert all(one.meaning.endswith((".", "?")) for one in EVENT_TYPES.values())


def test_nested_objects_are_described() -> None:
    """A reader of the schema finds an object without a word about it."""
    definitions = {key: one for p in PAYLOADS for key, one in json_schema(p).get("$defs", {}).items()}
    assert [key for key, one in definitions.items() if not one.get("description")] == []
    assert len({one["description"] for one in definitions.values()}) == len(definitions)


def test_class_names_are_unique() -> None:
    """Two schemas of the OpenAPI document would have one name."""
    nested = {key for payload in PAYLOADS for key in json_schema(payload).get("$defs", {})}
    names = [payload.__name__ for payload in PAYLOADS]
    assert len(set(names) | nested) == len(names) + len(nested)


@pytest.mark.parametrize(
    ("name", "producer"),
    [
        ("gateway.signal.received", "gateway"),
        ("remediation.workflow_created", "remediation"),
        ("llm_request", "aiagent"),
        ("workflow_validation_attempt", "aiagent"),
    ],
)
def test_producer(name: str, producer: str) -> None:
    """A filter by producer misses a type."""
    assert EVENT_TYPES[name].producer == producer


def test_one_wrong_name_many_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lenient batch of ten thousand events under one wrong name takes half a minute to refuse."""
    compared: list[str] = []

    def near(*arguments: Any, **_: object) -> list[str]:
        compared.append(arguments[0])
        return ["a.b.c"]

    monkeypatch.setattr("app.events.catalog.get_close_matches", near)
    catalog = Catalog()
    for _ in range(100):
        with pytest.raises(BadRequest, match=r"a\.b\.c"):
            catalog.check_payload("gateway.signal.received", {"event_type": "no.such.type"}, "/event_data")
    assert compared == ["no.such.type"]
