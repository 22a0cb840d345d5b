"""Files that register event types: which are refused, and what the good ones make of a payload."""

import json
from decimal import Decimal
from typing import Any, cast

import pytest

from app.errors import BadRequest, Fatal, InvalidRequest
from app.events.canonical import Document
from app.events.catalog import Catalog
from app.events.cloudevents import CloudEventReader
from app.events.custom import custom_types

TREE = {"type": "object", "properties": {"kids": {"type": "array", "items": {"$ref": "#/$defs/tree"}}}}
SCHEMA: dict[str, Any] = {
    "properties": {
        "event_type": {"const": "a.b"},
        "whole": {"type": "integer"},
        "least": {"minimum": 0.1},
        "most": {"exclusiveMaximum": 0.3},
        "step": {"multipleOf": 0.1},
        "different": {"uniqueItems": True},
        "at": {"format": "date-time"},
        "id": {"format": "uuid"},
        "one": {"enum": ["x", None]},
        "shape": {
            "oneOf": [{"type": "object", "properties": {"n": {"type": "string"}}, "required": ["n"]}, {"type": "null"}]
        },
        "tree": {"$ref": "#/$defs/tree"},
        "none": False,
        "closed": {"additionalProperties": False},
        "a/b~c": {"type": "string"},
    },
    "required": ["whole"],
    "$defs": {"tree": TREE | {"additionalProperties": False}},
}


def catalog(schema: Any, file: str = "a.json") -> Catalog:
    return Catalog(custom_types({file: json.dumps(schema).encode()}))


def field_errors(payload: dict[str, Any]) -> dict[str, str]:
    try:
        catalog(SCHEMA).check_payload("x", {"event_type": "a.b", "whole": 1} | payload, "")
    except BadRequest as error:
        return cast("dict[str, str]", error.extra["field_errors"])
    return {}


@pytest.mark.parametrize(
    ("member", "value", "place"),
    [
        ("whole", "1", "/whole"),
        ("whole", Decimal("1.00000000000000000001"), "/whole"),
        ("least", 0, "/least"),
        ("least", Decimal("0.09999999999999999999"), "/least"),
        ("most", Decimal("0.30000000000000000001"), "/most"),
        ("step", Decimal("0.10000000000000000001"), "/step"),
        ("different", [{"a": 1}, {"a": 1}], "/different"),
        ("at", "2026-02-30T00:00:00Z", "/at"),
        ("id", "42", "/id"),
        ("one", "y", "/one"),
        ("shape", {"n": 1}, "/shape/n"),
        ("tree", {"kids": [{"kids": []}, {"kid": []}]}, "/tree/kids/1/kid"),
        ("none", 0, "/none"),
        ("closed", {"k": 0}, "/closed/k"),
        ("a/b~c", 0, "/a~1b~0c"),
    ],
)
def test_fault_is_named(member: str, value: Any, place: str) -> None:
    """A payload that does not fit an operator's schema is stored, or the answer does not name the member."""
    assert set(field_errors({member: value})) == {place}


@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("least", Decimal("0.1000000000000000055")),
        ("most", Decimal("0.29999999999999999999")),
        ("step", 0.3),
        ("step", 1e300),
        ("different", [1, True, "1", [1], {"a": 1}, {"a": 2}]),
        ("at", 5),
        ("at", "2026-01-31T12:00:00.5+01:00"),
        ("one", None),
        ("shape", None),
        ("tree", {"kids": [{"kids": [{"kids": []}]}]}),
        ("unknown", {"anything": None}),
    ],
)
def test_payload_is_accepted(member: str, value: Any) -> None:
    """A payload that fits is refused, or its numbers are compared as the nearest double."""
    assert field_errors({member: value}) == {}


def test_missing_members_and_the_kinds_of_400() -> None:
    """A missing member is not named itself, or a malformed uuid gets another problem type than in a built-in type."""
    with pytest.raises(BadRequest) as refused:
        catalog(SCHEMA).check_payload("x", {"event_type": "a.b"}, "/7/event_data")
    assert refused.value.extra["field_errors"] == {"/7/event_data/whole": "required, but missing"}
    with pytest.raises(InvalidRequest):
        catalog(SCHEMA).check_payload("x", {"event_type": "a.b", "whole": 1, "id": "42"}, "")


