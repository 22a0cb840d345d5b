"""Monthly partitions of audit_events: there before an event needs one, for as long as the process runs."""

import asyncio
import logging
from collections.abc import Callable
from datetime import date, datetime, timedelta

import asyncpg

from app.metrics import WORKER_FAILURES
from app.sql import load

ROUND_SECONDS = 6 * 3600.0
RETRY_SECONDS = 60.0

_SQL = load("retention")
_log = logging.getLogger(__name__)


async def ensure(connection: asyncpg.Connection, first: date, last: date) -> int:
    """Make the partitions of every month from `first` to `last`, and say how many were missing.

    Nobody who reads or writes has to wait. Fails with 55P03 after two seconds behind another session's lock, and with
    55000 when a month's table stands there detached (a retention run has to finish).
    """
    made: int = await connection.fetchval(_SQL["ensure_partitions"], first, last)
    return made


async def keep_ahead(database_url: str, clock: Callable[[], datetime]) -> None:
    """Make, now and every few hours for ever, what events can need: a week late, months ahead. `clock` tells UTC."""
    while True:
        try:
            await _round(database_url, clock().date())
            pause_seconds = ROUND_SECONDS
        except Exception as error:  # noqa: BLE001 - top of a loop that has to outlive every failure
            WORKER_FAILURES.labels(worker="partitions").inc()
            _log.warning("partitions could not be made ahead", extra={"error": repr(error)})
            pause_seconds = RETRY_SECONDS
        await asyncio.sleep(pause_seconds)


async def _round(database_url: str, today: date) -> None:
    connection = await asyncpg.connect(database_url, timeout=10, command_timeout=30)
    try:
        # 92 days after the first of a month always lie in the third month after it.
        made = await ensure(connection, today - timedelta(days=10), today.replace(day=1) + timedelta(days=92))
    finally:
        connection.terminate()  # closing waits for the cancellation of a query, which a silent server never confirms
    if made:
        _log.info("partitions made", extra={"count": made})
