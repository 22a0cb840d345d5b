"""What an agent reads before it acts: docs/contract.md, section 17, case by case, on rows that were inserted by SQL."""

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from tests.services import Service
from tests.story import AFTER, BEFORE, INSERT, TARGET, make_row, make_story

PATH = "/api/v1/remediation-history/context"
ASKED = {"targetKind": "Deployment", "targetName": "api", "targetNamespace": "payments", "currentSpecHash": "now"}
HOUR, DAY = timedelta(hours=1), timedelta(days=1)


@pytest.fixture
def client(service: Callable[..., Service]) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=service().url, timeout=30) as client:
        yield client


def get(client: httpx.Client, **parameters: str) -> httpx.Response:
    return client.get(PATH, params=ASKED | parameters)


def ask(client: httpx.Client, **parameters: str) -> dict[str, Any]:
    answer = get(client, **parameters)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


async def insert(connection: Any, *rows: dict[str, Any]) -> None:
    """Rows without hashes and payloads without event_type, as upstream's own test writes them."""
    await connection.execute(INSERT, json.dumps(rows))


def created(correlation_id: str, age: timedelta, before: Any = "now", **members: Any) -> dict[str, Any]:
    payload = {"target_resource": TARGET, "pre_remediation_spec_hash": before, "outcome": "Success"}
    payload |= members.pop("payload", {})
    time = datetime.now(UTC) - age
    return make_row(correlation_id, "remediation.workflow_created", "orchestration", payload, time, **members)


def assessed(correlation_id: str, kind: str, payload: Any, age: timedelta = HOUR) -> dict[str, Any]:
    time = datetime.now(UTC) - age
    return make_row(correlation_id, f"effectiveness.{kind}", "effectiveness", payload, time)


def test_whole_story(client: httpx.Client) -> None:
    """A remediation that was posted and assessed is shown without something that was recorded, or not by the names that its readers use."""
    start = datetime.now(UTC) - HOUR
    client.post("/api/v1/audit/events/batch", json=make_story("rr-1", start)).raise_for_status()
    found = ask(client, currentSpecHash=AFTER)
    [entry] = found["tier1"].pop("chain")
    assert entry.pop("effectivenessScore") == pytest.approx(0.9)
    assert entry == {
        "remediationUID": "rr-1",
        "completedAt": f"{start + timedelta(seconds=8):%Y-%m-%dT%H:%M:%SZ}",
        "signalType": "alert",
        "signalFingerprint": "9c1b6f0e",
        "actionType": "RestartDeployment",
        "outcome": "Success",
        "assessmentReason": "Full",
        "preRemediationSpecHash": BEFORE,
        "postRemediationSpecHash": AFTER,
        "signalResolved": True,
        "healthChecks": {"podRunning": True, "restartDelta": 0, "oomKilled": False},
        "metricDeltas": {"cpuBefore": 0.9, "cpuAfter": 0.5, "latencyP95BeforeMs": 120},
        "sideEffects": [],
        "hashMatch": "postRemediation",
    }
    assert found == {
        "targetResource": TARGET,
        "currentSpecHash": AFTER,
        "regressionDetected": False,
        "tier1": {"window": "24h0m0s"},
        "tier2": {"window": "2160h0m0s", "chain": []},
    }


async def test_far_tier_tells_less(client: httpx.Client, connection: Any) -> None:
    """An old remediation is missing, tells of what only near ones tell, or a regression in it goes unnoticed."""
    await insert(
        connection,
        created("rr-far", 3 * DAY, payload={"signal_type": "alert", "action_type": "Scale", "signal_fingerprint": "f"}),
        assessed("rr-far", "health.assessed", {"assessed": True, "score": 0.5, "health_checks": {"pod_running": True}}),
        assessed("rr-far", "alert.assessed", {"alert_resolution": {"alert_resolved": False}}, 2 * HOUR),
        assessed("rr-far", "alert.assessed", {"alert_resolution": {"alert_resolved": True}}),
        assessed("rr-far", "hash.computed", {"post_remediation_spec_hash": "other"}),
        assessed("rr-far", "assessment.completed", {"reason": "Partial"}),
    )
    found = ask(client)
    assert (found["tier1"]["chain"], found["regressionDetected"]) == ([], True)
    [entry] = found["tier2"]["chain"]
    assert entry.pop("completedAt").endswith("Z")
    assert entry == {
        "remediationUID": "rr-far",
        "signalType": "alert",
        "actionType": "Scale",
        "outcome": "Success",
        "effectivenessScore": 0.5,
        "signalResolved": False,
        "hashMatch": "preRemediation",
        "assessmentReason": "Partial",
    }


async def test_which_remediations_belong(client: httpx.Client, connection: Any) -> None:
    """Another target, cluster, time, type or state of the resource is shown as this one's history."""
    await insert(
        connection,
        created("before", 2 * HOUR),
        created("after", HOUR, before="older"),
        assessed("after", "hash.computed", {"post_remediation_spec_hash": "now"}),
        created("drifted", 3 * HOUR, before="older"),
        assessed("drifted", "hash.computed", {"post_remediation_spec_hash": "now"}, 2 * HOUR),
        assessed("drifted", "hash.computed", {"post_remediation_spec_hash": "else"}),
        created("unrelated state", HOUR, before="older"),
        assessed("unrelated state", "hash.computed", {"post_remediation_spec_hash": "else"}),
        created("other cluster", HOUR, cluster_id="c2"),
        created("no cluster", HOUR, cluster_id=None),
        created("other target", HOUR, payload={"target_resource": TARGET + "x"}),
        created("too old", 100 * DAY),
        created("ahead", -HOUR),
        created("other type", HOUR) | {"event_type": "remediation.workflow_created.x"},
    )
    found = ask(client, clusterId="prod-eu-1")
    matches = [(entry["remediationUID"], entry["hashMatch"]) for entry in found["tier1"]["chain"]]
    assert matches == [("drifted", "none"), ("before", "preRemediation"), ("after", "postRemediation")]
    assert found["tier2"]["chain"] == []
    everywhere = {entry["remediationUID"] for entry in ask(client)["tier1"]["chain"]}
    assert everywhere == {"before", "after", "drifted", "other cluster", "no cluster"}


