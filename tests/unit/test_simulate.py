"""Lives that `datastorage simulate` plays: each event would be accepted, and every kind of life occurs."""

from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from app.events.catalog import Catalog
from app.events.catalog.freeform import FREEFORM
from app.events.envelope import out_of_window
from app.ingest.accept import check_item
from app.simulate.lives import GLOBAL_TIMEOUT_SECONDS, lives

CATALOG = Catalog()
AROUND = {
    *("gateway.signal.received", "orchestrator.lifecycle.created", "aianalysis.analysis.completed"),
    *("workflowexecution.selection.completed", "remediation.workflow_created", "workflowexecution.execution.started"),
    *("effectiveness.health.assessed", "effectiveness.alert.assessed", "effectiveness.metrics.assessed"),
    *("effectiveness.hash.computed", "effectiveness.assessment.completed"),
}
NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


def played(seed: int = 7, remediations: int = 200) -> list[list[dict[str, Any]]]:
    return list(lives(seed, remediations, NOW, "sim"))


def typed(life: list[dict[str, Any]]) -> bool:
    return "event_type" in life[0]["event_data"]


def led(life: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the orchestrator tells of a life, without those who only take part in it."""
    parts = ("orchestrator.lifecycle.", "orchestrator.phase.", "orchestrator.approval.", "orchestrator.routing.")
    return [event for event in life if event["event_type"].startswith(parts)]


def last(event_type: str, outcome: str) -> list[dict[str, Any]]:
    """The last events of lives that end so."""
    ends = [led(life)[-1] for life in played()]
    return [end for end in ends if (end["event_type"], end["event_outcome"]) == (event_type, outcome)]


def test_every_event_would_be_accepted() -> None:
    """The simulator posts what the service refuses."""
    events = [event for life in played() for event in life]
    assert len(events) > 200 * 3
    for event in events:
        checked = check_item(CATALOG, event, "", plain=False, depth=3)
        assert out_of_window(checked.timestamp, NOW, "") is None


def test_same_seed_same_lives() -> None:
    """A run cannot be repeated, or every seed plays the same."""
    assert played(seed=7) == played(seed=7)
    assert played(seed=7) != played(seed=8)


def test_prefix_of_a_run_separates_it() -> None:
    """Two runs write to the same correlations, or two lives of one run do."""
    correlations = [{event["correlation_id"] for event in life} for life in lives(1, 50, NOW, "run-a")]
    assert {len(ids) for ids in correlations} == {1}
    assert len(set.union(*correlations)) == 50
    assert all(ids.pop().startswith("run-a-") for ids in correlations)


def test_time_goes_on_in_a_life() -> None:
    """A life is not in the order in which its events are found."""
    for life in played():
        moments = [event["event_timestamp"] for event in life]
        assert moments == sorted(set(moments))


@pytest.mark.parametrize("is_typed", [True, False])
def test_every_kind_of_event_occurs(is_typed: bool) -> None:
    """A generation lacks a scene of the orchestrator's life."""
    kinds = {(e["event_type"], e["event_outcome"]) for life in played() if typed(life) == is_typed for e in life}
    assert kinds == {
        ("orchestrator.lifecycle.started", "pending"),
        ("orchestrator.lifecycle.transitioned" if is_typed else "orchestrator.phase.transitioned", "success"),
        ("orchestrator.routing.blocked", "pending"),
        ("orchestrator.approval.requested", "pending"),
        ("orchestrator.approval.approved", "success"),
        ("orchestrator.approval.rejected", "failure"),
        ("orchestrator.lifecycle.completed", "success"),
        ("orchestrator.lifecycle.completed", "failure"),
    } | ({("orchestrator.lifecycle.failed", "failure")} | {(name, "success") for name in AROUND} if is_typed else set())


def test_ten_lives_show_every_end() -> None:
    """A short demonstration lacks an end."""
    ends = Counter((led(life)[-1]["event_type"], led(life)[-1]["event_outcome"]) for life in played(remediations=10))
    assert ends["orchestrator.lifecycle.completed", "success"] == 5
    assert ends["orchestrator.routing.blocked", "pending"] == 1
    failed = ends["orchestrator.lifecycle.completed", "failure"] + ends["orchestrator.lifecycle.failed", "failure"]
    assert failed == 4


def test_timeouts_tell_scope_phase_and_duration() -> None:
    """A timeout cannot be told from another failure, or not where it happened."""
    payloads = [end["event_data"] for end in last("orchestrator.lifecycle.completed", "failure")]
    timeouts = [payload for payload in payloads if payload["failure_reason"] == "Timeout"]
    freeform = [payload for payload in timeouts if "event_type" not in payload]
    assert {payload["timeout_type"] for payload in freeform} == {"global", "phase"}
    assert {payload["failure_phase"] for payload in freeform} >= {"Processing", "Analyzing", "Executing"}
    for payload in freeform:
        long = payload["duration_ms"] >= GLOBAL_TIMEOUT_SECONDS * 1000
        assert long == (payload["timeout_type"] == "global")
    assert {payload["outcome"] for payload in timeouts if "event_type" in payload} == {"Failed"}


def test_deciding_user_is_the_actor() -> None:
    """Who decided an approval is not on record."""
    decisions = [e for life in played() for e in life if e["event_type"].endswith((".approved", ".rejected"))]
    for event in decisions:
        payload = event["event_data"]
        user = payload.get("decided_by") or payload.get("approved_by") or payload["rejected_by"]
        assert (event["actor_type"], event["actor_id"]) == ("user", user)


def test_freeform_blocking_has_the_observed_keys() -> None:
    """A blocked routing of December 2025 looks different from what was seen."""
    payloads = [end["event_data"] for end in last("orchestrator.routing.blocked", "pending")]
    freeform = [set(payload) for payload in payloads if "event_type" not in payload]
    assert freeform
    assert all(keys == set(FREEFORM["orchestrator.routing.blocked"]) for keys in freeform)


def test_some_are_late_and_some_ahead() -> None:
    """Nothing tries the window of times that the service accepts."""
    ends = [datetime.fromisoformat(life[-1]["event_timestamp"]) - NOW for life in played()]
    assert min(ends) < -timedelta(days=5)
    assert max(ends) > timedelta(minutes=40)
