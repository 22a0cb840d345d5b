"""Events as OCSF, against the schema that the project publishes. `ocsf-json-schema` has it up to 1.8, of whose API Activity 1.9 has
changed nothing that is used here (docs/decisions/0058).
"""

from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import jsonschema
import orjson
import pytest
from ocsf_json_schema import OcsfJsonSchemaEmbedded, get_ocsf_schema

from app.events.catalog import EVENT_TYPES
from app.events.catalog.examples import example, freeform_example
from app.events.log import Log
from app.export.file import MEMBERS
from app.stream.formats import ocsf
from app.stream.portion import Absent, Checkpoint, Item, Seam, StreamedEvent

SCHEMA: dict[str, Any] = get_ocsf_schema(version="1.8.0")
LOG = Log(1, "test.example/datastorage")
TEXTS = ("actor_type", "actor_id", "resource_type", "resource_id", "severity", "namespace", "cluster_id", "error_code")
HOSTILE = ("", " ", "\x00\x1b[31m", "\u202e\u2028'\"<b>", "x" * 255, "0", "null", "WARNING", "é" * 50)


def validator(name: str) -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(OcsfJsonSchemaEmbedded(SCHEMA).get_class_schema(name))


API_ACTIVITY, BASE_EVENT = validator("api_activity"), validator("base_event")


def streamed(**members: Any) -> StreamedEvent:
    """An event with the types that Postgres gives its members."""
    event: dict[str, Any] = dict.fromkeys(MEMBERS) | {
        "event_id": UUID(int=7),
        "event_version": "1.0",
        "event_timestamp": datetime(2026, 11, 29, 12, 0, 0, 123999, UTC),
        "event_date": date(2026, 11, 29),
        "recorded_at": datetime(2026, 11, 29, 12, 0, 1, tzinfo=UTC),
        "event_type": "orchestrator.lifecycle.started",
        "event_category": "orchestration",
        "event_action": "started",
        "event_outcome": "success",
        "correlation_id": "rr-1",
        "actor_type": "service",
        "actor_id": "orchestrator",
        "resource_type": "RemediationRequest",
        "resource_id": "rr-1",
        "severity": "info",
        "retention_days": 2555,
        "is_sensitive": False,
        "legal_hold": False,
        "log": LOG.name,
        "log_index": 3,
        "chain_index": 0,
        "event_hash": "00" * 32,
        "payload_salt": "00" * 16,
        "event_data": {},
        "sealed": True,
    }
    return StreamedEvent(LOG.place(3), event | members)


def checked(item: Item) -> dict[str, Any]:
    """What is sent of an item; fails if the schema refuses it, or one of its captions is not that of its id."""
    sent: dict[str, Any] = orjson.loads(orjson.dumps(ocsf.render(item, LOG)))
    name = "api_activity" if sent["class_uid"] else "base_event"
    (API_ACTIVITY if sent["class_uid"] else BASE_EVENT).validate(sent)
    _check_captions(sent, SCHEMA["classes"][name]["attributes"])
    if "user" in sent.get("actor", {}):
        _check_captions(sent["actor"]["user"], SCHEMA["objects"]["user"]["attributes"])
    return sent


def _check_captions(sent: dict[str, Any], attributes: dict[str, Any]) -> None:
    for name, attribute in attributes.items():
        if name in sent and "enum" in attribute and (sibling := attribute.get("sibling")):
            if sent[name] == ocsf.OTHER and name != "type_uid":
                assert sent[sibling], name
            else:
                assert sent[sibling] == attribute["enum"][str(sent[name])]["caption"]
    if "type_uid" in sent:
        assert sent["type_uid"] == sent["class_uid"] * 100 + sent["activity_id"]
        assert sent["type_name"] == attributes["type_uid"]["enum"][str(sent["type_uid"])]["caption"]


@pytest.mark.parametrize("name", sorted(EVENT_TYPES))
def test_every_type_is_valid(name: str) -> None:
    """A SIEM refuses the events of one type, as an action, a category or a payload of it breaks the schema."""
    known = EVENT_TYPES[name]
    payload = freeform_example(name) if known.payload is None else example(name)
    members = {
        "event_type": name,
        "event_category": known.category or "orchestration",
        "event_action": name.rpartition(".")[2],
        "event_data": payload,
    }
    sent = checked(streamed(**members))
    assert sent["api"]["operation"] == sent["metadata"]["event_code"] == name
    assert sent["unmapped"]["datastorage"]["event"]["event_data"] == payload


@pytest.mark.parametrize("member", TEXTS)
@pytest.mark.parametrize("value", [*HOSTILE, None])
def test_hostile_values(member: str, value: str | None) -> None:
    """Whoever writes odd events makes the SIEM refuse them, and is not seen there."""
    if value is not None or member not in {"actor_type", "actor_id", "resource_type", "resource_id"}:
        checked(streamed(**{member: value}))


def test_what_an_event_becomes() -> None:
    """A member stands in the wrong place of the schema, or in no place."""
    sent = checked(
        streamed(
            event_action="deleted",
            event_outcome="pending",
            severity="Warning",
            actor_type="user",
            actor_id="ada",
            actor_ip="2001:db8::1",
            duration_ms=12,
            error_code="E1",
            error_message="no",
            namespace="payments",
        )
    )
    assert (sent["type_uid"], sent["activity_name"]) == (600304, "Delete")
    assert sent["time"] == 1795953600123
    assert (sent["severity_id"], sent["severity"]) == (3, "Medium")
    assert (sent["status_id"], sent["status"], sent["status_code"], sent["status_detail"]) == (
        99,
        "pending",
        "E1",
        "no",
    )
    assert sent["actor"] == {"user": {"name": "ada", "type_id": 1, "type": "User"}}
    assert sent["src_endpoint"] == {"ip": "2001:db8::1"}
    assert sent["resources"] == [{"uid": "rr-1", "type": "RemediationRequest", "namespace": "payments"}]
    assert sent["metadata"]["sequence"] == 3
    assert (sent["metadata"]["uid"], sent["metadata"]["log_name"]) == (str(UUID(int=7)), LOG.name)
    assert sent["unmapped"]["datastorage"]["place"] == "1:3"
    assert sent["unmapped"]["datastorage"]["event"]["event_hash"] == "00" * 32
    assert set(sent["unmapped"]["datastorage"]["event"]) == set(MEMBERS)


@pytest.mark.parametrize(
    "item", [Absent(3, 7, "purged"), Seam(2**48, LOG.name, LOG.first_name, 9), Checkpoint(7, "log\n7\nAAAA\n\n")]
)
def test_what_is_no_event(item: Item) -> None:
    """What a stream says besides its events is refused by the SIEM, or looks like somebody's activity."""
    sent = checked(item)
    assert sent["class_uid"] == 0
    assert sent["unmapped"]["datastorage"]["stream"] == type(item).__name__.lower()


def test_documentation_has_the_tables() -> None:
    """The documentation names other ids than the service sends."""
    text = (Path(__file__).parents[2] / "docs/ocsf.md").read_text("utf-8")
    for table in (ocsf.ACTIVITIES, ocsf.SEVERITIES, ocsf.STATUSES, ocsf.ACTORS):
        by_id: dict[ocsf.Enumerated, list[str]] = {}
        for value, enumerated in table.items():
            by_id.setdefault(enumerated, []).append(f"`{value}`")
        for (number, caption), values in by_id.items():
            assert f"| {', '.join(values)} | {number} {caption} |" in text
    attributes = {name for name in ocsf.render(streamed(), LOG) if not name.endswith(("_name", "_uid"))}
    assert {name for name in attributes if f"`{name}" not in text} == set()
