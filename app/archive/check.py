"""Verifies parts of the archive with their files and public keys alone: no service, no database, on all cores."""

import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from multiprocessing import get_context
from pathlib import Path
from typing import IO, Any, NamedTuple, Self

import pyarrow as pa

from app.archive.columns import hash_of, sort_key
from app.archive.event_file import read_rows, row_groups
from app.archive.manifest import PartManifest, open_manifest
from app.archive.part_files import MANIFEST_NAME, TILES_NAME, ArchivedFile
from app.archive.storage import Storage, StorageAway
from app.archive.tree import TileFile, TileSet, WrongTile
from app.cores import granted_cores
from app.errors import Fatal
from app.events.positions import Positions
from app.tlog import merkle
from app.tlog.note import Checkpoint, MalformedNote, NoValidSignature, PublicKey, verified_signatures
from app.tlog.tiles import WIDTH
from app.verify.row import is_what_erasure_left

PROBLEMS_MAX = 1_000
_EVENTS_AT_ONCE = 32_768
_UNREADABLE = (OSError, pa.ArrowException, ValueError, TypeError)


@dataclass(slots=True)
class PartResult:
    """What was found in a part; it is as it was archived if there are no problems."""

    folder: str
    manifest: PartManifest | None = None
    manifest_sha256: str = ""
    checkpoint: Checkpoint | None = None
    signers: list[PublicKey] = field(default_factory=list)
    events: int = 0
    """Rows that have the log's leaf at their position."""
    erased: int = 0
    """Of these, those whose content was erased."""
    problems: list[str] = field(default_factory=list)
    """The first PROBLEMS_MAX of them, each with its class before a colon, as those of `datastorage verify`."""
    problem_count: int = 0

    def add(self, problem: str) -> None:
        """Add a problem."""
        self.problem_count += 1
        if len(self.problems) < PROBLEMS_MAX:
            self.problems.append(problem)


def check_manifest(storage: Storage, folder: str, keys: list[PublicKey]) -> PartResult:
    """Verify a part's manifest and the checkpoint in it, and that its folder has the files that it names and no others."""
    result = PartResult(folder)
    part = storage.folder(folder) if folder else storage
    try:
        envelope = part.read(MANIFEST_NAME)
    except FileNotFoundError:
        result.add(f"removed: {MANIFEST_NAME} is missing")
        return result
    result.manifest_sha256 = sha256(envelope).hexdigest()
    try:
        result.manifest, signer = open_manifest(envelope, keys)
    except ValueError as error:
        result.add(str(error) if str(error).startswith("wrong key") else f"edited: {error}")
        return result
    if signer is None:  # then nothing in it is worth looking at
        result.add(f"wrong key: the manifest has no signature of a key of the log {result.manifest.log!r}")
        return result
    result.signers.append(signer)
    _check_checkpoint(result, result.manifest, keys)
    _check_counts(result, result.manifest)
    named = {file.name for file in result.manifest.files} | {MANIFEST_NAME}
    found = set(part.names())
    for name in sorted(named - found):
        result.add(f"removed: {name} is missing")
    for name in sorted(found - named):
        result.add(f"inserted: the manifest has no file {name}")
    return result


def _check_checkpoint(result: PartResult, manifest: PartManifest, keys: list[PublicKey]) -> None:
    try:
        checkpoint, signers = verified_signatures(manifest.checkpoint, keys)
    except (MalformedNote, NoValidSignature) as error:
        result.add(f"forged checkpoint: {error}")
        return
    if checkpoint.origin != manifest.log:
        result.add(f"forged checkpoint: it is of the log {checkpoint.origin!r}")
        return
    result.checkpoint = checkpoint
    result.signers += [key for key in signers if key not in result.signers]
    if manifest.last_position >= checkpoint.size:
        result.add(f"edited: the checkpoint has {checkpoint.size} events, so not position {manifest.last_position}")
    if not _is_consistent(manifest, checkpoint):
        result.add("forged checkpoint: the tree of the part before is not a prefix of this one's")


def _is_consistent(manifest: PartManifest, checkpoint: Checkpoint) -> bool:
    previous = manifest.previous
    if previous is None:
        return not manifest.consistency
    try:
        root, proof = bytes.fromhex(previous.root_hash), [bytes.fromhex(one) for one in manifest.consistency]
    except ValueError:
        return False
    return merkle.verify_consistency(previous.tree_size, checkpoint.size, root, checkpoint.root, proof)


def _check_counts(result: PartResult, manifest: PartManifest) -> None:
    positions = manifest.position_set()
    bounds = (positions.ranges[0][0], positions.ranges[-1][1] - 1) if positions else (-1, -1)
    if (manifest.first_position, manifest.last_position, manifest.events) != (*bounds, positions.size):
        result.add("edited: the manifest's counts are not those of its positions")
    if sum(file.events for file in manifest.files) != manifest.events:
        result.add("edited: the manifest's files do not have as many events as it says")


class _Work(NamedTuple):
    """What is the same for all rows of a part."""

    storage: Storage
    manifest: PartManifest
    tiles: TileSet
    tiles_path: str
    is_intact: bool
    """Whether the file of the rows has the bytes that were signed."""


