"""`datastorage archive verify`: what the log records of the archive against its files, and against the table that engines read."""

import random
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import date
from typing import Literal, NamedTuple
from uuid import UUID

import pyarrow as pa

from app.archive.check import Checker, PartResult, check_chain, check_manifest
from app.archive.locking import NotRead, holds_of
from app.archive.notice import NOTICE_NAME, read_notices
from app.archive.recorded import (
    ExpiredPart,
    Recorded,
    RecordedPart,
    places_in_no_part,
    read_erasures,
    read_locks,
    read_parts,
    read_recorded,
    removed_positions,
)
from app.archive.rules import Holds
from app.archive.session import stale_metadata
from app.archive.storage import PARTS, Storage, StorageAway, archive_storage
from app.archive.table import ArchiveTable, ListedFile, months_since_1970
from app.archive.versions import Bucket, FilesStay
from app.archive.writing import SQL, connect_archive
from app.db import Connection
from app.errors import Fatal
from app.events.positions import Positions
from app.retention.in_force import InForce
from app.retention.logged import read_open_log
from app.settings import Settings
from app.tlog.continued import keys_of
from app.tlog.evidence import read_evidence
from app.tlog.note import PublicKey

Depth = Literal["all", "sample", "manifests"]
_SAMPLE = 10


@dataclass(slots=True)
class ArchiveResult:
    """What verification found; the archive is as the log records it if there are no problems."""

    parts: list[tuple[RecordedPart, PartResult]] = field(default_factory=list)
    """Those that the log records. Of those that were not looked at as a whole, only the manifest was."""
    verified: int = 0
    """Events whose rows were verified."""
    pending: list[tuple[RecordedPart, Positions]] = field(default_factory=list)
    """Parts of which something was erased since: its content is in the archive until the next run."""
    undeleted: list[str] = field(default_factory=list)
    """Parts that were replaced since something of them was erased, or that have expired, and whose files are to be deleted: where they are."""
    unknown: list[str] = field(default_factory=list)
    """Folders with files of no part that the log records or a run has begun. Erasures do not reach them."""
    table_problems: list[str] = field(default_factory=list)
    expired: list[ExpiredPart] = field(default_factory=list)
    """Those that are not there any more, as the log records it."""
    expired_problems: list[str] = field(default_factory=list)
    """What is there of them all the same."""
    removed: dict[UUID, int] = field(default_factory=dict)
    """By part, how many of its events Postgres has no longer, if any."""
    locked: dict[UUID, frozenset[str]] = field(default_factory=dict)
    """By part, for which holds its files are locked, as the log records it."""
    lock_pending: list[RecordedPart] = field(default_factory=list)
    """Parts whose locks are not what holds want: the next run sets them, or lifts them."""
    locks_unseen: str = ""
    """Why it was not seen which files are locked; empty if it was, or none has to be."""
    in_no_part: int = 0
    """How many events Postgres has no longer, and no part any more although one had them: one problem, if there are any."""

    @property
    def problem_count(self) -> int:
        of_parts = sum(result.problem_count for _, result in self.parts)
        return len(self.table_problems) + len(self.expired_problems) + of_parts + (self.in_no_part > 0)


async def list_removed(settings: Settings) -> dict[UUID, Positions]:
    """By part that the log records, the positions of events that Postgres has no longer, if there are any."""
    connection = await connect_archive(settings)
    try:
        log = await read_open_log(connection, settings)
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            return removed_positions(await read_parts(connection, log), (await read_evidence(connection, log)).archived)
    finally:
        await connection.close()


async def list_parts(settings: Settings) -> list[RecordedPart]:
    """The parts that are there, as the log records them."""
    return (await list_recorded(settings))[0].parts


async def list_recorded(settings: Settings) -> tuple[Recorded, dict[UUID, frozenset[str]]]:
    """The parts that the log records, also those that have expired; and for which holds it says that their files are locked."""
    connection = await connect_archive(settings)
    try:
        log = await read_open_log(connection, settings)
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            return await read_recorded(connection, log), await read_locks(connection, log)
    finally:
        await connection.close()


