"""What every act on the archive shares: its connections and storage, attempts that leave nothing behind, and how a part is recorded."""

import asyncio
import ctypes
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from hashlib import sha256
from pathlib import PurePosixPath
from time import monotonic
from typing import Any
from uuid import UUID

import pyarrow as pa

from app.archive.check import Checker, PartResult
from app.archive.manifest import open_manifest
from app.archive.part_files import MANIFEST_NAME, event_files
from app.archive.recorded import Recorded, RecordedPart, read_recorded, record_version
from app.archive.storage import METADATA, PARTS, Storage, archive_storage
from app.archive.table import ArchiveTable
from app.archive.versions import FilesStay, delete_versions
from app.archive.writing import SQL, as_archiver, connect_archive
from app.db import Connection
from app.errors import AuditError, Fatal
from app.events.log import Log
from app.events.positions import Positions
from app.ingest.link import Flush
from app.ingest.self_events import self_event
from app.ingest.store import Store
from app.retention.logged import DEADLINE_SECONDS, action_store, commit_action, read_open_log
from app.settings import Settings
from app.sql import load
from app.standby import confirm
from app.tlog.evidence import ARCHIVED, ERASED, EXPIRED, Erasures, read_erased
from app.tlog.note import Checkpoint, Note, PublicKey

PART_EVENTS = 2_000_000
_Version = tuple[Any, ...]
_LOG_SQL = load("retention")
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Selection:
    """What of that which is due a run is to archive."""

    month: date | None = None
    """The only one; None for all."""
    partial: bool = False
    """Also of months that are not past archive_after_days as a whole."""
    part_events: int = PART_EVENTS
    """Most events of a part."""
    remove: bool = False
    """Whether what is archived is then removed from Postgres."""
    expire: bool = False
    """Whether parts whose events are over are then deleted."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a part is."""

    month: str
    stage: str
    """`writing`, `erasing`, `verifying`, `removing` or `expiring`."""
    done: int
    total: int
    """Events."""
    seconds: float
    """Since the stage began."""

    @property
    def seconds_left(self) -> float | None:
        """At the rate so far; None as long as nothing is done."""
        return self.seconds / self.done * (self.total - self.done) if self.done else None


class PartChanged(AuditError):
    """Something of a part was erased or purged, or the log was continued, while it was written."""


def nothing(_: object) -> None:
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
    requires_standby: bool = False
    """Whether what Postgres has recorded counts only once synchronous standbys have it."""
    show: Callable[[Progress], None] = nothing
    on_step: Callable[[str], None] = nothing
    """Called between all that can be interrupted, for tests that end the process there."""
    tried: dict[tuple[int, date], Positions] = field(default_factory=dict)
    """By log and month, what this run has written or left out already."""
    undeleted: dict[UUID, str] = field(default_factory=dict)
    """By part, why the files of one that was replaced, or was never recorded, could not be deleted."""
    not_listed: list[RecordedPart] = field(default_factory=list)
    """Parts whose files were missing when the table was made anew."""
    _recorded: tuple[_Version, Recorded] | None = None
    _erased: tuple[_Version, Erasures] | None = None
    """What the log recorded when it was read last, and what tells it from what it records by now."""

    @property
    def open_log(self) -> Log:
        return self.store.log

    async def log_size(self) -> int:
        """How many events the open log has."""
        return await self.connection.fetchval(_LOG_SQL.of(self.open_log)["log_size"]) or 0

    async def recorded(self) -> Recorded:
        """What the log records of parts; read again only if it has changed. The connection is in a snapshot."""
        version = await record_version(self.connection, self.open_log, [ARCHIVED, EXPIRED])
        if self._recorded is None or self._recorded[0] != version:
            self._recorded = version, await read_recorded(self.connection, self.open_log)
        return self._recorded[1]

    async def erased(self) -> Erasures:
        """What is erased; as recorded()."""
        version = await record_version(self.connection, self.open_log, [ERASED])
        if self._erased is None or self._erased[0] != version:
            self._erased = version, await read_erased(self.connection, self.open_log)
        return self._erased[1]


@asynccontextmanager
async def open_session(settings: Settings, now: datetime, selection: Selection) -> AsyncIterator[ArchiveSession]:
    """Both connections use the role of DATASTORAGE_RETENTION_URL if it is set, else the service's role."""
    storage = archive_storage(settings)
    settings = as_archiver(settings)
    connection = await connect_archive(settings)
    try:
        open_log = await read_open_log(connection, settings)
        async with action_store(settings, open_log) as store:
            cutoff = (now - timedelta(days=settings.archive_after_days)).date()
            requires_standby = settings.require_synchronous_standby
            yield ArchiveSession(connection, store, storage, cutoff, selection, requires_standby)
    finally:
        await connection.close()


@asynccontextmanager
async def snapshot(connection: Connection) -> AsyncIterator[None]:
    """All statements see the same rows."""
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        yield


