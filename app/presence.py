"""Whether this process can accept an event now: the state behind the readiness probe, and the watch on the database."""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial

from app.db import DATABASE_ERRORS, connect
from app.errors import AuditError, Fatal
from app.settings import Settings
from app.workers import WorkerConnection, run_forever

_ROUND_SECONDS = 0.5
_TIMEOUT_SECONDS = 2.0


class Presence:
    """State of the process and of its database, as the probes report it."""

    def __init__(self) -> None:
        self.waiting_for = ""
        """Why the database has not been used yet: the last error of the start."""
        self.database_seen = False
        """Whether the database was reached once and its schema fits, so that it may be used."""
        self.on_start: Callable[[], None] = lambda: None
        """Called once, when the database has been seen and every request is served."""
        self.on_stop: Callable[[], None] = lambda: None
        """Called when no more requests are accepted, before those in flight are waited for."""
        self.can_spool: Callable[[], bool] = lambda: False
        self.database_up = False
        self.shutting_down = False
        self.fatal: Fatal | None = None
        """Why the process ends itself, if it does."""

    @property
    def not_ready(self) -> str | None:
        """The contract's word for why the service cannot accept an event; None when it can."""
        if self.shutting_down:
            return "shutting_down"
        return None if self.database_up or self.can_spool() else "database_unreachable"

    async def watch(self, settings: Settings, on_presence: Callable[[bool], Awaitable[None]]) -> None:
        """Ask Postgres twice a second, on a connection of its own, and call `on_presence` with whether it answered."""
        connection = WorkerConnection(partial(connect, settings))

        async def do_round() -> None:
            self.database_up = await _answers(connection)
            await on_presence(self.database_up)

        await asyncio.sleep(_ROUND_SECONDS)
        await run_forever(
            "presence",
            do_round,
            pause_seconds=_ROUND_SECONDS,
            failure="a check of the database failed",
        )


async def _answers(connection: WorkerConnection) -> bool:
    try:
        async with asyncio.timeout(_TIMEOUT_SECONDS), connection.use() as usable:
            await usable.execute("SELECT 1")
    except (AuditError, *DATABASE_ERRORS):
        return False
    return True