async def verify_archive(
    settings: Settings, keys: Sequence[PublicKey], depth: Depth, *, only_removed: bool = False
) -> ArchiveResult:
    """Verify the parts that the log records, and the table. StorageAway when the storage fails.

    With `only_removed` only the parts with events that Postgres has no longer, and not the table.
    """
    storage = archive_storage(settings)
    connection = await connect_archive(settings)
    try:
        log = await read_open_log(connection, settings)
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            recorded = await read_recorded(connection, log)
            erasures = await read_erasures(connection, log)
            archived = (await read_evidence(connection, log)).archived
            state = await _state(connection)
            locks = await read_locks(connection, log)
            await InForce().refresh(connection, log)
            holds = await Holds.read(connection)
    finally:
        await connection.close()
    every = list({str(key): key for one in log.and_earlier() for key in keys_of(one, keys)}.values())
    parts = recorded.parts
    removed = removed_positions(parts, archived)
    result = ArchiveResult(
        expired=recorded.expired,
        removed={archive_id: positions.size for archive_id, positions in removed.items()},
        in_no_part=places_in_no_part(parts, archived).size,
    )
    if only_removed:
        parts = [part for part in parts if part.archive_id in removed]
    try:
        _check_parts(result, storage, parts, every, _chosen(len(parts), depth))
        _check_previous(result)
        if not only_removed:
            result.table_problems += _table_problems(storage, state.pointer, [one for _, one in result.parts])
            await _add_unlocked(settings, _check_locks(result, storage, locks, holds, depth))
            _check_former(result, storage, recorded, state.attempts)
            unknown = _unknown_folders(storage, recorded, state.attempts)
            if unknown and await _read_state(settings) == state:  # else they may be what a run has begun meanwhile
                result.unknown = unknown
    except (OSError, pa.ArrowException) as error:
        raise StorageAway("The archive's storage could not be read to the end.") from error
    for part in parts:
        if erased := Positions(one for erasure in part.pending(erasures) for one in erasure.positions.ranges):
            result.pending.append((part, erased))
    if result.problem_count:
        await _require_unchanged(settings, state)
    return result


class _State(NamedTuple):
    """What a run of the archive changes in Postgres before it changes files of others, or has written new ones."""

    pointer: str | None
    attempts: dict[UUID, str]
    """Where each part is that was begun, or is to be deleted."""


async def _state(connection: Connection) -> _State:
    attempts = {row["archive_id"]: row["location"] for row in await connection.fetch(SQL["attempts"])}
    return _State(await connection.fetchval(SQL["pointer"]), attempts)


async def _require_unchanged(settings: Settings, state: _State) -> None:
    """Fatal if what looks like a problem may be what a run does."""
    if await _read_state(settings) != state:
        raise Fatal("A run of the archive has changed it meanwhile: verify it again when that has ended.")


async def _read_state(settings: Settings) -> _State:
    connection = await connect_archive(settings)
    try:
        return await _state(connection)
    finally:
        await connection.close()


def _unknown_folders(storage: Storage, recorded: Recorded, attempts: dict[UUID, str]) -> list[str]:
    """The folders of parts that are neither recorded, nor replaced, nor begun: where they are."""
    known = {part.location for part in recorded.every} | {*attempts.values()}
    known |= {former.location for part in recorded.every for former in part.replaced}
    names = [name for name in storage.names(PARTS) if not name.endswith(f"/{NOTICE_NAME}")]
    return sorted({storage.location(name.rpartition("/")[0]) for name in names} - known)


