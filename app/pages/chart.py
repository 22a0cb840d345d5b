"""A histogram as a picture: which bars stand where. The template draws them, each as a link into its time."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

WIDTH, HEIGHT = 1000.0, 56.0
_GAP = 0.15
"""Of a bucket's width, how much is left free between bars."""
_LEAST = 1.5
"""Height of the smallest part of a bar, so that one failure among thousands of successes is seen."""
_OUTCOMES = ("failure", "pending", "success")
"""From the bottom up."""


class Part(NamedTuple):
    """One outcome's part of a bar."""

    name: str
    y: float
    height: float


class Bar(NamedTuple):
    """One bucket: where it stands, its parts, how many events it has, and the first and last time that are in it."""

    x: float
    width: float
    parts: list[Part]
    events: int
    start: datetime
    last: datetime

    @property
    def words(self) -> str:
        """What it shows, for whoever does not see it."""
        return f"{self.events:,} events from {self.start:%Y-%m-%d %H:%M} UTC"


def bars(buckets: Sequence[dict[str, Any]]) -> list[Bar]:
    """The bars of a histogram by outcome, in a picture of WIDTH by HEIGHT. Empty buckets have none, but their place."""
    most = max((bucket["events"] for bucket in buckets), default=0)
    width = WIDTH / max(1, len(buckets))
    return [
        Bar(
            round(number * width, 2),
            round(width * (1 - _GAP), 2),
            _parts(bucket.get("groups") or {}, bucket["events"], most),
            bucket["events"],
            bucket["start"],
            bucket["end"] - timedelta(microseconds=1),
        )
        for number, bucket in enumerate(buckets)
        if bucket["events"]
    ]


def _parts(groups: dict[str, int], events: int, most: int) -> list[Part]:
    """The parts of one bar, standing on one another. What has another outcome, which SQL can write, counts as the last of them."""
    numbers = {name: groups.get(name, 0) for name in _OUTCOMES}
    numbers[_OUTCOMES[-1]] = events - sum(numbers[name] for name in _OUTCOMES[:-1])
    heights = {name: max(_LEAST, number / most * HEIGHT) for name, number in numbers.items() if number > 0}
    scale = min(1.0, HEIGHT / sum(heights.values()))
    parts, top = list[Part](), HEIGHT
    for name, height in heights.items():
        top -= height * scale
        parts.append(Part(name, round(top, 2), round(height * scale, 2)))
    return parts
