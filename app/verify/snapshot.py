"""Reading for verification: in one snapshot, so that a concurrent write is no defect; in portions, so that size has no limit."""

from asyncio import sleep
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from time import perf_counter

import asyncpg
from sqlalchemy.ext.asyncio import AsyncEngine

from app.db import Connection, driver_connection
from app.sql import load

SQL = load("verify")
FETCH_TIMEOUT_SECONDS = 600.0
_ROWS_AT_ONCE = 64
_BYTES_AT_ONCE = 4 * 1024**2
_SLICE_SECONDS = 0.005


@asynccontextmanager
async def snapshot(engine: AsyncEngine) -> AsyncIterator[Connection]:
    """A connection that sees one moment, whatever is written meanwhile. DatabaseAway or DatabaseFailed when it breaks."""
    async with (
        driver_connection(engine) as connection,
        connection.transaction(isolation="repeatable_read", readonly=True),
    ):
        await connection.execute(SQL["unhurried"])
        yield connection


async def portions(
    connection: Connection, statement: str, widest: str, *arguments: object, at_once: int = _ROWS_AT_ONCE
) -> AsyncIterator[Sequence[asyncpg.Record]]:
    """Rows of a statement in portions that fit into memory.

    `widest` names the column that makes a row large. Each portion is as large as the widest row of the last one allows.
    """
    cursor = await connection.cursor(SQL[statement], *arguments)
    portion = _ROWS_AT_ONCE // 8
    while rows := await cursor.fetch(portion, timeout=FETCH_TIMEOUT_SECONDS):
        yield rows
        width = max(len(row[widest] or "") for row in rows)
        portion = max(1, min(at_once, _BYTES_AT_ONCE // (width + 1)))


async def unhurried(rows: Sequence[asyncpg.Record]) -> AsyncIterator[asyncpg.Record]:
    """The rows one by one, with turns for other requests between."""
    slice_end = perf_counter() + _SLICE_SECONDS
    for row in rows:
        yield row
        if perf_counter() > slice_end:
            await sleep(0)
            slice_end = perf_counter() + _SLICE_SECONDS
