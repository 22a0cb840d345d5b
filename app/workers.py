"""Background workers: the loop in which each of them runs, and the connection that some of them reuse."""

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from contextvars import ContextVar
from time import monotonic
from typing import NoReturn

from app.db import DATABASE_ERRORS, Connection, is_idle
from app.errors import AuditError
from app.metrics import WORKER_FAILURES

Round = Callable[[], Awaitable[float | None]]
"""One round of work. It may return how many seconds to wait before the next one."""

_REMINDER_SECONDS = 60.0
_EXPECTED = (AuditError, *DATABASE_ERRORS)

database_is_away: ContextVar[Callable[[], bool]] = ContextVar("database_is_away", default=lambda: False)
"""Whether it is known, and logged, that the database is away: then workers do not log what they raise for it."""

log = logging.getLogger(__name__)


class Reminder:
    """Whether a line is due in the log: the first time, and then once a minute."""

    def __init__(self) -> None:
        self._due_at = -math.inf

    def is_due(self) -> bool:
        """True at most once a minute."""
        now = monotonic()
        if now < self._due_at:
            return False
        self._due_at = now + _REMINDER_SECONDS
        return True


async def run_forever(
    name: str,
    do_round: Round,
    *,
    pause_seconds: float,
    failure: str,
    retry_seconds: float | None = None,
    uncounted: tuple[type[Exception], ...] = (),
) -> NoReturn:
    """Do a round, wait, and repeat, for as long as the process runs.

    A round that raises is counted in the worker's metric under `name`, unless the error is one of `uncounted`, logged as
    `failure`, and repeated after `retry_seconds`, or after `pause_seconds` if that is None. What a database that is away can
    raise is a warning; anything else is an error with its traceback.
    """
    while True:
        try:
            pause = await do_round()
        except Exception as error:  # top of a loop that has to outlive every failure
            if not isinstance(error, uncounted):
                WORKER_FAILURES.labels(worker=name).inc()
            extra = {"worker": name, "error": repr(error)}
            if isinstance(error, _EXPECTED):
                log.log(logging.DEBUG if database_is_away.get()() else logging.WARNING, failure, extra=extra)
            else:
                log.exception(failure, extra=extra)
            pause = retry_seconds
        await asyncio.sleep(pause_seconds if pause is None else pause)


class WorkerConnection:
    """A connection that a worker reuses from round to round. After a failure the next round gets a new one."""

    def __init__(
        self,
        connect: Callable[[], Awaitable[Connection]],
        on_connect: Callable[[Connection], Awaitable[None]] | None = None,
    ) -> None:
        """`on_connect` is awaited with each new connection, before its first use."""
        self._connect = connect
        self._on_connect = on_connect
        self._connection: Connection | None = None

    def close(self) -> None:
        """End the connection, if there is one."""
        if self._connection is not None:
            self._connection.terminate()
            self._connection = None

    @asynccontextmanager
    async def use(self) -> AsyncIterator[Connection]:
        """The connection, opened if there is none or the last round has left something behind. What is raised while it is used ends it."""
        connection, is_new = self._connection, False
        if connection is not None and not is_idle(connection):
            connection.terminate()
        if connection is None or connection.is_closed():
            connection, is_new = await self._connect(), True
            self._connection = connection
        try:
            if is_new and self._on_connect is not None:
                await self._on_connect(connection)
            yield connection
        except BaseException:
            # `close` would wait for the cancellation of a query, which an unreachable server never confirms.
            connection.terminate()
            self._connection = None
            raise
