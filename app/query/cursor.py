"""Where a page ended: the place of its last event in the order of pages."""

import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from typing import NamedTuple, Self
from uuid import UUID

# Moments as Postgres writes them without zone; a row inserted by SQL may lie outside the years that Python knows.
_TEXT = re.compile(
    r"(-?infinity|[0-9]{4,6}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]{1,6})?(?: BC)?)/([0-9a-f]{32})"
)


class Cursor(NamedTuple):
    """The next page begins behind this event."""

    event_timestamp: str
    event_id: UUID

    def __str__(self) -> str:
        return urlsafe_b64encode(f"{self.event_timestamp}/{self.event_id.hex}".encode()).decode().rstrip("=")

    @classmethod
    def parse(cls, text: str) -> Self:
        """What `str` gave; ValueError for anything else."""
        try:
            match = _TEXT.fullmatch(urlsafe_b64decode(text + "=" * (-len(text) % 4)).decode("ascii"))
        except ValueError:
            match = None
        if match is None:
            raise ValueError("expected the next_cursor of an earlier answer")
        return cls(match[1], UUID(match[2]))
