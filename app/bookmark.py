"""Bookmarks: how much of the log a caller knows, as the header DataStorage-Bookmark carries it.

A bookmark is the position of an event with the beginning of its leaf, so a server either has exactly the log that the caller knows, or not:
one that has followed another primary has another leaf there. NOW stands for all that the primary has when it is asked.
"""

import re
from typing import Literal, NamedTuple

HEADER = "DataStorage-Bookmark"
LEAF_BYTES = 8
NOW: Literal["now"] = "now"
_TEXT = re.compile(r"(\d{1,5})\.(\d{1,15})\.([0-9a-f]{16})", re.ASCII)
_LOG_ID_MAX = 2**15 - 1


class Bookmark(NamedTuple):
    """The last event that somebody knows; bookmarks of one log are in its order."""

    log_id: int
    log_index: int
    """-1 for a log without events."""
    leaf: bytes
    """The first LEAF_BYTES of the event's leaf."""

    def __str__(self) -> str:
        """As a header carries it; NOW for a log without events."""
        return NOW if self.log_index < 0 else f"{self.log_id}.{self.log_index}.{self.leaf.hex()}"


Wanted = Bookmark | Literal["now"] | None
"""What an answer has to show at least; None where its caller wants the primary's."""


def parse(text: str) -> Bookmark | Literal["now"]:
    """The bookmark in a header. What is none counts as NOW, which shows no less than any of them."""
    found = _TEXT.fullmatch(text)
    if found is None or int(found[1]) > _LOG_ID_MAX:
        return NOW
    return Bookmark(int(found[1]), int(found[2]), bytes.fromhex(found[3]))
