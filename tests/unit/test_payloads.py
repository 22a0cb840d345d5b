"""Every typed payload: its examples are accepted, and each fault in them is named. Derived from the catalog itself."""

from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import orjson
import pytest

from app.errors import BadRequest, InvalidRequest
from app.events.canonical import parse
from app.events.catalog import EVENT_TYPES, PAYLOAD_CHECKS, SELF_EVENT_TYPES, Catalog
from app.events.catalog.examples import example, json_schema

Path = tuple[str | int, ...]
NOBODY = "no.such.type"
check_payload = Catalog(allow_self_events=True).check_payload
ABSENT = object()
WRONG: dict[str, list[Any]] = {
    "string": [5, True, [], {}],
    "integer": ["5", True, 5.5, Decimal("5.5"), [], {}],
    "number": ["5", True, [], {}],
    "boolean": ["true", 1, 0, [], {}],
    "array": ["text", 5, {}],
    "object": ["text", 5, []],
}
MALFORMED = {"date-time": ["yesterday", "2026-02-30T00:00:00Z", "2026-01-31T12:00:00"], "uuid": ["no uuid", ""]}


@pytest.mark.parametrize("full", [False, True], ids=["minimal", "full"])
@pytest.mark.parametrize("name", sorted(PAYLOAD_CHECKS))
def test_examples_are_taken(name: str, full: bool) -> None:
    """The documentation shows a payload that the service refuses, or one that changes on its way in."""
    payload = example(name, full=full)
    check_payload(NOBODY, payload, "/event_data")
    assert parse(orjson.dumps(payload)).value == payload == example(name, full=full)


@pytest.mark.parametrize("name", sorted(PAYLOAD_CHECKS))
def test_full_example_has_every_member(name: str) -> None:
    """A member can be sent that no example shows, and no test below tries."""
    schema = json_schema(EVENT_TYPES[name].payload)
    assert set(example(name)) == set(schema["properties"])
    assert set(example(name, full=False)) == set(schema["required"])


@pytest.mark.parametrize("name", sorted(PAYLOAD_CHECKS))
def test_each_fault_is_named(name: str) -> None:
    """A payload that does not fit its type is stored, or the answer does not name the wrong member."""
    whole = orjson.dumps(example(name))
    for path, value in faults(json_schema(EVENT_TYPES[name].payload), example(name)):
        payload = changed(orjson.loads(whole), path, value)
        with pytest.raises(BadRequest) as refused:
            check_payload(NOBODY, payload, "/event_data")
        assert set(refused.value.extra["field_errors"]) == {pointer(path)}, (path, value)  # type: ignore[call-overload]


@pytest.mark.parametrize("name", sorted(PAYLOAD_CHECKS))
def test_unknown_members_are_kept_unless_forbidden(name: str) -> None:
    """A newer controller's event is refused for a member that this release does not know."""
    schema = json_schema(EVENT_TYPES[name].payload)
    for path, node in objects(schema, schema.get("$defs", {}), example(name), ()):
        payload = changed(example(name), (*path, "brand_new"), 1)
        if "additionalProperties" not in node:
            check_payload(NOBODY, payload, "/event_data")
            continue
        with pytest.raises(BadRequest, match="not a member of this object"):
            check_payload(NOBODY, payload, "/event_data")


def faults(schema: dict[str, Any], payload: dict[str, Any]) -> Iterator[tuple[Path, Any]]:
    """Places in `payload`, each with a value that its type refuses there."""
    definitions = schema.get("$defs", {})
    for path, node in members(schema, definitions, payload, ()):
        if node.get("x-required"):
            yield path, ABSENT
        yield from ((path, bad) for bad in bad_values(node, definitions))
        if "anyOf" not in node and schema_of(node, definitions).get("type"):
            yield path, None


def bad_values(node: dict[str, Any], definitions: dict[str, Any]) -> Iterator[Any]:
    node = schema_of(node, definitions)
    yield from WRONG.get(node.get("type", ""), ())
    if "enum" in node or "const" in node:
        yield from ("no such value", "", str(node.get("const") or node["enum"][0]).swapcase())
    if node.get("type") in ("integer", "number"):
        yield from (node[key] + step for key, step in (("minimum", -1), ("maximum", 1)) if key in node)
    if "pattern" in node:
        yield "no match"
    yield from MALFORMED.get(node.get("format", ""), ())


def members(
    node: dict[str, Any], definitions: dict[str, Any], value: Any, path: Path
) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Every place below `node` that has a type of its own: its path and its schema. `value` is a full example."""
    node = schema_of(node, definitions)
    for step, below in children(node, value):
        yield (*path, step), below
        yield from members(below, definitions, value[step], (*path, step))


def children(node: dict[str, Any], value: Any) -> Iterator[tuple[str | int, dict[str, Any]]]:
    if "properties" in node:
        for key, member in node["properties"].items():
            yield key, member | {"x-required": key in node.get("required", ())}
    elif node.get("type") == "array":
        yield 0, node["items"]
    elif isinstance(values := node.get("additionalProperties"), dict):
        yield next(iter(value)), values


def objects(
    node: dict[str, Any], definitions: dict[str, Any], value: Any, path: Path
) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Every object with declared members, the payload itself first."""
    yield path, schema_of(node, definitions)
    for place, below in members(node, definitions, value, path):
        if "properties" in schema_of(below, definitions):
            yield place, schema_of(below, definitions)


