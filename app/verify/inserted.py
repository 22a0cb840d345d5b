"""Rows that are no part of the log although they look so: beyond its end, before its beginning, or of another log."""

from app.db import LONG_FETCH_SECONDS, Connection, portions
from app.events.log import Log
from app.verify.row import Defect, Defects, defect_of
from app.verify.snapshot import SQL


async def verify_inserted(connection: Connection, log: Log, size: int) -> Defects:
    """A defect for each row that is not in the log of `size` events and has columns that only the service writes.

    Those of no log are reported for the open one. `connection` is in a snapshot.
    """
    defects = Defects()
    for row in await connection.fetch(SQL.of(log)["outside_flushes"], size, log.is_open, timeout=LONG_FETCH_SECONDS):
        where = "" if row["position"] is None else f" at {row['position']}"
        message = (
            f"inserted: a row of {row['table']}{where}, of log {row['log_id']}, is no part of the log of {size} events"
        )
        defects.add(Defect("inserted", message, position=row["position"]))
    async for rows in portions(connection, SQL.of(log)["outside_rows"], size, log.is_open, widest="event_data"):
        for row in rows:
            index = row["log_index"]
            message = (
                "it says that it is of a log, but has no position"
                if index is None
                else f"the log has no position {index}"
            )
            defects.add(defect_of(row, "inserted", message, "", row["event_hash"] or ""))
    return defects
