"""What the checkpoint worker finds wrong with the log. Pure."""

from typing import NamedTuple


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
