"""What an export has of the archive, and what it leaves out of it."""

from bisect import bisect_right
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, aclosing
from typing import Any, Protocol, TypeVar

from app.db import Connection
from app.events.log import Log
from app.events.record import Row
from app.export.manifest import ArchivedPart, LeftOut
from app.export.select import Portions

Key = tuple[int, bytes]
"""Of an event in the order of time: microseconds since 1970, and its id."""


class FromArchive(dict[str, Any]):
    """A row of an event that is in the archive alone, with the columns that exports read."""

    part: ArchivedPart
    """That it was read from, with this event alone."""

    proof: dict[str, Any]
    """Of which log it is, `log_id`, and the `leaf` that this has at its position, in hex; None if it has none."""

    def __init__(self, columns: Mapping[str, Any], part: ArchivedPart, proof: dict[str, Any]) -> None:
        super().__init__(columns)
        self.part = part
        self.proof = proof


class LinkFromArchive(dict[str, Any]):
    """What page_links() reads of an event, of one that is in the archive alone. Its hash is the leaf that the log has at its position."""

    key: Key
    """In the order of time."""
    hash_before: str | None
    """The leaf of the event before it in its chain, if that was found."""

    def __init__(self, columns: Mapping[str, Any], key: Key, hash_before: str | None) -> None:
        super().__init__(columns)
        self.key = key
        self.hash_before = hash_before


class Archive(Protocol):
    """The archive, as one export reads it."""

    async def begin(self, connection: Connection, sizes: Mapping[int, int]) -> LeftOut | None:
        """Read what the archive alone has, of logs of these sizes, as the export's snapshot records it; what of it the export leaves out."""

    def rows(self, connection: Connection, log: Log, first: int, end: int) -> AsyncGenerator[list[FromArchive]]:
        """Events of `log` with positions from `first` up to, not including, `end`, in their order; none if they are left out."""

    def oldest(self, count: int) -> AbstractAsyncContextManager["OldestArchived | None"]:
        """The oldest ones, at most `count`; None if they are left out, or there are none."""


class OldestArchived(Protocol):
    """The oldest events of the archive alone that an export is about, in the order of time."""

    def __len__(self) -> int: ...

    def before(self, key: Key) -> int:
        """How many of them are before a key."""

    def place(self, number: int) -> int:
        """Where the logs have the n-th one."""

    def is_gone(self, log_id: int, position: int) -> bool:
        """Whether the log records that the event at a position was removed from Postgres, and is in the archive."""

    async def links(self, connection: Connection, chosen: Sequence[int]) -> Sequence[LinkFromArchive]:
        """Of some of them, in this order. To be asked for once, before the rows."""

    def rows(self, connection: Connection, chosen: Sequence[int]) -> AsyncGenerator[list[FromArchive]]:
        """Some of them, in this order."""


async def merged(stored: Portions, archived: AsyncGenerator[list[FromArchive]]) -> AsyncIterator[Sequence[Row]]:
    """The rows of both in the order of positions. One that is in both is that of Postgres, if that is what the log has."""
    async for here, there in in_one_order(stored, archived, _position):
        known = {row["log_index"] for row in here if row["sealed"]} if there else ()
        both = [*here, *(row for row in there if row["log_index"] not in known)]
        yield sorted(both, key=_position) if there else here


async def in_one_order(
    stored: Portions, archived: AsyncGenerator[list[FromArchive]], key: Callable[[Row], Any]
) -> AsyncIterator[tuple[Sequence[Row], Sequence[FromArchive]]]:
    """The rows of both, of which each ascends by `key`, in portions from one key to another."""
    async with aclosing(stored), aclosing(archived):
        rows: Sequence[Row] = ()
        others: Sequence[FromArchive] = ()
        while True:
            rows = rows or await anext(stored, _NONE)
            others = others or await anext(archived, _NONE)
            ends = [key(some[-1]) for some in (rows, others) if some]
            if not ends:
                return
            here, rows = _split(rows, min(ends), key)
            there, others = _split(others, min(ends), key)
            yield here, there


_NONE: list[Any] = []
_S = TypeVar("_S", bound=Row)


def _split(rows: Sequence[_S], last: Any, key: Callable[[Row], Any]) -> tuple[Sequence[_S], Sequence[_S]]:
    """Those with keys up to `last`, and the others."""
    at = bisect_right(rows, last, key=key)
    return rows[:at], rows[at:]


def _position(row: Row) -> int:
    position: int = row["log_index"]
    return position
