"""What is computed of remediations, without a database: no payload and no gap in the events stops it."""

import json
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from app.errors import AuditError
from app.events.canonical import loads
from app.go_duration import duration_text, parse_duration, parse_window
from app.query.effectiveness import WEIGHTS, Effectiveness, answer
from app.query.reconstruct import (
    IncompleteEvents,
    MissingGatewayEvent,
    NoEvents,
    NoParseableEvents,
    Unreadable,
    reconstruct,
)
from app.query.remediation_history import Assessments
from app.query.timeline import decisions, phases
from tests.story import make_story

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
STORY = make_story("rr-1", NOW - timedelta(hours=1))
READ = ("gateway.", "aianalysis.", "workflowexecution.", "orchestrator.lifecycle.c")
EVENTS = [
    {name: event[name] for name in ("event_type", "namespace", "cluster_id")}
    | {"payload": orjson.dumps(event["event_data"]).decode()}
    for event in STORY
    if event["event_type"].startswith(READ)
]
SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5)
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)
KINDS = ("health.assessed", "alert.assessed", "metrics.assessed", "hash.computed", "assessment.completed", "other")
KEYS = (
    *(
        "assessed",
        "score",
        "details",
        "reason",
        "hash_match",
        "pre_remediation_spec_hash",
        "post_remediation_spec_hash",
    ),
    *("health_checks", "metric_deltas", "alert_resolution"),
)
SAID = st.dictionaries(st.sampled_from(KEYS), VALUES | st.just("SpecDrift") | st.just(value=True), max_size=6)


@given(st.lists(st.sampled_from(range(len(EVENTS))), unique=True).map(sorted))
def test_any_part_of_a_story(chosen: list[int]) -> None:
    """Some of a remediation's events give another answer than the documented ones, or the same ones not the same."""
    events = [EVENTS[index] for index in chosen]
    types = {event["event_type"] for event in events}
    if not events:
        expected: type[AuditError] | None = NoEvents
    elif "gateway.signal.received" not in types:
        expected = MissingGatewayEvent
    else:
        expected = None  # the signal alone has five parts of nine
    if expected is not None:
        with pytest.raises(expected):
            reconstruct("rr-1", events, NOW)
        return
    built = reconstruct("rr-1", events, NOW)
    assert built == reconstruct("rr-1", iter(events), NOW)
    assert built.completeness == 100 * (9 - len(built.warnings)) // 9
    assert built.errors == []
    assert yaml.safe_load(built.yaml)["spec"]["signalName"] == "PodCrashLooping"


@given(st.lists(st.tuples(st.sampled_from(range(len(EVENTS))), st.text(max_size=8), VALUES, st.booleans()), max_size=4))
def test_any_payload(changes: list[tuple[int, str, Any, bool]]) -> None:
    """A payload that others wrote stops the service instead of being answered as documented, or what is built is no YAML."""
    events = [dict(event) for event in EVENTS]
    for index, key, value, whole in changes:
        payload = loads(events[index]["payload"])
        if isinstance(payload, dict) and payload and not whole:
            payload = payload | {sorted(payload)[len(key) % len(payload)]: value}
        else:
            payload = value
        events[index]["payload"] = json.dumps(payload)
    documented = (NoEvents, NoParseableEvents, MissingGatewayEvent, IncompleteEvents, Unreadable)
    with suppress(*documented):
        built = reconstruct("rr-1", events, NOW)
        assert yaml.safe_load(built.yaml)["kind"] == "RemediationRequest"
        assert 50 <= built.completeness <= 100


