"""How long an event is kept: days = min(ceiling, max(floor, the event's own, its category's)), counted from event_timestamp.

A category's days, and bounds of its own if it has any, stand in audit_retention_policies. The sum itself is SQL's: `is_over`.
"""

from dataclasses import dataclass
from datetime import date, datetime, timedelta

from app.settings import Settings


@dataclass(frozen=True, slots=True)
class Terms:
    """What one run goes by: the moment at which it decides, and the bounds where a category has none."""

    moment: datetime
    floor_days: int
    ceiling_days: int

    @classmethod
    def of(cls, settings: Settings, moment: datetime) -> "Terms":
        return cls(moment, settings.retention_floor_days, settings.retention_ceiling_days)

    def columns(self) -> tuple[datetime, int, int]:
        return self.moment, self.floor_days, self.ceiling_days


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
        """The first day of the next one."""
        return (self.first + timedelta(days=32)).replace(day=1)


@dataclass(frozen=True, slots=True)
class MonthContents:
    """What a month holds: rows in all, unsealed ones, held ones, ones that are kept for longer; positions of the sealed ones."""

    total: int
    unsealed: int
    held: int
    young: int
    positions: str

    @property
    def due(self) -> int:
        return self.total - self.held - self.young
