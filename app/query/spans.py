"""Spans of time in UTC: the minutes, hours, days, weeks and months that begin, end or lie between two times."""

from datetime import UTC, datetime, timedelta
from typing import Literal, NamedTuple

Span = Literal["minute", "hour", "day", "week", "month"]
SPANS: tuple[Span, ...] = ("minute", "hour", "day", "week", "month")
_LENGTHS = dict(
    zip(
        SPANS,
        (timedelta(minutes=1), timedelta(hours=1), timedelta(days=1), timedelta(weeks=1), timedelta(days=31)),
        strict=True,
    )
)
"""At most, so that a span and its length end in the next one, or where that begins."""


def floor(time: datetime, span: Span) -> datetime:
    """The beginning of the span that has `time`, which is in UTC. Weeks begin on Monday, as Postgres has them."""
    if span == "minute":
        return time.replace(second=0, microsecond=0)
    hour = time.replace(minute=0, second=0, microsecond=0)
    if span == "hour":
        return hour
    day = hour.replace(hour=0)
    if span == "day":
        return day
    return day - timedelta(days=day.weekday()) if span == "week" else day.replace(day=1)


def following(start: datetime, span: Span) -> datetime:
    """The beginning of the span after the one that begins at `start`. OverflowError behind the year 9999."""
    return floor(start + _LENGTHS[span], span)


def ceil(time: datetime, span: Span) -> datetime:
    """The first beginning of a span that is not before `time`."""
    start = floor(time, span)
    return start if start == time else following(start, span)


def number_of(since: datetime, until: datetime, span: Span) -> int:
    """About how many spans there are between two times: never less than half of them."""
    return (until - since) // _LENGTHS[span] + 1


_LAST_HOUR = floor(datetime.max.replace(tzinfo=UTC), "hour")
"""It has no end in Python."""


class WholeSpans(NamedTuple):
    """The form of a question about whole spans; what it has of times are arguments."""

    longest: Span
    has_rest: bool
    """Whether the last hour ends after the time asked for, so that the events after that have to be left out again."""


def whole_spans(
    since: datetime | None, until: datetime | None, longest: Span = "month"
) -> tuple[WholeSpans, dict[str, datetime | None]] | None:
    """The hours, days and months that lie between two times: days between `day_from` and `day_to` but for the months between
    `month_from` and `month_to`, and so on; none that are longer than `longest`, for which both times have to be there. None when
    there is no whole hour between them.

    The hour that has `until` counts as whole if it has fewer events after it: while it lasts it has many before, and hardly any after.
    """
    has_rest = until is not None and _is_near_end(until.astimezone(UTC))
    try:
        hour_from = None if since is None else ceil(since.astimezone(UTC), "hour")
        hour_to = None if until is None else (ceil if has_rest else floor)(until.astimezone(UTC), "hour")
        if _is_empty(hour_from, hour_to):
            return None
        day_from, day_to = hour_from and ceil(hour_from, "day"), hour_to and floor(hour_to, "day")
        if _is_empty(day_from, day_to) or longest == "hour":
            day_from = day_to = hour_to
        month_from, month_to = day_from and ceil(day_from, "month"), day_to and floor(day_to, "month")
        if _is_empty(month_from, month_to) or longest != "month":
            month_from = month_to = day_to
    except OverflowError:
        return None
    starts = {"hour_from": hour_from, "day_from": day_from, "month_from": month_from}
    return WholeSpans(longest, has_rest), starts | {"month_to": month_to, "day_to": day_to, "hour_to": hour_to}


def _is_near_end(time: datetime) -> bool:
    passed = time - floor(time, "hour")
    return (
        timedelta(0) < passed
        and time < _LAST_HOUR
        and min(datetime.now(UTC) - time, timedelta(hours=1) - passed) < passed
    )


def _is_empty(start: datetime | None, end: datetime | None) -> bool:
    return start is not None and end is not None and start >= end
