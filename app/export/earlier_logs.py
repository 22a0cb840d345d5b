"""What an export states of the logs that were closed after a loss, so that their events can be verified from the file."""

from typing import Any

import orjson

from app.db import Connection
from app.errors import Conflict, NotFound
from app.events.log import Log
from app.export.manifest import EarlierLog
from app.sql import load
from app.tlog.continued import Seam, read_seam
from app.tlog.prove import prove
from app.tlog.tiles import SQL as TLOG_SQL

SQL = load("export")


async def read_earlier_logs(connection: Connection, log: Log) -> tuple[EarlierLog, ...]:
    """The logs that `log` continues, the first one first; no part has any of their events yet. `connection` is in a snapshot."""
    return tuple([await _earlier_log(connection, one, log) for one in log.and_earlier() if one.id < log.id])


async def _earlier_log(connection: Connection, closed: Log, log: Log) -> EarlierLog:
    seam = await read_seam(connection, closed.next)
    if seam is None:  # missing or changed, which verification names: the rows are exported all the same
        return EarlierLog(closed.name, await connection.fetchval(SQL.of(closed)["log_size"]), None, None, None, None)
    checkpoint = await connection.fetchrow(TLOG_SQL.of(closed)["published_up_to"], seam.agreed_size)
    note = None if checkpoint is None else checkpoint["note"]
    return EarlierLog(closed.name, seam.size, None, None, note, await _proof_of(connection, seam, log))


async def _proof_of(connection: Connection, seam: Seam, log: Log) -> dict[str, Any] | None:
    """The opened proof of a seam; None where it cannot be proved, as without a key for checkpoints."""
    try:
        proof = await prove(connection, seam.event_id, log)
    except (NotFound, Conflict):
        return None
    document: dict[str, Any] = orjson.loads(proof.document())
    return document
