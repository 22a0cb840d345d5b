"""Promises under Idempotency-Keys that are over are forgotten. Ids that clients chose are kept for ever."""

import asyncio
import logging

from sqlalchemy.ext.asyncio import AsyncEngine

from app.db import fetch
from app.metrics import WORKER_FAILURES
from app.sql import load

ROUND_SECONDS = 3600.0

_SQL = load("retention")
_log = logging.getLogger(__name__)


async def forget_expired(engine: AsyncEngine) -> None:
    """Now and every hour for ever; a bounded number each time, so that no transaction lasts."""
    while True:
        try:
            await fetch(engine, _SQL["forget_expired_claims"])
        except Exception as error:  # noqa: BLE001 - top of a loop that has to outlive every failure
            WORKER_FAILURES.labels(worker="claims").inc()
            _log.warning("expired keys could not be forgotten", extra={"error": repr(error)})
        await asyncio.sleep(ROUND_SECONDS)
