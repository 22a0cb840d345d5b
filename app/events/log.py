"""The logs of a database: one, and one more for each time that it was continued after a loss (docs/design.md, section 5.10)."""

from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Log:
    """One log of the database. Positions begin at 0 in each; the name is in every record."""

    id: int
    """`log_id` in every table: 0 for the first, then 1, 2, …"""
    first_name: str
    """The name of log 0, which DATASTORAGE_LOG_NAME gives."""
    is_open: bool = True
    """Whether events are written to it: it is the last one."""
    name: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", f"{self.first_name}/{self.id}" if self.id else self.first_name)

    def place(self, log_index: int) -> int:
        """A position of this log among those of all logs, as place_of()."""
        return place_of(self.id, log_index)

    def has(self, place: int) -> bool:
        """Whether a place is in this log."""
        return self.place(0) <= place < self.place(LOG_POSITIONS)

    @property
    def next(self) -> "Log":
        """The log that continues this one, which is closed."""
        return Log(self.id + 1, self.first_name)

    def precedes(self, name: str) -> bool:
        """Whether a name is that of a later log of the same database."""
        number = name.removeprefix(f"{self.first_name}/")
        return number != name and number.isdecimal() and len(number) < 6 and int(number) > self.id

    def name_of(self, log_id: object) -> str:
        """The name of this log or of one before it by its id; of any other id, which no event has, this log's."""
        if log_id == self.id or not isinstance(log_id, int) or not 0 <= log_id < self.id:
            return self.name
        return Log(log_id, self.first_name).name

    def and_earlier(self) -> Iterator["Log"]:
        """All logs up to this one, the first first."""
        for log_id in range(self.id):
            yield Log(log_id, self.first_name, is_open=False)
        yield self


NO_LOG = Log(0, "")
"""For code that computes no hash."""
LOG_POSITIONS = 2**48
"""More positions than a log has."""


def place_of(log_id: int | None, log_index: int) -> int:
    """A position among those of all logs, in their order; in log 0 it is the position itself."""
    return (log_id or 0) * LOG_POSITIONS + log_index
