"""Scenes of the orchestrator's life: what it posts is found by correlation, by type, and by both."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest

from tests.events import make_event, make_freeform
from tests.services import ROOT, Service, free_port

EVENTS = "/api/v1/audit/events"
NAMES = {"rr_name": "rr-podcrashlooping-5f3a", "namespace": "payments"}
RAR = NAMES | {"rar_name": "rar-rr-podcrashlooping-5f3a"}
TRANSITIONED = {"typed": "orchestrator.lifecycle.transitioned", "freeform": "orchestrator.phase.transitioned"}
SECONDS = 60


class Orchestrator:
    """Posts the events of one remediation, a second apart, in one of the two generations."""

    def __init__(self, client: httpx.Client, generation: str) -> None:
        self.client = client
        self.generation = generation
        self.transitioned = TRANSITIONED[generation]
        self.correlation_id = f"rr-{uuid4()}"
        self.moment = datetime.now(UTC) - timedelta(hours=1)

    def post(self, event_type: str, outcome: str, payload: dict[str, Any], **members: Any) -> str:
        """The id of the stored event."""
        self.moment += timedelta(seconds=1)
        members |= {
            "correlation_id": self.correlation_id,
            "event_action": event_type.rpartition(".")[2],
            "event_outcome": outcome,
            "event_timestamp": self.moment.isoformat(),
        }
        if self.generation == "typed":
            event = make_event(event_type=event_type, event_data={"event_type": event_type} | payload, **members)
        else:
            event = make_freeform(event_type, payload, **members)
        answer = self.client.post(EVENTS, json=event)
        assert answer.status_code == 201, answer.text
        return str(answer.json()["event_id"])

    def start(self) -> str:
        return self.post("orchestrator.lifecycle.started", "pending", NAMES)

    def enter(self, phase: str, from_phase: str) -> str:
        return self.post(self.transitioned, "success", NAMES | {"from_phase": from_phase, "to_phase": phase})

    def find(self, **filters: str) -> list[dict[str, Any]]:
        answer = self.client.get(EVENTS, params={"correlation_id": self.correlation_id} | filters)
        assert answer.status_code == 200, answer.text
        assert answer.json()["pagination"]["total"] == len(answer.json()["data"])
        return list(answer.json()["data"])

    def types(self) -> list[str]:
        """Newest first."""
        return [event["event_type"] for event in self.find()]


@pytest.fixture
def client(service: Callable[..., Service]) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=service().url, timeout=30) as client:
        yield client


@pytest.fixture(params=["typed", "freeform"])
def orchestrator(client: httpx.Client, request: pytest.FixtureRequest) -> Orchestrator:
    other = Orchestrator(client, request.param)  # whose events must not be found
    other.start()
    other.enter("AwaitingApproval", from_phase="Analyzing")
    return Orchestrator(client, request.param)


def request_approval(orchestrator: Orchestrator) -> str:
    more: dict[str, Any]
    if orchestrator.generation == "typed":
        more = {"confidence_str": "0.72", "decision": "Pending", "reason": "confidence below 0.8"}
    else:
        more = {"confidence_score": 0.72, "approval_reason": "confidence below 0.8"}
    payload = RAR | {"required_by": "2026-01-31T12:30:00Z", "workflow_id": "restart-deployment"} | more
    return orchestrator.post("orchestrator.approval.requested", "pending", payload)


def test_approval_requested(orchestrator: Orchestrator) -> None:
    """A requested approval is not found beside its transition, or not alone by its type."""
    orchestrator.enter("AwaitingApproval", from_phase="Analyzing")
    event_id = request_approval(orchestrator)
    assert orchestrator.types() == ["orchestrator.approval.requested", orchestrator.transitioned]
    [event] = orchestrator.find(event_type="orchestrator.approval.requested")
    assert (event["event_id"], event["event_outcome"]) == (event_id, "pending")
    assert event["event_data"]["rar_name"] == RAR["rar_name"]


@pytest.mark.parametrize(("decision", "outcome"), [("Approved", "success"), ("Rejected", "failure")])
def test_approval_decided(orchestrator: Orchestrator, decision: str, outcome: str) -> None:
    """A decided approval is not found beside its transition, or not alone by its type, or lacks who decided."""
    word = decision.lower()
    key = f"{word}_by" if orchestrator.generation == "typed" else "decided_by"
    payload = RAR | {"decision": decision, key: "ada@example.com"}
    user = {"actor_type": "user", "actor_id": "ada@example.com"}
    orchestrator.enter("AwaitingApproval", from_phase="Analyzing")
    request_approval(orchestrator)
    event_id = orchestrator.post(f"orchestrator.approval.{word}", outcome, payload, **user)
    assert orchestrator.types() == [
        f"orchestrator.approval.{word}",
        "orchestrator.approval.requested",
        orchestrator.transitioned,
    ]
    [event] = orchestrator.find(event_type=f"orchestrator.approval.{word}")
    assert (event["event_id"], event["event_outcome"]) == (event_id, outcome)
    assert (event["actor_type"], event["actor_id"]) == ("user", "ada@example.com")
    assert event["event_data"][key] == "ada@example.com"


def test_global_timeout(orchestrator: Orchestrator) -> None:
    """A global timeout is not found as a completed life with outcome failure, or without its fields."""
    fields: dict[str, Any] = {"duration_ms": 3_600_000}
    if orchestrator.generation == "typed":
        fields |= {"outcome": "Failed", "failure_reason": "Timeout", "failure_phase": "WorkflowExecution"}
    else:
        fields |= {"outcome": "failure", "timeout_type": "global", "failure_phase": "Executing"}
    orchestrator.start()
    orchestrator.enter("Executing", from_phase="Analyzing")
    orchestrator.post("orchestrator.lifecycle.completed", "failure", NAMES | fields, duration_ms=3_600_000)
    [event] = orchestrator.find(event_type="orchestrator.lifecycle.completed", event_outcome="failure")
    assert event["event_data"].items() >= fields.items()
    assert event["duration_ms"] == 3_600_000
    assert orchestrator.find(event_type="orchestrator.lifecycle.completed", event_outcome="success") == []


def test_blocked_routing(orchestrator: Orchestrator) -> None:
    """A blocked routing is not found with outcome pending."""
    reason = "reason" if orchestrator.generation == "typed" else "block_reason"
    names = NAMES if orchestrator.generation == "typed" else {}
    payload = names | {"from_phase": "Pending", "to_phase": "Blocked", reason: "ResourceBusy"}
    orchestrator.start()
    event_id = orchestrator.post("orchestrator.routing.blocked", "pending", payload)
    [event] = orchestrator.find(event_type="orchestrator.routing.blocked", event_outcome="pending")
    assert event["event_id"] == event_id
    assert event["event_data"][reason] == "ResourceBusy"


def test_started_life_comes_first(orchestrator: Orchestrator) -> None:
    """The start of a life does not come before what followed, or is not first in the chain."""
    orchestrator.start()
    orchestrator.enter("Processing", from_phase="Pending")
    request_approval(orchestrator)
    *_, transition, start = orchestrator.find()  # newest first
    assert start["event_type"] == "orchestrator.lifecycle.started"
    assert start["event_timestamp"] < transition["event_timestamp"]
    assert start["previous_event_hash"] == ""
    assert transition["previous_event_hash"] == start["event_hash"]


def simulate(*arguments: str, directory: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "app", "simulate", *arguments]
    env = {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=directory, env=env, capture_output=True, text=True, timeout=SECONDS, check=False)


def test_simulate(client: httpx.Client, tmp_path: Path) -> None:
    """The demonstration fails, or its table does not add up to what the service has stored."""
    done = simulate("--remediations", "10", "--seed", "7", "--url", str(client.base_url), directory=tmp_path)
    assert done.returncode == 0, done.stderr
    head, *rows, total = [line.split() for line in done.stdout.splitlines()]
    assert head == ["event", "type", "sent", "acknowledged", "refused", "found", "missing"]
    columns = [[int(cell) for cell in row[1:]] for row in rows]
    assert [sum(column) for column in zip(*columns, strict=True)] == [int(cell) for cell in total[1:]]
    stored = client.get(EVENTS, params={"limit": 1}).json()["pagination"]["total"]
    assert [int(cell) for cell in total[1:]] == [stored, stored, 0, stored, 0]
    assert stored > 10 * 3


def test_simulate_tells_of_refusals(service: Callable[..., Service], tmp_path: Path) -> None:
    """Refused events are reported as success."""
    url = service(batch_events_max=2).url
    done = simulate("--remediations", "10", "--url", url, directory=tmp_path)
    assert done.returncode == 1
    sent, acknowledged, refused, found, missing = (int(cell) for cell in done.stdout.splitlines()[-1].split()[1:])
    assert (sent - refused, found, missing) == (acknowledged, acknowledged, 0)
    assert refused > 2
    assert "batch size" in done.stderr


def test_simulate_without_a_service(tmp_path: Path) -> None:
    """A user who has not started a service gets a traceback, or success."""
    done = simulate("--url", f"http://127.0.0.1:{free_port()}", directory=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "make run" in done.stderr
    assert len(done.stderr.splitlines()) == 1