@dataclass(slots=True)
class _RowsResult:
    """Of some row groups of a file."""

    events: int = 0
    erased: int = 0
    problems: list[str] = field(default_factory=list)
    problem_count: int = 0
    seen: dict[int, int] = field(default_factory=dict)
    """By tile, its positions that were met, as bits."""
    first: Any = None
    last: Any = None
    """Sort keys of the first and the last row."""

    def add(self, problem: str) -> None:
        self.problem_count += 1
        if len(self.problems) < PROBLEMS_MAX:
            self.problems.append(problem)


class Checker:
    """Verifies one part after another, with processes for the rows of large ones."""

    def __init__(
        self, keys: list[PublicKey], processes: int | None = None, show: Callable[[int], None] = lambda _: None
    ) -> None:
        self._keys = keys
        self._show = show
        self._processes = processes or max(1, int(granted_cores()))
        self._pool: Executor | None = None
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def check(self, storage: Storage, folder: str) -> PartResult:
        """Verify all of a part: check_manifest(), the digest of each file, and each row. Fatal if the storage cannot be reached."""
        result = check_manifest(storage, folder, self._keys)
        manifest, checkpoint = result.manifest, result.checkpoint
        if manifest is None or checkpoint is None:
            return result
        part = storage.folder(folder) if folder else storage
        with tempfile.NamedTemporaryFile(prefix="datastorage-tiles-") as tiles:
            tile_set = _check_tiles(result, manifest, part, checkpoint, tiles)
            seen: dict[int, int] = {}
            last: Any = None
            for file in manifest.event_files:
                is_intact = _check_digest(result, part, file, None)
                work = _Work(part, manifest, tile_set, tiles.name, is_intact)
                for rows in self._rows(result, work, file):
                    _add_rows(result, rows, seen, last)
                    self._show(rows.events)
                    last = rows.last or last
        _check_missing(result, manifest.position_set(), seen)
        if result.erased != manifest.erased and not result.problem_count:
            result.add(f"edited: {result.erased} events are erased, but {manifest.erased} were signed")
        return result

    def _rows(self, result: PartResult, work: _Work, file: ArchivedFile) -> Iterator[_RowsResult]:
        """The results of a file's row groups, in their order."""
        if file.name not in work.storage.names():
            return  # that it is missing is known
        try:
            groups = row_groups(work.storage, file.name)
        except _UNREADABLE as error:
            result.add(_unreadable(error, work, file.name))
            return
        portions = list(_portions(groups))
        if len(portions) == 1 or self._processes == 1:
            yield from (check_rows(work, file.name, portion) for portion in portions)
            return
        if self._pool is None:
            self._pool = self._stack.enter_context(_pool(self._processes))
        try:
            yield from self._pool.map(check_rows, [work] * len(portions), [file.name] * len(portions), portions)
        except BrokenProcessPool:
            raise Fatal("A process of the verification has ended, perhaps for lack of memory.") from None


@contextmanager
def _pool(processes: int) -> Iterator[Executor]:
    pool = ProcessPoolExecutor(processes, mp_context=get_context("spawn"))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _portions(groups: Sequence[int]) -> Iterator[list[int]]:
    portion: list[int] = []
    events = 0
    for number, count in enumerate(groups):
        portion.append(number)
        events += count
        if events >= _EVENTS_AT_ONCE:
            yield portion
            portion, events = [], 0
    if portion:
        yield portion


def _check_tiles(
    result: PartResult, manifest: PartManifest, part: Storage, checkpoint: Checkpoint, copied: IO[bytes]
) -> TileSet:
    """Read the tiles to a file of this machine, and verify them."""
    tiles = TileSet(manifest.position_set(), checkpoint.size)
    for file in manifest.files:
        if file.name == TILES_NAME:
            _check_digest(result, part, file, copied)
    copied.flush()
    try:
        TileFile(tiles, copied).check(checkpoint.root)
    except WrongTile as error:
        result.add(f"edited: {error}")
    return tiles


def _check_digest(result: PartResult, part: Storage, file: ArchivedFile, target: IO[bytes] | None) -> bool:
    """Whether a file has the bytes that were signed."""
    try:
        found = part.copy_to(file.name, target)
    except FileNotFoundError:
        return False  # that it is missing is known
    if found != (file.sha256, file.bytes):
        result.add(f"edited: {file.name} has the SHA-256 {found[0]}, but {file.sha256} was signed")
    return found == (file.sha256, file.bytes)


def _unreadable(error: Exception, work: _Work, name: str) -> str:
    """The problem of a file that cannot be read. If its bytes are as they were signed, it is the storage that fails: StorageAway."""
    if work.is_intact and isinstance(error, OSError):
        raise StorageAway(f"The archive's storage could not be read to the end: {_first_line(error)}") from None
    return f"edited: {name} cannot be read: {_first_line(error)}"


