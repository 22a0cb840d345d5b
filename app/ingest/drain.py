"""What operators do with a spool: look into it, take it out, and write one whose pod never comes back. `datastorage spool`."""

import asyncio
import sqlite3
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from app import db, schema
from app.errors import AuditError, Fatal
from app.ingest.notification_spool import NotificationSpool
from app.ingest.spool import Spool
from app.ingest.spool_codec import shown
from app.ingest.store import Store
from app.ingest.writer import Writer
from app.settings import Settings
from app.sql import load

_DAY_SECONDS = 86_400
_ROUND_SECONDS = 0.2
_ROUNDS_WITHOUT_PROGRESS_MAX = 50


class Entry(NamedTuple):
    """One request in a spool."""

    position: int
    kept_at: float
    what: str
    size: int
    reason: str | None
    """Why it is in quarantine; None while it waits."""


def entries(directory: Path) -> list[Entry]:
    """Every request, the oldest first, also while a service uses the spool."""
    with closing(_reading(directory)) as file:
        rows = file.execute(
            "SELECT position, kept_at, events || ' events', bytes, reason FROM requests"
            " UNION ALL SELECT position, kept_at, 'notification', bytes, reason FROM notifications ORDER BY kept_at"
        )
        return [Entry(*row) for row in rows]


def events(directory: Path, *, quarantined: bool) -> Iterator[dict[str, Any]]:
    """The events and notifications themselves, as they were accepted."""
    with closing(_reading(directory)) as file:
        query = "SELECT reason, body FROM requests ORDER BY position"
        for reason, body in file.execute(query):
            if (reason is not None) >= quarantined:
                yield from (event | ({"reason": reason} if reason else {}) for event in shown(body))
        for reason, body in file.execute("SELECT reason, body FROM notifications ORDER BY position"):
            if (reason is not None) >= quarantined:
                yield orjson.loads(body) | ({"reason": reason} if reason else {})


def _reading(directory: Path) -> sqlite3.Connection:
    path = directory / "spool.sqlite3"
    if not path.exists():
        raise Fatal(f"There is no spool in {directory}: name the directory that holds spool.sqlite3.")
    return sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=5)


async def replay(settings: Settings, directory: Path, *, force: bool, quarantined: bool) -> str:
    """Write what waits in `directory` to Postgres, and say what became of it. Fatal when that cannot be done now."""
    if not (directory / "spool.sqlite3").exists():
        raise Fatal(f"There is no spool in {directory}: name the directory that holds spool.sqlite3.")
    connection = await db.connect(settings)
    try:
        log_name = await schema.check(connection, settings.log_name)
        days = await connection.fetchval(load("ingest")["retention_days_min"])
    finally:
        await connection.close()
    spool = Spool(directory, settings.spool_bytes_max)
    try:
        if quarantined:
            await spool.release()
        oldest = spool.depth.oldest
        if oldest and not force and time.time() - oldest > days * _DAY_SECONDS:
            raise Fatal(
                f"The spool is older than the smallest retention ({days} days): say --force to write it all the same."
            )
        before = spool.depth.events, spool.depth.notifications
        await _drain(Writer(Store(settings, log_name), settings, spool), spool)
        await _drain_notifications(settings, spool)
        return (
            f"{before[0]} events and {before[1]} notifications taken from the spool; "
            f"{spool.depth.quarantined} events are in quarantine"
        )
    finally:
        spool.close()


async def _drain(writer: Writer, spool: Spool) -> None:
    writer.start()
    left, rounds = spool.depth.events, 0
    try:
        while spool.depth.events and rounds < _ROUNDS_WITHOUT_PROGRESS_MAX:
            await writer.on_presence(there=True)
            await asyncio.sleep(_ROUND_SECONDS)
            rounds = 0 if spool.depth.events < left else rounds + 1
            left = spool.depth.events
            print(f"\rwriting, {left} events left ", end="", file=sys.stderr, flush=True)  # noqa: T201 - progress
    finally:
        print(file=sys.stderr)  # noqa: T201 - progress
        await writer.close()
    if spool.depth.events:
        raise Fatal(f"Postgres takes no events: {left} are still in the spool; the log above says why.")


async def _drain_notifications(settings: Settings, spool: Spool) -> None:
    engine = db.create_engine(settings)
    try:
        await NotificationSpool(spool).replay(engine)
    except AuditError as error:
        left = spool.depth.notifications
        raise Fatal(f"Postgres takes no notifications, {left} are still in the spool: {error.detail}") from error
    finally:
        await engine.dispose()
