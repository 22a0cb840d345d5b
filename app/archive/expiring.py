"""The end of retention in the archive: a part of which every event is over is deleted, which makes them purged.

An event of the log says so; in its transaction the table loses the part's files, which are deleted after that. A part stays as a whole
while one event of it is not over by the rules of a purge, or a hold covers one, or Postgres still has the row of one that can be purged.
What is never purged has its row in Postgres, and stays there.
"""

import asyncio
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import IO, Any
from uuid import UUID, uuid4

import pyarrow.parquet as pq

from app.archive.check import check_manifest
from app.archive.compare import unlike_recorded
from app.archive.event_file import UNREADABLE, damage_of, open_events
from app.archive.manifest import PartManifest
from app.archive.notice import NOTICE_NAME, signed_notice
from app.archive.part_files import TILES_NAME, ArchivedFile
from app.archive.recorded import RecordedPart
from app.archive.removing import retention_session
from app.archive.rules import GroupColumns, Holds, Judged, Rules
from app.archive.session import (
    ArchiveSession,
    PartChanged,
    Stage,
    delete_attempts,
    snapshot,
    write_table,
)
from app.archive.storage import PARTS, Storage
from app.archive.writing import SQL, as_archiver
from app.db import Connection
from app.errors import AuditError, Fatal
from app.events.positions import Positions
from app.events.record import is_logged
from app.ingest.accept import Event
from app.ingest.link import Flush
from app.ingest.self_events import self_event
from app.retention.adoption import adopt
from app.retention.in_force import OrdersChanged
from app.retention.logged import commit_action
from app.retention.policy import Month
from app.retention.removal import RetentionSession, followed
from app.settings import Settings
from app.sql import load
from app.tlog.continued import keys_of
from app.tlog.evidence import EXPIRED, read_evidence
from app.tlog.keys import SigningKey
from app.tlog.note import PublicKey
from app.tlog.orders import Difference

RETENTION = load("retention")
_TRIES = 3
_SLOW_SECONDS = 3600.0
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Outlook:
    """What a run would find in one part."""

    part: RecordedPart
    judged: Judged
    in_postgres: int
    """How many of its events have a row that a purge has to remove first."""
    problem: str = ""
    """Why it cannot be known, or why the part would stay even if all of it were over."""

    @property
    def is_due(self) -> bool:
        return bool(self.judged) and not self.in_postgres and not self.problem

    @property
    def until(self) -> datetime | None:
        """When the last of its events is over that are not over yet."""
        return _EPOCH + timedelta(microseconds=self.judged.until) if self.judged.not_over else None


@dataclass(frozen=True, slots=True)
class Expiry:
    """A part that has expired."""

    part: RecordedPart
    events: int
    """Those that are purged by it."""


@dataclass(slots=True)
class Expiries:
    """What of the archive has expired in a run, and what has not."""

    expired: list[Expiry] = field(default_factory=list)
    waiting: list[str] = field(default_factory=list)
    """Of each part that is over, but has rows in Postgres: what has to be done first."""
    refused: list[str] = field(default_factory=list)
    """Of each part that is over, but is not as the log records it: why it stays."""
    differences: list[Difference] = field(default_factory=list)
    """Where holds and policies of the tables differ from the log; what such a hold covers stays."""


class _Stays(AuditError):
    """A part cannot expire; the message says why."""


async def outlook(session: ArchiveSession, settings: Settings, now: datetime) -> AsyncIterator[Outlook]:
    """What a run at `now` would find, part by part. Reads some columns of all files, and changes nothing."""
    retention = await retention_session(session, as_archiver(settings), now)
    await retention.refresh()
    rules = await _rules(session, retention)
    async for part, parting in _parts(session, retention):
        judged, in_postgres = Judged(), 0
        try:
            judged = await parting.judge(rules, is_whole=True)
            in_postgres = await parting.count_rows()
            if judged and not in_postgres:
                await parting.expiring_positions(judged)
        except _Stays as error:
            yield Outlook(part, judged, in_postgres, str(error))
        else:
            yield Outlook(part, judged, in_postgres)


async def expire(session: ArchiveSession, settings: Settings, now: datetime, key: SigningKey) -> Expiries:
    """Delete the parts of which every event is over at `now`, oldest first.

    Fatal while a retention run is under way. OSError or pa.ArrowException when the storage fails.
    """
    connection, settings = session.connection, as_archiver(settings)
    if not await connection.fetchval(RETENTION["lock_retention"]):
        raise Fatal("A retention run is under way; wait until it has ended. No part of the archive has expired.")
    await adopt(connection, settings, session.open_log)
    retention = await retention_session(session, settings, now)
    await retention.refresh()
    result = Expiries()
    try:
        async for part, parting in _parts(session, retention):
            try:
                await parting.expire(key, result)
            except _Stays as error:
                result.refused.append(f"part {part.archive_id} of {part.month} does not expire: {error}")
    finally:
        result.differences = [*retention.in_force.differences.values()]
    return result


async def _rules(session: ArchiveSession, retention: RetentionSession) -> Rules:
    """The rules as the session follows them now."""
    return Rules(session.connection, retention.terms, await Holds.read(session.connection))