def _check_former(result: ArchiveResult, storage: Storage, recorded: Recorded, attempts: dict[UUID, str]) -> None:
    """Of parts that were replaced or have expired, and of the table as it was with them, nothing may be there, unless it is still to be deleted."""
    result.undeleted = [location for archive_id, location in attempts.items() if archive_id in recorded.former_ids]

    def is_there(archive_id: UUID, location: str) -> bool:
        folder = storage.name_of(location)
        return folder is not None and archive_id not in attempts and bool(storage.names(folder))

    for part, one in result.parts:
        for former in part.replaced:
            if is_there(former.archive_id, former.location):
                one.add(
                    f"inserted: files of the part {former.archive_id}, which this one has replaced, are there again"
                )
    for expired in (one.part for one in recorded.expired):
        folders = {expired.archive_id: expired.location}
        folders |= {former.archive_id: former.location for former in expired.replaced}
        result.expired_problems += [
            f"inserted: files of the part {archive_id} of {expired.month}, which has expired, are there again"
            for archive_id, location in folders.items()
            if is_there(archive_id, location)
        ]
    kept = recorded.metadata_ids()
    if kept is not None and not result.undeleted:
        for name in stale_metadata(storage, [*kept, *attempts]):
            result.table_problems.append(f"inserted: {name} is of the table before a part was replaced, or has expired")


async def _active_holds(settings: Settings) -> frozenset[str]:
    """The ids of the holds that are in force by now."""
    connection = await connect_archive(settings)
    try:
        await InForce().refresh(connection, await read_open_log(connection, settings))
        return (await Holds.read(connection)).ids
    finally:
        await connection.close()


_Unlocked = Sequence[tuple[PartResult, str, frozenset[str]]]
"""Files that should be locked and are not: part, name, and the holds because of which."""


async def _add_unlocked(settings: Settings, unlocked: _Unlocked) -> None:
    """Add a problem for each file, unless its holds were released meanwhile: then a run may have lifted its lock."""
    ids = await _active_holds(settings) if unlocked else frozenset()
    for one, name, holds in unlocked:
        if active := holds & ids:
            one.add(f"hold removed: {name} is under no legal hold, but the log records one, for hold {min(active)}")


def _check_locks(
    result: ArchiveResult, storage: Storage, locks: dict[UUID, frozenset[str]], holds: Holds, depth: Depth
) -> _Unlocked:
    """Where locks are not what holds want; the files that should be locked and are not."""
    result.locked = {part.archive_id: locks[part.archive_id] for part, _ in result.parts if part.archive_id in locks}
    unlocked: list[tuple[PartResult, str, frozenset[str]]] = []
    if not result.locked and not holds:
        return unlocked
    bucket = Bucket.of(storage)
    try:
        if bucket is None or not bucket.has_object_lock():
            if result.locked:
                result.locks_unseen = "the bucket has no object lock, or the settings have no credentials for it"
            return unlocked
        for part, one in result.parts:
            folder, of_part = storage.name_of(part.location), result.locked.get(part.archive_id, frozenset())
            if folder is not None and (active := of_part & holds.ids):
                unlocked += [(one, name, active) for name in bucket.unlocked(folder)]
            if depth != "manifests":
                with suppress(NotRead):  # what is wrong with it is named already
                    if holds_of(storage, part, holds) != of_part:
                        result.lock_pending.append(part)
    except FilesStay as error:
        result.locks_unseen = str(error)
    return unlocked


def _check_previous(result: ArchiveResult) -> None:
    """A part that names one before it that has expired has to name the manifest that the log records of it."""
    recorded = {one.part.archive_id: one.part.manifest_sha256 for one in result.expired}
    recorded |= {former.archive_id: former.manifest_sha256 for one in result.expired for former in one.part.replaced}
    for _, one in result.parts:
        previous = one.manifest.previous if one.manifest is not None else None
        if (
            previous is not None
            and recorded.get(previous.archive_id, previous.manifest_sha256) != previous.manifest_sha256
        ):
            one.add(
                f"edited: the log records another manifest of the part {previous.archive_id}, which has expired, than this part names"
            )


def _chosen(count: int, depth: Depth) -> set[int]:
    """Which of `count` parts are verified as a whole."""
    if depth == "sample":
        return set(random.sample(range(count), min(_SAMPLE, count)))
    return set(range(count)) if depth == "all" else set()