@given(st.lists(st.tuples(st.sampled_from(KINDS), SAID | VALUES), max_size=12))
def test_score_stays_in_bounds(assessments: list[tuple[str, Any]]) -> None:
    """A score, of a part or of the whole, is below 0 or above 1, or an assessment cannot be written as JSON."""
    found, history = Effectiveness(), Assessments()
    for kind, payload in assessments:
        found.add(f"effectiveness.{kind}", payload)
        history.add(f"effectiveness.{kind}", payload)
    document = loads(orjson.dumps(answer("rr-1", found, "now")))
    scores = [document["score"], *(document["components"][f"{name}_score"] for name in WEIGHTS)]
    assert all(score is None or 0 <= score <= 1 for score in scores)
    assert history.effectiveness.score == found.score
    assert "null" not in orjson.dumps([history.health, history.metrics]).decode()


@given(st.integers(-(2**63) + 1, 2**63 - 1))
def test_durations_come_back(nanoseconds: int) -> None:
    """A duration is printed as another one."""
    assert parse_duration(duration_text(nanoseconds)) == nanoseconds


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        *(("1h", "1h0m0s"), ("90m", "1h30m0s"), ("24h", "24h0m0s"), ("1.5s", "1.5s"), ("100us", "100µs"), ("0", "0s")),
        *(
            ("-1h30m", "-1h30m0s"),
            (".5m", "30s"),
            ("1ns", "1ns"),
            ("7d", "168h0m0s"),
            ("1.5d", "36h0m0s"),
            ("61s", "1m1s"),
        ),
    ],
)
def test_durations_as_go_prints_them(text: str, printed: str) -> None:
    """A duration does not look as Go's readers expect it."""
    assert duration_text(parse_window(text)) == printed


@pytest.mark.parametrize("text", ["", "1", "1 h", "h", "1d12h", "-7d", "9223372036854775808ns", "300y", "1h-1m", "٣h"])
def test_no_durations(text: str) -> None:
    """Something that is no duration is taken for one."""
    with pytest.raises(ValueError, match="expected a duration"):
        parse_window(text)


def step(event_type: str, second: int, **members: Any) -> dict[str, Any]:
    names = ("from_phase", "to_phase", "decision", "decided_workflow", "decided_by", "reason")
    common = {"event_id": "e", "event_type": event_type, "actor_type": "service", "actor_id": "a"}
    return dict.fromkeys(names) | common | {"event_timestamp": at(second)} | members


def at(second: int) -> datetime:
    return NOW + timedelta(seconds=second)


def test_phases() -> None:
    """A phase without a recorded start gets one, one that lasts gets an end, or a phase that came twice is one."""
    moved = "orchestrator.phase.transitioned"
    shown = phases(
        [
            step(moved, 1, from_phase="Analyzing", to_phase="Executing"),
            step(moved, 3, from_phase="Executing", to_phase="Analyzing"),
            step(moved, 4, from_phase="Analyzing", to_phase="Executing"),
        ]
    )
    assert shown == [
        {"phase": "Analyzing", "left_at": at(1)},
        {
            "phase": "Executing",
            "entered_at": at(1),
            "left_at": at(3),
            "duration_ms": 2000,
        },
        {
            "phase": "Analyzing",
            "entered_at": at(3),
            "left_at": at(4),
            "duration_ms": 1000,
        },
        {"phase": "Executing", "entered_at": at(4)},
    ]


def test_an_end_ends_the_last_phase() -> None:
    """A remediation that ended in a phase is shown as still in it."""
    shown = phases([step("orchestrator.lifecycle.started", 0), step("orchestrator.lifecycle.failed", 2)])
    assert [(phase["phase"], phase["duration_ms"]) for phase in shown] == [("Pending", 2000)]


def test_decisions_name_the_decider() -> None:
    """Who sent the event stands for who decided, though the payload names somebody."""
    shown = decisions(
        [
            step("orchestrator.approval.rejected", 1, decided_by="ada", reason="no", decision="Rejected"),
            step("workflowexecution.block.cleared", 2),
            step("orchestrator.lifecycle.started", 3),
        ]
    )
    assert [(one["decision"], one["decided_by"], one.get("reason")) for one in shown] == [
        ("Rejected", "ada", "no"),
        ("BlockCleared", "a", None),
    ]