def test_many_faults_and_equal_items_cost_little() -> None:
    """One payload within the limits holds up everybody else."""
    schema = {"properties": {"all": {"items": {"type": "string"}}, "sets": {"uniqueItems": True}}}
    known = catalog(schema, "big.json")
    with pytest.raises(BadRequest) as refused:
        known.check_payload("x", {"event_type": "big", "all": list(range(50_000))}, "")
    assert len(refused.value.extra["field_errors"]) == 20  # type: ignore[arg-type]
    known.check_payload("x", {"event_type": "big", "sets": [{"n": n} for n in range(20_000)]}, "")


def test_references_by_id() -> None:
    """A schema that names itself cannot refer to its own parts."""
    part = {"$anchor": "part", "type": "integer"}
    for reference in ("#/$defs/part", "#part", "b.json#part", "https://example.com/b.json#/$defs/part"):
        schema = {
            "$id": "https://example.com/b.json",
            "properties": {"n": {"$ref": reference}},
            "$defs": {"part": part},
        }
        with pytest.raises(BadRequest, match="/n: expected integer"):
            catalog(schema, "b.json").check_payload("x", {"event_type": "b", "n": "1"}, "")


def test_names() -> None:
    """A type goes by another name than that of its schema or its file."""
    assert {one.name for one in custom_types({"d/x.y.json": b"{}"})} == {"x.y"}
    enum = {"properties": {"event_type": {"enum": ["p.q", "p.r"]}}, "examples": [{"event_type": "p.r"}]}
    types = custom_types({"x.json": json.dumps(enum).encode()})
    assert [(one.name, one.example) for one in types] == [("p.q", None), ("p.r", {"event_type": "p.r"})]
    assert [one.producer for one in types] == ["p", "p"]


BAD: list[tuple[str, str]] = [
    ("{", "line 1"),
    ("[]", "an object"),
    ('{"type": "strnig"}', "/type"),
    ('{"pattern": "("}', "/pattern"),
    ('{"$schema": "http://json-schema.org/draft-07/schema#"}', "2020-12"),
    ('{"$defs": {"a": {"$schema": "http://json-schema.org/draft-07/schema#"}}}', "root only"),
    ('{"$ref": "https://example.com/schema.json"}', "nowhere"),
    ('{"$ref": "file:///etc/passwd"}', "nowhere"),
    ('{"$ref": "https://json-schema.org/draft/2020-12/schema"}', "nowhere"),
    ('{"properties": {"a": {"items": {"$ref": "#/$defs/none"}}}}', "nowhere"),
    ('{"$ref": "#/x-note", "x-note": 5}', "not a JSON Schema"),
    ('{"$ref": "#/x-note", "x-note": {"$ref": "#/nowhere"}}', "nowhere"),
    ('{"$ref": "#"}', "back to itself"),
    (
        '{"properties": {"a": {"$ref": "#/$defs/a"}}, "$defs": {"a": {"anyOf": [{"$ref": "#/$defs/a"}]}}}',
        "back to itself",
    ),
    ('{"properties": {"event_type": {"const": "gateway.signal.received"}}}', "built-in"),
    ('{"properties": {"event_type": {"const": "workflow.started"}}}', "built-in"),
    ('{"properties": {"event_type": {"const": 5}}}', "a name"),
    ('{"properties": {"event_type": {"const": "' + "x" * 101 + '"}}}', "a name"),
    ('{"properties": {"event_type": {"enum": ["a", ""]}}}', "a name"),
    ('{"x-category": "backup"}', "x-category"),
    ('{"examples": [{}]}', "/examples/0"),
    ('{"required": ["n"], "examples": [{"event_type": "bad"}]}', "/examples/0/n"),
    ('{"allOf": ' * 150 + "true" + "}" * 150, ""),
]


@pytest.mark.parametrize(("text", "message"), BAD, ids=range(len(BAD)))
def test_bad_file_is_refused(text: str, message: str) -> None:
    """The service starts with a type that it cannot check, or the error does not name the file and the fault."""
    with pytest.raises(Fatal) as refused:
        custom_types({"types/bad.json": text.encode()})
    assert "types/bad.json" in refused.value.detail
    assert message in refused.value.detail


def test_two_files_of_one_name() -> None:
    """Which of two schemas counts is left to chance."""
    files = {"a.json": b'{"properties": {"event_type": {"const": "x.y"}}}', "x.y.json": b"{}"}
    with pytest.raises(Fatal, match=r"x\.y\.json.*a\.json too"):
        custom_types(files)


