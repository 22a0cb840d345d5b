"""Times and durations as a terminal shows them."""

import os
from datetime import UTC, datetime, timedelta, tzinfo
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from app.errors import Usage

SKEW = timedelta(minutes=5)
"""An event whose sender's clock differs more from the service's is marked."""
_UNITS = ((3_600_000, "h"), (60_000, "m"), (1_000, "s"))


class Clock:
    """Shows times in one zone; says how far they are from the present one."""

    def __init__(self, zone: str | None = None) -> None:
        self.zone_name = _local_zone() if zone == "local" else zone
        """As the service knows it; None for UTC."""
        self._zone: tzinfo = UTC if self.zone_name is None else _zone(self.zone_name)
        self.name = self.zone_name or "UTC"
        self.now = datetime.now(UTC)

    def text(self, time: str | None) -> str:
        """A time of an answer, to the second, in the zone. One that cannot be read stays as it is."""
        moment = parse(time)
        if moment is None:
            return time or ""
        return f"{moment.astimezone(self._zone):%Y-%m-%d %H:%M:%S}"

    def with_note(self, time: str) -> str:
        """As text(), and of a time that is still to come how far away it is."""
        return f"{self.text(time)} ({self.ago(time)})" if self.is_ahead(time) else self.text(time)

    def ago(self, time: str | None) -> str:
        """`3h12m ago`, `in 5m`; empty for one that cannot be read."""
        moment = parse(time)
        if moment is None:
            return ""
        distance = span_text(abs(self.now - moment))
        return f"in {distance}" if moment > self.now else f"{distance} ago"

    def is_ahead(self, time: str | None) -> bool:
        """Whether the time is still to come."""
        moment = parse(time)
        return moment is not None and moment > self.now


def parse(time: str | None) -> datetime | None:
    """A time in RFC 3339; None for what is none, or beyond what Python can show in every zone."""
    try:
        moment = datetime.fromisoformat(time or "")
        moment = moment.astimezone(UTC) if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        return None
    return moment if 1 < moment.year < 9999 else None


def skew_text(happened: str | None, recorded: str | None) -> str:
    """How far the sender's clock was from the service's, if that is more than SKEW."""
    by_sender, by_service = parse(happened), parse(recorded)
    if by_sender is None or by_service is None or abs(by_sender - by_service) <= SKEW:
        return ""
    return f"{span_text(abs(by_sender - by_service))} {'ahead' if by_sender > by_service else 'before'}"


def duration_text(milliseconds: int | None) -> str:
    """The two largest units: `1h5m`, `3s`, `250ms`."""
    if milliseconds is None:
        return ""
    if milliseconds < 1000:
        return f"{milliseconds}ms"
    rest, parts = milliseconds, []
    for unit, letter in _UNITS:
        number, rest = divmod(rest, unit)
        if number:
            parts.append(f"{number}{letter}")
    return "".join(parts[:2])


def span_text(span: timedelta) -> str:
    """As duration_text(), with days: `2d`, `3h12m`."""
    return f"{span.days}d" if span.days >= 2 else duration_text(round(span.total_seconds() * 1000))


def _local_zone() -> str:
    """The name of this machine's zone."""
    if name := os.environ.get("TZ", "").removeprefix(":"):
        return name
    path = os.path.realpath("/etc/localtime")
    _, found, name = path.partition("/zoneinfo/")
    return name if found else "UTC"


def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise Usage(f"there is no time zone {name!r}: such as Europe/Berlin or UTC") from None
