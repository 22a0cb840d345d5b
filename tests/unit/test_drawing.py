"""The picture of a remediation: shapes with coordinates, from what its timeline says."""

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.pages.drawing import WIDTH, Axis, draw, duration

START = datetime(2026, 11, 24, 14, 0, tzinfo=UTC)
_HOUR = 3_600_000.0


def event(seconds: float, category: str = "gateway", outcome: str = "success", number: int = 0) -> dict[str, Any]:
    time = (START + timedelta(seconds=seconds)).isoformat().replace("+00:00", "Z")
    return {
        "event_id": f"{number:08}-0000-4000-8000-000000000000",
        "event_timestamp": time,
        "event_type": f"{category}.thing.done",
        "event_category": category,
        "event_outcome": outcome,
    }


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


@given(st.lists(st.floats(0, 1e11), min_size=1, max_size=40))
def test_axis_keeps_the_order_and_its_bounds(times: list[float]) -> None:
    """A later event stands left of an earlier one, or outside of the picture."""
    axis = Axis.over(times)
    places = [axis.x(time) for time in sorted(times)]
    assert all(0 < x <= WIDTH for x in places)
    assert all(left <= right for left, right in pairwise(places))


def test_only_a_wait_of_which_all_else_is_a_small_part_is_cut() -> None:
    """Minutes of work stand in one point beside a night; or an ordinary pause looks shorter than it was."""
    minutes = [60_000.0 * n for n in range(10)]
    assert not Axis.over([*minutes, _HOUR]).cuts
    [(start, end)] = Axis.over([*minutes, 12 * _HOUR]).cuts
    assert (start, end) == (540_000.0, 12 * _HOUR)
    axis = Axis.over([*minutes, 12 * _HOUR])
    assert axis.x(540_000.0) - axis.x(0.0) > WIDTH / 2
    assert not Axis.over([0.0, 12 * _HOUR]).cuts  # nothing else is there


def test_lanes_follow_the_story() -> None:
    """A category has no lane, or the lanes do not stand in the order in which they began."""
    drawing = draw(
        [event(2, "analysis"), event(0), event(1, "orchestration", "pending"), event(9, "orchestration", "failure")],
        [
            {"phase": "Pending", "entered_at": at(0), "left_at": at(4), "duration_ms": 4000},
            {"phase": "Failed", "entered_at": at(4)},
        ],
        [],
        [],
    )
    assert drawing is not None
    assert [lane.name for lane in drawing.lanes] == ["phases", "gateway", "orchestration", "analysis"]
    phases, gateway, orchestration, _ = drawing.lanes
    assert [(bar.label, bar.kind, bar.is_known) for bar in phases.bars] == [
        ("Pending", "calm-0", True),
        ("Failed", "bad", True),
    ]
    assert phases.bars[0].x + phases.bars[0].width == pytest.approx(phases.bars[1].x, abs=0.2)
    assert [mark.shape for mark in orchestration.marks] == ["pending", "failure"]
    assert [mark.shape for mark in gateway.marks] == ["success"]
    assert len({lane.y for lane in drawing.lanes}) == 4
    assert all(0 < lane.y < drawing.height for lane in drawing.lanes)


def test_near_events_are_one_mark_that_shows_the_worst() -> None:
    """A failure is hidden under the successes around it; or a chain of thousands of events makes thousands of shapes."""
    near = [event(0.0001 * n, outcome="failure" if n == 5 else "success", number=n) for n in range(20)]
    drawing = draw([*near, event(50, number=98), event(100, number=99)], [], [], [])
    assert drawing is not None
    first, _, last = drawing.lanes[0].marks
    assert (first.shape, first.count, first.href) == ("failure", 20, "/ui/events/00000005-0000-4000-8000-000000000000")
    assert (last.shape, last.count) == ("success", 1)
    many = draw([event(n, category=f"c{n % 30}", number=n) for n in range(9000)], [], [], [])
    assert many is not None
    assert len(many.lanes) == 12
    assert sum(len(lane.marks) for lane in many.lanes) < 12 * WIDTH / 12
    assert sum(mark.count for lane in many.lanes for mark in lane.marks) == 9000


def test_decisions_and_notifications_have_lanes_of_their_own() -> None:
    """Who approved, and who was told, is not in the picture."""
    decision = {
        "event_id": "d",
        "event_timestamp": at(30),
        "decision": "Approved",
        "decided_by": "ada",
        "reason": "fine",
    }
    sent = {"sent_at": "2026-11-24T14:00:40Z", "channel": "email", "recipient": "ops", "status": "sent"}
    drawing = draw([event(0), event(60)], [], [decision, decision | {"event_timestamp": at(30.001)}], [sent])
    assert drawing is not None
    decisions, _, notifications = drawing.lanes
    [mark] = decisions.marks
    assert (mark.label, mark.count, mark.href) == ("Approved by ada", 2, "/ui/events/d")
    assert [mark.title for mark in notifications.marks] == ["email to ops: sent"]


def test_nothing_has_no_picture() -> None:
    """A correlation of which only the chain's end is known ends in an error."""
    assert draw([], [], [], []) is None
    one = draw([event(0)], [], [], [])
    assert one is not None
    assert [tick.label for tick in one.ticks] == ["0"]


def test_phase_without_a_beginning_is_drawn_as_unknown() -> None:
    """What nobody has recorded looks like a fact."""
    drawing = draw([event(0), event(10)], [{"phase": "Analyzing"}, {"phase": "Executing", "entered_at": at(5)}], [], [])
    assert drawing is not None
    assert [bar.is_known for bar in drawing.lanes[0].bars] == [False, False]


def test_ticks_can_be_read() -> None:
    """Times of the axis overlap each other, or are no round ones."""
    drawing = draw([event(n) for n in range(0, 700, 7)], [], [], [])
    assert drawing is not None
    assert [tick.label for tick in drawing.ticks][:3] == ["0", "+2 min", "+4 min"]
    places = [tick.x for tick in drawing.ticks]
    assert min(right - left for left, right in pairwise(places)) > 60


@pytest.mark.parametrize(
    ("milliseconds", "text"),
    [
        *((0, "0 ms"), (999, "999 ms"), (1500, "1.5 s"), (59_940, "59.9 s"), (60_000, "1 min")),
        *((104_456, "1 min 44 s"), (3_600_000, "1 h"), (3_900_000, "1 h 5 min"), (97_200_000, "1 d 3 h")),
        (-2_000, "-2 s"),
    ],
)
def test_duration(milliseconds: int, text: str) -> None:
    """A duration is misread."""
    assert duration(milliseconds) == text
