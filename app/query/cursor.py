"""Cursors of keyset pagination: the last row of a page as an opaque text that clients send back.

The text is the row's sort key in base64url. It is not signed: a made-up one begins a page somewhere else, and no more.
"""

import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from typing import NamedTuple, Self
from uuid import UUID

# A time as Postgres writes it without a zone: a row inserted by SQL may lie outside the years that Python's datetime has.
_TIME = r"(-?infinity|[0-9]{4,6}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]{1,6})?(?: BC)?)"
_EVENT = re.compile(_TIME + r"/([0-9a-f]{32})")
_NUMBERED = re.compile(_TIME + r"/([0-9]{1,18})")
_SEALED = re.compile(r"log/([0-9]{1,5})/(-?[0-9]{1,19})/([0-9a-f]{32})")
_UNSEALED = re.compile(r"unsealed/" + _EVENT.pattern)
_POSITION_MAX = 2**63 - 1


class Cursor(NamedTuple):
    """The next page begins after this event."""

    event_timestamp: str
    event_id: UUID

    def __str__(self) -> str:
        return _encode(f"{self.event_timestamp}/{self.event_id.hex}")

    @classmethod
    def parse(cls, text: str) -> Self:
        """The cursor that `str` wrote; ValueError for any other text."""
        timestamp, event_id = _decode(text, _EVENT)
        return cls(timestamp, UUID(event_id))


class Position(NamedTuple):
    """An event by its position in a log."""

    log_id: int
    log_index: int
    event_id: UUID
    """Others may have inserted rows with the position of another event."""


class LogCursor(NamedTuple):
    """The next page, in the order of the log, begins after this event: a sealed one by its position, an unsealed one by its time."""

    after: Position | Cursor

    def __str__(self) -> str:
        after = self.after
        if isinstance(after, Position):
            return _encode(f"log/{after.log_id}/{after.log_index}/{after.event_id.hex}")
        return _encode(f"unsealed/{after.event_timestamp}/{after.event_id.hex}")

    @classmethod
    def parse(cls, text: str) -> Self:
        """The cursor that `str` wrote; ValueError for any other text."""
        try:
            log_id, log_index, event_id = _decode(text, _SEALED)
        except ValueError:
            timestamp, event_id = _decode(text, _UNSEALED)
            return cls(Cursor(timestamp, UUID(event_id)))
        if abs(int(log_index)) > _POSITION_MAX:
            raise ValueError(_EXPECTED)
        return cls(Position(int(log_id), int(log_index), UUID(event_id)))


class NumberedCursor(NamedTuple):
    """The next page begins after the row with this time and number."""

    timestamp: str
    number: int

    def __str__(self) -> str:
        return _encode(f"{self.timestamp}/{self.number}")

    @classmethod
    def parse(cls, text: str) -> Self:
        """The cursor that `str` wrote; ValueError for any other text."""
        timestamp, number = _decode(text, _NUMBERED)
        return cls(timestamp, int(number))


AnyCursor = Cursor | LogCursor | NumberedCursor

_EXPECTED = "expected the next_cursor of an earlier answer"


def _encode(sort_key: str) -> str:
    return urlsafe_b64encode(sort_key.encode()).decode().rstrip("=")


def _decode(text: str, form: re.Pattern[str]) -> tuple[str, ...]:
    try:
        match = form.fullmatch(urlsafe_b64decode(text + "=" * (-len(text) % 4)).decode("ascii"))
    except ValueError:
        match = None
    if match is None:
        raise ValueError(_EXPECTED)
    return match.groups()
