"""Remediations that `datastorage simulate` makes: each event would be accepted, and every kind of remediation occurs."""

from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from app.events.catalog import Catalog
from app.events.catalog.freeform import FREEFORM
from app.events.envelope import time_window_error
from app.ingest.accept import check_item
from app.simulate.orchestrator import GLOBAL_TIMEOUT_SECONDS, simulate_remediations

CATALOG = Catalog()
OTHER_CONTROLLERS = {
    *("gateway.signal.received", "orchestrator.lifecycle.created", "aianalysis.analysis.completed"),
    *("workflowexecution.selection.completed", "remediation.workflow_created", "workflowexecution.execution.started"),
    *("effectiveness.health.assessed", "effectiveness.alert.assessed", "effectiveness.metrics.assessed"),
    *("effectiveness.hash.computed", "effectiveness.assessment.completed"),
}
NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


def simulated(seed: int = 7, remediations: int = 200) -> list[list[dict[str, Any]]]:
    return list(simulate_remediations(seed, remediations, NOW, "sim"))


def typed(remediation: list[dict[str, Any]]) -> bool:
    return "event_type" in remediation[0]["event_data"]


def of_orchestrator(remediation: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The events of the orchestrator about a remediation, without those of other controllers."""
    parts = ("orchestrator.lifecycle.", "orchestrator.phase.", "orchestrator.approval.", "orchestrator.routing.")
    return [event for event in remediation if event["event_type"].startswith(parts)]


def last(event_type: str, outcome: str) -> list[dict[str, Any]]:
    """The last events of remediations that end with this event."""
    ends = [of_orchestrator(remediation)[-1] for remediation in simulated()]
    return [end for end in ends if (end["event_type"], end["event_outcome"]) == (event_type, outcome)]


def test_every_event_would_be_accepted() -> None:
    """The simulator posts what the service refuses."""
    events = [event for remediation in simulated() for event in remediation]
    assert len(events) > 200 * 3
    for event in events:
        checked = check_item(CATALOG, event, "", plain=False, depth=3)
        assert checked.timestamp is not None
        assert time_window_error(checked.timestamp, NOW, "") is None


def test_same_seed_same_remediations() -> None:
    """A run cannot be repeated, or every seed makes the same."""
    assert simulated(seed=7) == simulated(seed=7)
    assert simulated(seed=7) != simulated(seed=8)


def test_prefix_of_a_run_separates_it() -> None:
    """Two runs write to the same correlations, or two remediations of one run do."""
    correlations = [
        {event["correlation_id"] for event in remediation} for remediation in simulate_remediations(1, 50, NOW, "run-a")
    ]
    assert {len(ids) for ids in correlations} == {1}
    assert len(set.union(*correlations)) == 50
    assert all(ids.pop().startswith("run-a-") for ids in correlations)


def test_time_goes_on_in_a_remediation() -> None:
    """The events of a remediation are not in the order of their times."""
    for remediation in simulated():
        times = [event["event_timestamp"] for event in remediation]
        assert times == sorted(set(times))


@pytest.mark.parametrize("is_typed", [True, False])
def test_every_kind_of_event_occurs(is_typed: bool) -> None:
    """A generation lacks an event of the orchestrator."""
    kinds = {
        (e["event_type"], e["event_outcome"])
        for remediation in simulated()
        if typed(remediation) == is_typed
        for e in remediation
    }
    assert kinds == {
        ("orchestrator.lifecycle.started", "pending"),
        ("orchestrator.lifecycle.transitioned" if is_typed else "orchestrator.phase.transitioned", "success"),
        ("orchestrator.routing.blocked", "pending"),
        ("orchestrator.approval.requested", "pending"),
        ("orchestrator.approval.approved", "success"),
        ("orchestrator.approval.rejected", "failure"),
        ("orchestrator.lifecycle.completed", "success"),
        ("orchestrator.lifecycle.completed", "failure"),
    } | (
        {("orchestrator.lifecycle.failed", "failure")} | {(name, "success") for name in OTHER_CONTROLLERS}
        if is_typed
        else set()
    )


def test_ten_remediations_show_every_end() -> None:
    """A short demonstration lacks an end."""
    ends = Counter(
        (of_orchestrator(remediation)[-1]["event_type"], of_orchestrator(remediation)[-1]["event_outcome"])
        for remediation in simulated(remediations=10)
    )
    assert ends["orchestrator.lifecycle.completed", "success"] == 5
    assert ends["orchestrator.routing.blocked", "pending"] == 1
    failed = ends["orchestrator.lifecycle.completed", "failure"] + ends["orchestrator.lifecycle.failed", "failure"]
    assert failed == 4


def test_timeouts_have_scope_phase_and_duration() -> None:
    """A timeout cannot be distinguished from another failure, or its phase is unknown."""
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
    decisions = [
        e for remediation in simulated() for e in remediation if e["event_type"].endswith((".approved", ".rejected"))
    ]
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
    ends = [datetime.fromisoformat(remediation[-1]["event_timestamp"]) - NOW for remediation in simulated()]
    assert min(ends) < -timedelta(days=5)
    assert max(ends) > timedelta(minutes=40)
