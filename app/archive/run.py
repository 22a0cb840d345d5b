"""A run of the archive: what is due is written in parts, each read back and verified before the log records it.

What a run has begun and not recorded is deleted by the next one. Nothing is removed from Postgres.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from time import monotonic
from uuid import UUID, uuid4

import pyarrow as pa

from app.archive.check import Checker, PartResult
from app.archive.manifest import PartManifest, PreviousPart
from app.archive.recorded import RecordedPart, archived_positions, read_parts
from app.archive.storage import METADATA, PARTS, Storage, StorageAway, archive_storage
from app.archive.table import ArchiveTable
from app.archive.writing import SQL, Due, PartWriter, as_archiver, connect_archive
from app.db import Connection
from app.errors import AuditError, Fatal
from app.events.log import Log
from app.events.positions import Positions
from app.ingest.link import Flush
from app.ingest.self_events import self_event
from app.ingest.store import Store
from app.retention.logged import action_store, commit_action, read_open_log
from app.settings import Settings
from app.sql import load
from app.tlog.continued import keys_of, read_seam
from app.tlog.evidence import read_evidence
from app.tlog.keys import SigningKey, signing_key
from app.tlog.note import Checkpoint, MalformedNote, Note, NoValidSignature, PublicKey, verified_signatures
from app.tlog.tiles import range_roots
from app.verify.row import Defects

PART_EVENTS = 2_000_000
_SLOW_SECONDS = 3600.0
_TRIES = 3
_SIZE_MAX = 2**62
_LOG_SQL = load("retention")
log = logging.getLogger(__name__)


class PartChanged(AuditError):
    """Something of a part was erased or purged, or the log was continued, while it was written."""


@dataclass(frozen=True, slots=True)
class Selection:
    """What of that which is due a run is to archive."""

    month: date | None = None
    """The only one; None for all."""
    partial: bool = False
    """Also of months that are not past archive_after_days as a whole."""
    part_events: int = PART_EVENTS
    """Most events of a part."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a part is."""

    month: str
    stage: str
    """`writing` or `verifying`."""
    done: int
    total: int
    """Events."""
    seconds: float
    """Since the stage began."""

    @property
    def seconds_left(self) -> float | None:
        """At the rate so far; None as long as nothing is done."""
        return self.seconds / self.done * (self.total - self.done) if self.done else None


@dataclass(frozen=True, slots=True)
class DueMonth:
    """What a run finds in one month of one log."""

    month: date
    log: Log
    events: int
    """Sealed ones."""
    archived: int
    due: int
    unsigned: int
    """Those that no checkpoint has yet."""
    young: int
    """Those that wait until they, or with whole months the month, are past archive_after_days."""
    unsealed: int


@dataclass(slots=True)
class ArchiveRun:
    """What a run did."""

    parts: list[PartManifest] = field(default_factory=list)
    left: Defects = field(default_factory=Defects)
    """Rows that are not as the log has them; they are only in Postgres."""
    deleted_attempts: int = 0
    """What earlier runs had begun and not recorded."""


def _nothing(_: object) -> None:
    """Where nobody wants to know."""


@dataclass(slots=True)
class ArchiveSession:
    """What a run works with."""

    connection: Connection
    store: Store
    storage: Storage
    cutoff: date
    """Events before this day are past archive_after_days."""
    selection: Selection
    show: Callable[[Progress], None] = _nothing
    on_step: Callable[[str], None] = _nothing
    """Called between all that can be interrupted, for tests that end the process there."""
    tried: dict[tuple[int, date], Positions] = field(default_factory=dict)
    """By log and month, what this run has written or left out already."""

    @property
    def open_log(self) -> Log:
        return self.store.log


async def plan(settings: Settings, now: datetime, selection: Selection) -> list[DueMonth]:
    """What a run would find. Changes nothing, and does not wait for other runs."""
    async with _session(settings, now, selection) as session, _snapshot(session.connection):
        parts = await read_parts(session.connection, session.open_log)
        months = [row["month"] for row in await session.connection.fetch(SQL["months"])]
        return [
            await _due_month(session, parts, one, month)
            for month in months
            for one in session.open_log.and_earlier()
            if selection.month in {None, month}
        ]


