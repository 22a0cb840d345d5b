"""Where a page ended: the place of its last row in an order by moment and number."""

import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from typing import NamedTuple, Self

_TEXT = re.compile(
    r"(-?infinity|[0-9]{4,6}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]{1,6})?(?: BC)?)/([0-9]{1,18})"
)


class Place(NamedTuple):
    """The next page begins behind this row."""

    moment: str
    number: int

    def __str__(self) -> str:
        return urlsafe_b64encode(f"{self.moment}/{self.number}".encode()).decode().rstrip("=")

    @classmethod
    def parse(cls, text: str) -> Self:
        """What `str` gave; ValueError for anything else."""
        try:
            match = _TEXT.fullmatch(urlsafe_b64decode(text + "=" * (-len(text) % 4)).decode("ascii"))
        except ValueError:
            match = None
        if match is None:
            raise ValueError("expected the next_cursor of an earlier answer")
        return cls(match[1], int(match[2]))