async def _parts(
    session: ArchiveSession, retention: RetentionSession
) -> AsyncIterator[tuple[RecordedPart, "ExpiryOfPart"]]:
    """The parts that are there, oldest month first."""
    async with snapshot(session.connection):
        parts = (await session.recorded()).parts
    for part in sorted(parts, key=lambda one: (one.month, one.place)):
        if session.selection.month in {None, date.fromisoformat(f"{part.month}-01")}:
            yield part, ExpiryOfPart(session, retention, part)


class ExpiryOfPart:
    """The expiry of one part."""

    def __init__(self, session: ArchiveSession, retention: RetentionSession, part: RecordedPart) -> None:
        self._session = session
        self._retention = retention
        self._part = part
        [self._log] = [one for one in session.open_log.and_earlier() if one.id == part.log_id]

    async def expire(self, key: SigningKey, result: Expiries) -> None:
        """Delete the part if the rules say so. _Stays if it is over, but not as the log records it."""
        for _ in range(_TRIES):
            rules = await _rules(self._session, self._retention)
            if not await self.judge(rules, is_whole=False):
                return
            if count := await self.count_rows():
                result.waiting.append(
                    f"part {self._part.archive_id} of {self._part.month} is over, but {count} of its events are in Postgres: "
                    "`datastorage retention run` purges them first"
                )
                return
            keys = list(keys_of(self._log, key.all_public))
            judged = await self.judge(rules, is_whole=True, keys=keys)
            if not judged:  # only if somebody has changed the files between the two
                return
            gone = await self.expiring_positions(judged)
            try:
                await self.record(key, judged, gone)
            except (PartChanged, OrdersChanged):  # perhaps by a hold: what it covers stays, as the next look says
                await delete_attempts(self._session)
                await self._retention.refresh()
            else:
                result.expired.append(Expiry(self._part, gone.size))
                await delete_attempts(self._session)
                return
        raise Fatal(
            f"A hold or a policy has changed, each time that {self._part.month} was to expire: run it again later."
        )

    async def judge(self, rules: Rules, *, is_whole: bool, keys: list[PublicKey] | None = None) -> Judged:
        """What the rules say of the part's events; if not `is_whole` only up to what makes it stay.

        With `keys` of nothing but the bytes that were signed and recorded. _Stays if files are not there, or not as they were signed.
        """
        judged = Judged()
        progress = Stage(self._session, "expiring", self._part.month, self._part.positions.size)
        folder, manifest = await asyncio.to_thread(self._open, keys)
        if keys is not None:
            [tiles] = [file for file in manifest.files if file.name == TILES_NAME]
            await asyncio.to_thread(_copy, folder, tiles, None)
        for file in manifest.event_files:
            with ExitStack() as stack:
                try:
                    opened = await asyncio.to_thread(_open_file, folder, file, stack, is_copied=keys is not None)
                    for number in range(opened.num_row_groups):
                        columns = await asyncio.to_thread(GroupColumns, opened, number)
                        await rules.add(judged, columns)
                        progress.add(columns.rows)
                        if not is_whole and (judged.not_over or judged.held):
                            return judged
                except UNREADABLE as error:
                    raise _Stays(await asyncio.to_thread(damage_of, folder, file, error)) from None
        if judged.events != self._part.positions.size:
            raise _Stays(f"edited: it has {judged.events} events, but the log records {self._part.positions.size}")
        return judged

    def _open(self, keys: list[PublicKey] | None) -> tuple[Storage, PartManifest]:
        """The part's folder and manifest. _Stays unless the manifest is the one that the log records; with `keys` more is verified."""
        storage, part = self._session.storage, self._part
        folder = storage.name_of(part.location)
        if folder is None:
            raise _Stays(f"it is at {part.location}, not in this archive")
        checked = check_manifest(storage, folder, keys or [])
        if problem := next(iter(unlike_recorded(part, checked)), None):
            raise _Stays(problem)
        if checked.manifest is None or (keys is not None and checked.problems):
            raise _Stays(checked.problems[0])
        return storage.folder(folder), checked.manifest

    async def count_rows(self) -> int:
        """How many of the part's events have rows that a purge can remove. _Stays while a purge of the whole month is not finished."""
        months = [Month(**row) for row in await self._session.connection.fetch(RETENTION["months"])]
        if self._part.month in {f"{one.first:%Y-%m}" for one in months if one.detaching or not one.attached}:
            raise _Stays("`datastorage retention run` has to finish what it has begun with this month")
        statement = SQL.of(self._log)["rows_that_end"]
        return int(await self._session.connection.fetchval(statement, *self._where(), timeout=_SLOW_SECONDS))

    def _where(self) -> tuple[date, int, int, str]:
        """The arguments by which rows of the part are found."""
        positions = self._part.positions
        first, end = positions.ranges[0][0], positions.ranges[-1][1]
        return date.fromisoformat(f"{self._part.month}-01"), first, end, str(positions)

    async def expiring_positions(self, judged: Judged) -> Positions:
        """The positions of the events that the part alone has. _Stays if one of them is never purged, or the log does not say why it has no row."""
        statement = SQL.of(self._log)["rows_without_end"]
        rows = await self._session.connection.fetch(statement, *self._where(), timeout=_SLOW_SECONDS)
        kept = Positions.of(row["log_index"] for row in rows if is_logged(row, self._session.open_log))
        if lost := Positions.of(judged.without_end).without(kept):
            raise _Stays(f"{lost.size} of its events are never purged, and have no row that is as the log has it")
        gone = self._part.positions.without(Positions.of(judged.without_end))
        async with snapshot(self._session.connection):
            evidence = await read_evidence(self._session.connection, self._session.open_log)
        if missing := gone.without(self._part.among(evidence.missing)):
            raise _Stays(
                f"{missing.size} of its events have no row, and the log does not say why: see `datastorage verify`"
            )
        return gone

    async def record(self, key: SigningKey, judged: Judged, gone: Positions) -> None:
        """Take the part out of the table, and record its expiry: both or nothing. Its files are to be deleted then: archive_attempts says so.

        OrdersChanged if a hold or a policy has changed since the part was judged, PartChanged if the log was continued. That none of its
        rows has come back needs no look while all writers wait: only a retention run puts rows back, and none is under way as long as this one has its lock.
        """
        session, part, expiry_id = self._session, self._part, uuid4()
        run_session = await session.connection.fetchval(SQL["session"])
        written_in = session.open_log
        folder = session.storage.folder(f"{PARTS}/{part.month}/{part.log_id}/{expiry_id}")
        await session.connection.execute(SQL["begin_attempt"], expiry_id, folder.url)
        session.on_step("expiry begun")
        notice = signed_notice(self._payload(expiry_id, judged, gone), self._log.name, key.of(self._log))
        await asyncio.to_thread(_write, folder, notice)
        session.on_step("notice written")
        pointer = await session.connection.fetchval(SQL["pointer"])
        if pointer is None:
            raise Fatal("The catalog has no table of the archive: see `datastorage archive verify`.")
        _, location = await write_table(session, pointer, lambda table: table.replace(expiry_id, part.location, []))
        session.on_step("table written")

        async def move_pointer(connection: Connection, flush: Flush) -> None:
            await self._retention.in_force.require_unchanged(connection)
            if flush.log != written_in:
                raise PartChanged
            if not await connection.fetchval(SQL["has_locks"], run_session):
                raise Fatal(
                    "The connection was lost that keeps other runs away, so nothing more has expired: run it again."
                )
            moved = await connection.fetchval(SQL["move_pointer"], location, pointer)
            ended = await connection.fetchval(SQL["end_attempt"], expiry_id)
            if moved is None or ended is None:
                raise Fatal("Somebody else has changed the archive's table meanwhile: run it again.")
            await connection.execute(SQL["begin_attempt"], part.archive_id, part.location)
            session.on_step("committing")

        await commit_action(session.store, list(self._events(expiry_id, judged, gone)), move_pointer)
        session.on_step("expired")

    def _events(self, expiry_id: UUID, judged: Judged, gone: Positions) -> Iterator[Event]:
        for portion in gone.portions():
            payload = self._payload(expiry_id, judged, portion)
            yield self_event(self._session.open_log.first_name, payload, about=self._part.archive_id)

    def _payload(self, expiry_id: UUID, judged: Judged, gone: Positions) -> dict[str, Any]:
        newest = {category: _EPOCH + timedelta(microseconds=one) for category, one in sorted(judged.newest.items())}
        policies = [
            followed(self._retention, category, f"{one:%Y-%m-%dT%H:%M:%S.%fZ}") for category, one in newest.items()
        ]
        return {
            "event_type": EXPIRED,
            "archive_id": str(self._part.archive_id),
            "expiry_id": str(expiry_id),
            "log_id": self._part.log_id,
            "month": self._part.month,
            "manifest_sha256": self._part.manifest_sha256,
            "positions": str(gone),
            "event_count": gone.size,
            "cutoff": self._retention.terms.now.isoformat(),
            "policies": policies,
        }


def _write(folder: Storage, notice: bytes) -> None:
    with folder.create(NOTICE_NAME) as file:
        file.write(notice)


def _open_file(folder: Storage, file: ArchivedFile, stack: ExitStack, *, is_copied: bool) -> pq.ParquetFile:
    """A file of events; with `is_copied` a copy of it on this machine, which is as it was signed: _Stays if it is not."""
    if not is_copied:
        return open_events(stack.enter_context(folder.open(file.name)))
    copied = stack.enter_context(tempfile.TemporaryFile(prefix="datastorage-events-"))  # noqa: SIM115 -- of the stack
    _copy(folder, file, copied)
    copied.seek(0)
    return open_events(copied)


def _copy(folder: Storage, file: ArchivedFile, target: IO[bytes] | None) -> None:
    """Read all of a file. _Stays if it has not the bytes that were signed."""
    if folder.copy_to(file.name, target) != (file.sha256, file.bytes):
        raise _Stays(f"edited: {file.name} is not as it was signed")