async def run(
    settings: Settings,
    now: datetime,
    selection: Selection,
    *,
    show: Callable[[Progress], None] = _nothing,
    on_step: Callable[[str], None] = _nothing,
) -> ArchiveRun:
    """Delete what an interrupted run has left, then archive what is due at `now`, part by part.

    Fatal when another run is under way, no key signs, or what was written cannot be verified; StorageAway when the storage fails.
    """
    async with _session(settings, now, selection) as session:
        session.show, session.on_step = show, on_step
        if not await session.connection.fetchval(SQL["lock_archive"]):
            raise Fatal("Another run of the archive is under way; wait until it has ended.")
        key = signing_key(settings, session.open_log.first_name)
        if key is None:
            raise Fatal("The archive needs the key of the log: set DATASTORAGE_CHECKPOINT_KEY_FILE.")
        result = ArchiveRun()
        try:
            result.deleted_attempts = await _delete_attempts(session)
            for row in await session.connection.fetch(SQL["months"]):
                if selection.month in {None, row["month"]}:
                    for one in session.open_log.and_earlier():
                        await _archive_month(session, key, one, row["month"], result)
        except (OSError, pa.ArrowException) as error:
            raise StorageAway("The archive's storage failed; the next run goes on.") from error
        return result


@asynccontextmanager
async def _session(settings: Settings, now: datetime, selection: Selection) -> AsyncIterator[ArchiveSession]:
    """Both connections use the role of DATASTORAGE_RETENTION_URL if it is set, else the service's role."""
    storage = archive_storage(settings)
    settings = as_archiver(settings)
    connection = await connect_archive(settings)
    try:
        open_log = await read_open_log(connection, settings)
        async with action_store(settings, open_log) as store:
            cutoff = (now - timedelta(days=settings.archive_after_days)).date()
            yield ArchiveSession(connection, store, storage, cutoff, selection)
    finally:
        await connection.close()


@asynccontextmanager
async def _snapshot(connection: Connection) -> AsyncIterator[None]:
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        yield


async def _delete_attempts(session: ArchiveSession) -> int:
    """Delete what runs have begun and not recorded; how many. What is in another archive than this one stays there."""
    deleted = 0
    for attempt in await session.connection.fetch(SQL["attempts"]):
        archive_id, folder = attempt["archive_id"], session.storage.name_of(attempt["location"])
        if folder is None:
            log.warning("an attempt of another archive stays", extra={"location": attempt["location"]})
            continue
        async with session.connection.transaction():
            if await session.connection.fetchval(SQL["lock_attempt"], archive_id) is None:
                continue  # a transaction that was still open has ended it
            await asyncio.to_thread(_delete_files, session.storage, folder, archive_id)
            session.on_step("attempt deleted")
            await session.connection.execute(SQL["end_attempt"], archive_id)
            deleted += 1
    return deleted


def _delete_files(storage: Storage, folder: str, archive_id: UUID) -> None:
    storage.delete_folder(folder)
    for name in storage.names(METADATA):
        if str(archive_id) in name:
            storage.delete(name)


def _month_end(month: date) -> date:
    return (month.replace(day=28) + timedelta(days=4)).replace(day=1)


def _due_end(session: ArchiveSession, month: date) -> date:
    """The day up to which events of a month are due; its first day if none is."""
    end = _month_end(month)
    if end <= session.cutoff:
        return end
    return max(month, session.cutoff) if session.selection.partial else month


async def _checkpoint(connection: Connection, one: Log) -> tuple[int, str] | None:
    """Size and note of the newest published checkpoint of a log; of a closed one, of those that it has kept to."""
    size = _SIZE_MAX
    if not one.is_open:
        seam = await read_seam(connection, one.next)
        size = 0 if seam is None else seam.agreed_size
    row = await connection.fetchrow(SQL.of(one)["newest_checkpoint"], size)
    return None if row is None else (row["size"], row["note"])


