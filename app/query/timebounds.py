"""The forms in which `since` and `until` name a moment."""

import re
from datetime import UTC, datetime, timedelta

_DAYS = re.compile(r"\+?([0-9]+(?:\.[0-9]*)?|\.[0-9]+)d")
_PART = r"(?:([0-9]+)(?:\.([0-9]*))?|\.([0-9]+))(ns|us|µs|μs|ms|s|m|h)"  # both letters that look like a micro sign
_DURATION = re.compile(rf"([-+]?)((?:{_PART})+)")
_PARTS = re.compile(_PART)
_MOMENT = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}(?:T[0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]+)?(?:Z|[-+][0-9]{2}:[0-9]{2})?)?"
)
_NANOSECONDS = {
    "ns": 1,
    "us": 10**3,
    "µs": 10**3,
    "μs": 10**3,
    "ms": 10**6,
    "s": 10**9,
    "m": 60 * 10**9,
    "h": 3600 * 10**9,
}
_INT64_MAX = 2**63 - 1


def parse_moment(text: str, now: datetime) -> datetime:
    """`7d`, a Go duration such as `1h30m` (both before `now`), RFC 3339, or a date with or without time in UTC.

    ValueError for anything else, and for a moment outside the years 1 to 9999.
    """
    try:
        if days := _DAYS.fullmatch(text):
            return now - timedelta(days=float(days[1]))
        if duration := _DURATION.fullmatch(text):
            return now - timedelta(microseconds=_nanoseconds(duration[1], duration[2]) // 1000)
        if _MOMENT.fullmatch(text):
            moment = datetime.fromisoformat(text)
            return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        pass
    raise ValueError(
        f"invalid time format: expected 7d, a duration such as 1h30m, 2026-01-31T12:00:00Z or 2026-01-31, got {text[:60]!r}"
    )


def _nanoseconds(sign: str, parts: str) -> int:
    """A Go duration, which holds 64 bits; OverflowError beyond."""
    total = 0
    for whole, fraction, bare_fraction, unit in _PARTS.findall(parts):
        digits = fraction or bare_fraction or "0"
        total += int(whole or "0") * _NANOSECONDS[unit] + int(digits) * _NANOSECONDS[unit] // 10 ** len(digits)
    if total > _INT64_MAX:
        raise OverflowError
    return -total if sign == "-" else total
