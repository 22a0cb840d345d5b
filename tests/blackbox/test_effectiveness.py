"""Whether a remediation worked, asked over HTTP: docs/contract.md, section 16, case by case."""

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from tests.services import Service
from tests.story import AFTER, BEFORE, INSERT, make_row, make_story


@pytest.fixture
def client(service: Callable[..., Service]) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=service().url, timeout=30) as client:
        yield client


async def insert(connection: Any, *assessments: tuple[str, Any]) -> None:
    """Assessments by their kind and payload, a second apart."""
    start = datetime.now(UTC) - timedelta(minutes=5)
    rows = [
        make_row("rr-1", f"effectiveness.{kind}", "effectiveness", payload, start + timedelta(seconds=second))
        for second, (kind, payload) in enumerate(assessments)
    ]
    await connection.execute(INSERT, json.dumps(rows))


def get(client: httpx.Client) -> httpx.Response:
    return client.get("/api/v1/effectiveness/rr-1")


def ask(client: httpx.Client) -> dict[str, Any]:
    answer = get(client)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def test_whole_story(client: httpx.Client) -> None:
    """The score of a remediation that was assessed in full is not what its parts weigh, or a member is missing."""
    client.post("/api/v1/audit/events/batch", json=make_story("rr-1")).raise_for_status()
    found = ask(client)
    assert abs(datetime.fromisoformat(found.pop("computed_at")) - datetime.now(UTC)) < timedelta(minutes=1)
    assert found.pop("score") == pytest.approx(0.9)
    assert found == {
        "correlation_id": "rr-1",
        "components": {
            "health_assessed": True,
            "health_score": 1.0,
            "health_details": "all pods run",
            "alert_assessed": True,
            "alert_score": 1.0,
            "metrics_assessed": True,
            "metrics_score": 0.6,
        },
        "hash_comparison": {
            "pre_remediation_spec_hash": BEFORE,
            "post_remediation_spec_hash": AFTER,
            "hash_match": False,
        },
        "assessment_status": "Full",
    }


async def test_nothing_known(client: httpx.Client, connection: Any) -> None:
    """An assessment that was only planned has a score, hides members that are always there, or cannot be distinguished from none."""
    answer = get(client)
    problem = answer.json()
    assert (answer.status_code, answer.headers["content-type"]) == (404, "application/problem+json")
    assert problem["type"] == "https://kubernaut.ai/problems/effectiveness/not-found"
    assert problem["title"] == "Effectiveness Assessment Not Found"
    assert problem["instance"] == "/api/v1/effectiveness/rr-1"
    await insert(connection, ("assessment.scheduled", {}))
    found = ask(client)
    assert found["sealed"] is False  # somebody inserted it by SQL
    assert (found["score"], found["hash_comparison"], found["assessment_status"]) == (None, {}, "no_data")
    assert found["components"] == {
        "health_assessed": False,
        "health_score": None,
        "alert_assessed": False,
        "alert_score": None,
        "metrics_assessed": False,
        "metrics_score": None,
    }


@pytest.mark.parametrize(
    ("assessments", "score", "status"),
    [
        ([("health.assessed", {"assessed": True, "score": 0.5})], 0.5, "in_progress"),
        ([("health.assessed", {"assessed": True})], None, "in_progress"),
        ([("health.assessed", {"assessed": False, "score": 0.5})], None, "no_data"),
        ([("health.assessed", {"assessed": "true", "score": 0.5})], None, "no_data"),
        ([("health.assessed", {"assessed": True, "score": "0.5"})], None, "in_progress"),
        ([("health.assessed", {"assessed": True, "score": 7}), ("alert.assessed", {"assessed": True, "score": -7})],
         0.4 / 0.75, "in_progress"),
        ([("health.assessed", {"assessed": True, "score": 1}), ("metrics.assessed", {"assessed": True, "score": 0})],
         0.4 / 0.65, "in_progress"),
        ([("health.assessed", {"assessed": True, "score": 1}), ("health.assessed", {"assessed": True, "score": 0.25})],
         0.25, "in_progress"),
        ([("metrics.assessed", {"assessed": True, "score": 1}), ("assessment.completed", {"reason": "Expired"})],
         1, "Expired"),
        ([("assessment.completed", {"reason": "SpecDrift"}), ("assessment.completed", {"reason": "Full"}),
          ("health.assessed", {"assessed": True, "score": 1})], 0, "SpecDrift"),
        ([("assessment.completed", {"reason": "Full"}), ("assessment.completed", {"reason": "Partial"})], None, "Partial"),
        ([("assessment.completed", {"reason": "NoIdea"})], None, "Partial"),
        ([("assessment.completed", {"reason": 7})], None, "no_data"),
        ([("health.assessed", []), ("health.assessed", "x"), ("alert_decay.detected", {"assessed": True})], None, "no_data"),
        ([("hash.computed", {"hash_match": "yes", "pre_remediation_spec_hash": 1})], None, "no_data"),
    ],
)  # fmt: skip
async def test_cases(
    client: httpx.Client, connection: Any, assessments: list[Any], score: float | None, status: str
) -> None:
    """A score or status is not what the rows say; or a row that others wrote stops the answer."""
    await insert(connection, *assessments)
    found = ask(client)
    assert found["score"] == (None if score is None else pytest.approx(score))
    assert (found["assessment_status"], found["hash_comparison"]) == (status, {})


async def test_hashes_as_far_as_known(client: httpx.Client, connection: Any) -> None:
    """A hash match of false is left out, an unknown hash is shown empty, or an earlier one counts."""
    await insert(
        connection,
        ("hash.computed", {"post_remediation_spec_hash": "a", "hash_match": True}),
        ("hash.computed", {"post_remediation_spec_hash": "b", "hash_match": False, "pre_remediation_spec_hash": ""}),
    )
    assert ask(client)["hash_comparison"] == {"post_remediation_spec_hash": "b", "hash_match": False}
