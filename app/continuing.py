"""`datastorage log continue`: after a loss closes the log that can be signed no more, and opens the next one in the same database.

Nothing decides this by itself. It is refused while the log is as it was signed, and one transaction does all of it: the old log is
closed, the new one is opened, its first event admits the loss, and its first checkpoint is signed.
"""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from time import time
from typing import Any
from uuid import UUID, uuid4

from asyncpg import UniqueViolationError

from app import schema
from app.db import LONG_FETCH_SECONDS, Connection, connect
from app.errors import Fatal
from app.events.log import Log, place_of
from app.events.positions import RANGES_MAX, Positions
from app.ingest.link import Flush
from app.ingest.self_events import self_event
from app.ingest.store import Store
from app.settings import Settings
from app.tlog.continued import find_log, keys_of, newest_log
from app.tlog.copies import newest_note_in
from app.tlog.evidence import read_evidence
from app.tlog.keys import SigningKey, signing_key
from app.tlog.merkle import hashes
from app.tlog.note import Checkpoint, MalformedNote, NoValidSignature, PublicKey, sign_checkpoint, verified_checkpoint
from app.tlog.proof import CONTINUED
from app.tlog.tiles import SQL as TLOG_SQL
from app.verify.extent import log_size
from app.verify.snapshot import SQL
from app.verify.tree import Tree, read_tree


@dataclass(frozen=True, slots=True)
class Loss:
    """In what a log differs from what was signed of it."""

    cause: str
    """rolled_back, rewritten or incomplete, as the alarms of the service."""
    size: int
    tree_size: int
    root: bytes
    agreed_size: int
    """The largest signed size at which it still is what was signed."""
    checkpoint: str | None
    """The last signed note that is known."""
    signed_size: int
    lost: Positions
    """Positions that have no row and were not purged."""

    def lines(self) -> Iterator[str]:
        """For whoever has to decide."""
        yield f"The log has {self.size:,} positions, and {self.tree_size:,} leaves without a hole."
        if self.signed_size > self.agreed_size:
            yield (
                f"Signed were {self.signed_size:,} ({self.cause}); as signed are the first {self.agreed_size:,}: events that were "
                f"acknowledged at positions {self.agreed_size:,} to {self.signed_size - 1:,} may be lost."
            )
        yield f"Positions without a row, not purged: {self.lost.size:,} {str(self.lost)[:200]}"


@dataclass(frozen=True, slots=True)
class Continuation:
    """What was done, or would be."""

    loss: Loss
    log: Log
    """The new one."""
    keys: tuple[PublicKey, ...]
    """Its keys."""
    note: str | None = None
    """Its first checkpoint; None if nothing was done."""


async def continue_log(
    settings: Settings, by: str, reason: str, notes: Sequence[str] = (), *, dry_run: bool
) -> Continuation:
    """Close the log and open the next one. `notes` are checkpoints from outside the database.

    Fatal if the log is in order, if there is no key, or if a note is not signed by it.
    """
    if settings.retention_url is not None:
        settings = settings.model_copy(update={"database_url": settings.retention_url})
    connection = await connect(settings, statement_timeout="0")
    try:
        first_name = await schema.check_and_read_log_name(connection, settings.log_name)
        key = signing_key(settings, first_name)
        if key is None:
            raise Fatal("No key signs the log, so nothing of it is refused: set DATASTORAGE_CHECKPOINT_KEY_FILE.")
        log = await newest_log(connection, Log(0, first_name), key.all_public)
        keys = keys_of(log, key.all_public)
        loss, tree = await _find_loss(connection, log, keys, [*notes, *_copied(settings, log)])
        following = Log(log.id + 1, first_name)
        public = key.of(following).all_public
        if dry_run:
            return Continuation(loss, following, public)
        await connection.execute(TLOG_SQL["index_later_logs"])
        store = Store(settings, log, find_log=find_log(settings))
        try:
            writing = await store.connection()
            await writing.execute("BEGIN")
            await writing.execute(TLOG_SQL["open_next_log"], log.id, following.name, schema.SEVERAL_LOGS)
            loss = await _with_last_flushes(writing, log, keys, loss, tree)
            note = await _open(store, following, _payload(log, loss, by, reason), key, by)
        except UniqueViolationError as error:
            raise Fatal(
                f"The table {error.table_name} has a row of the log {following.name} already, which nobody but this command writes: "
                f"somebody inserted it. Delete the rows with log_id = {following.id} as the owner of the tables, and run this again."
            ) from None
        finally:
            await store.close()
        return Continuation(loss, following, public, note)
    finally:
        await connection.close()


