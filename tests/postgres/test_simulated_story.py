"""What the simulator plays can be rebuilt, scored and listed as history; the literals here were worked out by hand."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
import yaml

from app.simulate.orchestrator import simulate_remediations
from tests.services import Service

BATCH = "/api/v1/audit/events/batch"
SEED, PLAYED = 14, 41

# health, alert, metrics and the reason that each was closed with; the score is their mean by 0.40, 0.35 and 0.25.
SCORES = {
    "sim-000009": (1.0, "MetricsTimedOut"),  # 1, 1, none: (0.40 + 0.35) / 0.75
    "sim-000010": (0.60, "Full"),  # 0, 1, 1: 0.35 + 0.25
    "sim-000014": (0.2667, "MetricsTimedOut"),  # 0.5, 0, none: 0.20 / 0.75
    "sim-000019": (0.55, "Full"),  # 0, 1, 0.8: 0.35 + 0.20
    "sim-000021": (0.0, "SpecDrift"),  # 1, 0, none, but the spec has drifted
    "sim-000024": (1.0, "MetricsTimedOut"),  # 1, 1, none
    "sim-000028": (0.7333, "MetricsTimedOut"),  # 0.5, 1, none: 0.55 / 0.75
    "sim-000034": (0.95, "Full"),  # 1, 1, 0.8: 0.40 + 0.35 + 0.20
    "sim-000036": (0.80, "Full"),  # 0.5, 1, 1: 0.20 + 0.35 + 0.25
    "sim-000040": (0.25, "Full"),  # 0, 0, 1
}
# Target and its spec now: what was done near, what far. 21 and 34 are dated by clocks that are ahead: not yet history.
HISTORY = {
    ("ledger", "api", 2): (
        [("sim-000014", "IncreaseMemoryLimits", "postRemediation"), ("sim-000009", "RollbackRelease", "postRemediation")],
        [],
    ),
    ("ledger", "api", 1): ([("sim-000009", "RollbackRelease", "preRemediation")], []),
    ("payments", "gateway", 2): ([("sim-000010", "CleanVolume", "postRemediation")], []),
    ("payments", "worker", 1): ([], [("sim-000019", "CleanVolume", "preRemediation")]),
    ("payments", "api", 1): ([("sim-000024", "IncreaseMemoryLimits", "preRemediation")], []),
    ("search", "worker", 3): ([("sim-000028", "RollbackRelease", "postRemediation")], []),
    ("search", "gateway", 1): ([("sim-000036", "RestartDeployment", "postRemediation")], []),
    ("ledger", "gateway", 1): ([("sim-000040", "RestartDeployment", "postRemediation")], []),
    ("ledger", "gateway", 2): ([], []),
}  # fmt: skip


@pytest.fixture
def client(service: Callable[..., Service]) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=service().url, timeout=30) as client:
        yield client


def played() -> dict[str, list[dict[str, Any]]]:
    return {life[0]["correlation_id"]: life for life in simulate_remediations(SEED, PLAYED, datetime.now(UTC), "sim")}


def is_assessed(life: list[dict[str, Any]]) -> bool:
    return str(life[-1]["event_type"]) == "effectiveness.assessment.completed"


def test_effectiveness_and_history(client: httpx.Client) -> None:
    """A simulated remediation has another score, or another place in the history of its target, than worked out by hand."""
    lives_by_id = {name: life for name, life in played().items() if is_assessed(life)}
    assert list(lives_by_id) == list(SCORES)
    client.post(BATCH, json=[event for life in lives_by_id.values() for event in life]).raise_for_status()
    for name, (score, status) in SCORES.items():
        found = client.get(f"/api/v1/effectiveness/{name}").json()
        assert (found["score"], found["assessment_status"]) == (pytest.approx(score, abs=0.0001), status), name
    for (namespace, target, spec), expected in HISTORY.items():
        asked = {"targetKind": "Deployment", "targetName": target, "targetNamespace": namespace}
        answer = client.get(
            "/api/v1/remediation-history/context", params=asked | {"currentSpecHash": f"sha256:spec-{spec}"}
        )
        chains = [answer.json()[tier]["chain"] for tier in ("tier1", "tier2")]
        shown = tuple([(e["remediationUID"], e["actionType"], e["hashMatch"]) for e in chain] for chain in chains)
        assert shown == expected, (namespace, target, spec)
        assert answer.json()["regressionDetected"] == ("preRemediation" in str(expected))
        for entry in chains[0] + chains[1]:
            score, reason = SCORES[entry["remediationUID"]]
            assert entry["effectivenessScore"] == pytest.approx(score, abs=0.0001)
            assert entry["assessmentReason"] == reason


def test_reconstruction(client: httpx.Client) -> None:
    """No simulated remediation can be rebuilt whole, none is in part, or one in part does not say what it lacks."""
    lives_by_id = played()
    client.post(BATCH, json=[event for life in lives_by_id.values() for event in life]).raise_for_status()
    lacking = set()
    for name, life in lives_by_id.items():
        answer = client.get(f"/api/v1/audit/remediation-requests/{name}/reconstruct")
        if "event_type" not in life[0]["event_data"]:  # nobody reported the alert
            assert answer.json()["type"].endswith(("/missing-gateway-event", "/correlation-not-found"))
            continue
        validation = answer.json()["validation"]
        warned = tuple(warning.partition(" ")[0] for warning in validation["warnings"])
        assert (validation["is_valid"], validation["completeness"]) == (True, 100 * (9 - len(warned)) // 9)
        assert name in yaml.safe_load(answer.json()["remediation_request_yaml"])["metadata"]["name"]
        assert not (is_assessed(life) and warned)
        lacking.add(warned)
    assert lacking == {
        (),
        ("selectedWorkflowRef", "executionRef"),
        ("providerData", "selectedWorkflowRef", "executionRef"),
    }