def check_rows(work: _Work, name: str, groups: Sequence[int]) -> _RowsResult:
    """Compare the rows of some row groups with the leaves of the log."""
    result = _RowsResult()
    positions = work.manifest.position_set()
    with Path(work.tiles_path).open("rb") as file:
        tiles = TileFile(work.tiles, file)
        try:
            for row in read_rows(work.storage, name, groups):
                _check_row(result, row, work, positions, tiles)
        except _UNREADABLE as error:
            result.add(_unreadable(error, work, name))
    return result


def _check_row(result: _RowsResult, row: dict[str, Any], work: _Work, positions: Positions, tiles: TileFile) -> None:
    key = sort_key(row)
    if result.last is None:
        result.first = key
    elif key <= result.last:
        result.add(f"reordered: {_named(row)} is not in the order of the file")
    result.last = key
    position = row["log_index"]
    if row["log_id"] != work.manifest.log_id or position not in positions:
        result.add(f"inserted: {_named(row)}: the manifest does not have it")
        return
    tile, at = divmod(position, WIDTH)
    if result.seen.get(tile, 0) >> at & 1:
        result.add(f"inserted: {_named(row)} is there twice")
        return
    result.seen[tile] = result.seen.get(tile, 0) | 1 << at
    if fault := _fault_of(row, work.manifest, tiles):
        result.add(f"edited: {_named(row)}: {fault}")
        return
    result.events += 1
    result.erased += row["payload_commitment"] is not None


def _fault_of(row: dict[str, Any], manifest: PartManifest, tiles: TileFile) -> str | None:
    """What is wrong with a row by itself."""
    try:
        hashed = bytes.fromhex(hash_of(row, manifest.log))
        if hashed != tiles.leaf(row["log_index"]):
            return "it has not the hash that the log has at its position"
        if f"{row['event_timestamp']:%Y-%m}" != manifest.month:
            return f"it is of another month than {manifest.month}"
        if row["payload_commitment"] is not None and not is_what_erasure_left(row, frozenset()):
            return "it is marked as erased, but has content"
    except KeyError:
        return "there is no tile that has its position"
    except (ValueError, TypeError) as error:
        return f"no record can have its values: {_first_line(error)}"
    return None


def _add_rows(result: PartResult, rows: _RowsResult, seen: dict[int, int], last: Any) -> None:
    result.events += rows.events
    result.erased += rows.erased
    for problem in rows.problems:
        result.add(problem)
    result.problem_count += rows.problem_count - len(rows.problems)
    if last is not None and rows.first is not None and rows.first <= last:
        result.add("reordered: row groups are not in the order of the file")
    for tile, bits in rows.seen.items():
        if twice := seen.get(tile, 0) & bits:
            result.add(f"inserted: position {tile * WIDTH + twice.bit_length() - 1} is there twice")
        seen[tile] = seen.get(tile, 0) | bits


def _check_missing(result: PartResult, positions: Positions, seen: dict[int, int]) -> None:
    """Each position has to be there."""
    missing = [
        (position, position + 1)
        for first, end in positions.ranges
        for tile in range(first // WIDTH, (end - 1) // WIDTH + 1)
        for position in _unseen(tile, max(first, tile * WIDTH), min(end, (tile + 1) * WIDTH), seen.get(tile, 0))
    ]
    for first, end in Positions(missing).ranges:
        text = f"position {first} is" if end == first + 1 else f"positions from {first} up to {end - 1} are"
        result.add(f"removed: {text} missing")


def _unseen(tile: int, first: int, end: int, bits: int) -> Iterable[int]:
    wanted = ((1 << (end - first)) - 1) << (first - tile * WIDTH)
    if bits & wanted == wanted:
        return ()
    return [position for position in range(first, end) if not bits >> (position - tile * WIDTH) & 1]


def _named(row: dict[str, Any]) -> str:
    return f"event {row['event_id']} at position {row['log_index']}"


def _first_line(error: Exception) -> str:
    return (str(error) or repr(error)).split("\n", 1)[0][:200]


def check_chain(results: Sequence[PartResult]) -> Iterator[tuple[PartResult, str]]:
    """What is wrong between parts: the part before one, if it is there, has to be the one that its manifest names, or to replace it."""
    known = {one.manifest.archive_id: one.manifest_sha256 for one in results if one.manifest is not None}
    replaced = {
        former.archive_id: former.manifest_sha256
        for one in results
        if one.manifest is not None
        for former in one.manifest.replaces
    }
    places: dict[int, Positions] = {}
    for one in results:
        if one.manifest is None:
            continue
        previous = one.manifest.previous
        if previous is not None:
            named = {found[previous.archive_id] for found in (known, replaced) if previous.archive_id in found}
            if named - {previous.manifest_sha256}:
                yield one, f"edited: the manifest of the part {previous.archive_id} is another one than this part names"
        if one.manifest.archive_id in replaced:
            yield one, "inserted: it was replaced by another part, which is there too"
        taken, own = places.get(one.manifest.log_id, Positions()), one.manifest.position_set()
        if any(taken.count(first, end) for first, end in own.ranges):
            yield one, "inserted: positions of it are in another part too"
        places[one.manifest.log_id] = Positions([*taken.ranges, *own.ranges])
