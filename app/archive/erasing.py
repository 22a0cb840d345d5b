"""Erasures reach the archive: a part with content that was erased since is written again without it, and replaces the one before.

The log decides what is to be done: the erasures that it records after a part. Nothing of the old part stays but its positions, its
hashes, and its manifest's digest.
"""

import asyncio
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, date, datetime
from itertools import islice
from typing import Any
from uuid import UUID, uuid4

from app.archive.check import check_manifest
from app.archive.columns import erased_row, file_values
from app.archive.event_file import EventFiles, group_count, read_rows_of
from app.archive.manifest import PartManifest, RecordedErasures, ReplacedPart
from app.archive.part_files import MANIFEST_NAME, TILES_NAME, ArchivedFile
from app.archive.recorded import RecordedErasure, RecordedPart, read_erasures
from app.archive.session import (
    ArchiveSession,
    PartChanged,
    Stage,
    delete_attempts,
    read_back,
    record,
    snapshot,
)
from app.archive.storage import PARTS, Storage
from app.archive.table import ARROW_SCHEMA
from app.archive.writing import SQL
from app.errors import AuditError, Fatal
from app.events.canonical import canonical, loads
from app.events.log import Log
from app.events.positions import Positions
from app.export.manifest import rfc3339_microseconds
from app.tlog.continued import keys_of
from app.tlog.evidence import Erasures
from app.tlog.keys import SigningKey
from app.tlog.note import PublicKey
from app.verify.row import is_what_erasure_left

_ROWS_AT_ONCE = 1_000
_TRIES = 3


class NotRewritten(AuditError):
    """A part cannot be written again; what was erased of it stays in it. The message says why."""


async def erase_parts(session: ArchiveSession, key: SigningKey) -> tuple[list[PartManifest], list[str]]:
    """Write each part again of which something was erased since. The new parts; and why others could not be written.

    What is erased meanwhile is for the next run, if it is of a part that this one has written already.
    """
    rewritten: list[PartManifest] = []
    refused: list[str] = []
    async with snapshot(session.connection):
        parts = (await session.recorded()).parts
        erasures = await read_erasures(session.connection, session.open_log)
    for part in parts:
        if part.pending(erasures):
            try:
                rewritten.append(await _rewrite_at_last(session, key, part))
            except NotRewritten as error:
                refused.append(f"erased events are still in {part.month} {part.archive_id}: {error}")
                await delete_attempts(session)
    return rewritten, refused


async def _rewrite_at_last(session: ArchiveSession, key: SigningKey, part: RecordedPart) -> PartManifest:
    for _ in range(_TRIES):
        try:
            manifest = await _rewrite(session, key, part)
        except PartChanged:
            await delete_attempts(session)
        else:
            await delete_attempts(session)
            return manifest
    raise Fatal(f"Something was erased or purged, each time that {part.month} was written again: run it again later.")


async def _rewrite(session: ArchiveSession, key: SigningKey, part: RecordedPart) -> PartManifest:
    """Write one part again, verify it, and record that it replaces the one before."""
    [log] = [one for one in session.open_log.and_earlier() if one.id == part.log_id]
    keys = list(keys_of(log, key.all_public))
    old, manifest = await asyncio.to_thread(_open_part, session.storage, part, keys)
    archive_id = uuid4()
    folder = f"{PARTS}/{part.month}/{part.log_id}/{archive_id}"
    await session.connection.execute(SQL["begin_attempt"], archive_id, session.storage.location(folder))
    session.on_step("begun")
    async with snapshot(session.connection):
        open_size = await session.log_size()
        pending = part.pending(await read_erasures(session.connection, session.open_log))
        erased = await session.erased()
        writer = _Rewriter(session, log, manifest, old, session.storage.folder(folder), pending, erased)
        written = await writer.write(archive_id, part)
    with session.storage.folder(folder).create(MANIFEST_NAME) as file:
        file.write(written.signed(key.of(log)))
    session.on_step("manifest written")
    checked = await asyncio.to_thread(read_back, session, folder, keys, part.month, written.events)
    session.on_step("verified")
    await record(session, checked, open_size, part)
    session.on_step("recorded")
    return written


