"""`datastorage archive verify`: what the log records of the archive against its files, and against the table that engines read."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Literal

import pyarrow as pa

from app.archive.check import Checker, PartResult, check_chain, check_manifest
from app.archive.recorded import RecordedPart, read_parts
from app.archive.storage import Storage, StorageAway, archive_storage
from app.archive.table import ArchiveTable, ListedFile, months_since_1970
from app.archive.writing import SQL, connect_archive
from app.events.log import place_of
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
    erased_since: int = 0
    """Events that were erased after they had been archived: their content is still in the archive."""
    table_problems: list[str] = field(default_factory=list)

    @property
    def problem_count(self) -> int:
        return len(self.table_problems) + sum(result.problem_count for _, result in self.parts)


async def list_parts(settings: Settings) -> list[RecordedPart]:
    """The parts that the log records."""
    connection = await connect_archive(settings)
    try:
        log = await read_open_log(connection, settings)
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            return await read_parts(connection, log)
    finally:
        await connection.close()


async def verify_archive(settings: Settings, keys: Sequence[PublicKey], depth: Depth) -> ArchiveResult:
    """Verify the parts that the log records, and the table. StorageAway when the storage fails."""
    storage = archive_storage(settings)
    connection = await connect_archive(settings)
    try:
        log = await read_open_log(connection, settings)
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            parts = await read_parts(connection, log)
            evidence = await read_evidence(connection, log)
            pointer = await connection.fetchval(SQL["pointer"])
    finally:
        await connection.close()
    every = list({str(key): key for one in log.and_earlier() for key in keys_of(one, keys)}.values())
    result = ArchiveResult()
    try:
        _check_parts(result, storage, parts, every, _chosen(len(parts), depth))
        result.table_problems += _table_problems(storage, pointer, [one for _, one in result.parts])
    except (OSError, pa.ArrowException) as error:
        raise StorageAway("The archive's storage could not be read to the end.") from error
    for part, one in result.parts:
        if one.manifest is not None:
            start = place_of(part.log_id, 0)
            erased = sum(
                evidence.erased.positions.count(start + first, start + end) for first, end in part.positions.ranges
            )
            result.erased_since += max(0, erased - one.manifest.erased)
    return result


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
            for problem in _unlike_recorded(part, one):
                one.add(problem)
            result.parts.append((part, one))
    for one, problem in check_chain([one for _, one in result.parts]):
        one.add(problem)


def _unlike_recorded(part: RecordedPart, one: PartResult) -> Iterator[str]:
    """In what the manifest is not what the log records."""
    if not one.manifest_sha256:
        return
    if one.manifest_sha256 != part.manifest_sha256:
        yield f"edited: the manifest has the SHA-256 {one.manifest_sha256}, but the log records {part.manifest_sha256}"
    elif one.manifest is not None and one.manifest.position_set().ranges != part.positions.ranges:
        yield "edited: the manifest has other positions than the log records"


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
