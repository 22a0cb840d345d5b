"""Statements of the reports, run once before the service is ready: the first plan over many partitions is slow."""

import asyncio
from datetime import UTC, datetime
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncEngine

from app.db import driver_connection
from app.query.correlations import WALKS
from app.sql import load

_LONG_AGO = datetime(2000, 1, 1, tzinfo=UTC)
_PLACE = ("2000-01-01T00:00:00", UUID(int=0))
ARGUMENTS: dict[str, tuple[object, ...]] = {
    "reconstruction": ("-", ["-"]),
    "effectiveness": ("-",),
    "remediations": ("-", None, _LONG_AGO, _LONG_AGO, "-"),
    "assessments": (["-"], 1),
    "timeline": ("-", 1, 0),
    "extent": ("-",),
    "chain_head": ("-",),
    "last_verdict": ("-",),
    "steps": ("-", ["-"], ["-"]),
    "holds": ("-",),
    "notifications": ("-",),
    "plan_once": (),
    "walk": (*_PLACE, "-infinity", 1),
    "newest": (["-"], [_PLACE[0]], [_PLACE[1]]),
    "matching": (["-"], None, None, None),
    "summaries": (["-"],),
}
"""For each statement values that find nothing."""


async def warm(engine: AsyncEngine) -> None:
    """Run every statement once on every connection of the pool, the walk as it is walked."""
    statements = load("reports")
    runs = [(statements[name], arguments) for name, arguments in ARGUMENTS.items() if name != "walk"]
    runs += [(walk, ARGUMENTS["walk"][:3]) for walk in WALKS.values()]

    async def warm_one() -> None:
        async with driver_connection(engine) as connection, connection.transaction(readonly=True):
            for statement, arguments in runs:
                await connection.fetch(statement, *arguments)

    await asyncio.gather(*(warm_one() for _ in range(engine.pool.size())))  # type: ignore[attr-defined]  # QueuePool's
