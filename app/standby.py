"""What synchronous standbys have: asked of the server that has committed, on the connection that has committed or read.

With `require_synchronous_standby` nothing is acknowledged, signed, exported, streamed or delivered before `confirm` has returned. That a COMMIT returned is no proof:
its wait can be cancelled (pg_cancel_backend), ends without a word when `synchronous_standby_names` is emptied, and a server that was
just told of its standbys does not wait yet. So it is asked how far they have the WAL on disk. A failover to one of them then has it.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable
from typing import NamedTuple

import asyncpg

from app.db import Connection, Engine, driver_connection
from app.errors import DatabaseAway
from app.sql import load

SQL = load("standby")
PATIENCE_SECONDS = 1.0
"""How long a probe and the signer wait for standbys that lag."""
_PAUSE_SECONDS = 0.001
_PAUSE_SECONDS_MAX = 0.05
_NUMBER = re.compile(r"\s*(?:first\s+|any\s+)?(\d+)\s*\(", re.IGNORECASE)
_WAITS = {"on", "remote_apply"}


class StandbyMissing(DatabaseAway):
    """No commit waits for a synchronous standby now, or none is known to have what was committed."""


class Standbys(NamedTuple):
    """What the server says of its synchronous standbys."""

    commit: str
    """synchronous_commit of the session."""
    names: str
    """synchronous_standby_names"""
    written: int | None
    """Bytes of WAL that the server itself has on disk; None for a standby."""
    flushed: list[int]
    """Bytes of WAL that each of the connected synchronous standbys has on disk."""
    hidden: bool
    """Whether the role may not see this."""

    @property
    def needed(self) -> int:
        """How many standbys have to have a commit before it returns."""
        number = _NUMBER.match(self.names)
        return int(number[1]) if number else 1

    @property
    def shortcoming(self) -> str:
        """Why a commit would not wait for a standby, or would wait for one that is not there; empty if nothing is wrong."""
        if self.written is None:
            return "the server is a standby"
        if self.commit not in _WAITS:
            return f"synchronous_commit is {self.commit}, so that no commit waits for a standby's disk"
        if not self.names.strip():
            return "synchronous_standby_names is empty, so that no commit waits for a standby"
        if self.hidden:
            return "the role may not see how far standbys are: GRANT pg_read_all_stats TO the service's role"
        if len(self.flushed) < self.needed:
            return f"{len(self.flushed)} synchronous standbys are connected, and a commit waits for {self.needed}"
        return ""

    def have(self, position: int) -> bool:
        """Whether as many standbys as a commit has to wait for have the WAL up to `position`."""
        return bool(self.names.strip()) and sum(one >= position for one in self.flushed) >= self.needed


async def read(connection: Connection) -> Standbys:
    """What `connection`'s server says now; in a transaction, what its COMMIT will wait for, unless that is changed until then."""
    row = await connection.fetchrow(SQL["standbys"])
    assert row is not None
    return Standbys(**row)


async def require(connection: Connection) -> None:
    """Raise StandbyMissing if a COMMIT on `connection` would not wait for a standby that is there."""
    if shortcoming := (await read(connection)).shortcoming:
        raise StandbyMissing(shortcoming)


async def confirm(connection: Connection, deadline: float) -> None:
    """Return when standbys have all that was committed on `connection`, or seen on it, before this call.

    Raises StandbyMissing at `deadline` (the event loop's clock), or at once where nothing could be waited for.
    """
    pause, target = _PAUSE_SECONDS, None
    while True:
        found = await read(connection)
        if target is None:
            target = found.written
        if target is not None and found.have(target):
            return
        if shortcoming := found.shortcoming:
            raise StandbyMissing(shortcoming)
        if asyncio.get_running_loop().time() > deadline:
            raise StandbyMissing("synchronous standbys do not have on disk what was committed, and lag")
        await asyncio.sleep(pause)
        pause = min(2 * pause, _PAUSE_SECONDS_MAX)


async def confirm_soon(connection: Connection) -> None:
    """As confirm(), within PATIENCE_SECONDS."""
    await confirm(connection, asyncio.get_running_loop().time() + PATIENCE_SECONDS)


Confirm = Callable[[Connection], Awaitable[None]]
"""Returns when standbys have all that was seen on the connection; raises StandbyMissing if they do not."""


def confirm_if(*, required: bool) -> Confirm | None:
    """What has to be awaited before anything leaves that was read; None if no standby is `required`."""
    return confirm_soon if required else None


async def fetch(engine: Engine, statement: str, *arguments: object, required: bool) -> list[asyncpg.Record]:
    """As db.fetch(), of rows that are acknowledged as stored. If it is `required`, standbys have them; StandbyMissing if not."""
    async with driver_connection(engine) as connection:
        rows = await connection.fetch(statement, *arguments)
        if rows and required:
            await confirm_soon(connection)
        return rows
