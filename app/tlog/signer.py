"""Signs checkpoints of the log, and refuses when the log contradicts an earlier checkpoint.

Earlier checkpoints are known from three places: the database, this process, and the file of copies. The last two are beyond the
reach of anybody who can write to the database. Nothing is signed while one of these is true (SigningRefused.alarm):

rolled_back        the log is shorter than an earlier checkpoint
rewritten          the first leaves of the log are not those that an earlier checkpoint was signed for
forged_checkpoint  a stored checkpoint is malformed, or its signature is not valid
wrong_key          a stored checkpoint was signed with a key that is not one of this log's

Nor while hashes of the log are missing, so that its root cannot be computed (HashesMissing, alarm `incomplete`).
"""

import logging
import time
from collections.abc import Callable, Iterable
from contextlib import suppress

from app import metrics
from app.db import Connection
from app.errors import AuditError
from app.events.log import Log
from app.tlog import merkle
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

log = logging.getLogger(__name__)


class SigningRefused(AuditError):
    """The log contradicts a signed checkpoint; nothing is signed while that lasts."""

    def __init__(self, alarm: str, detail: str) -> None:
        self.alarm = alarm
        super().__init__(detail)


class RowsInserted(HashesMissing):
    """Rows are where the log has no position: they were inserted, or the hashes before them are missing. Signing goes on before them."""


class Signer:
    """Signs with the log's key; remembers the newest checkpoint it has seen."""

    def __init__(
        self, key: SigningKey, newest_copy: Callable[[], str | None] = lambda: None, of_log: Log | None = None
    ) -> None:
        """`newest_copy` reads the newest checkpoint that was copied outside the database, as a note. `of_log` is by default log 0."""
        self._log = of_log or Log(0, key.public.name)
        self.key = key
        self._newest_copy = newest_copy
        self._last_signed: Checkpoint | None = None

    async def sign(self, connection: Connection) -> Checkpoint | None:
        """Sign and store a checkpoint of the log; None when its newest one is signed already.

        Raises SigningRefused or HashesMissing. A row lock allows one signer at a time. A crash before the commit leaves no
        signature: the note is not published before the commit.
        """
        async with connection.transaction():
            notes = [
                await connection.fetchval(SQL.of(self._log)[name]) for name in ("lock_signer", "newest_checkpoint")
            ]
            if self._last_signed is None:
                notes.append(self._newest_copy())
            earlier = {self._verified(note) for note in notes if note is not None}
            if self._last_signed is not None:
                earlier.add(self._last_signed)
            signed = await self._sign_next(connection, earlier)
        self._last_signed = signed or max(earlier, key=lambda one: one.size, default=None)
        metrics.CHECKPOINT_SIZE.set(0 if self._last_signed is None else self._last_signed.size)
        return signed

    async def _sign_next(self, connection: Connection, earlier: set[Checkpoint]) -> Checkpoint | None:
        size, signed_size = await tiled_size(connection, self._log), max((one.size for one in earlier), default=0)
        if size < signed_size:
            if (leaves := await log_size(connection, self._log)) < signed_size:
                raise SigningRefused(
                    "rolled_back", f"the log has {leaves} leaves, but a checkpoint of {signed_size} was signed"
                )
            return None  # tiles were lost, and another process builds them again
        if size == signed_size and len(earlier) < 2 and self._last_signed is not None:
            return None
        root = await _consistent_root(connection, self._log, size, earlier)
        if size == signed_size:
            return None
        checkpoint = Checkpoint(self.key.public.name, size, root)
        note = sign_checkpoint(checkpoint, self.key.private, self.key.cosigner, int(time.time()))
        await connection.execute(SQL.of(self._log)["record_signed"], note)
        await connection.execute(SQL.of(self._log)["store_checkpoint"], size, note)
        return checkpoint

    def _verified(self, note: str) -> Checkpoint:
        """The checkpoint of a stored note; SigningRefused when no key of this log signed it."""
        try:
            return verified_checkpoint(note, self.key.all_public)
        except MalformedNote:
            raise SigningRefused("forged_checkpoint", "a stored checkpoint is malformed") from None
        except NoValidSignature:
            if any(Note.parse(note).names_key(key) for key in self.key.all_public):
                raise SigningRefused("forged_checkpoint", "a stored checkpoint has a wrong signature") from None
        raise SigningRefused(
            "wrong_key",
            "a stored checkpoint was signed with another key; if the key was changed on purpose, add the previous public key to "
            "DATASTORAGE_CHECKPOINT_EARLIER_KEYS",
        )


async def _consistent_root(connection: Connection, of_log: Log, size: int, earlier: set[Checkpoint]) -> bytes:
    """The log's root, once every earlier checkpoint is proved to be a prefix of it; SigningRefused if one is not."""
    plans = {one: merkle.consistency_ranges(one.size, size) for one in earlier}
    ranges = {(0, size), *(leaves for plan in plans.values() for leaves in plan)}
    roots = dict(zip(ranges, await range_roots(connection, of_log, list(ranges)), strict=True))
    root = roots[0, size]
    for one, plan in plans.items():
        if not merkle.verify_consistency(one.size, size, one.root, root, [roots[leaves] for leaves in plan]):
            raise SigningRefused("rewritten", f"the first {one.size} leaves of the log are not those that were signed")
    return root


async def signed_size(connection: Connection, of_log: Log, keys: Iterable[PublicKey]) -> int:
    """How many events the largest checkpoint in the database covers that one of `keys` has signed; 0 without one."""
    trusted, size = tuple(keys), 0
    for row in await connection.fetch(SQL.of(of_log)["newest_notes"]):
        with suppress(MalformedNote, NoValidSignature):
            size = max(size, verified_checkpoint(row["note"], trusted).size)
    return size


class Alarms:
    """Reports once that something is wrong with the log, and once that it is over."""

    def __init__(self) -> None:
        self._current = ""

    def report(self, error: SigningRefused | HashesMissing) -> None:
        """Count and log the error, unless the last round had the same alarm."""
        inserted = isinstance(error, RowsInserted)
        alarm = error.alarm if isinstance(error, SigningRefused) else "inserted" if inserted else "incomplete"
        if alarm != self._current:
            metrics.LOG_ALARMS.labels(alarm=alarm).inc()
            what = "rows were inserted outside the log" if inserted else "signing is refused"
            log.error(what, extra={"alarm": alarm, "reason": error.detail})
        self._current = alarm

    def clear(self) -> None:
        """Nothing is wrong; log it if something was before."""
        if self._current:
            log.warning("the log's alarm is over", extra={"alarm": self._current})
        self._current = ""