def _check_parts(
    result: ArchiveResult, storage: Storage, parts: Sequence[RecordedPart], keys: list[PublicKey], whole: set[int]
) -> None:
    with Checker(keys) as checker:
        for number, part in enumerate(parts):
            folder = storage.name_of(part.location)
            if folder is None:
                one = PartResult(part.location)
                one.add(f"unverifiable: it is at {part.location}, not in this archive")
            elif number in whole:
                one = checker.check(storage, folder)
                result.verified += one.events
            else:
                one = check_manifest(storage, folder, keys)
            for problem in unlike_recorded(part, one):
                one.add(problem)
            result.parts.append((part, one))
    missing = [(part, one) for part, one in result.parts if not one.manifest_sha256]
    notices = read_notices(storage, storage.names(PARTS), keys) if missing else {}
    for part, one in missing:
        if (notice := notices.get(part.manifest_sha256)) is not None:
            one.problems[0] += f"; {notice}: this database is of an earlier time"
    for one, problem in check_chain([one for _, one in result.parts]):
        one.add(problem)


def unlike_recorded(part: RecordedPart, one: PartResult) -> Iterator[str]:
    """In what the manifest is not what the log records."""
    if not one.manifest_sha256:
        return
    if one.manifest_sha256 != part.manifest_sha256:
        yield f"edited: the manifest has the SHA-256 {one.manifest_sha256}, but the log records {part.manifest_sha256}"
        return
    if one.manifest is None:
        return
    if one.manifest.position_set().ranges != part.positions.ranges:
        yield "edited: the manifest has other positions than the log records"
    replaces = [(former.archive_id, former.manifest_sha256) for former in one.manifest.replaces]
    if replaces != [(former.archive_id, former.manifest_sha256) for former in part.replaced]:
        yield "edited: the manifest replaces other parts than the log records"


def _table_problems(storage: Storage, pointer: str | None, parts: Sequence[PartResult]) -> Iterator[str]:
    """In what the table that engines read is not made of the files of the parts."""
    manifests = [(part.folder, part.manifest) for part in parts if part.manifest is not None]
    expected = {
        f"{folder}/{file.name}": (file.bytes, file.events, _partition(manifest.month, manifest.log_id))
        for folder, manifest in manifests
        for file in manifest.event_files
    }
    if pointer is None:
        if parts:
            yield "removed: the catalog has no table"
        return
    if storage.name_of(pointer) is None:
        yield f"edited: the catalog has the table at {pointer}, not in this archive"
        return
    try:
        table = ArchiveTable.load(storage, pointer)
        yield from (f"edited: the table: {difference}" for difference in table.differences())
        files = list(table.files())
    except FileNotFoundError as error:
        yield f"removed: a file of the table's metadata is missing: {error}"
        return
    except OSError:
        raise
    except Exception as error:  # noqa: BLE001 -- the library fails in many ways at what is no metadata
        yield f"edited: the table's metadata cannot be read: {(str(error) or repr(error)).splitlines()[0]}"
        return
    yield from _file_problems(files, expected)


def _partition(month: str, log_id: int) -> tuple[int, int]:
    return months_since_1970(date.fromisoformat(f"{month}-01")), log_id


def _file_problems(files: Sequence[ListedFile], expected: dict[str, tuple[int, int, tuple[int, int]]]) -> Iterator[str]:
    listed = {file.name: file for file in files if file.name is not None}
    for name in sorted(expected.keys() - listed.keys()):
        yield f"rolled back: the newest snapshot of the table does not have {name}"
    for file in files:
        known = None if file.name is None else expected.get(file.name)
        if known is None:
            yield f"inserted: the table has {file.location}, which is of no part that the log records"
        elif known != (file.bytes, file.events, file.partition):
            yield f"edited: the table has other counts, or another partition, of {file.name}"
        elif file.hides_rows:
            yield f"edited: the table hides rows of {file.name}"
    if len(listed) < sum(file.name is not None for file in files):
        yield "inserted: the table has a file twice"
