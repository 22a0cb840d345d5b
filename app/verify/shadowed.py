"""Ids that stand twice: an event of the log, and a row that somebody inserted so that it is taken for that event."""

from collections.abc import Iterable

import asyncpg

from app.db import LONG_FETCH_SECONDS, Connection
from app.events.log import Log
from app.verify.row import Defect, Defects, defect_of
from app.verify.snapshot import SQL


async def verify_unlogged_ids(connection: Connection, log: Log, size: int) -> Defects:
    """A defect for each row outside the log of `size` events whose id another row has too. `connection` is in a snapshot."""
    return await _shadowed(connection, SQL.of(log)["ids_outside_the_log"], size, log.is_open)


async def verify_ids_of(connection: Connection, defects: Iterable[Defect]) -> Defects:
    """A defect for each of those rows that have defects already and whose id another row has too, at positions of the log."""
    ids = {defect.event_id for defect in defects if defect.event_id is not None}
    return await _shadowed(connection, SQL["ids_of_events"], list(ids)) if ids else Defects()


async def verify_ids_in(connection: Connection, correlation_id: str) -> Defects:
    """A defect for each row of one correlation whose id another row has too."""
    return await _shadowed(connection, SQL["ids_of_a_correlation"], correlation_id)


async def _shadowed(connection: Connection, statement: str, *arguments: object) -> Defects:
    defects = Defects()
    for row in await connection.fetch(statement, *arguments, timeout=LONG_FETCH_SECONDS):
        defects.add(_defect(row))
    return defects


def _defect(row: asyncpg.Record) -> Defect:
    where = (
        "twice in this correlation" if row["other"] == row["correlation_id"] else f"in correlation {row['other']} too"
    )
    return defect_of(row, "shadowed", f"the id of this event stands {where}")