async def _positions(connection: Connection, one: Log, first: date, end: date, size: int) -> Positions:
    """The positions below `size` that rows of a log have between two days."""
    if first >= end or size <= 0:
        return Positions()
    rows = await connection.fetch(SQL.of(one)["positions"], first, end, size, timeout=_SLOW_SECONDS)
    return Positions((row["first"], row["end"]) for row in rows)


async def _due_month(session: ArchiveSession, parts: Sequence[RecordedPart], one: Log, month: date) -> DueMonth:
    connection, end = session.connection, _month_end(month)
    signed = await _checkpoint(connection, one)
    size = 0 if signed is None else signed[0]
    archived = archived_positions(parts, one.id)
    every = await _positions(connection, one, month, end, _SIZE_MAX)
    old = (await _positions(connection, one, month, _due_end(session, month), _SIZE_MAX)).without(archived)
    due = Positions(old.within(0, size))
    unsealed = await connection.fetchval(SQL["unsealed"], month, end, timeout=_SLOW_SECONDS) if not one.id else 0
    waiting = every.without(archived).size
    return DueMonth(
        month,
        one,
        events=every.size,
        archived=every.size - waiting,
        due=due.size,
        unsigned=old.size - due.size,
        young=waiting - old.size,
        unsealed=unsealed,
    )


async def _archive_month(session: ArchiveSession, key: SigningKey, one: Log, month: date, result: ArchiveRun) -> None:
    """Archive what is due of one month and log, part by part."""
    tries = 0
    while (due := await _next_due(session, one, month)) is not None:
        try:
            await _archive_part(session, key, due, result)
        except PartChanged:
            tries += 1
            if tries == _TRIES:
                raise Fatal(
                    f"Something of {due.month_name} was erased or purged, each time that it was archived: run it again later."
                ) from None
            await _delete_attempts(session)
        else:
            tries = 0
            before = session.tried.get((one.id, month), Positions())
            session.tried[one.id, month] = Positions([*before.ranges, *due.positions.ranges])


async def _next_due(session: ArchiveSession, one: Log, month: date) -> Due | None:
    """The next part of a month; None if nothing is due any more."""
    end = _due_end(session, month)
    if end <= month:
        return None
    connection = session.connection
    async with _snapshot(connection):
        signed = await _checkpoint(connection, one)
        positions = await _positions(connection, one, month, end, 0 if signed is None else signed[0])
        archived = archived_positions(await read_parts(connection, session.open_log), one.id)
    tried = session.tried.get((one.id, month), Positions())
    due = positions.without(archived).without(tried)
    return Due(one, month, end, _first(due, session.selection.part_events)) if due else None


def _first(positions: Positions, count: int) -> Positions:
    """The first `count` positions of a set."""
    ranges = []
    for first, end in positions.ranges:
        ranges.append((first, min(end, first + count)))
        count -= ranges[-1][1] - first
        if not count:
            break
    return Positions(ranges)


async def _archive_part(session: ArchiveSession, key: SigningKey, due: Due, result: ArchiveRun) -> None:
    """Write, verify and record one part."""
    connection, archive_id = session.connection, uuid4()
    folder = f"{PARTS}/{due.month_name}/{due.log.id}/{archive_id}"
    await connection.execute(SQL["begin_attempt"], archive_id, session.storage.location(folder))
    session.on_step("begun")
    progress = _Stage(session, due, "writing")
    async with _snapshot(connection):
        open_size = await connection.fetchval(_LOG_SQL.of(session.open_log)["log_size"]) or 0
        signed = await _checkpoint(connection, due.log)
        assert signed is not None
        _require_own(signed[1], keys_of(due.log, key.all_public))
        writer = PartWriter(
            connection,
            session.open_log,
            due,
            archive_id,
            session.storage.folder(folder),
            signed[1],
            (await read_evidence(connection, session.open_log)).erased,
            progress.add,
            session.on_step,
        )
        parts = await read_parts(connection, session.open_log)
        written = await writer.write(key.of(due.log), await _previous(connection, parts, due.log))
    result.left.extend(written.left)
    if written.manifest is None:
        await _delete_attempts(session)
        return
    checked = await asyncio.to_thread(_verify, session, folder, key, due)
    session.on_step("verified")
    await _record(session, written.manifest, checked, folder, open_size)
    result.parts.append(written.manifest)
    session.on_step("recorded")


