"""Rows that are read in portions leave nothing behind in the server."""

from contextlib import aclosing

import asyncpg
import pytest

from app.db import portions

Connection = asyncpg.Connection
ROWS = "SELECT n, repeat('x', 10) AS wide FROM generate_series(1, $1::int) n"


async def open_cursors(connection: Connection) -> list[str]:
    return [row["name"] for row in await connection.fetch("SELECT name FROM pg_cursors WHERE name <> ''")]


@pytest.mark.parametrize("rows", [0, 1, 100])
async def test_cursor_is_closed_at_its_end(connection: Connection, rows: int) -> None:
    """A verification that opens a cursor for each of thousands of correlations takes all memory of the server."""
    async with connection.transaction():
        assert sum([len(portion) async for portion in portions(connection, ROWS, rows, widest="wide")]) == rows
        assert await open_cursors(connection) == []


async def test_cursor_is_closed_when_nobody_reads_on(connection: Connection) -> None:
    """A reading that stops early keeps its cursor until the snapshot ends."""
    async with connection.transaction():
        async with aclosing(portions(connection, ROWS, 100, widest="wide")) as reading:
            await anext(reading)
            assert len(await open_cursors(connection)) == 1
        assert await open_cursors(connection) == []


async def test_failure_is_what_is_told(connection: Connection) -> None:
    """A cursor that cannot be closed any more hides why."""
    statement = "SELECT n, (1 / (50 - n))::text AS wide FROM generate_series(1, $1::int) n"

    async def read() -> None:
        async with connection.transaction():
            async for _ in portions(connection, statement, 100, widest="wide"):
                pass

    with pytest.raises(asyncpg.DivisionByZeroError):
        await read()
