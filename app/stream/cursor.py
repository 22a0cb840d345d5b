"""How far each sink has come: its row in the table `sinks`, which whoever delivers moves, and people look at."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from app.db import Connection
from app.sql import load
from app.stream.place import place_text

SQL = load("sinks")
ERROR_CHARACTERS_MAX = 500
BEYOND_END = "the cursor is beyond the end of the log, which has lost events: it waits for `datastorage sink rewind`"
"""Recorded as the reason: whoever delivers next sees it too, although the log may have come there meanwhile."""


@dataclass(frozen=True, slots=True)
class Cursor:
    """Where a sink is."""

    place: int
    """Of the first event that the destination has not confirmed."""
    sent_up_to: int | None
    """Where the portion ends that was sent and not confirmed."""
    revision: int
    """Grows when somebody moves the cursor by hand, or makes it anew."""
    paused: bool
    is_beyond_end: bool
    """It was found beyond the end of the log, and nobody has moved it since."""


async def read_cursor(connection: Connection, name: str) -> Cursor | None:
    """Where a sink is; None if it has no cursor."""
    row = await connection.fetchrow(SQL["cursor"], name, BEYOND_END)
    return None if row is None else Cursor(**row)


@dataclass(frozen=True, slots=True)
class SinkState:
    """A row of the table, with how far it is from the end of the log."""

    name: str
    type: str
    address: str
    place: int
    paused: bool
    created_at: datetime
    delivered_at: datetime | None
    """When the destination has last confirmed something."""
    failures: int
    """Since then."""
    last_error: str | None
    last_error_at: datetime | None
    lag_events: int
    """Events of the log from the place on, whether its filter wants them or not."""
    lag_seconds: float
    """How long the first of them has been in the log."""

    @property
    def state(self) -> str:
        """In a word."""
        return "paused" if self.paused else "failing" if self.failures else "delivering"

    def listed(self) -> dict[str, Any]:
        """The members of a JSON answer."""
        members = {
            "name": self.name,
            "type": self.type,
            "address": self.address,
            "state": self.state,
            "place": place_text(self.place),
            "lag_events": self.lag_events,
            "lag_seconds": round(self.lag_seconds, 3),
            "delivered_at": _text(self.delivered_at),
            "failures": self.failures,
            "last_error": self.last_error,
            "last_error_at": _text(self.last_error_at),
        }
        return {name: value for name, value in members.items() if value is not None}


async def read_states(connection: Connection) -> list[SinkState]:
    """Every sink that ever delivered and was not removed, by name."""
    return [SinkState(**row) for row in await connection.fetch(SQL["states"])]


def _text(time: datetime | None) -> str | None:
    return None if time is None else f"{time.astimezone(UTC):%Y-%m-%dT%H:%M:%S.%fZ}"


async def create_cursor(connection: Connection, name: str, of_type: str, address: str, place: int) -> None:
    """The cursor of a sink, unless it has one."""
    await connection.execute(SQL["create"], name, of_type, address, place)


async def fail(connection: Connection, name: str, reason: str) -> None:
    """Record why nothing was delivered."""
    await connection.execute(SQL["fail"], name, reason.replace("\0", "")[:ERROR_CHARACTERS_MAX])


async def pause(connection: Connection, name: str, *, paused: bool) -> bool:
    """Stop a sink, or let it go on; False if there is none of that name."""
    return await connection.fetchrow(SQL["pause"], name, paused) is not None


async def rewind(connection: Connection, name: str, place: int) -> bool:
    """Move the cursor, backwards or forwards; False if there is no sink of that name."""
    return await connection.fetchrow(SQL["rewind"], name, place) is not None


async def remove(connection: Connection, name: str) -> bool:
    """Forget a sink; False if there is none of that name. If it is configured, it is made anew, and begins where its entry says."""
    return await connection.fetchrow(SQL["remove"], name) is not None
