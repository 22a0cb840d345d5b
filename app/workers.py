"""Background workers: the loop that each of them runs in, and the connection that some of them reuse."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import NoReturn

import asyncpg

from app.db import CONNECTION_ERRORS, Connection
from app.errors import AuditError
from app.metrics import WORKER_FAILURES

Round = Callable[[], Awaitable[float | None]]
"""One round of work. It may return how many seconds to wait before the next one."""

_WITHOUT_TRACEBACK = (AuditError, *CONNECTION_ERRORS, asyncpg.PostgresError)

log = logging.getLogger(__name__)


async def run_forever(
    name: str, do_round: Round, *, pause_seconds: float, failure: str, retry_seconds: float | None = None
) -> NoReturn:
    """Do a round, wait, and repeat, for as long as the process runs.

    A round that raises is counted in the worker's metric under `name`, logged as `failure`, and repeated after
    `retry_seconds`, or after `pause_seconds` if that is None.
    """
    while True:
        try:
            pause = await do_round()
        except Exception as error:  # top of a loop that must survive every failure
            WORKER_FAILURES.labels(worker=name).inc()
            log.warning(failure, extra={"error": repr(error)}, exc_info=not isinstance(error, _WITHOUT_TRACEBACK))
            pause = retry_seconds
        await asyncio.sleep(pause_seconds if pause is None else pause)


class WorkerConnection:
    """A connection that a worker reuses from round to round. After a failure the next round opens a new one."""

    def __init__(self, connect: Callable[[], Awaitable[Connection]]) -> None:
        self._connect = connect
        self._connection: Connection | None = None

    @asynccontextmanager
    async def use(self) -> AsyncIterator[Connection]:
        """The connection, opened if necessary. An exception while it is used closes it."""
        if self._connection is None or self._connection.is_closed():
            self._connection = await self._connect()
        connection = self._connection
        try:
            yield connection
        except BaseException:
            # `close` would wait for the cancellation of a query, which an unreachable server never confirms.
            connection.terminate()
            self._connection = None
            raise
