"""How long an event stays: days = min(ceiling, max(floor, the event's own, its category's)), counted from event_timestamp.

A category's days, and its own bounds if it has any, are in audit_retention_policies. The SQL function `is_over` computes this.
"""

from dataclasses import dataclass
from datetime import date, datetime, timedelta

from app.settings import Settings


@dataclass(frozen=True, slots=True)
class Terms:
    """What decides which events are due in one run: its time, and the bounds for categories without their own."""

    now: datetime
    floor_days: int
    ceiling_days: int

    @classmethod
    def of(cls, settings: Settings, now: datetime) -> "Terms":
        return cls(now, settings.retention_floor_days, settings.retention_ceiling_days)

    def columns(self) -> tuple[datetime, int, int]:
        return self.now, self.floor_days, self.ceiling_days


@dataclass(frozen=True, slots=True)
class Month:
    """One monthly table of audit_events."""

    name: str
    attached: bool = True
    detaching: bool = False

    @property
    def first(self) -> date:
        return date(int(self.name[-7:-3]), int(self.name[-2:]), 1)

    @property
    def end(self) -> date:
        """The first day of the next month."""
        return (self.first + timedelta(days=32)).replace(day=1)


@dataclass(frozen=True, slots=True)
class MonthContents:
    """How many rows a month has: in all, unsealed, held, and not due yet although nothing holds them."""

    total: int
    unsealed: int
    held: int
    not_due: int
    positions: str
    """Those of the sealed rows, as the text of an int8multirange."""

    @property
    def due(self) -> int:
        return self.total - self.held - self.not_due
