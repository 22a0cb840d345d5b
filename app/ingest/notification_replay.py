"""Replay of the notifications that were spooled while Postgres was away."""

import asyncio
import logging
from contextlib import suppress

from app import metrics
from app.db import Engine
from app.errors import Conflict, DatabaseAway, InboxFull, KeyReused
from app.ingest.notification_writing import write
from app.ingest.notifications import is_stored
from app.ingest.spool import Spool, SpoolFailed
from app.ingest.spool_file import SpooledNotification
from app.ingest.store import RowRefused
from app.ingest.writer import Writer
from app.workers import run_forever

_ROUND_SECONDS = 0.5
_WRITE_SECONDS = 30.0

log = logging.getLogger(__name__)


async def replay_forever(engine: Engine, writer: Writer, spool: Spool) -> None:
    """Twice a second, for as long as the process runs: write the notifications that wait."""

    async def do_round() -> None:
        # Expected while Postgres is away, and logged where they are raised; the next round tries again.
        with suppress(DatabaseAway, InboxFull, SpoolFailed):
            await replay(engine, writer, spool)

    await run_forever(
        "notifications",
        do_round,
        pause_seconds=_ROUND_SECONDS,
        failure="spooled notifications could not be written",
    )


async def replay(engine: Engine, writer: Writer, spool: Spool) -> None:
    """Write all that wait. What Postgres refuses for its content is quarantined. Raises DatabaseAway, InboxFull or SpoolFailed."""
    while notifications := await spool.next_notifications():
        for spooled in notifications:
            await _replay_one(engine, writer, spool, spooled)


async def _replay_one(engine: Engine, writer: Writer, spool: Spool, spooled: SpooledNotification) -> None:
    refusal, deadline = None, asyncio.get_running_loop().time() + _WRITE_SECONDS
    try:
        # It may be stored already: a crash can lie between writing and removing.
        if not await is_stored(engine, spooled.notification, standbys=writer.requires_standby):
            await write(engine, writer, spooled.notification, spooled.claim, deadline)
    except (Conflict, KeyReused, RowRefused) as error:
        # Its first flush may have been committed after it was looked for.
        refusal = (
            None if await is_stored(engine, spooled.notification, standbys=writer.requires_standby) else error.detail
        )
    if refusal is not None:
        metrics.DLQ_XADD.labels("dead_letter_notifications").inc()
        metrics.DLQ_REFUSED.labels("notifications", "field_validation").inc()
        log.error("a spooled notification was quarantined", extra={"position": spooled.position, "reason": refusal})
    await spool.end_notification(spooled, refusal)
