"""`datastorage archive restore`: the events of parts as lines of an export, in a file. Nothing is written to Postgres."""

import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import IO, Any
from uuid import UUID

import orjson

from app.archive.check import Checker, PartResult
from app.archive.columns import erased_row, hash_of
from app.archive.event_file import group_count, read_rows_of
from app.archive.export_row import HASH_ALGORITHM
from app.archive.manifest import PartManifest
from app.archive.recorded import RecordedPart, read_erasures, read_parts
from app.archive.storage import Storage, StorageAway, archive_storage
from app.archive.writing import connect_archive
from app.errors import Fatal
from app.events.canonical import sorted_json
from app.events.log import Log
from app.events.positions import Positions
from app.export.file import MEMBERS, event_record
from app.retention.logged import read_open_log
from app.settings import Settings
from app.tlog.continued import keys_of
from app.tlog.note import PublicKey


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which parts: those of a month, or one."""

    month: date | None = None
    archive_id: UUID | None = None

    def has(self, part: RecordedPart) -> bool:
        """Whether a part is one of them."""
        if self.archive_id is not None:
            return part.archive_id == self.archive_id
        return self.month is not None and part.month == f"{self.month:%Y-%m}"


@dataclass(slots=True)
class Restored:
    """What was done: nothing if there are problems."""

    events: int = 0
    erased: int = 0
    """Those that were erased since their part was written: the file has what the erasure leaves."""
    problems: list[PartResult] = field(default_factory=list)


async def restore(settings: Settings, keys: Sequence[PublicKey], wanted: Wanted, file: Path) -> Restored:
    """Verify the parts as a whole, then write their events to a new file, which is there only when all of them are in it.

    Fatal if there are no such parts, or the file is there already; StorageAway when the storage fails.
    """
    _require_new(file)
    storage = archive_storage(settings)
    connection = await connect_archive(settings)
    try:
        log = await read_open_log(connection, settings)
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            parts = [part for part in await read_parts(connection, log) if wanted.has(part)]
            erasures = await read_erasures(connection, log) if parts else []
    finally:
        await connection.close()
    if not parts:
        raise Fatal("The log records no such part: `datastorage archive list` shows those that it has.")
    every = list({str(key): key for one in log.and_earlier() for key in keys_of(one, keys)}.values())
    erased = {
        part.archive_id: Positions(one for erasure in part.pending(erasures) for one in erasure.positions.ranges)
        for part in parts
    }
    try:
        return _restore(storage, log, every, [(part, erased[part.archive_id]) for part in parts], file)
    except OSError as error:
        raise StorageAway(f"The archive could not be read, or the file not be written, to the end: {error}.") from error


def _restore(
    storage: Storage,
    log: Log,
    keys: list[PublicKey],
    parts: Sequence[tuple[RecordedPart, Positions]],
    file: Path,
) -> Restored:
    result = Restored()
    manifests: list[PartManifest] = []
    with Checker(keys) as checker:
        for part, _ in parts:
            checked = _check(checker, storage, part)
            if checked.problem_count or checked.manifest is None:
                result.problems.append(checked)
            else:
                manifests.append(checked.manifest)
    if result.problems:
        return result
    # Under a name that nobody else can have chosen, and for this user alone: salts and personal data are in it.
    with tempfile.NamedTemporaryFile(prefix=f".{file.name}-", dir=file.parent) as target:
        for (part, erased), manifest in zip(parts, manifests, strict=True):
            folder = storage.folder(storage.name_of(part.location) or "")
            for row in _rows(folder, manifest):
                is_erased = row["log_index"] in erased and row["payload_commitment"] is None
                event = exported(erased_row(row, None) if is_erased else row, log.name_of(part.log_id))
                target.write(event_record("ndjson", event))
                result.events += 1
                result.erased += is_erased
        target.flush()
        os.fsync(target.fileno())
        _require_new(file)
        os.link(target.name, file)  # a rename would replace a file that is there by now
    return result


def _require_new(file: Path) -> None:
    if file.exists():
        raise Fatal(f"{file} is there already.")


def _check(checker: Checker, storage: Storage, part: RecordedPart) -> PartResult:
    """What is wrong with a part, with what the log records of it too."""
    folder = storage.name_of(part.location)
    if folder is None:
        result = PartResult(part.location)
        result.add(f"unverifiable: it is at {part.location}, not in this archive")
        return result
    result = checker.check(storage, folder)
    if result.manifest_sha256 and result.manifest_sha256 != part.manifest_sha256:
        result.add("edited: the manifest is not the one that the log records")
    return result


def _rows(folder: Storage, manifest: PartManifest) -> Iterator[dict[str, Any]]:
    """The rows of the files whose digests are signed, from a copy on this machine: no other bytes than these are read."""
    for one in manifest.event_files:
        with tempfile.TemporaryFile(prefix="datastorage-events-") as copied:
            if folder.copy_to(one.name, copied) != (one.sha256, one.bytes):
                raise Fatal(f"{one.name} of the part {manifest.archive_id} has changed meanwhile: run it again.")
            yield from _rows_of(copied)


def _rows_of(copied: IO[bytes]) -> Iterator[dict[str, Any]]:
    copied.seek(0)
    yield from read_rows_of(copied, range(group_count(copied)))


def exported(row: dict[str, Any], log_name: str) -> dict[str, Any]:
    """A row of a file as an exported event, unredacted and without a hold."""
    link = row["previous_event_hash"]
    more = {
        "event_id": str(row["event_id"]),
        "event_date": row["event_timestamp"].date(),
        "parent_event_id": row["parent_event_id"] and str(row["parent_event_id"]),
        "legal_hold": False,
        "hash_algorithm": HASH_ALGORITHM,
        "log": log_name,
        "previous_event_hash": "" if link is None else link.hex(),
        "event_hash": hash_of(row, log_name),
        "payload_salt": row["payload_salt"] and row["payload_salt"].hex(),
        "payload_commitment": row["payload_commitment"] and row["payload_commitment"].hex(),
        "event_data": orjson.Fragment(sorted_json(row["event_data"])),
        "event_metadata": row["event_metadata"] and orjson.Fragment(sorted_json(row["event_metadata"])),
        "sealed": True,
    }
    values = row | more
    return {name: values.get(name) for name in MEMBERS}