def _require_own(note: str, keys: Sequence[PublicKey]) -> None:
    """Fatal unless one of these keys has signed a checkpoint: what is archived could not be verified with them."""
    try:
        verified_signatures(note, keys)
    except (MalformedNote, NoValidSignature) as error:
        raise Fatal(f"The newest checkpoint is not signed with the keys of these settings: {error}.") from None


class _Stage:
    """Counts the events of a stage, and shows how far it is."""

    def __init__(self, session: ArchiveSession, due: Due, name: str) -> None:
        self._session = session
        self._due = due
        self._name = name
        self._began = monotonic()
        self._done = 0

    def add(self, events: int) -> None:
        """Add events that were dealt with."""
        self._done = min(self._done + events, self._due.positions.size)
        seconds = monotonic() - self._began
        self._session.show(Progress(self._due.month_name, self._name, self._done, self._due.positions.size, seconds))


async def _previous(connection: Connection, parts: Sequence[RecordedPart], one: Log) -> PreviousPart | None:
    """The part of a log that was archived last, with the root of its tree as the log has it."""
    last = next((part for part in reversed(parts) if part.log_id == one.id), None)
    if last is None:
        return None
    [root] = await range_roots(connection, one, [(0, last.tree_size)])
    return PreviousPart(last.archive_id, last.manifest_sha256, last.tree_size, root.hex())


def _verify(session: ArchiveSession, folder: str, key: SigningKey, due: Due) -> PartResult:
    """Read a part back, with the log's own public keys. Fatal if it is not as it was written."""
    progress = _Stage(session, due, "verifying")
    with Checker(list(keys_of(due.log, key.all_public)), 1, progress.add) as checker:  # others would need memory too
        checked = checker.check(session.storage, folder)
    if checked.problem_count:
        raise Fatal(f"What was written of {due.month_name} is not what was read back: {checked.problems[0]}.")
    return checked


async def _record(
    session: ArchiveSession, manifest: PartManifest, checked: PartResult, folder: str, open_size: int
) -> None:
    """Add a part to the table, and record it in the log: both or nothing. PartChanged if it has to be written again."""
    pointer = await session.connection.fetchval(SQL["pointer"])
    table = await asyncio.to_thread(ArchiveTable.load, session.storage, pointer)
    names = [file.name for file in manifest.event_files]
    location = await asyncio.to_thread(table.append, manifest.archive_id, folder, names)
    session.on_step("table written")
    written_in = session.open_log

    async def move_pointer(connection: Connection, flush: Flush) -> None:
        if flush.log != written_in or await connection.fetchval(SQL.of(written_in)["is_changed"], open_size):
            raise PartChanged
        await connection.execute(SQL["create_namespace"])
        arguments = ("create_pointer", location) if pointer is None else ("move_pointer", location, pointer)
        moved = await connection.fetchval(SQL[arguments[0]], *arguments[1:])
        ended = await connection.fetchval(SQL["end_attempt"], manifest.archive_id)
        if moved is None or ended is None:
            raise Fatal("Somebody else has changed the archive's table meanwhile: run it again.")
        session.on_step("committing")

    events = [
        self_event(
            written_in.first_name,
            {
                "event_type": "datastorage.archive.stored",
                "archive_id": str(manifest.archive_id),
                "log_id": manifest.log_id,
                "month": manifest.month,
                "location": session.storage.location(folder),
                "manifest_sha256": checked.manifest_sha256,
                "tree_size": Checkpoint.parse(Note.parse(manifest.checkpoint).text).size,
                "positions": str(portion),
                "event_count": portion.size,
            },
            about=manifest.archive_id,
        )
        for portion in manifest.position_set().portions()
    ]
    await commit_action(session.store, events, move_pointer)