def _open_part(storage: Storage, part: RecordedPart, keys: list[PublicKey]) -> tuple[Storage, PartManifest]:
    """The part's folder and manifest. NotRewritten unless it is there as the log records it."""
    folder = storage.name_of(part.location)
    if folder is None:
        raise NotRewritten(f"it is at {part.location}, not in this archive")
    checked = check_manifest(storage, folder, keys)
    if checked.problems or checked.manifest is None:
        raise NotRewritten(checked.problems[0])
    if checked.manifest_sha256 != part.manifest_sha256:
        raise NotRewritten("its manifest is not the one that the log records")
    return storage.folder(folder), checked.manifest


class _Rewriter:
    """Writes a part's files again. The connection is in a snapshot."""

    def __init__(  # noqa: PLR0917 -- where from, where to, and what is to go
        self,
        session: ArchiveSession,
        log: Log,
        manifest: PartManifest,
        old: Storage,
        new: Storage,
        pending: Sequence[RecordedErasure],
        erased: Erasures,
    ) -> None:
        self._session = session
        self._log = log
        self._manifest = manifest
        self._old = old
        self._new = new
        self._pending = pending
        self._positions = Positions(one for erasure in pending for one in erasure.positions.ranges)
        self._erased = erased
        self._erased_count = 0

    async def write(self, archive_id: UUID, part: RecordedPart) -> PartManifest:
        """Write events and tiles; the manifest of them, which is not written yet."""
        files = [*await self._write_events(), *await asyncio.to_thread(self._copy_tiles)]
        because = tuple(
            RecordedErasures(one.erasure_id, one.log_id, one.log_index, str(one.positions)) for one in self._pending
        )
        return replace(
            self._manifest,
            archive_id=archive_id,
            archived_at=rfc3339_microseconds(datetime.now(UTC)),
            erased=self._manifest.erased + self._erased_count,
            files=tuple(files),
            replaces=(*self._manifest.replaces, ReplacedPart(part.archive_id, part.manifest_sha256, because)),
        )

    async def _write_events(self) -> list[ArchivedFile]:
        files = EventFiles(self._new, ARROW_SCHEMA)
        progress = Stage(self._session, "erasing", self._manifest.month, self._manifest.events)
        for file in self._manifest.event_files:
            with tempfile.TemporaryFile(
                prefix="datastorage-events-"
            ) as copied:  # without a name: a killed run leaves none
                await asyncio.to_thread(_copy, self._old, file, copied)
                for rows in _portions(read_rows_of(copied, range(group_count(copied)))):
                    await self._add(files, rows)
                    progress.add(len(rows))
                    self._session.on_step("rows written")
        files.close()
        self._session.on_step("events written")
        return files.written

    async def _add(self, files: EventFiles, rows: list[dict[str, Any]]) -> None:
        wanted = [row["log_index"] for row in rows if self._has_to_go(row)]
        left = await self._left_in_postgres(wanted) if wanted else {}
        for row in rows:
            values = erased_row(row, left.get(row["log_index"])) if self._has_to_go(row) else row
            self._erased_count += values is not row
            files.add(file_values(values))

    def _has_to_go(self, row: dict[str, Any]) -> bool:
        return row["log_index"] in self._positions and row["payload_commitment"] is None

    async def _left_in_postgres(self, positions: list[int]) -> dict[int, bytes]:
        """The payloads that erasures have left at positions, of rows that have nothing else."""
        first = date.fromisoformat(f"{self._manifest.month}-01")
        rows = await self._session.connection.fetch(SQL.of(self._log)["erased_rows"], positions, first)
        return {
            row["log_index"]: canonical(loads(row["event_data"]))
            for row in rows
            if is_what_erasure_left(row, self._erased.left_at(self._log.place(row["log_index"])))
        }

    def _copy_tiles(self) -> list[ArchivedFile]:
        [tiles] = [file for file in self._manifest.files if file.name == TILES_NAME]
        with self._new.create(TILES_NAME) as target:
            _copy(self._old, tiles, target)
        self._session.on_step("tiles written")
        return [tiles]


def _copy(source: Storage, file: ArchivedFile, target: Any) -> None:
    """Copy a file. NotRewritten if it has not the bytes that were signed."""
    if source.copy_to(file.name, target) != (file.sha256, file.bytes):
        raise NotRewritten(f"edited: {file.name} is not as it was signed")


def _portions(rows: Iterator[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    while portion := list(islice(rows, _ROWS_AT_ONCE)):
        yield portion
