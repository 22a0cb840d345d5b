"""The forms in which `since` and `until` name a time."""

import re
from datetime import UTC, datetime, timedelta, tzinfo
from zoneinfo import ZoneInfo

from app.go_duration import parse_duration

_DAYS = re.compile(r"\+?([0-9]+(?:\.[0-9]*)?|\.[0-9]+)d")
_TIME = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}(?:T[0-9]{2}:[0-9]{2}(?::[0-9]{2}(?:\.[0-9]+)?)?(?:Z|[-+][0-9]{2}:[0-9]{2})?)?"
)
_DAYS_AGO = {"today": 0, "yesterday": 1}
_TICK = timedelta(microseconds=1)


def parse_time(text: str, now: datetime, zone: tzinfo = UTC, *, is_end: bool = False) -> datetime:
    """`7d` or a Go duration such as `1h30m` (both before `now`), `today` or `yesterday`, RFC 3339, or a date with or without time;
    seconds may be left out.

    What has no zone of its own is in `zone`. `today` and `yesterday` are the first moment of the day, as an end the last one.
    The result is in UTC. ValueError for anything else, and for a time outside the years 1 to 9999.
    """
    try:
        if text in _DAYS_AGO:
            return _day(now.astimezone(zone), _DAYS_AGO[text] - is_end) - _TICK * is_end
        if days := _DAYS.fullmatch(text):
            return now - timedelta(days=float(days[1]))
        if _TIME.fullmatch(text):
            time = datetime.fromisoformat(text)
            return (time if time.tzinfo else time.replace(tzinfo=zone)).astimezone(UTC)
        return now - timedelta(microseconds=parse_duration(text) // 1000)
    except (ValueError, OverflowError):
        pass
    raise ValueError(
        "invalid time format: expected 7d, a duration such as 1h30m, today, yesterday, 2026-01-31T12:00:00Z or 2026-01-31, "
        f"got {text[:60]!r}"
    )


def _day(local: datetime, days_ago: int) -> datetime:
    """The first moment of a day of the calendar of `local`."""
    day = local.date() - timedelta(days=days_ago)
    return datetime(day.year, day.month, day.day, tzinfo=local.tzinfo).astimezone(UTC)


def parse_zone(name: str) -> tzinfo:
    """The time zone with a name of the IANA database, such as `Europe/Berlin`. ValueError for any other text."""
    try:
        return ZoneInfo(name)
    except (ValueError, OSError, KeyError):  # a path that leaves the database, one of a directory, one of nothing
        raise ValueError(f"expected the name of a time zone, such as Europe/Berlin, got {name[:60]!r}") from None
