"""Whether this process can accept an event now: the state behind the readiness probe, and the watch on the database."""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial

from app import standby
from app.database_url import CannotConnect, reason
from app.db import DATABASE_ERRORS, connect_writer, next_pause
from app.errors import AuditError, Fatal
from app.settings import Settings
from app.workers import WorkerConnection, run_forever

_ROUND_SECONDS = 0.5
_TIMEOUT_SECONDS = 2.0


class Presence:
    """State of the process and of its database, as the probes report it."""

    def __init__(self) -> None:
        self.waiting_for = ""
        """Why nothing can be committed, by the last try of the start or of the watch; empty if it can."""
        self.lacks_schema = False
        """Whether the start waits until somebody has migrated the database: then nothing else makes the service ready."""
        self.writer_failure: Callable[[], str] = lambda: ""
        """Why the writer's last flush could not be committed; empty if it was."""
        self.loss: Callable[[], str] = lambda: ""
        """Why the log has to be continued by hand before anything is signed again; empty if it has not."""
        self.signing_waits: Callable[[], str] = lambda: ""
        """Why no checkpoint is signed for now: no standby is known to have what it would cover; empty if nothing waits."""
        self.database_seen = False
        """Whether the database was reached once and its schema fits, so that it may be used."""
        self.on_start: Callable[[], None] = lambda: None
        """Called once, when the database has been seen and every request is served."""
        self.on_stop: Callable[[], None] = lambda: None
        """Called when no more requests are accepted, before those in flight are waited for."""
        self.can_spool: Callable[[], bool] = lambda: False
        self.open_findings: Callable[[], int] = lambda: 0
        """How many findings nobody has acknowledged. They are shown, and stop nothing."""
        self.shutting_down = False
        self.fatal: Fatal | None = None
        """Why the process ends itself, if it does."""

    @property
    def not_ready(self) -> str | None:
        """The contract's word for why the service cannot accept an event; None when it can."""
        if self.shutting_down:
            return "shutting_down"
        if self.lacks_schema:
            return "schema_missing"
        return None if not self.database_failure or self.can_spool() else "database_unreachable"

    @property
    def database_failure(self) -> str:
        """Why Postgres can commit nothing now, in its words or the network's; empty if it can."""
        return self.waiting_for or self.writer_failure() or ("" if self.database_seen else "it was not reached yet")

    async def watch(self, settings: Settings, on_presence: Callable[[str], Awaitable[None]]) -> None:
        """Ask Postgres twice a second, on a connection like the writer's, and call `on_presence` with why it cannot commit, or "".

        One that refuses the role, the password or the database is asked at growing intervals.
        """
        connection = WorkerConnection(partial(connect_writer, settings))
        pause = _ROUND_SECONDS

        async def do_round() -> float:
            nonlocal pause
            failure = await _failure(connection, standbys=settings.require_synchronous_standby)
            pause = next_pause(pause, failure, _ROUND_SECONDS)
            self.waiting_for = "" if failure is None else reason(failure)
            await on_presence(self.waiting_for)
            return pause

        await asyncio.sleep(_ROUND_SECONDS)
        await run_forever(
            "presence",
            do_round,
            pause_seconds=_ROUND_SECONDS,
            failure="a check of the database failed",
        )


async def _failure(connection: WorkerConnection, *, standbys: bool) -> BaseException | None:
    try:
        async with asyncio.timeout(_TIMEOUT_SECONDS), connection.use() as usable:
            if await usable.fetchval("SHOW transaction_read_only") == "on":
                return CannotConnect("the server is read-only: a standby, or one with default_transaction_read_only")
            if standbys:
                await standby.require(usable)
                await standby.confirm_soon(usable)
    except TimeoutError:
        return CannotConnect(f"no answer within {_TIMEOUT_SECONDS:g} s")
    except (AuditError, *DATABASE_ERRORS) as error:
        return error.__cause__ or error
    return None
