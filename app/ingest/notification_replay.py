"""Replay of the notifications that were spooled while Postgres was away."""

import logging
from contextlib import suppress

from sqlalchemy.ext.asyncio import AsyncEngine

from app import metrics
from app.errors import Conflict, DatabaseAway, KeyReused
from app.ingest.notifications import is_stored, write
from app.ingest.spool import Spool, SpoolFailed
from app.ingest.spool_file import SpooledNotification
from app.workers import run_forever

_ROUND_SECONDS = 0.5

log = logging.getLogger(__name__)


async def replay_forever(engine: AsyncEngine, spool: Spool) -> None:
    """Twice a second, for as long as the process runs: write the notifications that wait."""

    async def do_round() -> None:
        # Expected while Postgres is away, and logged where they are raised; the next round tries again.
        with suppress(DatabaseAway, SpoolFailed):
            await replay(engine, spool)

    await run_forever(
        "notifications",
        do_round,
        pause_seconds=_ROUND_SECONDS,
        failure="spooled notifications could not be written",
    )


async def replay(engine: AsyncEngine, spool: Spool) -> None:
    """Write all that wait. What Postgres refuses for its content is quarantined. Raises DatabaseAway or SpoolFailed."""
    while notifications := await spool.next_notifications():
        for spooled in notifications:
            await _replay_one(engine, spool, spooled)


async def _replay_one(engine: AsyncEngine, spool: Spool, spooled: SpooledNotification) -> None:
    refusal = None
    try:
        # It may be stored already: a crash can lie between writing and removing.
        if not await is_stored(engine, spooled.notification):
            await write(engine, spooled.notification, spooled.claim)
    except (Conflict, KeyReused) as error:
        refusal = error.detail
    if refusal is not None:
        metrics.DLQ_XADD.labels("dead_letter_notifications").inc()
        metrics.DLQ_REFUSED.labels("notifications", "field_validation").inc()
        log.error("a spooled notification was quarantined", extra={"position": spooled.position, "reason": refusal})
    await spool.end_notification(spooled, refusal)
