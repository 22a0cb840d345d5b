"""Every type of the catalog over HTTP, types that an operator has registered, and unknown types."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest

from tests.events import make_event, make_freeform
from tests.services import ROOT, Service

EVENTS = "/api/v1/audit/events"
TYPES = "/api/v1/audit/event-types"
BACKUP = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "description": "A backup of a volume has ended.",
    "x-category": "workflow",
    "type": "object",
    "properties": {
        "event_type": {"enum": ["backup.volume.done", "backup.volume.failed"]},
        "volume": {"type": "string", "minLength": 1},
        "bytes": {"type": "integer", "minimum": 0},
        "ended_at": {"type": "string", "format": "date-time"},
        "ratio": {"type": "number", "maximum": 1},
    },
    "required": ["volume", "ended_at"],
    "examples": [{"event_type": "backup.volume.done", "volume": "v1", "ended_at": "2026-01-31T12:00:00Z"}],
}


@pytest.fixture
def client(service: Callable[..., Service]) -> Any:
    with httpx.Client(base_url=service().url, timeout=30) as client:
        yield client


def minimal(value: Any, schema: dict[str, Any], definitions: dict[str, Any]) -> Any:
    """`value` without the members that its schema does not require."""
    while "$ref" in schema or "anyOf" in schema:
        schema = definitions[schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema["anyOf"][0]
    if "properties" in schema:
        needed = schema.get("required", ())
        return {k: minimal(value[k], schema["properties"][k], definitions) for k in value if k in needed}
    if schema.get("type") == "array":
        return [minimal(item, schema["items"], definitions) for item in value]
    return value


def test_every_typed_event_is_stored_as_sent(client: httpx.Client) -> None:
    """A type of the catalog is refused, or read back with another payload: with all its members, or only the required ones."""
    typed = [one for one in client.get(TYPES).json()["event_types"] if one["generation"] in ("head", "both")]
    assert len(typed) >= 142
    payloads = []
    for one in typed:
        found = client.get(f"{TYPES}/{one['name']}").json()
        jsonschema.Draft202012Validator.check_schema(found["schema"])
        smallest = minimal(found["example"], found["schema"], found["schema"].get("$defs", {}))
        for payload in (found["example"], smallest):
            jsonschema.Draft202012Validator(found["schema"]).validate(payload)
            payloads.append((one, payload))
    events = [
        make_event(
            event_type=one["name"],
            event_category=one["category"] or "workflow",
            event_data=payload,
            correlation_id="all-types",
        )
        for one, payload in payloads
    ]
    answer = client.post(f"{EVENTS}/batch", json=events)
    assert answer.status_code == 201, answer.text
    page = client.get(EVENTS, params={"correlation_id": "all-types", "limit": 1000}).json()
    stored = {event["event_id"]: event for event in page["data"]}
    assert len(stored) == len(typed) * 2
    for event_id, sent in zip(answer.json()["event_ids"], events, strict=True):
        assert stored[event_id]["event_data"] == sent["event_data"]
        assert stored[event_id]["event_type"] == sent["event_type"]


DECEMBER: list[tuple[str, str, dict[str, Any]]] = [
    (
        "orchestrator.approval.requested",
        "pending",
        {
            "rr_name": "rr-1",
            "namespace": "payments",
            "rar_name": "rar-rr-1",
            "workflow_id": "restart-deployment",
            "confidence_score": 0.72,
            "approval_reason": "confidence below 0.8",
            "required_by": "2026-01-31T12:30:00Z",
        },
    ),
    ("orchestrator.approval.approved", "success", {"rar_name": "rar-rr-1", "decided_by": "ada@example.com"}),
    ("orchestrator.approval.rejected", "failure", {"rar_name": "rar-rr-1", "decided_by": "ada@example.com"}),
    ("orchestrator.lifecycle.completed", "failure", {"outcome": "failure", "timeout_phase": "Analyzing"}),
    ("orchestrator.phase.transitioned", "success", {"from_phase": "Pending", "to_phase": "Processing"}),
    (
        "orchestrator.routing.blocked",
        "pending",
        {
            "block_reason": "ConsecutiveFailures",
            "block_message": "3 failures in a row",
            "from_phase": "Pending",
            "to_phase": "Blocked",
            "workflow_id": "",
            "target_resource": "payments/Deployment/api",
            "requeue_after_seconds": 3600,
            "blocked_until": "2026-01-31T13:00:00Z",
            "blocking_wfe": "",
            "duplicate_of": "",
            "consecutive_failures": 3,
            "backoff_seconds": 0,
            "recent_wfe": "we-1",
        },
    ),
]


def test_free_form_events_of_december_2025(client: httpx.Client) -> None:
    """An event of the orchestrator of that time is refused, or changed."""
    for name, outcome, payload in DECEMBER:
        sent = make_freeform(name, payload, event_outcome=outcome, event_category="orchestration")
        answer = client.post(EVENTS, json=sent)
        assert answer.status_code == 201, (name, answer.text)
        stored = client.get(f"{EVENTS}/{answer.json()['event_id']}").json()
        assert (stored["event_type"], stored["event_outcome"], stored["event_data"]) == (name, outcome, payload)


def test_discovery(client: httpx.Client) -> None:
    """The list of types is not complete, or a type lacks its schema."""
    types = client.get(TYPES).json()["event_types"]
    assert len(types) == len({one["name"] for one in types}) >= 189
    gateway = client.get(TYPES, params={"producer": "gateway"}).json()["event_types"]
    assert [one for one in types if one["producer"] == "gateway"] == gateway != []
    assert client.get(TYPES, params={"producer": "nobody"}).json() == {"event_types": []}
    for one in types:
        found = client.get(f"{TYPES}/{one['name']}").json()
        assert {key: found[key] for key in one} == one
        schema = found["schema"]
        assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
        jsonschema.Draft202012Validator(schema).validate(found["example"])
    both = client.get(f"{TYPES}/orchestrator.routing.blocked").json()
    assert set(both["free_form"]["example"]) == set(DECEMBER[-1][2])
    unknown = client.get(f"{TYPES}/orchestrator.lifecycle.startd")
    assert (unknown.status_code, unknown.headers["content-type"]) == (404, "application/problem+json")
    assert "orchestrator.lifecycle.started" in unknown.json()["detail"]


def test_foreign_category_is_counted(client: httpx.Client) -> None:
    """A controller that sends its events under another category than the catalog's is not noticed."""
    name = "orchestrator.lifecycle.transitioned"
    for category in ("orchestration", "gateway"):
        assert client.post(EVENTS, json=make_event(event_category=category)).status_code == 201
    assert f'datastorage_foreign_category_events_total{{event_type="{name}"}} 1.0' in client.get("/metrics").text


