"""Signs checkpoints of the log, and refuses when the log contradicts an earlier checkpoint.

Earlier checkpoints are known from four places: the database, this process, the note in its spool, and the file of copies. The last
three are beyond the reach of anybody who can write to the database. Nothing is signed while one of these is true (SigningRefused.alarm):

rolled_back        the log is shorter than an earlier checkpoint
rewritten          the first leaves of the log are not those that an earlier checkpoint was signed for
forged_checkpoint  a stored checkpoint is malformed, or its signature is not valid
wrong_key          a stored checkpoint was signed with a key that is not one of this log's

Nor while hashes of the log are missing, so that its root cannot be computed (HashesMissing, alarm `incomplete`); nor, where the settings
want a synchronous standby, before one has the leaves (StandbyMissing): a failover to it would contradict the signature.
"""

import logging
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from hashlib import sha256

from app import metrics
from app.db import Connection
from app.errors import AuditError
from app.events.log import Log
from app.standby import Confirm
from app.tlog import merkle
from app.tlog.alarm import LogAlarm
from app.tlog.continued import keys_of
from app.tlog.keys import SigningKey
from app.tlog.note import (
    Checkpoint,
    MalformedNote,
    Note,
    NoValidSignature,
    PublicKey,
    sign_checkpoint,
    verified_checkpoint,
)
from app.tlog.tiles import SQL, HashesMissing, log_size, range_roots, tiled_size

LOSSES = frozenset({"rolled_back", "rewritten", "incomplete"})
"""Alarms that end only when the log is continued (`datastorage log continue`), or what is missing comes back."""
log = logging.getLogger(__name__)


class SigningRefused(AuditError):
    """The log contradicts a signed checkpoint; nothing is signed while that lasts."""

    checkpoint = ""
    """The last note that is known to be signed."""

    def __init__(self, alarm: str, detail: str, subject: str) -> None:
        """`subject` is the same as long as the reason is the same."""
        self.alarm = alarm
        self.subject = subject
        super().__init__(detail)


class RowsInserted(HashesMissing):
    """Rows are where the log has no position: they were inserted, or the hashes before them are missing. Signing goes on before them."""


class Signer:
    """Signs with the log's key; remembers the newest checkpoint it has seen."""

    def __init__(
        self,
        key: SigningKey,
        copies: Callable[[], Iterable[str | None]] = lambda: (),
        of_log: Log | None = None,
        confirm: Confirm | None = None,
    ) -> None:
        """`copies` reads the newest checkpoints that are outside the database, as notes; None where there is none.

        `of_log` is by default log 0. `confirm` is awaited before anything is signed, or found to be signed by another process.
        """
        self._confirm = confirm
        self._log = of_log or Log(0, key.public.name)
        self.key = key
        self.newest_note: str | None = None
        """The newest checkpoint that this process has seen and that the log continues, or None before the first."""
        self._copies = copies
        self._last_signed: Checkpoint | None = None

    async def sign(self, connection: Connection) -> Checkpoint | None:
        """Sign and store a checkpoint of the log; None when its newest one is signed already.

        Raises SigningRefused, HashesMissing or StandbyMissing. A row lock allows one signer at a time. A crash before the commit leaves no
        signature: the note is not published before the commit.
        """
        async with connection.transaction():
            notes = [
                await connection.fetchval(SQL.of(self._log)[name]) for name in ("lock_signer", "newest_checkpoint")
            ]
            if self._last_signed is None:
                notes += self._copies()
            by_checkpoint = {self._verified(note): note for note in dict.fromkeys([*notes, self.newest_note]) if note}
            try:
                note = await self._sign_next(connection, set(by_checkpoint))
            except SigningRefused as error:
                error.checkpoint = by_checkpoint[max(by_checkpoint, key=lambda one: one.size)]
                raise
            if self._confirm is not None and note is None and set(by_checkpoint.values()) - {self.newest_note}:
                await self._confirm(connection)  # another process has signed, and its COMMIT may have waited for nobody
        signed = None if note is None else Checkpoint.parse(Note.parse(note).text)
        self._last_signed = signed or max(by_checkpoint, key=lambda one: one.size, default=None)
        if self._last_signed is not None:
            self.newest_note = note or by_checkpoint[self._last_signed]
        metrics.CHECKPOINT_SIZE.set(0 if self._last_signed is None else self._last_signed.size)
        return signed

    async def _sign_next(self, connection: Connection, earlier: set[Checkpoint]) -> str | None:
        """The note of the next checkpoint, stored; None when there is nothing to sign."""
        size, signed_size = await tiled_size(connection, self._log), max((one.size for one in earlier), default=0)
        if size < signed_size:
            if (leaves := await log_size(connection, self._log)) < signed_size:
                detail = f"the log has {leaves} leaves, but a checkpoint of {signed_size} was signed"
                raise SigningRefused("rolled_back", detail, f"checkpoint {signed_size}")
            return None  # tiles were lost, and another process builds them again
        if size == signed_size and len(earlier) < 2 and self._last_signed is not None:
            return None
        root = await _consistent_root(connection, self._log, size, earlier)
        if size == signed_size:
            return None
        if self._confirm is not None:
            await self._confirm(connection)
        checkpoint = Checkpoint(self.key.public.name, size, root)
        note = sign_checkpoint(checkpoint, self.key.private, self.key.cosigner, int(time.time()))
        await connection.execute(SQL.of(self._log)["record_signed"], note)
        await connection.execute(SQL.of(self._log)["store_checkpoint"], size, note)
        return note

    def _verified(self, note: str) -> Checkpoint:
        """The checkpoint of a stored note; SigningRefused when no key of this log signed it."""
        subject = f"note {sha256(note.encode()).hexdigest()[:16]}"
        try:
            return verified_checkpoint(note, self.key.all_public)
        except MalformedNote:
            raise SigningRefused("forged_checkpoint", "a stored checkpoint is malformed", subject) from None
        except NoValidSignature:
            origin = note.partition("\n")[0]
            if self._log.precedes(origin) and _is_signed_as(note, origin, self.key.all_public):
                detail = (
                    f"a checkpoint of {origin} was signed, which continues this log, but the database does not have it"
                )
                raise SigningRefused("rolled_back", detail, subject) from None
            if any(Note.parse(note).names_key(key) for key in self.key.all_public):
                raise SigningRefused(
                    "forged_checkpoint", "a stored checkpoint has a wrong signature", subject
                ) from None
        raise SigningRefused(
            "wrong_key",
            "a stored checkpoint was signed with another key; if the key was changed on purpose, add the previous public key to "
            "DATASTORAGE_CHECKPOINT_EARLIER_KEYS",
            subject,
        )


