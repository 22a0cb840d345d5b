"""Notifications that Postgres cannot take: kept in the spool's file before they are answered, written when it is back."""

import asyncio
import logging
import os
import sqlite3
import time
from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

import orjson
from sqlalchemy.ext.asyncio import AsyncEngine

from app import metrics
from app.errors import Conflict, DatabaseAway, KeyReused
from app.ingest.notifications import Notification, is_stored, taken, write
from app.ingest.spool import Spool, SpoolFailed, claim_columns, claim_of
from app.ingest.submission import Claim, key_reused

_ROUND_SECONDS = 0.5
_PORTION = 100

log = logging.getLogger(__name__)


class SpooledNotification(NamedTuple):
    """One notification in the spool."""

    position: int
    size: int
    notification: Notification
    claim: Claim | None


class NotificationSpool:
    """The notifications in the file of `spool`."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool

    async def waits(self, notification: Notification, claim: Claim | None) -> bool:
        """Whether just this request waits here. Raises Conflict or KeyReused where another one has its id or key."""
        if not self._spool.depth.notifications:
            return False
        return await self._spool.read(lambda file: _find(file, notification, claim))

    async def append(self, notification: Notification, claim: Claim | None) -> None:
        """Keep it; when this returns, it is on disk. Raises as waits() does, and SpoolFull or SpoolFailed."""
        body, token = keep(notification), os.urandom(16)

        def work(file: sqlite3.Connection) -> int:
            if _find(file, notification, claim):
                return 0
            row = (token, time.time(), notification.notification_id, len(body), *claim_columns(claim), body)
            file.execute(
                "INSERT INTO notifications (token, kept_at, notification_id, bytes, scope, key, digest, expires_at, body)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                row,
            )
            return 1

        kept = await self._spool.keep(work, token, len(body))
        metrics.DLQ_XADD.labels("notifications").inc(kept)

    async def replay(self, engine: AsyncEngine) -> None:
        """Write all that waits. What Postgres refuses for its content goes to the quarantine. Raises DatabaseAway, SpoolFailed."""
        while self._spool.depth.notifications:
            for kept in await self._spool.read(_next):
                await self._replay_one(engine, kept)

    async def _replay_one(self, engine: AsyncEngine, kept: SpooledNotification) -> None:
        """Looked for first, as all that is replayed: a crash may lie between writing and removing."""
        refused = None
        try:
            if not await is_stored(engine, kept.notification):
                await write(engine, kept.notification, kept.claim)
        except (Conflict, KeyReused) as error:
            refused = error.detail
        if refused is not None:
            metrics.DLQ_XADD.labels("dead_letter_notifications").inc()
            metrics.DLQ_REFUSED.labels("notifications", "field_validation").inc()
            log.error("a spooled notification was quarantined", extra={"position": kept.position, "reason": refused})

        def work(file: sqlite3.Connection) -> int:
            if refused is None:
                file.execute("DELETE FROM notifications WHERE position = ?", [kept.position])
            else:
                file.execute("UPDATE notifications SET reason = ? WHERE position = ?", [refused, kept.position])
            return -1

        await self._spool.change(work, kept.size)


async def replay_forever(engine: AsyncEngine, notifications: NotificationSpool) -> None:
    """Twice a second for ever, once there is something."""
    while True:
        try:
            await notifications.replay(engine)
        except (DatabaseAway, SpoolFailed):
            pass  # the next round tries again; whoever failed has said so
        except Exception as error:  # noqa: BLE001 - top of a loop that has to outlive every failure
            metrics.WORKER_FAILURES.labels(worker="notifications").inc()
            log.warning("spooled notifications could not be written", extra={"error": repr(error)})
        await asyncio.sleep(_ROUND_SECONDS)


def keep(notification: Notification) -> bytes:
    """As one JSON object."""
    return orjson.dumps(notification)


def revive(body: bytes) -> Notification:
    """The same notification."""
    members = orjson.loads(body)
    return Notification(**members | {"sent_at": datetime.fromisoformat(members["sent_at"])})


def _find(file: sqlite3.Connection, notification: Notification, claim: Claim | None) -> bool:
    """Whether just this request waits."""
    if claim is not None:
        query = "SELECT digest FROM notifications WHERE scope = ? AND key = ? AND reason IS NULL"
        found = file.execute(query, [claim.scope, claim.key]).fetchone()
        if found is not None:
            if found[0] != claim.digest:
                raise key_reused()
            return True
    query = "SELECT 1 FROM notifications WHERE notification_id = ? AND reason IS NULL"
    if file.execute(query, [notification.notification_id]).fetchone():
        raise taken(notification)
    return False


def _next(file: sqlite3.Connection) -> Sequence[SpooledNotification]:
    query = (
        "SELECT position, bytes, body, scope, key, digest, expires_at FROM notifications"
        " WHERE reason IS NULL ORDER BY position LIMIT ?"
    )
    return [
        SpooledNotification(row[0], row[1], revive(row[2]), claim_of(row[3:]))
        for row in file.execute(query, [_PORTION])
    ]
