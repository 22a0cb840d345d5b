"""Signs checkpoints of the log, and refuses to sign one that an earlier one is no prefix of.

What was signed earlier is remembered in three places: the database, this process, and the file that checkpoints are appended
to. The last two are beyond the reach of whoever can write the database.
"""

import logging
from collections.abc import Callable

from app import metrics
from app.db import Connection
from app.errors import AuditError
from app.tlog import merkle
from app.tlog.keys import SigningKey
from app.tlog.note import Checkpoint, MalformedNote, Note, Unverified, sign, verified
from app.tlog.tiles import SQL, Incomplete, kept_end, log_end, range_roots

log = logging.getLogger(__name__)


class SigningRefused(AuditError):
    """The log is not what was signed before: no checkpoint is signed until an operator has looked."""

    def __init__(self, alarm: str, detail: str) -> None:
        self.alarm = alarm
        super().__init__(detail)


class Signer:
    """The key, and the last checkpoint that this process has seen signed."""

    def __init__(self, key: SigningKey, outside: Callable[[], str | None] = lambda: None) -> None:
        """`outside` reads the newest checkpoint that was kept out of the database's reach."""
        self.key = key
        self._outside = outside
        self._seen: Checkpoint | None = None

    async def sign(self, connection: Connection) -> Checkpoint | None:
        """Sign and store the log as it is; None when that was done already. Raises SigningRefused or Incomplete.

        The row lock makes this one signer at a time. A crash before the transaction's end leaves no signature behind: the
        note is shown to nobody earlier.
        """
        async with connection.transaction():
            notes = [await connection.fetchval(SQL[name]) for name in ("lock_signer", "newest_note")]
            if self._seen is None:
                notes.append(self._outside())
            known = {self._trusted(note) for note in notes if note is not None}
            if self._seen is not None:
                known.add(self._seen)
            signed = await self._sign_next(connection, known)
        self._seen = signed or max(known, key=lambda one: one.size, default=None)
        metrics.CHECKPOINT_SIZE.set(0 if self._seen is None else self._seen.size)
        return signed

    async def _sign_next(self, connection: Connection, known: set[Checkpoint]) -> Checkpoint | None:
        size, signed_size = await kept_end(connection), max((one.size for one in known), default=0)
        if size < signed_size:
            if (leaves := await log_end(connection)) < signed_size:
                raise SigningRefused(
                    "rolled_back", f"the log has {leaves} leaves, but a checkpoint of {signed_size} was signed"
                )
            return None  # another process makes lost tiles again
        if size == signed_size and len(known) < 2 and self._seen is not None:
            return None
        root = await _root_behind(connection, size, known)
        if size == signed_size:
            return None
        checkpoint = Checkpoint(self.key.public.name, size, root)
        note = sign(checkpoint, self.key.private)
        await connection.execute(SQL["remember_signed"], note)
        await connection.execute(SQL["store_checkpoint"], size, note)
        return checkpoint

    def _trusted(self, note: str) -> Checkpoint:
        try:
            return verified(note, self.key.all_public)
        except MalformedNote:
            raise SigningRefused("forged_checkpoint", "a stored checkpoint is none") from None
        except Unverified:
            ids = {(key.name, key.id) for key in self.key.all_public}
            if any((name, signature[:4]) in ids for name, signature in Note.parse(note).signatures):
                raise SigningRefused("forged_checkpoint", "a stored checkpoint has a wrong signature") from None
        raise SigningRefused(
            "wrong_key",
            "a stored checkpoint was signed with another key; if the key was changed on purpose, name the one before in "
            "DATASTORAGE_CHECKPOINT_EARLIER_KEYS",
        )


async def _root_behind(connection: Connection, size: int, known: set[Checkpoint]) -> bytes:
    """The log's root, once every known checkpoint is proved to be a prefix of it."""
    plans = {one: merkle.consistency_ranges(one.size, size) for one in known}
    ranges = {(0, size), *(leaves for plan in plans.values() for leaves in plan)}
    roots = dict(zip(ranges, await range_roots(connection, list(ranges)), strict=True))
    root = roots[0, size]
    for one, plan in plans.items():
        if not merkle.verify_consistency(one.size, size, one.root, root, [roots[leaves] for leaves in plan]):
            raise SigningRefused("rewritten", f"the first {one.size} leaves of the log are not those that were signed")
    return root


class Alarms:
    """Tells of a refusal once when it begins, and when it ends."""

    def __init__(self) -> None:
        self._now = ""

    def raised(self, error: SigningRefused | Incomplete) -> None:
        """Count and log, unless it was just done for the same reason."""
        alarm = error.alarm if isinstance(error, SigningRefused) else "incomplete"
        if alarm != self._now:
            metrics.LOG_ALARMS.labels(alarm=alarm).inc()
            log.error("no checkpoint is signed", extra={"alarm": alarm, "reason": error.detail})
        self._now = alarm

    def over(self) -> None:
        """All is well."""
        if self._now:
            log.warning("checkpoints are signed again", extra={"alarm": self._now})
        self._now = ""