async def test_tiers_meet_without_overlap(client: httpx.Client, connection: Any) -> None:
    """A remediation stands in both tiers, or in none; or one day is not 24 hours."""
    await insert(connection, *(created(f"rr-{hours}", hours * HOUR) for hours in (1, 23, 25, 167, 169)))
    found = ask(client, tier1Window="1d", tier2Window="7d")
    chains = [[entry["remediationUID"] for entry in found[tier]["chain"]] for tier in ("tier1", "tier2")]
    assert chains == [["rr-23", "rr-1"], ["rr-167", "rr-25"]]
    assert (found["tier1"]["window"], found["tier2"]["window"]) == ("24h0m0s", "168h0m0s")
    assert ask(client, tier1Window="90m", tier2Window="1.5h1m")["tier1"]["window"] == "1h30m0s"


async def test_odd_rows(client: httpx.Client, connection: Any) -> None:
    """A payload that is not as expected stops the answer, or gets into it in a form that its readers fail on."""
    deltas = {"cpu_before": "0.5", "cpu_after": 1e300, "memory_before": True, "memory_after": None}
    checks = {"pod_running": 1, "restart_delta": 1.5, "crash_loops": None, "pending_count": 2.0, "total_replicas": 3}
    await insert(
        connection,
        created("rr-1", HOUR, payload={"signal_type": 7, "outcome": None, "action_type": {"a": 1}}),
        assessed("rr-1", "metrics.assessed", {"metric_deltas": deltas}),
        assessed("rr-1", "health.assessed", {"health_checks": checks}),
        assessed("rr-1", "alert.assessed", {"alert_resolution": {"alert_resolved": "yes"}}, 2 * HOUR),
        assessed("rr-1", "alert.assessed", []),
        assessed("rr-1", "assessment.completed", {"reason": "NoIdea"}),
        created("rr-2", HOUR, before=7, payload={"target_resource": TARGET}),
    )
    [entry] = ask(client)["tier1"]["chain"]
    del entry["completedAt"]
    assert entry == {
        "remediationUID": "rr-1",
        "preRemediationSpecHash": "now",
        "healthChecks": {"pendingCount": 2},
        "metricDeltas": {"cpuAfter": 1e300},
        "sideEffects": [],
        "hashMatch": "preRemediation",
    }


async def test_resource_without_namespace(client: httpx.Client, connection: Any) -> None:
    """A node has no history, since it has no namespace."""
    await insert(connection, created("rr-1", HOUR, payload={"target_resource": "/Node/worker-1"}))
    found = ask(client, targetKind="Node", targetName="worker-1", targetNamespace="")
    assert found["targetResource"] == "/Node/worker-1"
    assert [entry["remediationUID"] for entry in found["tier1"]["chain"]] == ["rr-1"]


def test_parameters(client: httpx.Client) -> None:
    """A bad question is answered as if it were a good one, or with another problem than its askers know."""
    for name in ASKED:
        answer = client.get(PATH, params={key: value for key, value in ASKED.items() if key != name})
        assert (answer.status_code, answer.json()["title"]) == (400, "Validation Error")
        assert name in answer.json()["detail"]
    for name in ("targetKind", "targetName", "currentSpecHash"):
        answer = client.get(PATH, params=ASKED | {name: ""})
        assert (answer.status_code, answer.json()["title"]) == (400, "Missing Required Parameter")
        assert answer.json()["type"] == "https://kubernaut.ai/problems/missing-parameter"
    windows = [("tier1Window", bad) for bad in ("0s", "-1h", "1 day", "1w", "24", "100000000d", "2160h", "1d12h")]
    for name, bad in [*windows, ("tier2Window", "24h"), ("tier2Window", "1h"), ("tier2Window", "x")]:
        answer = client.get(PATH, params=ASKED | {name: bad})
        assert (answer.status_code, answer.json()["title"]) == (400, "Invalid Parameter"), bad
        assert answer.json()["type"] == "https://kubernaut.ai/problems/invalid-parameter"
    assert client.get(PATH, params=ASKED | {"clusterId": "\0"}).status_code == 400
    assert client.get(PATH, params=ASKED | {"tier1Window": "", "clusterId": ""}).status_code == 200


@pytest.mark.damaged
async def test_failure_is_an_error(client: httpx.Client, connection: Any) -> None:
    """A tier that cannot be read looks like a resource that was never touched."""
    await connection.execute("ALTER TABLE audit_events RENAME COLUMN cluster_id TO gone")
    answer = get(client)
    assert (answer.status_code, answer.json()["type"]) == (500, "https://kubernaut.ai/problems/query-error")
    assert "cluster_id" not in answer.text
