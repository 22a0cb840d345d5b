"""The whole hours, days and months within a time."""

import random
from datetime import UTC, datetime, timedelta, timezone

from app.query.spans import whole_spans

HOUR = timedelta(hours=1)
START, END = datetime(2026, 1, 30, tzinfo=UTC), datetime(2026, 3, 3, tzinfo=UTC)


def covered(spans: dict[str, datetime | None], since: datetime | None, until: datetime | None) -> list[datetime]:
    """The hours that the parts of a total count between START and END, one for each time that it is counted."""
    never, ever = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)

    def within(hour: datetime, start: str, end: str) -> bool:
        return (spans[start] or never) <= hour < (spans[end] or ever)

    hours = [START + n * HOUR for n in range(int((END - START) / HOUR))]
    found = []
    for hour in hours:
        day = hour.replace(hour=0)
        parts = [within(day.replace(day=1), "month_from", "month_to")]
        if since is not None:
            parts += [within(day, "day_from", "month_from"), within(hour, "hour_from", "day_from")]
        if until is not None:
            parts += [within(day, "month_to", "day_to"), within(hour, "day_to", "hour_to")]
        found += [hour] * sum(parts)
    return found


def test_every_whole_hour_is_counted_once() -> None:
    """Somewhere between two times an hour is counted twice or not at all."""
    pick = random.Random(5)
    kinds, rests = set(), 0
    for _ in range(3_000):
        times = sorted(
            START + pick.randint(0, 32 * 24 * 4) * HOUR / 4 + pick.choice((0, 0, 1)) * timedelta(microseconds=1)
            for _ in range(2)
        )
        since, until = (time if pick.random() < 0.8 else None for time in times)
        found = whole_spans(since, until)
        hours = [START + n * HOUR for n in range(int((END - START) / HOUR))]
        whole = [h for h in hours if (since is None or h >= since) and (until is None or h + HOUR <= until)]
        if found is None:
            assert not whole, (since, until)
            continue
        form, spans = found
        if form.has_rest:
            assert until is not None
            whole.append(until.replace(minute=0, second=0, microsecond=0))
            rests += 1
        assert covered(spans, since, until) == whole, (since, until)
        kinds.add(
            (
                since is None,
                until is None,
                spans["day_from"] == spans["day_to"],
                spans["month_from"] == spans["month_to"],
            )
        )
    assert (len(kinds) >= 6, rests > 300) == (True, True)


def test_times_of_other_zones() -> None:
    """An hour of a zone whose offset is half an hour is taken for one of UTC."""
    kathmandu = timezone(timedelta(hours=5, minutes=45))
    found = whole_spans(datetime(2026, 2, 1, 12, 0, tzinfo=kathmandu), None)
    assert found is not None
    assert found[1]["hour_from"] == datetime(2026, 2, 1, 7, tzinfo=UTC)


def test_an_hour_that_is_still_to_come() -> None:
    """What happens at the very moment of `until` is not counted, since that is the end of no hour that was read."""
    later = (datetime.now(UTC) + timedelta(days=1)).replace(minute=0, second=0, microsecond=0)
    for until, has_rest in ((later, False), (later + timedelta(minutes=1), True)):
        found = whole_spans(START, until)
        assert found is not None
        assert (found[0].has_rest, found[1]["hour_to"]) == (has_rest, later + has_rest * HOUR)


def test_the_ends_of_time() -> None:
    """A time in the year 1 or 9999 fails the list."""
    first, last = datetime.min.replace(tzinfo=timezone(HOUR)), datetime.max.replace(tzinfo=UTC)
    assert whole_spans(last, None) is None
    assert whole_spans(first, None) is None
    assert whole_spans(None, last) is not None
