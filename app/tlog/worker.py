"""The worker behind /tlog/: once a second it keeps the tiles, signs what was written, and shows it to witnesses and others.

Every replica runs it; locks in Postgres let one at a time do each step. The writer knows nothing of it.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime

import asyncpg

from app import db, metrics
from app.db import Connection
from app.settings import Settings
from app.tlog import merkle
from app.tlog.copies import CheckpointCopies
from app.tlog.keys import SigningKey
from app.tlog.signer import Alarms, Signer, SigningRefused
from app.tlog.tiles import SQL, Incomplete, extend, range_roots
from app.tlog.witness import Witness, Witnesses

ROUND_SECONDS = 1.0
_TRANSACTION_IDLE_MAX = "15s"  # longer than witnesses or a heartbeat take

Heartbeat = Callable[[int, datetime], Awaitable[None]]
"""Writes the event that says: the log has so many leaves since then, and the service lives."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Parts:
    """What the rounds are made of."""

    signer: Signer | None
    witnesses: Witnesses
    outside: CheckpointCopies
    alarms: Alarms
    heartbeat_seconds: float


def parts(settings: Settings, key: SigningKey | None) -> Parts:
    """What the settings ask for. Fatal when a witness is no witness."""
    if key is None:
        log.warning(
            "no checkpoints are signed, so nothing of the log can be proved to others: set DATASTORAGE_CHECKPOINT_KEY_FILE "
            "to the PEM of an Ed25519 key (`openssl genpkey -algorithm ed25519`)"
        )
    else:
        log.info("checkpoints are signed", extra={"key": str(key.public)})
    outside = CheckpointCopies(settings.checkpoint_file, settings.checkpoint_url)
    return Parts(
        None if key is None else Signer(key, outside.newest),
        Witnesses([Witness.parse(text) for text in settings.witnesses]),
        outside,
        Alarms(),
        settings.heartbeat_interval_s,
    )


async def keep(settings: Settings, made: Parts, heartbeat: Heartbeat) -> None:
    """A round each second for ever, on a connection of its own."""
    connection: Connection | None = None
    while True:
        try:
            if connection is None or connection.is_closed():
                # A frozen process must not keep the others from signing.
                connection = await db.connect(
                    settings, lock_timeout="3s", idle_in_transaction_session_timeout=_TRANSACTION_IDLE_MAX
                )
                await recall(connection, made)
            await run(connection, made, heartbeat)
        except (SigningRefused, Incomplete) as error:
            made.alarms.raised(error)
        except Exception as error:  # noqa: BLE001 - top of a loop that has to outlive every failure
            metrics.WORKER_FAILURES.labels(worker="checkpoint").inc()
            log.warning("a round of checkpoints failed", extra={"error": repr(error)})
            if connection is not None:
                connection.terminate()
        await asyncio.sleep(ROUND_SECONDS)


async def recall(connection: Connection, made: Parts) -> None:
    """How far the witnesses came before this process began."""
    row = await connection.fetchrow(SQL["cosignatures"])
    if row is not None and made.witnesses:
        with suppress(ValueError):  # damaged: then each witness says it
            made.witnesses.remember(row["size"], row["cosignatures"])


async def run(connection: Connection, made: Parts, heartbeat: Heartbeat) -> None:
    """One round."""
    await _beat(connection, made.heartbeat_seconds, heartbeat)
    while await _extend(connection):
        pass
    if made.signer is not None:
        await made.signer.sign(connection)
        await _publish(connection, made)
        await made.outside.send_again()
        made.alarms.over()


async def _extend(connection: Connection) -> bool:
    """One portion of tiles in one transaction; True when there are more."""
    async with connection.transaction():
        return await connection.fetchval(SQL["try_keeper"]) and await extend(connection)


async def _publish(connection: Connection, made: Parts) -> None:
    """Ask the witnesses about the newest checkpoint, then show it to everybody.

    A crash on the way leaves it unpublished, and the next round of any replica begins again.
    """
    async with connection.transaction():
        row = None
        if await connection.fetchval(SQL["try_publisher"]):
            row = await connection.fetchrow(SQL["unpublished"])
        if row is None:
            return
        size, note = row["size"], row["note"]
        in_turn = asyncio.Lock()

        async def prove(old: int) -> Sequence[bytes]:
            async with in_turn:
                return await range_roots(connection, merkle.consistency_ranges(old, size))

        lines = await made.witnesses.cosign(note, size, prove) if made.witnesses else ""
        await connection.execute(SQL["publish"], size, lines)
    await made.outside.keep(note + lines)


async def _beat(connection: Connection, interval_seconds: float, heartbeat: Heartbeat) -> None:
    """After an interval in which nothing was written, write that. The keeper's lock makes it one replica's business."""
    if await _silence(connection, interval_seconds) is None:
        return
    async with connection.transaction():
        if await connection.fetchval(SQL["try_keeper"]) and (end := await _silence(connection, interval_seconds)):
            await heartbeat(end["size"], end["flushed_at"])


async def _silence(connection: Connection, interval_seconds: float) -> asyncpg.Record | None:
    """The end of the log, if nothing was written for so long."""
    end = await connection.fetchrow(SQL["log_end"])
    return end if end is not None and 0 < interval_seconds <= end["silent_seconds"] else None