async def _open(store: Store, log: Log, payload: dict[str, Any], key: SigningKey, by: str) -> str:
    """Write the first event of `log`, sign its first checkpoint, and commit."""
    event = self_event(log.first_name, payload, about=UUID(payload["continuation_id"]), actor_id=by)
    note = ""

    async def sign(connection: Connection, flush: Flush) -> None:
        nonlocal note
        note = sign_checkpoint(Checkpoint(log.name, 1, flush.leaves), key.private, key.cosigner, int(time()))
        await connection.execute(TLOG_SQL.of(log)["record_signed"], note)
        await connection.execute(TLOG_SQL.of(log)["store_checkpoint"], 1, note)

    await store.open_log(log, event, sign)
    return note


async def _find_loss(
    connection: Connection, log: Log, keys: Sequence[PublicKey], outside: Sequence[str]
) -> tuple[Loss, Tree]:
    """The loss, and the tree of the log as it stands. Fatal if there is none, or if a note from outside is not of the log's key."""
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        rows = await connection.fetch(SQL.of(log)["stored_checkpoints"], timeout=LONG_FETCH_SECONDS)
        signed: dict[Checkpoint, str] = {}
        for note in outside:
            try:
                signed[verified_checkpoint(note, keys)] = note
            except (MalformedNote, NoValidSignature) as error:
                raise Fatal(f"A checkpoint from outside is not one of the log {log.name}: {error}.") from None
        for row in rows:
            with suppress(MalformedNote, NoValidSignature):
                signed[verified_checkpoint(row["note"], keys)] = row["note"]
        size = await log_size(connection, log, list(signed.values()), keys)
        tree = await read_tree(connection, log, {one.size for one in signed}, size)
        missing = Positions.parse(
            await connection.fetchval(SQL.of(log)["positions_without_rows"], size, timeout=LONG_FETCH_SECONDS)
        )
        purged = (await read_evidence(connection, log)).purged
    of_log = purged.within(place_of(log.id, 0), place_of(log.id, size))
    start = place_of(log.id, 0)
    lost = missing.without(Positions((first - start, end - start) for first, end in of_log))
    holds = [one for one in signed if tree.roots.get(one.size) == one.root]
    agreed_size = max((one.size for one in holds), default=0)
    last = max(signed, key=lambda one: one.size, default=None)
    if last is not None and last.size > agreed_size:
        cause = "rolled_back" if last.size > size else "rewritten" if tree.is_whole else "incomplete"
    elif not tree.is_whole:
        cause = "incomplete"
    else:
        raise Fatal(
            f"The log {log.name} is as it was signed, up to {agreed_size:,} of {size:,} positions: there is nothing to continue "
            "after. If a checkpoint elsewhere says otherwise, name it with --checkpoint."
        )
    if len(lost.ranges) > RANGES_MAX:
        raise Fatal("The positions without a row are in too many pieces for one event to name them.")
    loss = Loss(
        *(cause, size, tree.frontier.size, tree.frontier.root(), agreed_size),
        *(None if last is None else signed[last], 0 if last is None else last.size, lost),
    )
    return loss, tree


async def _with_last_flushes(
    connection: Connection, log: Log, keys: Sequence[PublicKey], loss: Loss, tree: Tree
) -> Loss:
    """The loss with what was written until the log was closed."""
    size = await log_size(connection, log, [] if loss.checkpoint is None else [loss.checkpoint], keys, loss.size)
    if size == loss.size:
        return loss
    if tree.is_whole:
        for row in await connection.fetch(TLOG_SQL.of(log)["leaves"], loss.size, size):
            for leaf in hashes(row["leaves"]):
                tree.frontier.append(leaf)
    return Loss(
        *(loss.cause, size, tree.frontier.size, tree.frontier.root(), loss.agreed_size),
        *(loss.checkpoint, loss.signed_size, loss.lost),
    )


def _payload(log: Log, loss: Loss, by: str, reason: str) -> dict[str, Any]:
    differing = Positions([(loss.agreed_size, loss.signed_size)] if loss.signed_size > loss.agreed_size else [])
    return {
        "event_type": CONTINUED,
        "continuation_id": str(uuid4()),
        "log_id": log.id,
        "closed_log": log.name,
        "size": loss.size,
        "tree_size": loss.tree_size,
        "root_hash": loss.root.hex(),
        "cause": loss.cause,
        "agreed_size": loss.agreed_size,
        "positions": str(loss.lost),
        "differing": str(differing),
        "continued_by": by,
        "reason": reason,
    } | ({} if loss.checkpoint is None else {"checkpoint": loss.checkpoint})


def _copied(settings: Settings, log: Log) -> list[str]:
    """The last checkpoint of the log in the file of copies, if there is one."""
    note = None if settings.checkpoint_file is None else newest_note_in(settings.checkpoint_file, log.name)
    return [] if note is None else [note]
