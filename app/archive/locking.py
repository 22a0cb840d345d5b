"""Holds on files: where the bucket has object lock, nobody can delete the files of a part that a hold covers, until it is released.

A run sets legal holds on files, and lifts them; to place a hold needs no credentials of the store. The log says which parts are locked, and
for which holds. Files are locked before it says so, and lifted before it says that: so the files of a part that it says to be locked for a
hold which is still in force have to be.
"""

import asyncio
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from datetime import date
from hashlib import sha256
from typing import Any

import pyarrow.parquet as pq

from app.archive.columns import NAMES
from app.archive.event_file import UNREADABLE, damage_of, open_events
from app.archive.part_files import MANIFEST_NAME, event_files
from app.archive.recorded import RecordedPart, read_locks
from app.archive.rules import OF_HOLDS, GroupColumns, Holds
from app.archive.session import ArchiveSession, snapshot
from app.archive.storage import Storage
from app.archive.versions import Bucket, FilesStay
from app.db import Connection
from app.errors import AuditError
from app.ingest.link import Flush
from app.ingest.self_events import self_event
from app.retention.in_force import InForce
from app.retention.logged import commit_action
from app.tlog.evidence import LOCKED, UNLOCKED

HOLDS_MAX = 1_000
"""Named in one event, so that its payload stays below its limit."""


class NotRead(AuditError):
    """It cannot be known which holds cover a part; the message says why."""


@dataclass(slots=True)
class Locks:
    """What a run has done about files under hold."""

    locked: list[RecordedPart] = field(default_factory=list)
    """Parts that are locked since this run, or for other holds than before."""
    lifted: list[RecordedPart] = field(default_factory=list)
    """Parts that no hold covers any more."""
    problems: list[str] = field(default_factory=list)
    """Of each part that is not as holds want it: why."""


async def follow_holds(session: ArchiveSession) -> Locks:
    """Lock the files of the parts that a hold covers, and lift those that none covers any more, if the bucket has object lock."""
    result, connection, log = Locks(), session.connection, session.open_log
    await InForce().refresh(connection, log)
    holds = await Holds.read(connection)
    async with snapshot(connection):
        recorded, locks = await session.recorded(), await read_locks(connection, log)
    if not holds and not locks:
        return result
    bucket = Bucket.of(session.storage)
    try:
        if bucket is None or not await asyncio.to_thread(bucket.has_object_lock):
            result.problems += [f"part {one} was locked for a hold, but here is no object lock" for one in locks]
            return result
    except FilesStay as error:
        result.problems.append(str(error))
        return result
    for part, is_there in [*((one, True) for one in recorded.parts), *((one, False) for one in recorded.gone)]:
        if session.selection.month not in {None, date.fromisoformat(f"{part.month}-01")}:
            continue
        before = locks.get(part.archive_id, frozenset())
        try:
            if is_there:
                wanted = await asyncio.to_thread(holds_of, session.storage, part, holds)
            else:  # it stays locked as long as one of the holds is in force for which it was
                wanted = before if before & holds.ids else frozenset()
            if wanted != before:
                await _lock(session, bucket, part, wanted)
                (result.locked if wanted else result.lifted).append(part)
        except (NotRead, FilesStay) as error:
            result.problems.append(f"part {part.archive_id} of {part.month} is not locked as holds want it: {error}")
    return result


async def _lock(session: ArchiveSession, bucket: Bucket, part: RecordedPart, holds: AbstractSet[str]) -> None:
    """Have the files of a part under legal hold if there are holds, else not, and have the log say so. FilesStay if the store refuses."""
    folder = session.storage.name_of(part.location)
    if folder is None:
        raise NotRead(f"it is at {part.location}, not in this archive")
    await asyncio.to_thread(bucket.set_legal_holds, folder, is_on=bool(holds))
    session.on_step("files locked" if holds else "files unlocked")
    payload: dict[str, Any] = {
        "event_type": LOCKED if holds else UNLOCKED,
        "archive_id": str(part.archive_id),
        "log_id": part.log_id,
        "month": part.month,
        "manifest_sha256": part.manifest_sha256,
    }
    if holds:
        payload["holds"] = sorted(holds)

    async def nothing(connection: Connection, flush: Flush) -> None:
        del connection, flush

    event = self_event(session.open_log.first_name, payload, about=part.archive_id)
    await commit_action(session.store, [event], nothing)
    session.on_step("lock recorded")


def holds_of(storage: Storage, part: RecordedPart, holds: Holds) -> frozenset[str]:
    """The ids of the holds that cover events of a part, at most HOLDS_MAX. NotRead if its files are not there, or not the recorded ones."""
    name = storage.name_of(part.location)
    if name is None:
        raise NotRead(f"it is at {part.location}, not in this archive")
    if not holds:
        return frozenset()
    folder, ids = storage.folder(name), set[str]()
    try:
        envelope = folder.read(MANIFEST_NAME)
        if sha256(envelope).hexdigest() != part.manifest_sha256:
            raise NotRead("edited: its manifest is not the one that the log records")
    except FileNotFoundError:
        raise NotRead(f"removed: {MANIFEST_NAME} is missing") from None
    for file in event_files(envelope):
        try:
            ids |= _holds_of_file(folder, file.name, holds)
        except UNREADABLE as error:
            raise NotRead(damage_of(folder, file, error)) from None
    return frozenset(sorted(ids)[:HOLDS_MAX])


def _holds_of_file(folder: Storage, name: str, holds: Holds) -> set[str]:
    ids = set[str]()
    with folder.open(name) as stream:
        opened = open_events(stream)
        for number in range(opened.num_row_groups):
            if holds.may_cover(_Bounds(opened.metadata.row_group(number))):
                ids |= {*holds.covering(GroupColumns(opened, number, OF_HOLDS))[1]}
    return ids


class _Bounds:
    """The smallest and the largest values of columns of a row group."""

    def __init__(self, group: pq.RowGroupMetaData) -> None:
        self._group = group

    def __call__(self, column: str) -> tuple[Any, Any] | None:
        statistics = self._group.column(NAMES.index(column)).statistics
        return (statistics.min, statistics.max) if statistics is not None and statistics.has_min_max else None
