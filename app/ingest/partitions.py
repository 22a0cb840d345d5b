"""Monthly partitions of audit_events: each exists before an event needs it, for as long as the process runs."""

import logging
from collections.abc import Callable
from datetime import date, datetime, timedelta

import asyncpg

from app.database_url import connect
from app.sql import load
from app.workers import run_forever

ROUND_SECONDS = 6 * 3600.0
RETRY_SECONDS = 60.0

SQL = load("ingest")
log = logging.getLogger(__name__)


async def ensure(connection: asyncpg.Connection, first: date, last: date) -> int:
    """Create the missing partitions of the months from `first` to `last`. How many were missing.

    Readers and writers do not wait. Fails with 55P03 after waiting two seconds for another session's lock, and with 55000
    when a month's table exists but is detached (a retention run has to finish).
    """
    created: int = await connection.fetchval(SQL["ensure_partitions"], first, last)
    return created


async def create_ahead_forever(database_url: str, clock: Callable[[], datetime]) -> None:
    """Now and every few hours: create the partitions of events a week late to three months ahead. `clock` gives UTC."""

    async def do_round() -> None:
        await _create_ahead(database_url, clock().date())

    await run_forever(
        "partitions",
        do_round,
        pause_seconds=ROUND_SECONDS,
        retry_seconds=RETRY_SECONDS,
        failure="partitions could not be created ahead",
    )


async def _create_ahead(database_url: str, today: date) -> None:
    connection = await connect(database_url, seconds=10, command_seconds=30)
    try:
        # 92 days after the first of a month always lie in the third month after it.
        created = await ensure(connection, today - timedelta(days=10), today.replace(day=1) + timedelta(days=92))
    finally:
        connection.terminate()  # closing waits for the cancellation of a query, which a silent server never confirms
    if created:
        log.info("partitions created", extra={"count": created})
