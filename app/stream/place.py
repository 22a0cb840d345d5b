"""Where a stream is: a place among the positions of all logs (events/log.py), as text `LOG:POSITION`, such as `0:4711`."""

import re

from app.events.log import LOG_POSITIONS, place_of

_TEXT = re.compile(r"(\d{1,5}):(\d{1,15})", re.ASCII)


def place_text(place: int) -> str:
    """The text of a place."""
    log_id, position = divmod(place, LOG_POSITIONS)
    return f"{log_id}:{position}"


def parse_place(text: str) -> int:
    """The place that a text names; ValueError for anything that is none."""
    found = _TEXT.fullmatch(text)
    if found is None or int(found[2]) >= LOG_POSITIONS:
        raise ValueError("expected LOG:POSITION, such as 0:4711")
    return place_of(int(found[1]), int(found[2]))