def test_custom_type(service: Callable[..., Service], tmp_path: Path) -> None:
    """A type that an operator has registered is refused, is not checked, or cannot be found."""
    (tmp_path / "types").mkdir()
    (tmp_path / "types" / "backup.json").write_text(json.dumps(BACKUP))
    (tmp_path / "types" / "report.sent.json").write_text('{"required": ["to"]}')
    (tmp_path / "types" / "..data.json").write_text("no schema")
    (tmp_path / "types" / "README.md").write_text("no schema")
    with httpx.Client(base_url=service(event_types_dir=tmp_path / "types").url, timeout=30) as client:
        payload = BACKUP["examples"][0] | {"ratio": 0.25, "extra": [1, {"a": None}]}  # type: ignore[index]
        sent = make_event(event_type="backup", event_category="workflow", event_data=payload)
        body = json.dumps(sent).replace("0.25", "0.1000000000000000055")
        answer = client.post(EVENTS, content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code == 201, answer.text
        assert '"ratio":0.1000000000000000055' in client.get(f"{EVENTS}/{answer.json()['event_id']}").text
        bad = sent | {
            "event_data": {"event_type": "backup.volume.failed", "bytes": -1, "ended_at": "now", "ratio": 1.5}
        }
        refused = client.post(f"{EVENTS}/batch", json=[sent, bad]).json()
        assert set(refused["field_errors"]) == {
            f"/1/event_data/{member}" for member in ("volume", "bytes", "ended_at", "ratio")
        }
        assert client.post(EVENTS, json=make_event(event_data={"event_type": "report.sent"})).status_code == 400
        [one, other] = client.get(TYPES, params={"producer": "backup"}).json()["event_types"]
        assert one == {
            "name": "backup.volume.done",
            "producer": "backup",
            "category": "workflow",
            "generation": "custom",
            "meaning": BACKUP["description"],
        }
        assert other["name"] == "backup.volume.failed"
        found = client.get(f"{TYPES}/backup.volume.done").json()
        assert (found["schema"], found["example"]) == (BACKUP, BACKUP["examples"][0])  # type: ignore[index]
        assert "backup.volume.done" in client.get(f"{TYPES}/backup.volume.don").json()["detail"]


def test_bad_custom_type_ends_the_start(tmp_path: Path) -> None:
    """A service starts with a type that it cannot check, or does not say which file to correct."""
    (tmp_path / "broken.json").write_text('{"properties": {"a": {"$ref": "file:///etc/passwd"}}}')
    ran = subprocess.run(
        [sys.executable, "-m", "app", "serve"],
        cwd=tmp_path,
        env={
            "PYTHONPATH": str(ROOT),
            "DATASTORAGE_EVENT_TYPES_DIR": str(tmp_path),
            "DATASTORAGE_DATABASE_URL": "postgresql://nobody@127.0.0.1:1/nothing",
            "XDG_STATE_HOME": str(tmp_path),
        },
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert ran.returncode == 1
    assert "broken.json" in ran.stderr
    assert "file:///etc/passwd" in ran.stderr
    assert "Traceback" not in ran.stderr


def test_unknown_types_where_they_are_accepted(service: Callable[..., Service]) -> None:
    """An operator who accepts unknown types does not get their events, or loses the validation of the known ones."""
    with httpx.Client(base_url=service(unknown_event_types="accept").url, timeout=30) as client:
        for event in (
            make_event(event_type="x.y", event_data={"event_type": "x.y", "a": [1, None]}),
            make_freeform("x.z", {"b": {}}),
        ):
            answer = client.post(EVENTS, json=event)
            assert answer.status_code == 201, answer.text
            assert client.get(f"{EVENTS}/{answer.json()['event_id']}").json()["event_data"] == event["event_data"]
        for payload in ({"event_type": 7}, {"event_type": "orchestrator.lifecycle.started"}):
            assert client.post(EVENTS, json=make_event(event_data=payload)).status_code == 400
        assert "datastorage_unknown_event_types_total 2.0" in client.get("/metrics").text


def test_command_line(tmp_path: Path) -> None:
    """The command shows other types than the service."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "app", "event-types", *arguments],
            cwd=tmp_path,
            env={"PYTHONPATH": str(ROOT), "DATASTORAGE_EVENT_TYPES_DIR": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )

    (tmp_path / "backup.json").write_text(json.dumps(BACKUP))
    lines = run().stdout.splitlines()
    assert len(lines) >= 1 + 189 + 2
    assert any(line.startswith("backup.volume.done ") and "custom" in line for line in lines)
    assert json.loads(run("backup.volume.done").stdout)["schema"] == BACKUP
    unknown = run("backup.volume.don")
    assert (unknown.returncode, "backup.volume.done" in unknown.stderr) == (2, True)
