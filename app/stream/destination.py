"""What a sink delivers to: the interface of every destination, and what it gets."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from app.events.log import Log
from app.stream.portion import Item


@dataclass(frozen=True, slots=True)
class Delivery:
    """A portion on its way to a destination. The same portion may come again, and then perhaps with more behind it."""

    sink: str
    """The sink's name."""
    items: Sequence[Item]
    """In the order of their places; at least one."""
    first: int
    """The place where the portion begins."""
    next: int
    """The place where the next portion begins."""
    log: Log
    """The last log that is known; `log.name_of(place // LOG_POSITIONS)` is the name of an item's log."""
    is_test: bool = False
    """It is a made-up event, which `datastorage sink test` sends; it has no position."""
    id: str = ""
    """The same whenever this very portion is sent, whoever sends it: by it a receiver recognises a repeat."""


class NotDelivered(Exception):
    """The destination has not confirmed a portion: it is delivered again after a pause, and nothing behind it before."""

    def __init__(
        self, reason: str, *, retry_after: float | None = None, is_too_large: bool = False, is_late: bool = False
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        """For logs, metrics' help and operators: without credentials, and without what the receiver has answered in full."""
        self.retry_after = retry_after
        """Seconds that the destination asks to wait; None if it asks for nothing."""
        self.is_too_large = is_too_large
        """A smaller portion may be accepted."""
        self.is_late = is_late
        """It has not answered in time."""


class Destination(Protocol):
    """Where a sink's portions go. It is used by one task, one portion at a time; it opens what it needs at the first one."""

    async def deliver(self, delivery: Delivery) -> str | None:
        """Return when the destination has the whole portion; with what its operator should know of it all the same, if there is anything.
        Raises NotDelivered, OSError or TimeoutError when it is not certain.

        The portion, or a part of it, may have arrived all the same.
        """

    async def close(self) -> None:
        """Give back connections and files. `deliver` may be called again afterwards, and opens them anew."""