async def delete_attempts(session: ArchiveSession) -> int:
    """Delete what runs have begun and not recorded, and the files of parts that others have replaced or that have expired. How many were begun.

    StandbyMissing where a standby is required that does not have what was recorded of the latter. What is in another archive than this one stays there. So do files of such parts that the storage keeps; OSError for all others.
    And what may be the only copy of events: whoever may write rows of archive_attempts, or restores an earlier Postgres, has nothing
    of that deleted.
    """
    deleted = 0
    async with snapshot(session.connection):
        recorded = await session.recorded()
        attempts = await session.connection.fetch(SQL["attempts"])
    former, written_by = recorded.former_ids, recorded.metadata_ids() or []
    if session.requires_standby and any(one["archive_id"] in former for one in attempts):
        # Nothing brings files back once a standby is promoted that does not know why they were deleted.
        await confirm(session.connection, asyncio.get_running_loop().time() + DEADLINE_SECONDS)
    for attempt in attempts:
        archive_id, folder = attempt["archive_id"], session.storage.name_of(attempt["location"])
        if folder is None:
            log.warning("an attempt of another archive stays", extra={"location": attempt["location"]})
            if archive_id in former:
                session.undeleted[archive_id] = f"it is at {attempt['location']}, not in this archive"
            continue
        if (why := await asyncio.to_thread(_why_kept, session.storage, folder, archive_id, recorded)) is not None:
            session.undeleted[archive_id] = why
            continue
        async with session.connection.transaction():
            if await session.connection.fetchval(SQL["lock_attempt"], archive_id) is None:
                continue  # a transaction that was still open has ended it
            try:
                if archive_id in former:
                    await asyncio.to_thread(_delete_former, session.storage, folder, written_by)
                else:
                    await asyncio.to_thread(_delete_files, session.storage, folder, archive_id)
            except OSError as error:
                if archive_id not in former and not isinstance(error, FilesStay):
                    raise
                session.undeleted[archive_id] = str(error)
                continue
            session.on_step(_deleted(archive_id, recorded))
            await session.connection.execute(SQL["end_attempt"], archive_id)
            session.undeleted.pop(archive_id, None)
            deleted += archive_id not in former
    return deleted


def _deleted(archive_id: UUID, recorded: Recorded) -> str:
    """The step that has deleted something begun."""
    if archive_id in {one.part.archive_id for one in recorded.expired}:
        return "expired deleted"
    return "replaced deleted" if archive_id in recorded.former_ids else "attempt deleted"


def _why_kept(storage: Storage, folder: str, archive_id: UUID, every: Recorded) -> str | None:
    """Why a folder may be the only copy of events that the log records; None if it is not."""
    if PurePosixPath(folder).parent.parent.parent != PurePosixPath(PARTS) or PurePosixPath(folder).name != str(
        archive_id
    ):
        return f"{folder} is not its folder"
    recorded = {part.archive_id: part for part in every.parts}
    if archive_id in recorded:
        return "the log records it"
    try:
        replaces = open_manifest(storage.folder(folder).read(MANIFEST_NAME), [])[0].replaces
    except (FileNotFoundError, ValueError):
        return None
    before = recorded.get(replaces[-1].archive_id) if replaces else None
    if before is None or _is_there(storage, before):
        return None
    return f"the log records the part {before.archive_id}, which it replaces, and that is not there"


def _is_there(storage: Storage, part: RecordedPart) -> bool:
    """Whether a part has the manifest that the log records, and all files that this names."""
    folder = storage.name_of(part.location)
    if folder is None:
        return False
    try:
        envelope = storage.folder(folder).read(MANIFEST_NAME)
        if sha256(envelope).hexdigest() != part.manifest_sha256:
            return False
        manifest, _ = open_manifest(envelope, [])
    except (FileNotFoundError, ValueError):
        return False
    return {f"{folder}/{file.name}" for file in manifest.files} <= {*storage.names(folder)}


def _delete_files(storage: Storage, folder: str, archive_id: UUID) -> None:
    _delete(storage, folder, lambda name: str(archive_id) in name)


def _delete_former(storage: Storage, folder: str, written_by: Sequence[UUID]) -> None:
    """The files of a part, and the metadata of all snapshots from before it was replaced or expired: they have the bounds of its columns."""
    _delete(storage, folder, lambda name: _is_stale(name, written_by))


def _delete(storage: Storage, folder: str, is_wanted: Callable[[str], bool]) -> None:
    """Delete a folder, and the files of metadata whose names are wanted; all their versions first, since some stores delete no folder before."""
    delete_versions(storage, (METADATA, folder), lambda name: name.startswith(f"{folder}/") or is_wanted(name))
    storage.delete_folder(folder)
    for name in storage.names(METADATA):
        if is_wanted(name):
            storage.delete(name)


