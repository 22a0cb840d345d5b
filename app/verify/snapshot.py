"""Reading for verification and export: in one snapshot, whatever is written meanwhile; in portions that fit into memory."""

from asyncio import sleep
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from time import perf_counter

import asyncpg

from app.db import LONG_FETCH_SECONDS, Connection, Pool, driver_connection
from app.sql import load

SQL = load("verify")
_FIRST_ROWS = 2
_ROWS_MAX = 64
_BYTES_MAX = 1024**2
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


async def portions(
    connection: Connection, statement: str, *arguments: object, widest: str, rows_max: int = _ROWS_MAX
) -> AsyncGenerator[list[asyncpg.Record]]:
    """The rows of a statement (its text) in portions of at most `rows_max` rows and about 1 MiB.

    They come through a cursor of the server, which is closed at the end: else each one would stay, with its plan and its sorted rows,
    until the snapshot ends, which may be after thousands. `widest` names the column that makes a row large: each portion has as many rows as
    the widest one of the last portion allows, and at most twice as many as the last one.
    """
    cursor = await connection.cursor(statement, *arguments)
    count = _FIRST_ROWS  # as long as it is not known how wide they are
    try:
        while rows := await cursor.fetch(count, timeout=LONG_FETCH_SECONDS):
            yield rows
            width = max(len(row[widest] or "") for row in rows)
            count = max(1, min(rows_max, 2 * count, _BYTES_MAX // (width + 1)))
    finally:
        with suppress(
            asyncpg.PostgresError, asyncpg.InterfaceError, OSError
        ):  # it ends with a transaction that is broken
            # The driver closes only those that it iterates over itself, in portions of one size.
            await cursor._close_portal(None)  # type: ignore[attr-defined]  # noqa: SLF001


async def yielding_to_others(rows: Sequence[asyncpg.Record]) -> AsyncIterator[asyncpg.Record]:
    """The rows one by one, with a pause every few milliseconds in which other tasks of the event loop run."""
    slice_end = perf_counter() + _SLICE_SECONDS
    for row in rows:
        yield row
        if perf_counter() > slice_end:
            await sleep(0)
            slice_end = perf_counter() + _SLICE_SECONDS
