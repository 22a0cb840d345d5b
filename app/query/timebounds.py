"""The forms in which `since` and `until` name a time."""

import re
from datetime import UTC, datetime, timedelta

from app.go_duration import parse_duration

_DAYS = re.compile(r"\+?([0-9]+(?:\.[0-9]*)?|\.[0-9]+)d")
_TIME = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}(?:T[0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]+)?(?:Z|[-+][0-9]{2}:[0-9]{2})?)?"
)


def parse_time(text: str, now: datetime) -> datetime:
    """`7d` or a Go duration such as `1h30m` (both before `now`), RFC 3339, or a date with or without time in UTC.

    ValueError for anything else, and for a time outside the years 1 to 9999.
    """
    try:
        if days := _DAYS.fullmatch(text):
            return now - timedelta(days=float(days[1]))
        if _TIME.fullmatch(text):
            time = datetime.fromisoformat(text)
            return time.astimezone(UTC) if time.tzinfo else time.replace(tzinfo=UTC)
        return now - timedelta(microseconds=parse_duration(text) // 1000)
    except (ValueError, OverflowError):
        pass
    raise ValueError(
        f"invalid time format: expected 7d, a duration such as 1h30m, 2026-01-31T12:00:00Z or 2026-01-31, got {text[:60]!r}"
    )
