"""A remediation as a picture: what its timeline says, turned into shapes with coordinates. Pure; a template makes SVG of the shapes.

Time runs from left to right, and each category has a lane of its own. A wait of which all else together is a small part is cut
out of the axis, and the picture says so; else all that happens would stand in one point beside it.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from itertools import pairwise
from typing import Any

WIDTH = 1120.0
_LEFT, _RIGHT = 150.0, 24.0
_LANE, _BAR, _HEAD, _FOOT = 34.0, 24.0, 10.0, 26.0
_CUT = 84.0
_CUTS_MAX = 3
_LONG = 15
"""A wait is cut out if it is so many times as long as all else together."""
_NEAR = 12.0
"""Events of a lane that lie nearer to each other than this are one mark."""
_TICK = 96.0
_CHARACTER = 7.2
"""Width of a character of a bar's label."""
_LANES_MAX = 12
_STEPS = (
    *(1, 2, 5, 10, 20, 50, 100, 200, 500),
    *(
        seconds * 1000
        for seconds in (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10_800, 21_600, 43_200)
    ),
)
"""Distances of ticks in milliseconds; above them, days that double."""
_DAY = 86_400_000
_WORST = ("success", "pending", "failure")
_ENDS = {
    "Completed": "good",
    "Failed": "bad",
    "TimedOut": "bad",
    "Cancelled": "bad",
    "Skipped": "calm",
}
_WAITS = frozenset({"AwaitingApproval", "Blocked"})


@dataclass(frozen=True, slots=True)
class Bar:
    """A phase: from `x` on, `width` wide. `kind` is good, bad, wait or calm; without `is_known` nobody has recorded its beginning or end."""

    x: float
    width: float
    label: str
    """Empty if there is no space for it in the bar."""
    title: str
    kind: str
    is_known: bool


@dataclass(frozen=True, slots=True)
class Mark:
    """One event, or several that lie near to each other. `shape` is the outcome, the worst of several; or decision, notification."""

    x: float
    y: float
    shape: str
    count: int
    href: str
    title: str
    label: str = ""


@dataclass(frozen=True, slots=True)
class Lane:
    """A row of the picture: its name, where its middle is, and what is on it."""

    name: str
    y: float
    bars: Sequence[Bar] = ()
    marks: Sequence[Mark] = ()


@dataclass(frozen=True, slots=True)
class Tick:
    """A time after the first event."""

    x: float
    label: str


@dataclass(frozen=True, slots=True)
class Drawing:
    """All shapes; coordinates are in a box of `width` by `height`."""

    lanes: Sequence[Lane]
    ticks: Sequence[Tick]
    cuts: Sequence[Tick]
    """The middle of each wait that was cut out, and how long it was."""
    width: float
    height: float
    left: float = _LEFT
    cut: float = _CUT
    """Width of each cut."""