FOREIGN = {
    "type": "object",
    "properties": {"event_type": {"const": "a.b"}},
    "x-category": "workflow",
    "x-cloudevents": {
        "correlationid": {"from": ["/data/run/0/a~1b~0c", "/data/number", "/subject"]},
        "eventoutcome": {
            "from": "/data/phase",
            "values": {"Succeeded": "success", "Failed": "failure", "true": "success"},
        },
        "time": {"const": "0001-01-01T00:00:00Z"},
        "authid": {"from": "/operator"},
    },
}
SENT = {"specversion": "1.0", "id": "1", "source": "/s", "type": "a.b"}


def converted(sent: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    item, faults = CloudEventReader(catalog(FOREIGN)).item(Document(SENT | sent, plain=True, depth=5), "")
    return item.value, faults


@pytest.mark.parametrize(
    ("sent", "correlation", "outcome"),
    [
        ({"data": {"run": [{"a/b~c": "r1"}], "phase": "Failed"}}, "r1", "failure"),
        ({"data": {"run": [], "number": 7, "phase": True}}, "7", "success"),
        ({"data": {"run": {"0": None}, "number": 1.5, "phase": "Succeeded"}, "subject": "s"}, "s", "success"),
        (
            {"data": {"phase": "Failed"}, "subject": "s", "correlationid": "c", "eventoutcome": "pending"},
            "c",
            "pending",
        ),
    ],
)
def test_defaults_of_foreign_cloud_events(sent: dict[str, Any], correlation: str, outcome: str) -> None:
    """An attribute comes from the wrong place, or from a file's rule although the event has it."""
    item, faults = converted(sent)
    assert faults == {}
    assert (item["correlation_id"], item["event_outcome"]) == (correlation, outcome)
    assert (item["event_category"], item["actor_id"]) == ("workflow", "/s")
    assert converted(sent | {"operator": "ada"})[0]["actor_id"] == "ada"


@pytest.mark.parametrize("data", [{"phase": "Unheard"}, {"phase": {"x": 1}}, {"phase": ["Failed"]}, {}])
def test_a_rule_that_finds_nothing(data: dict[str, Any]) -> None:
    """One has to guess which member of a foreign event was looked for, or an outcome is invented."""
    item, faults = converted({"data": data, "subject": "s"})
    assert "event_outcome" not in item
    assert faults == {"/eventoutcome": "required, but missing, and nothing at /data/phase stands for it"}


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        ([], "expected x-cloudevents to be an object"),
        ({"id": {"const": "x"}}, "'id' is none of "),
        ({"type": {"const": "x"}}, "'type' is none of "),
        ({"eventoutcome": "success"}, "/eventoutcome: expected {"),
        ({"eventoutcome": {"const": None}}, "/eventoutcome: expected {"),
        ({"eventoutcome": {"const": "done"}}, "/eventoutcome: expected"),
        ({"eventoutcome": {"const": "success", "from": "/subject"}}, "/eventoutcome: expected {"),
        ({"eventoutcome": {"from": "/data/x", "values": {"a": "done"}}}, "/eventoutcome: expected"),
        ({"eventoutcome": {"from": "/data/x", "else": 7}}, "/eventoutcome: expected"),
        ({"eventoutcome": {"from": "/data/x", "values": {}}}, "/eventoutcome: expected at least one pointer"),
        ({"eventoutcome": {"from": []}}, "/eventoutcome: expected at least one pointer"),
        ({"correlationid": {"from": "data/x"}}, "/correlationid: expected a JSON Pointer"),
        ({"correlationid": {"from": "/data"}}, None),
        ({"correlationid": {"from": "/Data/x"}}, "/correlationid: expected a JSON Pointer"),
        ({"correlationid": {"from": "/data/~2"}}, "/correlationid: expected a JSON Pointer"),
        ({"correlationid": {"const": "x" * 256}}, "/correlationid: expected"),
        ({"correlationid": {"const": ""}}, "/correlationid: expected"),
        ({"eventcategory": {"const": "kitchen"}}, "/eventcategory: expected"),
    ],
)
def test_wrong_rules_end_the_start(declared: Any, message: str | None) -> None:
    """A rule that can never work is found by the first event of the emitter, which then loses it."""
    schema = FOREIGN | {"x-cloudevents": declared}
    if message is None:
        catalog(schema)
        return
    with pytest.raises(Fatal) as refused:
        catalog(schema)
    assert message in refused.value.detail
    assert "a.json" in refused.value.detail
