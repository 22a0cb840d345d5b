"""Which logs a database has, and what the first event of each says of the log before it, which it continues after a loss.

A later log counts only if one of the log's keys has signed a checkpoint of it: whoever cannot sign cannot make a service follow him.
"""

from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Self
from uuid import UUID

import orjson

from app.db import Connection
from app.events.log import Log
from app.events.positions import Positions
from app.events.record import Row, is_logged
from app.settings import Settings
from app.tlog.keys import signing_key
from app.tlog.note import Checkpoint, MalformedNote, Note, NoValidSignature, PublicKey, verified_checkpoint
from app.tlog.proof import is_continuation
from app.tlog.tiles import SQL


@dataclass(frozen=True, slots=True)
class Seam:
    """What the first event of a log says of the log before it."""

    log: Log
    """The new one, whose event this is."""
    closed: Log
    size: int
    """Positions of the closed log."""
    tree_size: int
    """Leaves from its beginning without a hole."""
    root: bytes
    """Of the tree over them."""
    agreed_size: int
    """The largest signed size at which it still is what was signed."""
    signed_size: int
    """The size of the last signed checkpoint that was known; 0 without one."""
    lost: Positions
    """Positions of the closed log that have no row and were not purged."""
    cause: str
    by: str
    reason: str
    at: datetime
    event_id: UUID

    @classmethod
    def parse(cls, row: Row, log: Log) -> Self | None:
        """The seam in the first event of `log`; None if the event is no such event, or not as the service writes it."""
        try:
            payload: dict[str, Any] = orjson.loads(row["event_data"])
            closed = Log(log.id - 1, log.first_name, is_open=False)
            if (
                not is_continuation(row, payload)
                or payload["log_id"] != closed.id
                or payload["closed_log"] != closed.name
            ):
                return None
            note = payload.get("checkpoint")
            return cls(
                log=log,
                closed=closed,
                size=int(payload["size"]),
                tree_size=int(payload["tree_size"]),
                root=bytes.fromhex(payload["root_hash"]),
                agreed_size=int(payload["agreed_size"]),
                signed_size=0 if note is None else Checkpoint.parse(Note.parse(note).text).size,
                lost=Positions.parse(payload["positions"]),
                cause=str(payload["cause"]),
                by=str(payload["continued_by"]),
                reason=str(payload["reason"]),
                at=row["recorded_at"],
                event_id=row["event_id"],
            )
        except (KeyError, ValueError, TypeError, AttributeError):
            return None

    def admits(self, checkpoint: Checkpoint) -> bool:
        """Whether a checkpoint of the closed log that contradicts it is part of the loss that the event admits."""
        return self.agreed_size < checkpoint.size <= self.signed_size


async def newest_log(connection: Connection, known: Log, keys: Sequence[PublicKey] = ()) -> Log:
    """The log that events are written to now: `known`, or one that continues it. Without `keys` the one before has to be closed.

    Whoever may only INSERT cannot close one.
    """
    log = known
    for row in await connection.fetch(SQL["later_logs"], known.id):
        following = Log(log.id + 1, log.first_name)
        if (row["log_id"], row["name"]) != (following.id, following.name):
            break
        if not (_is_signed(row["notes"], keys_of(following, keys)) if keys else row["follows"]):
            break
        log = following
    return log


def find_log(
    settings: Settings, keys: tuple[PublicKey, ...] | None = None
) -> Callable[[Connection, Log], Awaitable[Log]]:
    """newest_log() with the keys of these settings; where none is configured, a next log is followed without a signature.

    It begins at the first log: a restored backup may have none of the later ones. Without `keys` they are read once there is a later one.
    """

    async def find(connection: Connection, known: Log) -> Log:
        nonlocal keys
        first = Log(0, known.first_name)
        if keys is None and await newest_log(connection, first) == first:
            return first
        if keys is None:
            key = signing_key(settings, known.first_name)
            keys = () if key is None else key.all_public
        return await newest_log(connection, first, keys)

    return find


async def read_seam(connection: Connection, log: Log) -> Seam | None:
    """What the first event of `log` says of the log before it; None if it is the first log, or the event is missing or changed."""
    if not log.id:
        return None
    for row in await connection.fetch(SQL.of(log)["first_events"]):
        if is_logged(row, log) and row["payload_commitment"] is None and (seam := Seam.parse(row, log)) is not None:
            return seam
    return None


def keys_of(log: Log, keys: Iterable[PublicKey]) -> tuple[PublicKey, ...]:
    """The public keys of `log`: those of the logs of this database under its own name. If none is of them, all as they are."""
    known = tuple(keys)
    names = {one.name for one in log.and_earlier()}
    own = dict.fromkeys(PublicKey(log.name, key.public, key.algorithm) for key in known if _is_of(key, log, names))
    return tuple(own) or known


def _is_of(key: PublicKey, log: Log, names: set[str]) -> bool:
    return key.name in names or key.name.startswith(f"{log.first_name}/")


def _is_signed(notes: Iterable[str], keys: Sequence[PublicKey]) -> bool:
    for note in notes:
        with suppress(MalformedNote, NoValidSignature):
            verified_checkpoint(note, keys)
            return True
    return False