@dataclass(frozen=True, slots=True)
class Axis:
    """Where a time stands. Equal distances are equal times, but for those waits that were cut out."""

    knots: Sequence[tuple[float, float]]
    """Milliseconds and x, both ascending; between two of them x grows evenly."""
    cuts: Sequence[tuple[float, float]] = ()
    """First and last millisecond of each wait that was cut out."""
    scale: float = field(default=0.0)
    """How far a millisecond reaches, outside of the cuts."""

    @classmethod
    def over(cls, times: Iterable[float]) -> "Axis":
        """The axis for all of `times`, in milliseconds."""
        distinct = sorted(set(times)) or [0.0]
        cuts = _cuts(distinct)
        shown = distinct[-1] - distinct[0] - sum(end - start for start, end in cuts)
        scale = (WIDTH - _LEFT - _RIGHT - _CUT * len(cuts)) / shown if shown else 0.0
        knots = [(distinct[0], _LEFT)]
        for start, end in cuts:
            x = knots[-1][1] + (start - knots[-1][0]) * scale
            knots += [(start, x), (end, x + _CUT)]
        knots.append((distinct[-1], knots[-1][1] + (distinct[-1] - knots[-1][0]) * scale))
        return cls(knots, cuts, scale)

    def x(self, time: float) -> float:
        """The place of a time; one that lies outside stands at the nearer end."""
        for (start, left), (end, right) in pairwise(self.knots):
            if time <= end:
                part = (max(time, start) - start) / (end - start) if end > start else 0.0
                return round(left + part * (right - left), 1)
        return round(self.knots[-1][1], 1)

    def ticks(self) -> Iterator[Tick]:
        """Round times, far enough from each other to be read. A part between cuts that has none of them begins with its own time."""
        start, end = self.knots[0][0], self.knots[-1][0]
        step = _step(_TICK / self.scale) if self.scale else end - start + 1
        last, middles = -_TICK, [(self.x(first) + self.x(second)) / 2 for first, second in self.cuts]
        for left, right in _parts(start, end, self.cuts):
            first = start + -(-(left - start) // step) * step
            times = [first + number * step for number in range(int(max(right - first, -1) // step) + 1)]
            for time in times or [left]:
                x = self.x(time)
                if (
                    x - last >= _TICK * 0.75
                    and x <= WIDTH - _TICK / 3
                    and all(abs(x - middle) > _TICK * 0.75 for middle in middles)
                ):
                    last = x
                    yield Tick(x, f"+{duration(time - start)}" if time > start else "0")


def draw(
    timeline: Sequence[dict[str, Any]],
    phases: Sequence[dict[str, Any]],
    decisions: Sequence[dict[str, Any]],
    notifications: Sequence[dict[str, Any]],
) -> Drawing | None:
    """The picture of one correlation; None if there is no time in it. The arguments are members of its timeline, as the API answers."""
    events = [(_milliseconds(event["event_timestamp"]), event) for event in timeline]
    sent = [(_milliseconds(one["sent_at"]), one) for one in notifications]
    edges = [_milliseconds(phase[name]) for phase in phases for name in ("entered_at", "left_at") if name in phase]
    times = [time for time, _ in events + sent] + edges
    if not times:
        return None
    axis = Axis.over(times)
    lanes = [Lane("phases", 0, bars=_bars(phases, axis, max(times)))] if phases else []
    if decisions:
        lanes.append(Lane("decisions", 0, marks=_decisions(decisions, axis)))
    lanes += [Lane(name, 0, marks=_marks(found, axis)) for name, found in _by_lane(events)]
    if sent:
        lanes.append(Lane("notifications", 0, marks=_notifications(sent, axis)))
    placed = [
        Lane(lane.name, y, lane.bars, [replace(mark, y=y) for mark in lane.marks])
        for lane, y in ((lane, _HEAD + _LANE * (number + 0.5)) for number, lane in enumerate(lanes))
    ]
    cuts = [Tick((axis.x(start) + axis.x(end)) / 2, duration(end - start)) for start, end in axis.cuts]
    return Drawing(placed, list(axis.ticks()), cuts, WIDTH, _HEAD + _LANE * len(placed) + _FOOT)


def duration(milliseconds: float) -> str:
    """The two largest units: `1 h 5 min`, `3.2 s`, `250 ms`, `12 d 3 h`."""
    whole = round(milliseconds)
    if abs(whole) < 1000:
        return f"{whole} ms"
    if abs(whole) < 60_000:
        return f"{whole / 1000:.3g} s"
    seconds = round(whole / 1000)
    for size, unit, smaller, name in ((86_400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if abs(seconds) >= size:
            large, rest = divmod(seconds, size)
            return f"{large} {unit} {rest // smaller} {name}" if rest // smaller else f"{large} {unit}"
    return ""


def _cuts(times: Sequence[float]) -> list[tuple[float, float]]:
    """The longest waits, as long as each is _LONG times as long as all that would be left without it."""
    rest, found = times[-1] - times[0], list[tuple[float, float]]()
    for start, end in sorted(pairwise(times), key=lambda wait: wait[0] - wait[1])[:_CUTS_MAX]:
        if not 0 < _LONG * (rest - (end - start)) < end - start:
            break
        rest -= end - start
        found.append((start, end))
    return sorted(found)


def _parts(start: float, end: float, cuts: Sequence[tuple[float, float]]) -> Iterator[tuple[float, float]]:
    for left, right in cuts:
        yield start, left
        start = right
    yield start, end


def _step(least: float) -> float:
    step = next((step for step in _STEPS if step >= least), _DAY)
    while step < least:
        step *= 2
    return step


def _milliseconds(time: datetime | str) -> float:
    """Since the beginning of the year 1, which no time precedes."""
    read = datetime.fromisoformat(time) if isinstance(time, str) else time
    return (read - datetime.min.replace(tzinfo=read.tzinfo)).total_seconds() * 1000


def _bars(phases: Sequence[dict[str, Any]], axis: Axis, last: float) -> list[Bar]:
    bars = []
    for number, phase in enumerate(phases):
        is_known = "entered_at" in phase and ("left_at" in phase or phase["phase"] in _ENDS)
        left = axis.x(_milliseconds(phase["entered_at"])) if "entered_at" in phase else _LEFT
        right = axis.x(_milliseconds(phase["left_at"]) if "left_at" in phase else last)
        width = max(right - left, 3.0)
        name = str(phase["phase"])
        fits = len(name) * _CHARACTER + 8 <= width
        lasted = f", {duration(phase['duration_ms'])}" if "duration_ms" in phase else ""
        kind = _ENDS.get(name) or ("wait" if name in _WAITS else f"calm-{number % 2}")
        bars.append(Bar(left, round(width, 1), name if fits else "", f"{name}{lasted}", kind, is_known))
    return bars


def _by_lane(events: Sequence[tuple[float, dict[str, Any]]]) -> list[tuple[str, list[tuple[float, dict[str, Any]]]]]:
    """Events by category, that of the first event first; the rarest of many share one lane."""
    counts = Counter(event["event_category"] for _, event in events)
    shown = {name for name, _ in counts.most_common(_LANES_MAX if len(counts) <= _LANES_MAX else _LANES_MAX - 1)}
    lanes: dict[str, list[tuple[float, dict[str, Any]]]] = {}
    for time, event in sorted(events, key=lambda one: one[0]):
        name = event["event_category"]
        lanes.setdefault(name if name in shown else "others", []).append((time, event))
    return list(lanes.items())


def _marks(events: Sequence[tuple[float, dict[str, Any]]], axis: Axis) -> list[Mark]:
    """A mark for each event of a lane, or for several near ones. `events` are in the order of their times."""
    groups: list[tuple[float, list[dict[str, Any]]]] = []
    for time, event in events:
        x = axis.x(time)
        if groups and x - groups[-1][0] < _NEAR:
            groups[-1][1].append(event)
        else:
            groups.append((x, [event]))
    return [_mark(x, group) for x, group in groups]


def _mark(x: float, group: Sequence[dict[str, Any]]) -> Mark:
    worst = max(group, key=lambda event: _rank(event["event_outcome"]))
    shape = worst["event_outcome"] if worst["event_outcome"] in _WORST else "pending"
    named = [f"{event['event_type']}: {event['event_outcome']}" for event in group[:6]]
    more = [f"and {len(group) - 6} more"] if len(group) > 6 else []
    return Mark(x, 0, shape, len(group), f"/ui/events/{worst['event_id']}", "\n".join(named + more))


def _rank(outcome: str) -> int:
    return _WORST.index(outcome) if outcome in _WORST else 1


def _decisions(decisions: Sequence[dict[str, Any]], axis: Axis) -> list[Mark]:
    marks: list[Mark] = []
    for decision in decisions:
        x = axis.x(_milliseconds(decision["event_timestamp"]))
        words = f"{decision['decision']} by {decision['decided_by']}"
        title = f"{words}: {decision['reason']}" if decision.get("reason") else words
        if marks and x - marks[-1].x < _NEAR:
            last = marks.pop()
            marks.append(Mark(last.x, 0, "decision", last.count + 1, last.href, f"{last.title}\n{title}", last.label))
        else:
            marks.append(Mark(x, 0, "decision", 1, f"/ui/events/{decision['event_id']}", title, words))
    return [_labelled(mark, following) for mark, following in zip(marks, [*marks[1:], None], strict=True)]


def _labelled(mark: Mark, following: Mark | None) -> Mark:
    """The mark with its label, if that reaches neither the next one nor the end."""
    space = (WIDTH if following is None else following.x) - mark.x - 24
    fits = len(mark.label) * _CHARACTER <= space
    return replace(mark, label=mark.label if fits else "")


def _notifications(sent: Sequence[tuple[float, dict[str, Any]]], axis: Axis) -> list[Mark]:
    return [
        Mark(
            axis.x(time),
            0,
            "notification",
            1,
            "#notifications",
            f"{one['channel']} to {one['recipient']}: {one['status']}",
        )
        for time, one in sent
    ]
