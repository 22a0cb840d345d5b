"""Finds events that are in the archive only, for erasures: by id, by actor or by correlation, in files that are as they were signed."""

import asyncio
import tempfile
from collections.abc import Iterator
from hashlib import sha256
from typing import IO, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from app.archive.columns import erased_row, hash_of
from app.archive.event_file import group_count, read_rows_of
from app.archive.manifest import open_manifest
from app.archive.matching import id_bytes
from app.archive.part_files import MANIFEST_NAME, ArchivedFile
from app.archive.recorded import RecordedPart, places_in_no_part, read_parts
from app.archive.storage import Storage, StorageAway, archive_storage
from app.db import Connection
from app.errors import Fatal
from app.events.log import Log
from app.events.positions import Positions
from app.retention.erase import ArchivedEvent, Erasure, SearchArchive
from app.settings import Settings
from app.tlog.evidence import leaves_at

Row = dict[str, Any]
_MISSING = "is missing (while a run of the archive writes the part again, try again when that has ended)"


def archive_search(settings: Settings) -> SearchArchive:
    """A search of the archive of these settings. It raises Fatal where a part is not as the log records it, and StorageAway."""
    storage = archive_storage(settings)

    async def search(connection: Connection, log: Log, places: Positions, erasure: Erasure) -> list[ArchivedEvent]:
        found: list[ArchivedEvent] = []
        logs = {one.id: one for one in log.and_earlier()}
        parts = await read_parts(connection, log)
        if nowhere := places_in_no_part(parts, places):
            raise Fatal(
                f"Nothing was erased: {nowhere.size} events that were archived are in no part any more. See `datastorage archive verify`."
            )
        for part in parts:
            of_log = logs[part.log_id]
            if wanted := part.among(places):
                try:
                    rows = await asyncio.to_thread(_matching_rows, storage, part, erasure)
                except (OSError, pa.ArrowException) as error:
                    raise StorageAway(
                        "Nothing was erased: the archive's storage could not be read to the end."
                    ) from error
                rows = [row for row in rows if row["log_index"] in wanted]
                await _require_logged(connection, of_log, part, rows)
                found += [_event(row) for row in rows if row["payload_commitment"] is None]
        return found

    return search


def _matching_rows(storage: Storage, part: RecordedPart, erasure: Erasure) -> list[Row]:
    """The rows of a part that an erasure selects. Fatal if the part is not as the log records it."""
    name = storage.name_of(part.location)
    if name is None:
        raise Fatal(f"Nothing was erased: a part that has to be searched is at {part.location}, not in this archive.")
    folder, rows = storage.folder(name), list[Row]()
    try:
        envelope = folder.read(MANIFEST_NAME)
    except FileNotFoundError:
        raise _not_as_recorded(part, f"{MANIFEST_NAME} {_MISSING}") from None
    if sha256(envelope).hexdigest() != part.manifest_sha256:
        raise _not_as_recorded(part, "its manifest is not the one that the log records")
    manifest, _ = open_manifest(envelope, [])
    for file in manifest.event_files:
        with tempfile.TemporaryFile(prefix="datastorage-events-") as copied:
            _copy(folder, part, file, copied)
            rows += _selected(copied, erasure)
    return rows


def _copy(folder: Storage, part: RecordedPart, file: ArchivedFile, target: IO[bytes]) -> None:
    try:
        copied = folder.copy_to(file.name, target)
    except FileNotFoundError:
        raise _not_as_recorded(part, f"{file.name} {_MISSING}") from None
    if copied != (file.sha256, file.bytes):
        raise _not_as_recorded(part, f"{file.name} is not as it was signed")


def _not_as_recorded(part: RecordedPart, why: str) -> Fatal:
    return Fatal(
        f"Nothing was erased: of the part {part.archive_id} of {part.month}, {why}. See `datastorage archive verify`."
    )


def _selected(stream: IO[bytes], erasure: Erasure) -> Iterator[Row]:
    """The rows of a file that an erasure selects. Only the column in question is read of row groups that have none."""
    column, values = _looked_for(erasure)
    for number in range(group_count(stream)):
        with pq.ParquetFile(stream, pre_buffer=False) as file:
            found = file.read_row_group(number, columns=[column], use_threads=False).column(0)
        found = id_bytes(found)
        if pc.any(pc.is_in(found, value_set=pa.array(values, found.type))).as_py():
            named = set(values)
            yield from (row for row in read_rows_of(stream, [number]) if _value(row[column]) in named)


def _looked_for(erasure: Erasure) -> tuple[str, list[Any]]:
    if erasure.event_ids is not None:
        return "event_id", [one.bytes for one in erasure.event_ids]
    if erasure.actor_id is not None:
        return "actor_id", [erasure.actor_id]
    return "correlation_id", [erasure.correlation_id]


def _value(value: Any) -> Any:
    return getattr(value, "bytes", value)


async def _require_logged(connection: Connection, log: Log, part: RecordedPart, rows: list[Row]) -> None:
    """Fatal unless each row is what the log has at its position. Where the log has lost its leaf too, the part, which it records, decides."""
    for start in range(0, len(rows), 1_000):
        some = rows[start : start + 1_000]
        leaves = await leaves_at(connection, log, [log.place(row["log_index"]) for row in some])
        for row in some:
            own = hash_of(row, log.name)
            if leaves.get(log.place(row["log_index"]), own) != own:
                raise _not_as_recorded(part, f"the event at position {row['log_index']} is not what the log has there")


def _event(row: Row) -> ArchivedEvent:
    names = "event_id log_id log_index event_type correlation_id actor_id resource_type resource_id event_timestamp"
    return ArchivedEvent(**{name: row[name] for name in names.split()}, left=erased_row(row, None)["event_data"])
