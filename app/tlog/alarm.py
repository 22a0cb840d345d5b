"""What the checkpoint worker and the writer find wrong with the log. Pure."""

from collections.abc import Iterable
from typing import NamedTuple

_PENDING_MAX = 1_000


class LogAlarm(NamedTuple):
    """Why the log is not as it should be."""

    name: str
    """As in docs/evidence.md, "What is refused, and how it shows"."""
    subject: str
    """What it is about; the same as long as the cause is the same."""
    detail: str

    @property
    def same(self) -> tuple[str, str]:
        """What makes it the same alarm."""
        return self.name, self.subject


class PendingAlarms:
    """Alarms that nobody has recorded yet, each once. Raising one costs nothing but memory, of which there is a bound."""

    def __init__(self) -> None:
        self._alarms: dict[tuple[str, str], LogAlarm] = {}

    def add(self, alarm: LogAlarm) -> None:
        """Add an alarm, unless it is there or too many are: it is raised again when its cause is met again."""
        if len(self._alarms) < _PENDING_MAX:
            self._alarms.setdefault(alarm.same, alarm)

    @property
    def listed(self) -> list[LogAlarm]:
        """Those that there are, in the order in which they came."""
        return list(self._alarms.values())

    def remove(self, alarms: Iterable[LogAlarm]) -> None:
        """Remove alarms that are recorded."""
        for alarm in alarms:
            self._alarms.pop(alarm.same, None)