def _is_signed_as(note: str, origin: str, keys: Iterable[PublicKey]) -> bool:
    """Whether one of `keys` has signed a note under the name of another log."""
    with suppress(MalformedNote, NoValidSignature):
        verified_checkpoint(note, [PublicKey(origin, key.public, key.algorithm) for key in keys])
        return True
    return False


async def _consistent_root(connection: Connection, of_log: Log, size: int, earlier: set[Checkpoint]) -> bytes:
    """The log's root, once every earlier checkpoint is proved to be a prefix of it; SigningRefused if one is not."""
    plans = {one: merkle.consistency_ranges(one.size, size) for one in earlier}
    ranges = {(0, size), *(leaves for plan in plans.values() for leaves in plan)}
    roots = dict(zip(ranges, await range_roots(connection, of_log, list(ranges)), strict=True))
    root = roots[0, size]
    for one, plan in plans.items():
        if not merkle.verify_consistency(one.size, size, one.root, root, [roots[leaves] for leaves in plan]):
            detail = f"the first {one.size} leaves of the log are not those that were signed"
            raise SigningRefused("rewritten", detail, f"checkpoint {one.size}")
    return root


async def signed_size(connection: Connection, of_log: Log, keys: Iterable[PublicKey]) -> int:
    """How many events the largest checkpoint in the database covers that one of `keys` has signed; 0 without one."""
    trusted, size = keys_of(of_log, keys), 0
    for row in await connection.fetch(SQL.of(of_log)["newest_notes"]):
        with suppress(MalformedNote, NoValidSignature):
            size = max(size, verified_checkpoint(row["note"], trusted).size)
    return size


class Alarms:
    """Reports once that something is wrong with the log, and once that it is over."""

    def __init__(self) -> None:
        self._current = ""
        self.loss = ""
        """Why the log has to be continued by hand before anything is signed again; empty if it has not."""

    def report(self, error: SigningRefused | HashesMissing) -> LogAlarm:
        """The error as an alarm. It is counted and logged, unless the last round had the same alarm."""
        inserted = isinstance(error, RowsInserted)
        alarm = error.alarm if isinstance(error, SigningRefused) else "inserted" if inserted else "incomplete"
        if alarm != self._current:
            metrics.LOG_ALARMS.labels(alarm=alarm).inc()
            what = "rows were inserted outside the log" if inserted else "signing is refused"
            note = {"checkpoint": error.checkpoint} if isinstance(error, SigningRefused) and error.checkpoint else {}
            log.error(what, extra={"alarm": alarm, "reason": error.detail} | note)
        self._current = alarm
        is_loss = alarm in LOSSES
        self.loss = f"{alarm}: {error.detail}" if is_loss else ""
        metrics.CONTINUATION_NEEDED.set(is_loss)
        return LogAlarm(alarm, error.subject if isinstance(error, SigningRefused) else f"alarm {alarm}", error.detail)

    def clear(self) -> None:
        """Nothing is wrong; log it if something was before."""
        if self._current:
            log.warning("the log's alarm is over", extra={"alarm": self._current})
        self._current = self.loss = ""
        metrics.CONTINUATION_NEEDED.set(0)
