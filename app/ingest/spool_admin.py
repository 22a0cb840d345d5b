"""What operators do with a spool (`datastorage spool`): list it, export it, and replay one whose pod never comes back."""

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
from app.events.log import Log
from app.ingest import notification_replay
from app.ingest.spool import Spool
from app.ingest.spool_codec import readable
from app.ingest.spool_file import FILE_NAME
from app.ingest.store import FindLog, Store
from app.ingest.writer import Writer
from app.settings import Settings
from app.sql import load

_DAY_SECONDS = 86_400
_ROUND_SECONDS = 0.2
_ROUNDS_WITHOUT_PROGRESS_MAX = 50


class SpoolEntry(NamedTuple):
    """One request in a spool."""

    position: int
    spooled_at: float
    """Unix time."""
    content: str
    """Such as `3 events`, or `notification`."""
    size: int
    reason: str | None
    """Why it is in quarantine; None while it waits."""


def entries(directory: Path) -> list[SpoolEntry]:
    """Every request, the oldest first. Works also while a service uses the spool."""
    with closing(_open_read_only(directory)) as file:
        rows = file.execute(
            "SELECT position, kept_at, events || ' events', bytes, reason FROM requests"
            " UNION ALL SELECT position, kept_at, 'notification', bytes, reason FROM notifications ORDER BY kept_at"
        )
        return [SpoolEntry(*row) for row in rows]


def events(directory: Path, *, quarantined: bool) -> Iterator[dict[str, Any]]:
    """All events and notifications as they were accepted, or only those in quarantine."""
    with closing(_open_read_only(directory)) as file:
        query = "SELECT reason, body FROM requests ORDER BY position"
        for reason, body in file.execute(query):
            if (reason is not None) >= quarantined:
                yield from (event | ({"reason": reason} if reason else {}) for event in readable(body))
        for reason, body in file.execute("SELECT reason, body FROM notifications ORDER BY position"):
            if (reason is not None) >= quarantined:
                yield orjson.loads(body) | ({"reason": reason} if reason else {})


def _existing_file(directory: Path) -> Path:
    path = directory / FILE_NAME
    if not path.exists():
        raise Fatal(f"There is no spool in {directory}: name the directory that contains {FILE_NAME}.")
    return path


def _open_read_only(directory: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"file:{_existing_file(directory)}?mode=ro", uri=True, timeout=5)


async def replay(
    settings: Settings, directory: Path, find_log: FindLog | None = None, *, force: bool, quarantined: bool
) -> str:
    """Write what waits in `directory` to Postgres; the result as one line of text. Raises Fatal when not all can be written.

    `quarantined` tries what is in quarantine again, too. `force` replays a spool that is older than the smallest retention.
    `find_log` finds the log that is open.
    """
    _existing_file(directory)
    connection = await db.connect(settings)
    try:
        log_name = await schema.check_and_read_log_name(connection, settings.log_name)
        days = await connection.fetchval(load("ingest")["retention_days_min"])
    finally:
        await connection.close()
    spool = Spool(directory, settings.spool_bytes_max)
    try:
        await spool.belong_to(log_name)
        if quarantined:
            await spool.requeue_quarantined()
        oldest = spool.depth.oldest
        if oldest and not force and time.time() - oldest > days * _DAY_SECONDS:
            raise Fatal(
                f"The spool is older than the smallest retention ({days} days): use --force to replay it anyway."
            )
        before = spool.depth.events, spool.depth.notifications
        writer = Writer(Store(settings, Log(0, log_name), find_log=find_log), settings, spool)
        writer.start()
        try:
            await _replay_events(writer, spool)
            await _replay_notifications(settings, writer, spool)
        finally:
            await writer.close()
        return (
            f"{before[0]} events and {before[1]} notifications replayed from the spool; "
            f"{spool.depth.quarantined} events are in quarantine"
        )
    finally:
        spool.close()


async def _replay_events(writer: Writer, spool: Spool) -> None:
    left, rounds_without_progress = spool.depth.events, 0
    try:
        while spool.depth.events and rounds_without_progress < _ROUNDS_WITHOUT_PROGRESS_MAX:
            await writer.on_presence("")
            await asyncio.sleep(_ROUND_SECONDS)
            rounds_without_progress = 0 if spool.depth.events < left else rounds_without_progress + 1
            left = spool.depth.events
            print(f"\rwriting, {left} events left ", end="", file=sys.stderr, flush=True)  # noqa: T201 - progress
    finally:
        print(file=sys.stderr)  # noqa: T201 - progress
    if spool.depth.events:
        raise Fatal(f"Events cannot be written to Postgres: {left} are still in the spool; see the log above.")


async def _replay_notifications(settings: Settings, writer: Writer, spool: Spool) -> None:
    engine = db.create_engine(settings)
    try:
        await notification_replay.replay(engine, writer, spool)
    except AuditError as error:
        left = spool.depth.notifications
        raise Fatal(
            f"Notifications cannot be written to Postgres: {left} are still in the spool: {error.detail}"
        ) from error
    finally:
        await engine.dispose()
