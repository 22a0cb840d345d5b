"""What sinks have yet to be sent: a run does not purge it, unless the settings say so.

A cursor counts whatever its sink does: one that is paused, fails, or is not configured any more holds events back too, and is named, until
somebody lets it go on or removes it. What counts at the commit of a purge is the cursor then: the table is locked until it has ended, so
that a sink which is rewound or made meanwhile is either seen, or finds the purge in the log.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from app.db import Connection
from app.errors import AuditError
from app.sql import load

SQL = load("retention")


class SinkMoved(AuditError):
    """A sink has yet to be sent what was about to be purged."""


@dataclass(frozen=True, slots=True)
class AwaitedSink:
    """A sink that holds back events that are due."""

    name: str
    place: int
    paused: bool
    place_text: str

    @property
    def message(self) -> str:
        state = ", which is paused," if self.paused else ""
        return (
            f"Sink {self.name}{state} has been sent nothing from {self.place_text} on: what is due there is not purged. See `datastorage "
            f"sink list`; `datastorage sink remove {self.name}` forgets it"
        )


@dataclass(slots=True)
class AwaitedSinks:
    """The cursors of all sinks, as last read."""

    is_awaited: bool
    """Whether they count."""
    holding_back: dict[str, AwaitedSink] = field(default_factory=dict)
    """By name, those because of which something stayed."""
    _sinks: Sequence[AwaitedSink] = ()

    async def refresh(self, connection: Connection) -> None:
        """Read them again."""
        rows = await connection.fetch(SQL["sink_places"]) if self.is_awaited else []
        self._sinks = [AwaitedSink(**row) for row in rows]

    def allow(self, end: int) -> bool:
        """Whether every sink has been sent all before the place `end`; else those are named that have not."""
        found = {one.name: one for one in self._sinks if one.place < end}
        self.holding_back |= found
        return not found

    async def require_sent(self, connection: Connection, end: int) -> None:
        """SinkMoved unless allow() is true until the transaction of `connection` ends."""
        if self.is_awaited:
            await connection.execute(SQL["lock_sinks"])
            await self.refresh(connection)
            if not self.allow(end):
                raise SinkMoved