def schema_of(node: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    """`node` without its null, and what it refers to."""
    while "$ref" in node or "anyOf" in node:
        node = definitions[node["$ref"].rpartition("/")[2]] if "$ref" in node else node["anyOf"][0]
    return node


def changed(payload: dict[str, Any], path: Path, value: Any) -> dict[str, Any]:
    """`payload` with `value` at `path`."""
    node: Any = payload
    for step in path[:-1]:
        node = node[step]
    if value is ABSENT:
        del node[path[-1]]
    else:
        node[path[-1]] = value
    return payload


def pointer(path: Path) -> str:
    return "".join(f"/{step}" for step in ("event_data", *path))


UPDATED = "datastorage.workflow.updated"


def test_malformed_uuid_has_its_own_problem_type() -> None:
    """A client that distinguishes the reference's two kinds of 400 gets that of a bad schema for a bad uuid, or the reverse."""
    payload = example(UPDATED) | {"workflow_id": "no uuid"}
    with pytest.raises(InvalidRequest) as refused:
        check_payload(UPDATED, payload, "/3/event_data")
    assert refused.value.extra["field_errors"] == {"/3/event_data/workflow_id": "expected a UUID, got 'no uuid'"}
    with pytest.raises(BadRequest) as both:
        check_payload(UPDATED, payload | {"updated_fields": None}, "/3/event_data")
    assert type(both.value) is BadRequest
    assert set(both.value.extra["field_errors"]) == {"/3/event_data/workflow_id", "/3/event_data/updated_fields"}  # type: ignore[call-overload]


@pytest.mark.parametrize(
    "text", ["2026-01-31T12:00:00Z", "2026-01-31T12:00:00.123456789+05:30", "2024-02-29T23:59:59-00:00"]
)
def test_date_times(text: str) -> None:
    """A time that the envelope accepts is refused in a payload."""
    name = "workflowexecution.block.cleared"
    check_payload(name, example(name) | {"cleared_at": text}, "/event_data")


def test_leap_second_is_answered_as_in_the_envelope() -> None:
    """Second 60 gets another problem type in a payload than in event_timestamp."""
    name = "workflowexecution.block.cleared"
    with pytest.raises(InvalidRequest, match="a second of 00 to 59"):
        check_payload(name, example(name) | {"cleared_at": "2026-12-31T23:59:60Z"}, "/event_data")


@pytest.mark.parametrize("number", [0, 1, 0.5, Decimal("0.1000000000000000000001"), -0.0])
def test_numbers_of_any_precision(number: Any) -> None:
    """A number is refused since no double holds it, or since it has no fraction."""
    name = "aiagent.response.complete"
    payload = example(name)
    payload["response_data"]["confidence"] = number
    check_payload(name, payload, "/event_data")


def test_whole_number_with_a_point_is_an_integer() -> None:
    """5.0 is refused for an integer, though it is stored as 5."""
    name = "aianalysis.aiagent.call"
    body = b'{"event_type": "aianalysis.aiagent.call", "endpoint": "/a", "http_status_code": 2e2, "duration_ms": 5.0}'
    payload = parse(body).value
    check_payload(name, payload, "/event_data")
    assert orjson.dumps([payload["http_status_code"], payload["duration_ms"]]) == b"[200,5]"


@pytest.mark.parametrize("value", [None, False, 0, "", [], {}, [None], {"a": {"b": None}}, Decimal("1e-300")])
def test_values_without_a_type(value: Any) -> None:
    """A tool's result is refused for its JSON type."""
    name = "aiagent.llm.tool_call"
    check_payload(name, example(name) | {"tool_result": value}, "/event_data")


def test_null_where_it_may_stand() -> None:
    """A null is refused where the platform's schema allows it."""
    count = 0
    for name in PAYLOAD_CHECKS:
        schema = json_schema(EVENT_TYPES[name].payload)
        for path, node in members(schema, schema.get("$defs", {}), example(name), ()):
            if "anyOf" in node:
                check_payload(name, changed(example(name), path, None), "/event_data")
                count += 1
    assert count > 100


@pytest.mark.parametrize("name", sorted(SELF_EVENT_TYPES))
def test_nobody_sends_the_services_own_events(name: str) -> None:
    """A client posts that events were purged or erased, and verification believes it."""
    catalog = Catalog(accept_unknown=True)
    for outer, payload in ((NOBODY, example(name)), (name, {"a": 1}), (name, example("gateway.config.reloaded"))):
        with pytest.raises(BadRequest, match="only the service itself"):
            catalog.check_payload(outer, payload, "/event_data")
