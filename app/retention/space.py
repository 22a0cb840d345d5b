"""Gives the space of months back to the file system in which only few rows have stayed.

What is deleted leaves a month's table as large as it was: VACUUM gives back what is free at its end alone, and nearly every month has
events that stay, by which others are judged. So the rest is written into a new file, in the order of time. Nobody can read or write
that month meanwhile, which is why it is done only where few rows are left, and given up where others have locked the table.
"""

import asyncio
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field

import asyncpg

from app.db import Connection
from app.retention.policy import Month
from app.sql import load

SQL = load("retention")
PAGES_MIN = 1_000
"""Smaller tables stay as they are: 8 MB, without indexes."""
PAUSE_SECONDS = 1.0
_ROWS_MAX = 20_000
_TRIES = 20


@dataclass(slots=True)
class Space:
    """What months have given back."""

    freed: dict[str, int] = field(default_factory=dict)
    """Bytes, by the name of the month's table."""
    waiting: list[str] = field(default_factory=list)
    """Months that others have locked, or see as they were. The next run tries again."""


async def give_back(connection: Connection, emptied: Iterable[Month]) -> Space:
    """Give back the space of months of which `emptied` have just lost rows, and of those that an earlier run has left.

    The connection's role owns the tables. Each month is locked while its rest is written.
    """
    space = Space()
    for month in emptied:
        with suppress(asyncpg.LockNotAvailableError):
            await connection.execute(f"VACUUM (ANALYZE, TRUNCATE FALSE) {month.name}")
    for row in await connection.fetch(SQL["nearly_empty_months"], PAGES_MIN, _ROWS_MAX):
        if row["all_visible"] and await _rewrite(connection, row["name"], row["by_time"]):
            space.freed[row["name"]] = row["bytes"] - await connection.fetchval(SQL["bytes_of_month"], row["name"])
        else:
            space.waiting.append(row["name"])
    return space


async def _rewrite(connection: Connection, table: str, by_time: str) -> bool:
    """Whether it was done: readers that come while it waits for others would wait too, so it waits for moments only."""
    for _ in range(_TRIES):
        try:
            async with connection.transaction():
                await connection.execute("SET LOCAL lock_timeout = '100ms'")
                await connection.execute(f"CLUSTER {table} USING {by_time}")
                await connection.execute(f"ALTER TABLE {table} SET WITHOUT CLUSTER")
        except asyncpg.LockNotAvailableError:
            await asyncio.sleep(PAUSE_SECONDS)
        else:
            return True
    return False
