"""Reading for verification and export: in one snapshot, whatever is written meanwhile, and without keeping other tasks waiting."""

from asyncio import sleep
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from time import perf_counter

import asyncpg

from app.db import Connection, Pool, driver_connection
from app.sql import load

SQL = load("verify")
_SLICE_SECONDS = 0.005


@asynccontextmanager
async def snapshot(
    pool: Pool, *, confirm: Callable[[Connection], Awaitable[None]] | None = None
) -> AsyncIterator[Connection]:
    """A connection that sees one snapshot of the database. DatabaseAway or DatabaseFailed when it breaks.

    `confirm`, whose first query takes the snapshot, raises if what it shows must not leave with a signature.
    """
    async with (
        driver_connection(pool) as connection,
        connection.transaction(isolation="repeatable_read", readonly=True),
    ):
        await connection.execute(SQL["long_statement_timeout"])
        if confirm is not None:
            await confirm(connection)
        yield connection


async def yielding_to_others(rows: Sequence[asyncpg.Record]) -> AsyncIterator[asyncpg.Record]:
    """The rows one by one, with a pause every few milliseconds in which other tasks of the event loop run."""
    slice_end = perf_counter() + _SLICE_SECONDS
    for row in rows:
        yield row
        if perf_counter() > slice_end:
            await sleep(0)
            slice_end = perf_counter() + _SLICE_SECONDS