def stale_metadata(storage: Storage, written_by: Sequence[UUID | str]) -> list[str]:
    """The files of metadata that none of these parts has written."""
    return [name for name in storage.names(METADATA) if _is_stale(name, written_by)]


def _is_stale(name: str, written_by: Sequence[UUID | str]) -> bool:
    return not any(str(one) in name for one in written_by)


class Stage:
    """Counts the events of a stage, and shows how far it is."""

    def __init__(self, session: ArchiveSession, name: str, month: str, total: int) -> None:
        self._session = session
        self._name = name
        self._month = month
        self._total = total
        self._began = monotonic()
        self._done = 0

    def add(self, events: int) -> None:
        """Add events that were dealt with."""
        self._done = min(self._done + events, self._total)
        seconds = monotonic() - self._began
        self._session.show(Progress(self._month, self._name, self._done, self._total, seconds))


def read_back(session: ArchiveSession, folder: str, keys: Sequence[PublicKey], month: str, total: int) -> PartResult:
    """Verify a part that was just written, with the log's own public keys. Fatal if it is not as it was written."""
    progress = Stage(session, "verifying", month, total)
    with Checker(list(keys), 1, progress.add) as checker:  # others would need memory too
        checked = checker.check(session.storage, folder)
    _give_memory_back()
    if checked.problem_count:
        raise Fatal(f"What was written of {month} is not what was read back: {checked.problems[0]}.")
    return checked


def _give_memory_back() -> None:
    """What the allocators keep of a part, which the next one does not fit into: with each the process would grow by some megabytes."""
    pa.default_memory_pool().release_unused()
    if (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:  # of glibc alone
        trim(0)


async def record(
    session: ArchiveSession, checked: PartResult, open_size: int, replaces: RecordedPart | None = None
) -> None:
    """Add a part to the table, and record it in the log: both or nothing. PartChanged if it has to be written again.

    The part that it replaces leaves the table, and its files are to be deleted: the row of archive_attempts says so until they are.
    """
    manifest, folder = checked.manifest, checked.folder
    assert manifest is not None
    names = [f"{folder}/{file.name}" for file in manifest.event_files]

    def write(table: ArchiveTable) -> str:
        if replaces is None:
            return table.append(manifest.archive_id, names)
        return table.replace(manifest.archive_id, replaces.location, names)

    pointer = await session.connection.fetchval(SQL["pointer"])
    before, location = await write_table(session, pointer, write)
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
        if replaces is not None:
            await connection.execute(SQL["begin_attempt"], replaces.archive_id, replaces.location)
        session.on_step("committing")

    more: dict[str, Any] = {}
    if replaces is not None:
        more = {"replaces": str(replaces.archive_id), "erased_count": manifest.replaces[-1].erased_count}
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
            }
            | more,
            about=manifest.archive_id,
        )
        for portion in manifest.position_set().portions()
    ]
    await commit_action(session.store, events, move_pointer)
    if before.is_full:
        await asyncio.to_thread(_delete_older, session.storage, [*before.writers, str(manifest.archive_id)])


async def write_table(
    session: ArchiveSession, pointer: str | None, write: Callable[[ArchiveTable], str]
) -> tuple[ArchiveTable, str]:
    """The table before, and where `write` has written what it is after.

    If files of its metadata are missing, as after a restore of an earlier Postgres, it is made anew of the parts that the log records and that are there.
    """
    try:
        table = await asyncio.to_thread(ArchiveTable.load, session.storage, pointer)
        return table, await asyncio.to_thread(write, table)
    except FileNotFoundError as error:
        log.warning("the archive's table is written anew: metadata is missing", extra={"error": str(error)})
    async with snapshot(session.connection):
        parts = (await session.recorded()).parts
    there = [part for part in parts if await asyncio.to_thread(_is_there, session.storage, part)]
    if parts and not there:
        raise Fatal(
            f"The metadata of the archive's table is missing at {pointer}, and so is each part that the log records: is {session.storage.url} the archive?"
        )
    session.not_listed += [part for part in parts if part not in there]
    names = [name for part in there for name in await asyncio.to_thread(_event_names, session.storage, part)]
    table = ArchiveTable.new(session.storage, names)
    return table, await asyncio.to_thread(write, table)


def _event_names(storage: Storage, part: RecordedPart) -> list[str]:
    folder = storage.name_of(part.location)
    assert folder is not None
    return [f"{folder}/{file.name}" for file in event_files(storage.folder(folder).read(MANIFEST_NAME))]


def _delete_older(storage: Storage, writers: Sequence[str]) -> None:
    """Delete the metadata of snapshots that the table had before it was written anew the last time but one: engines may still read the last."""
    try:
        for name in stale_metadata(storage, writers):
            storage.delete(name)
    except OSError as error:
        log.warning("metadata of former snapshots stays until the table is written anew", extra={"error": str(error)})
