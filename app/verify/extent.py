"""Where the log ends, whatever rows somebody has put beyond it."""

from collections.abc import Sequence
from typing import Any

from app.db import LONG_FETCH_SECONDS, Connection
from app.events.log import Log
from app.tlog.note import PublicKey
from app.verify.checkpoints import signed_sizes
from app.verify.snapshot import SQL


async def log_size(
    connection: Connection, log: Log, notes: Sequence[str], keys: Sequence[PublicKey], known: int = 0
) -> int:
    """How many positions the log has: up to the last flush that follows without a gap from what is known to be the log's.

    Known are `known` positions, and those that a checkpoint among `notes` covers that one of `keys` signed. Without such a checkpoint
    others and the tiles count as well, so that the walk to the end is short, and the log goes on behind lost flushes whose events are
    all there.
    """
    sizes = list(signed_sizes(notes, keys)) if keys else []
    trusted = bool(sizes)
    sizes = [known, *(sizes if trusted else signed_sizes(notes, ()))]
    anchor = await _fetch(connection, log, "covered_size", sizes, not trusted)
    while True:
        size: int = await _fetch(connection, log, "log_end", anchor) or 0
        behind = None if trusted else await _fetch(connection, log, "flush_behind_lost_ones", size)
        if behind is None:
            return size
        anchor = behind + 1


async def _fetch(connection: Connection, log: Log, name: str, *arguments: object) -> Any:
    return await connection.fetchval(SQL.of(log)[name], *arguments, timeout=LONG_FETCH_SECONDS)
