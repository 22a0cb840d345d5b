"""The checkpoint worker: once a second it extends the tiles, signs a checkpoint, has witnesses cosign it, and publishes it.

Every replica runs it; locks in Postgres let one at a time do each step. The writer does not depend on it.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import NoReturn, Self

import asyncpg

from app import metrics, standby
from app.db import Connection, connect
from app.events.log import Log
from app.settings import Settings
from app.tlog import merkle
from app.tlog.alarm import LogAlarm
from app.tlog.continued import newest_log
from app.tlog.copies import CheckpointCopies
from app.tlog.keys import SigningKey
from app.tlog.seen import SeenCheckpoint
from app.tlog.signer import Alarms, RowsInserted, Signer, SigningRefused
from app.tlog.tiles import SQL, HashesMissing, extend_tiles, range_roots
from app.tlog.witness import Witness, Witnesses
from app.workers import Reminder, WorkerConnection, run_forever

_ROUND_SECONDS = 1.0
_TRANSACTION_IDLE_MAX = "15s"  # longer than witnesses or a heartbeat need

Heartbeat = Callable[[int, datetime | None], Awaitable[None]]
"""Writes the self event that the log has had this size since that time, if it is known, which shows that the service is alive."""
OnAlarms = Callable[[Sequence[LogAlarm]], Awaitable[None]]
"""Called after each round with the alarms that there are."""

log = logging.getLogger(__name__)


@dataclass
class CheckpointWorker:
    """What the rounds need. Without a signer they extend the tiles and write heartbeats only."""

    log: Log
    signer: Signer | None
    witnesses: Witnesses
    copies: CheckpointCopies
    alarms: Alarms
    heartbeat_seconds: float
    """Seconds without writes before a heartbeat; 0 for no heartbeats."""
    seen: SeenCheckpoint | None = None
    """None for a process that only remembers it."""
    key: SigningKey | None = None
    on_log: Callable[[Log], None] = lambda _: None
    """Called with the log that events are written to, once it continues the one before."""
    confirm: standby.Confirm | None = None
    """Awaited before anything is signed or published; None where no standby is required."""
    signing_waits: str = ""
    """Why nothing was signed in the last round, if it was for want of a standby."""
    _reminder: Reminder = field(default_factory=Reminder)

    @classmethod
    def create(cls, settings: Settings, of_log: Log, key: SigningKey | None, directory: Path | None = None) -> Self:
        """The worker that the settings describe, which notes the last checkpoint in `directory`, the spool's.

        Fatal when a configured witness is not valid.
        """
        if key is None:
            log.warning(
                "no checkpoints are signed, so nothing of the log can be proved to others: set "
                "DATASTORAGE_CHECKPOINT_KEY_FILE to the PEM of an Ed25519 key (`openssl genpkey -algorithm ed25519`)"
            )
        else:
            log.info("checkpoint signing is enabled", extra={"key": str(key.public)})
        copies = CheckpointCopies(settings.checkpoint_file, settings.checkpoint_url)
        seen = SeenCheckpoint(directory, () if key is None else key.all_public)
        confirm = standby.confirm_if(required=settings.require_synchronous_standby)
        return cls(
            of_log,
            None if key is None else Signer(key, lambda: (copies.newest_note(of_log.name), seen.note), of_log, confirm),
            Witnesses([Witness.parse(text) for text in settings.witnesses]),
            copies,
            Alarms(),
            settings.heartbeat_interval_s,
            seen,
            key,
            confirm=confirm,
        )

    async def known_checkpoints(self) -> dict[str, str]:
        """The newest checkpoints that are out of the database's reach, as notes by what messages call them.

        Those that were posted to a URL or shown to witnesses were seen by this process, too.
        """
        notes = {
            "the last checkpoint that this replica has seen": self._seen_of(self.log),
            "the last checkpoint in DATASTORAGE_CHECKPOINT_FILE": await asyncio.to_thread(
                self.copies.newest_note, self.log.name
            ),
        }
        return {name: note for name, note in notes.items() if note is not None}

    def _seen_of(self, log: Log) -> str | None:
        """The last checkpoint that this replica has seen, if it is one of `log`."""
        note = None if self.seen is None else self.seen.note
        return note if note is not None and note.partition("\n")[0] == log.name else None

    def _seen_after(self, log: Log) -> str | None:
        """As _seen_of(), of a log after `log`: then the database is a backup from before that one."""
        note = None if self.seen is None else self.seen.note
        return note if note is not None and log.precedes(note.partition("\n")[0]) else None

    async def run(self, settings: Settings, heartbeat: Heartbeat, on_alarms: OnAlarms) -> NoReturn:
        """A round each second for as long as the process runs, on a connection of its own."""

        async def open_connection() -> Connection:
            # The timeout ends the transaction of a process that hangs, so that others can sign.
            return await connect(
                settings, cancels=False, lock_timeout="3s", idle_in_transaction_session_timeout=_TRANSACTION_IDLE_MAX
            )

        connection = WorkerConnection(open_connection, self.restore_witness_sizes)

        async def do_round() -> None:
            async with connection.use() as usable:
                alarms = list[LogAlarm]()
                try:
                    await self.run_round(usable, heartbeat)
                except (SigningRefused, HashesMissing) as error:
                    alarms.append(self.alarms.report(error))
            await on_alarms([*alarms, *self.witnesses.alarms])

        await run_forever(
            "checkpoint", do_round, pause_seconds=_ROUND_SECONDS, failure="a round of the checkpoint worker failed"
        )

    async def restore_witness_sizes(self, connection: Connection) -> None:
        """Read from the stored cosignatures which size each witness has seen before this process began."""
        row = await connection.fetchrow(SQL.of(self.log)["last_cosignatures"])
        if row is not None and self.witnesses:
            with suppress(ValueError):  # malformed: then each witness answers with its size
                self.witnesses.restore_sizes(row["size"], row["cosignatures"])

    async def run_round(self, connection: Connection, heartbeat: Heartbeat) -> None:
        """One round. Raises SigningRefused or HashesMissing; RowsInserted only after it has signed."""
        await self._follow_log(connection)
        await self._write_heartbeat(connection, heartbeat)
        while await _extend_tiles(connection, self.log):
            pass
        if self.signer is not None:
            await self._sign_and_publish(connection, self.signer)
            await self.copies.retry_post()
        if (table := await connection.fetchval(SQL.of(self.log)["beyond_log"])) is not None:
            raise RowsInserted(
                f"{table} has a row beyond the end of the log, or before its beginning, or of another log"
            )
        self.alarms.clear()

    async def _sign_and_publish(self, connection: Connection, signer: Signer) -> None:
        """Sign, and show what is signed, unless standbys do not have it: then say so, and go on."""
        try:
            await signer.sign(connection)
            if self.seen is not None:
                await self.seen.store(signer.newest_note)
            await self._publish(connection)
            self.signing_waits = ""
        except standby.StandbyMissing as error:
            self.signing_waits = error.detail
            if self._reminder.is_due():
                log.warning(
                    "no checkpoint is signed or published: a failover could contradict it",
                    extra={"reason": error.detail},
                )
        metrics.SIGNING_WAITS.set(bool(self.signing_waits))

    async def _follow_log(self, connection: Connection) -> None:
        """Go on with the next log if this one was continued: its tree, its checkpoints, under its own name."""
        found = await newest_log(connection, self.log, self.key.all_public if self.key else ())
        if found == self.log:
            return
        for closed in found.and_earlier():
            if closed.id >= self.log.id and not closed.is_open:
                with suppress(HashesMissing):  # its tree ends before a hole
                    while await _extend_tiles(connection, closed):
                        pass
        self.log = found
        self.alarms.clear()
        if self.key is not None:
            seen = self._seen_of(found) or self._seen_after(found)
            self.signer = Signer(
                self.key.of(found), lambda: (self.copies.newest_note(found.name), seen), found, self.confirm
            )
            log.warning("checkpoints of the next log are signed", extra={"key": str(self.signer.key.public)})
        self.witnesses.forget_sizes()
        self.on_log(found)

    async def _write_heartbeat(self, connection: Connection, heartbeat: Heartbeat) -> None:
        """Call `heartbeat` after an interval in which nothing was written. The lock of the tiles makes it one replica's task."""
        if await _end_if_idle(connection, self.log, self.heartbeat_seconds) is None:
            return
        async with connection.transaction():
            has_lock = await connection.fetchval(SQL["try_lock_tiles"])
            if has_lock and (end := await _end_if_idle(connection, self.log, self.heartbeat_seconds)):
                await heartbeat(end["size"], end["flushed_at"])

    async def _publish(self, connection: Connection) -> None:
        """Ask the witnesses to cosign the newest checkpoint, then publish and copy it.

        After a crash before the end it is not published, and the next round of any replica tries again. Raises StandbyMissing.
        """
        async with connection.transaction():
            row = None
            if await connection.fetchval(SQL["try_lock_publishing"]):
                row = await connection.fetchrow(SQL.of(self.log)["unpublished_checkpoint"])
            if row is None:
                return
            if (
                self.confirm is not None
            ):  # `log continue` has signed before its COMMIT, whose wait may have been cancelled
                await self.confirm(connection)
            size, note = row["size"], row["note"]
            one_query = asyncio.Lock()  # witnesses are asked at the same time, on one connection

            async def prove(old: int) -> Sequence[bytes]:
                async with one_query:
                    return await range_roots(connection, self.log, merkle.consistency_ranges(old, size))

            lines = await self.witnesses.cosign(note, size, prove) if self.witnesses else ""
            await connection.execute(SQL.of(self.log)["publish_checkpoint"], size, lines)
        await self.copies.add(note + lines)


async def _extend_tiles(connection: Connection, of_log: Log) -> bool:
    """Extend the tiles in one transaction, unless another process does; True when there are more."""
    async with connection.transaction():
        return await connection.fetchval(SQL["try_lock_tiles"]) and await extend_tiles(connection, of_log)


async def _end_if_idle(connection: Connection, of_log: Log, seconds: float) -> asyncpg.Record | None:
    """The end of the log, if nothing was written to it for `seconds`; None otherwise, or when `seconds` is 0."""
    end = await connection.fetchrow(SQL.of(of_log)["log_end"])
    return end if end is not None and 0 < seconds <= end["silent_seconds"] else None
