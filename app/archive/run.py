"""A run of the archive: what is due is written in parts, each read back and verified before the log records it.

What a run has begun and not recorded is deleted by the next one. First it has erasures reach the archive; last, if that is asked for,
it removes from Postgres what is archived, and deletes the parts that have expired.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from uuid import uuid4

import pyarrow as pa

from app.archive.erasing import erase_parts
from app.archive.expiring import Expiries, Outlook, expire, outlook
from app.archive.locking import Locks, follow_holds
from app.archive.manifest import PartManifest, PreviousPart
from app.archive.recorded import (
    Recorded,
    RecordedErasure,
    RecordedPart,
    archived_positions,
    read_erasures,
)
from app.archive.removing import Removal, remove_archived
from app.archive.session import (
    ArchiveSession,
    PartChanged,
    Progress,
    Selection,
    Stage,
    delete_attempts,
    nothing,
    open_session,
    read_back,
    record,
    snapshot,
)
from app.archive.storage import PARTS, StorageAway
from app.archive.writing import SQL, Due, PartWriter
from app.db import Connection
from app.errors import Fatal
from app.events.log import Log
from app.events.positions import Positions
from app.settings import Settings
from app.tlog.continued import keys_of, read_seam
from app.tlog.keys import SigningKey, signing_key
from app.tlog.note import MalformedNote, NoValidSignature, PublicKey, verified_signatures
from app.tlog.tiles import range_roots
from app.verify.row import Defects

_SLOW_SECONDS = 3600.0
_TRIES = 3
_SIZE_MAX = 2**62


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
    erased: int
    """Archived ones that were erased since: the run writes their parts again."""


@dataclass(slots=True)
class ArchiveRun:
    """What a run did."""

    parts: list[PartManifest] = field(default_factory=list)
    left: Defects = field(default_factory=Defects)
    """Rows that are not as the log has them; they are only in Postgres."""
    deleted_attempts: int = 0
    """What earlier runs had begun and not recorded."""
    rewritten: list[PartManifest] = field(default_factory=list)
    """Parts that were written again without what was erased since."""
    pending: list[str] = field(default_factory=list)
    """Why what was erased is in the archive still: of each part that could not be written again, or not be deleted."""
    removal: Removal | None = None
    """What was removed from Postgres; None if that was not asked for."""
    locks: Locks = field(default_factory=Locks)
    """What was done about files under hold."""
    expiries: Expiries | None = None
    """What has expired; None if that was not asked for."""


async def plan(settings: Settings, now: datetime, selection: Selection) -> list[DueMonth]:
    """What a run would find. Changes nothing, and does not wait for other runs."""
    async with open_session(settings, now, selection) as session, snapshot(session.connection):
        recorded = await session.recorded()
        erasures = await read_erasures(session.connection, session.open_log)
        months = [row["month"] for row in await session.connection.fetch(SQL["months"])]
        return [
            await _due_month(session, recorded, erasures, one, month)
            for month in months
            for one in session.open_log.and_earlier()
            if selection.month in {None, month}
        ]


async def plan_expiry(settings: Settings, now: datetime, selection: Selection) -> list[Outlook]:
    """Which parts would expire, and which not before when. Reads columns of all files; changes nothing. StorageAway when the storage fails."""
    async with open_session(settings, now, selection) as session:
        try:
            return [one async for one in outlook(session, settings, now)]
        except (OSError, pa.ArrowException) as error:
            raise StorageAway("The archive's storage could not be read to the end.") from error


async def run(
    settings: Settings,
    now: datetime,
    selection: Selection,
    *,
    show: Callable[[Progress], None] = nothing,
    on_step: Callable[[str], None] = nothing,
) -> ArchiveRun:
    """Delete what an interrupted run has left, have erasures reach the archive, then archive what is due at `now`, part by part.

    Then remove from Postgres what is archived, have files under hold where holds cover them, and delete the parts of which every event is over, if `selection` says so.

    Fatal when another run is under way, no key signs, or what was written cannot be verified; StorageAway when the storage fails.
    """
    async with open_session(settings, now, selection) as session:
        session.show, session.on_step = show, on_step
        if not await session.connection.fetchval(SQL["lock_archive"]):
            raise Fatal("Another run of the archive is under way; wait until it has ended.")
        key = signing_key(settings, session.open_log.first_name)
        if key is None:
            raise Fatal("The archive needs the key of the log: set DATASTORAGE_CHECKPOINT_KEY_FILE.")
        result = ArchiveRun()
        try:
            result.deleted_attempts = await delete_attempts(session)
            result.rewritten, result.pending = await erase_parts(session, key)
            for row in await session.connection.fetch(SQL["months"]):
                if selection.month in {None, row["month"]}:
                    for one in session.open_log.and_earlier():
                        await _archive_month(session, key, one, row["month"], result)
            if selection.remove:
                result.removal = await remove_archived(session, settings, now, key)
            result.locks = await follow_holds(session)
            if result.locks.lifted:
                await delete_attempts(session)
            if selection.expire:
                result.expiries = await expire(session, settings, now, key)
        except (OSError, pa.ArrowException) as error:
            raise StorageAway("The archive's storage failed; the next run goes on.") from error
        result.pending += [
            f"files of part {one}, which are to be deleted, stay: {why}" for one, why in session.undeleted.items()
        ]
        result.pending += [
            f"part {one.archive_id} of {one.month} is not in the table any more: its files are not there"
            for one in session.not_listed
        ]
        return result


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


async def _due_month(
    session: ArchiveSession, recorded: Recorded, erasures: Sequence[RecordedErasure], one: Log, month: date
) -> DueMonth:
    connection, end = session.connection, _month_end(month)
    signed = await _checkpoint(connection, one)
    size = 0 if signed is None else signed[0]
    archived = archived_positions(recorded.every, one.id)
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
        erased=sum(
            erasure.positions.size
            for part in recorded.parts
            if (part.month, part.log_id) == (f"{month:%Y-%m}", one.id)
            for erasure in part.pending(erasures)
        ),
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
            await delete_attempts(session)
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
    async with snapshot(connection):
        signed = await _checkpoint(connection, one)
        positions = await _positions(connection, one, month, end, 0 if signed is None else signed[0])
        archived = archived_positions((await session.recorded()).every, one.id)
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
    keys = keys_of(due.log, key.all_public)
    folder = f"{PARTS}/{due.month_name}/{due.log.id}/{archive_id}"
    await connection.execute(SQL["begin_attempt"], archive_id, session.storage.location(folder))
    session.on_step("begun")
    progress = Stage(session, "writing", due.month_name, due.positions.size)
    async with snapshot(connection):
        open_size = await session.log_size()
        signed = await _checkpoint(connection, due.log)
        assert signed is not None
        _require_own(signed[1], keys)
        writer = PartWriter(
            connection,
            session.open_log,
            due,
            archive_id,
            session.storage.folder(folder),
            signed[1],
            await session.erased(),
            progress.add,
            session.on_step,
        )
        parts = (await session.recorded()).every
        written = await writer.write(key.of(due.log), await _previous(connection, parts, due.log))
    result.left.extend(written.left)
    if written.manifest is None:
        await delete_attempts(session)
        return
    checked = await asyncio.to_thread(read_back, session, folder, keys, due.month_name, due.positions.size)
    session.on_step("verified")
    await record(session, checked, open_size)
    result.parts.append(written.manifest)
    session.on_step("recorded")


def _require_own(note: str, keys: Sequence[PublicKey]) -> None:
    """Fatal unless one of these keys has signed a checkpoint: what is archived could not be verified with them."""
    try:
        verified_signatures(note, keys)
    except (MalformedNote, NoValidSignature) as error:
        raise Fatal(f"The newest checkpoint is not signed with the keys of these settings: {error}.") from None


async def _previous(connection: Connection, parts: Sequence[RecordedPart], one: Log) -> PreviousPart | None:
    """The part of a log that was archived last, with the root of its tree as the log has it."""
    last = next((part for part in reversed(parts) if part.log_id == one.id), None)
    if last is None:
        return None
    [root] = await range_roots(connection, one, [(0, last.tree_size)])
    return PreviousPart(last.archive_id, last.manifest_sha256, last.tree_size, root.hex())
