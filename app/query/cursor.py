"""Where a page ended: the place of its last row in the order of pages, as a text that clients send back."""

import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from typing import NamedTuple, Self
from uuid import UUID

# Moments as Postgres writes them without zone; a row inserted by SQL may lie outside the years that Python knows.
_MOMENT = r"(-?infinity|[0-9]{4,6}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]{1,6})?(?: BC)?)"
_EVENT = re.compile(_MOMENT + r"/([0-9a-f]{32})")
_NUMBERED = re.compile(_MOMENT + r"/([0-9]{1,18})")


class Cursor(NamedTuple):
    """The next page begins behind this event."""

    event_timestamp: str
    event_id: UUID

    def __str__(self) -> str:
        return _sealed(f"{self.event_timestamp}/{self.event_id.hex}")

    @classmethod
    def parse(cls, text: str) -> Self:
        """What `str` gave; ValueError for anything else."""
        moment, event_id = _opened(text, _EVENT)
        return cls(moment, UUID(event_id))


class NumberedCursor(NamedTuple):
    """The next page begins behind this row, in an order by moment and number."""

    moment: str
    number: int

    def __str__(self) -> str:
        return _sealed(f"{self.moment}/{self.number}")

    @classmethod
    def parse(cls, text: str) -> Self:
        """What `str` gave; ValueError for anything else."""
        moment, number = _opened(text, _NUMBERED)
        return cls(moment, int(number))


def _sealed(place: str) -> str:
    return urlsafe_b64encode(place.encode()).decode().rstrip("=")


def _opened(text: str, form: re.Pattern[str]) -> tuple[str, str]:
    try:
        match = form.fullmatch(urlsafe_b64decode(text + "=" * (-len(text) % 4)).decode("ascii"))
    except ValueError:
        match = None
    if match is None:
        raise ValueError("expected the next_cursor of an earlier answer")
    return match[1], match[2]
