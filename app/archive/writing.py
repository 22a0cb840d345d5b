"""Writes one part: rows from a cursor that Postgres sorts, each compared with the log's leaf; tiles; the manifest."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from typing import IO, Any
from uuid import UUID

from app.archive.columns import NOT_COVERED, values_of
from app.archive.event_file import EventFiles
from app.archive.manifest import PartManifest, PreviousPart
from app.archive.part_files import MANIFEST_NAME, TILES_NAME, ArchivedFile
from app.archive.storage import Storage
from app.archive.table import ARROW_SCHEMA
from app.archive.tree import TileFile, TileSet, WrongTile
from app.db import Connection, connect, portions
from app.errors import Fatal
from app.events.canonical import canonical, loads
from app.events.log import Log
from app.events.positions import Positions
from app.events.record import Row, stored_hash
from app.export.manifest import rfc3339_microseconds
from app.settings import Settings
from app.sql import load
from app.tlog import merkle
from app.tlog.evidence import Erasures
from app.tlog.keys import SigningKey
from app.tlog.merkle import HASH_BYTES
from app.tlog.note import Checkpoint, Note
from app.tlog.tiles import WIDTH, HashesMissing, range_roots, read_leaves, read_tile
from app.verify.row import Defect, Defects, defect_of, row_defects

SQL = load("archive")
_ROWS_AT_ONCE = 1_000
_TILES_AT_ONCE = 64

Shown = Callable[[int], None]
"""Called with the number of events that were dealt with since the last call."""


def as_archiver(settings: Settings) -> Settings:
    """The settings with the role of DATASTORAGE_RETENTION_URL, if it is set."""
    if settings.retention_url is None:
        return settings
    return settings.model_copy(update={"database_url": settings.retention_url})


async def connect_archive(settings: Settings) -> Connection:
    """A connection with that role for long statements and snapshots."""
    return await connect(as_archiver(settings), statement_timeout="0", idle_in_transaction_session_timeout="0")


@dataclass(frozen=True, slots=True)
class Due:
    """What a part is to have: positions of one log and month, with the days between which their events are."""

    log: Log
    month: date
    end: date
    """The day after the last one."""
    positions: Positions

    @property
    def month_name(self) -> str:
        """As 2026-01."""
        return f"{self.month:%Y-%m}"


@dataclass(slots=True)
class WrittenPart:
    """A part that was written, but not verified yet."""

    manifest: PartManifest | None
    """None if none of its rows is as the log has it."""
    left: Defects = field(default_factory=Defects)
    """Rows that are not as the log has them: they stay in Postgres."""


@dataclass(slots=True)
class PartWriter:
    """Writes one part to its folder. `connection` is in a snapshot."""

    connection: Connection
    open_log: Log
    due: Due
    archive_id: UUID
    folder: Storage
    checkpoint: str
    """The note."""
    erased: Erasures
    """As the log records them."""
    show: Shown
    on_step: Callable[[str], None]
    erased_count: int = 0
    seen: dict[int, int] = field(default_factory=dict)
    """By tile, the positions of rows that were written, as bits."""
    left: Defects = field(default_factory=Defects)

    async def write(self, key: SigningKey, previous: PreviousPart | None) -> WrittenPart:
        """Write events, tiles and manifest."""
        checkpoint = Checkpoint.parse(Note.parse(self.checkpoint).text)
        with tempfile.TemporaryFile(prefix="datastorage-tiles-") as copied:
            tiles = TileSet(self.due.positions, checkpoint.size)
            await self._read_tiles(tiles, copied, checkpoint)
            files = await self._write_events(TileFile(tiles, copied))
            self.on_step("events written")
            positions = _positions_of(self.seen)
            if not positions:
                return WrittenPart(None, self.left)
            if positions.ranges != self.due.positions.ranges:  # some are not as the log has them, or are gone by now
                tiles = TileSet(positions, checkpoint.size)
                await self._read_tiles(tiles, copied, checkpoint)
            files.append(self._write_tiles(tiles, copied))
        self.on_step("tiles written")
        manifest = PartManifest(
            archive_id=self.archive_id,
            log=self.due.log.name,
            log_id=self.due.log.id,
            month=self.due.month_name,
            archived_at=rfc3339_microseconds(datetime.now(UTC)),
            events=positions.size,
            erased=self.erased_count,
            first_position=positions.ranges[0][0],
            last_position=positions.ranges[-1][1] - 1,
            positions=str(positions),
            not_covered=NOT_COVERED,
            checkpoint=self.checkpoint,
            previous=previous,
            consistency=await self._consistency(previous, checkpoint),
            files=tuple(files),
        )
        with self.folder.create(MANIFEST_NAME) as file:
            file.write(manifest.signed(key))
        self.on_step("manifest written")
        return WrittenPart(manifest, self.left)

    async def _write_events(self, tiles: TileFile) -> list[ArchivedFile]:
        first, end = self.due.positions.ranges[0][0], self.due.positions.ranges[-1][1]
        files = EventFiles(self.folder, ARROW_SCHEMA)
        await self.connection.execute(SQL["sort_memory"])
        rows = portions(
            self.connection,
            SQL.of(self.due.log)["rows"],
            *(self.due.month, self.due.end, first, end),
            widest="event_data",
            rows_max=_ROWS_AT_ONCE,
        )
        async for portion in rows:
            for row in portion:
                if row["log_index"] in self.due.positions and (values := self._checked(row, tiles)) is not None:
                    files.add(values)
            self.show(len(portion))
            self.on_step("rows written")
        files.close()
        return files.written

    def _checked(self, row: Row, tiles: TileFile) -> list[Any] | None:
        """The row's values for the file; None if it is not what the log has at its position."""
        tile, at = divmod(row["log_index"], WIDTH)
        if self.seen.get(tile, 0) >> at & 1:
            self.left.add(defect_of(row, "inserted", f"another event is at position {row['log_index']} of the log too"))
            return None
        leaf = tiles.leaf(row["log_index"]).hex()
        event_data = canonical(loads(row["event_data"]))
        metadata = row["event_metadata"] and canonical(loads(row["event_metadata"]))
        if not self._is_sound(row, leaf, event_data, metadata):
            defects = list(row_defects(row, leaf, self.open_log, self.erased)) or self._of_other_log(row)
            for defect in defects:
                self.left.add(defect)
            if defects:
                return None
        self.seen[tile] = self.seen.get(tile, 0) | 1 << at
        self.erased_count += row["payload_commitment"] is not None
        return values_of(row, event_data, metadata)

    def _is_sound(self, row: Row, leaf: str, event_data: bytes, metadata: bytes | None) -> bool:
        """Whether a row that was not erased is as the log has it; the quick form of row_defects()."""
        if row["payload_commitment"] is not None or row["event_date"] != row["event_timestamp"].date():
            return False
        event = dict(row) | {"event_data": event_data, "event_metadata": metadata}  # type: ignore[call-overload]  # a record
        return bool(
            row["log_id"] == self.due.log.id
            and row["event_hash"] == leaf
            and stored_hash(event, self.due.log.name, stored=False) == leaf
        )

    def _of_other_log(self, row: Row) -> list[Defect]:
        return [] if row["log_id"] == self.due.log.id else [defect_of(row, "edited", "log_id is not that of its log")]

    async def _read_tiles(self, tiles: TileSet, file: IO[bytes], checkpoint: Checkpoint) -> None:
        """Have `file` contain the tiles, which have to lead to the checkpoint. Fatal if they do not, or hashes are missing."""
        file.seek(0)
        file.truncate()
        try:
            for level, numbers in enumerate(tiles.levels):
                for first, end in numbers.ranges:
                    for start in range(first, end, _TILES_AT_ONCE):
                        some = [tiles.tile(level, index) for index in range(start, min(end, start + _TILES_AT_ONCE))]
                        if level == 0:
                            last = some[-1].index * WIDTH + some[-1].width
                            file.write(await read_leaves(self.connection, self.due.log, start * WIDTH, last))
                            continue
                        for tile in some:
                            file.write(await read_tile(self.connection, self.due.log, tile) or b"")
            file.flush()
            TileFile(tiles, file).check(checkpoint.root)
        except (HashesMissing, WrongTile) as error:
            raise Fatal(
                f"The log {self.due.log.name} is not as its checkpoint of {checkpoint.size} events says, so nothing of it is archived "
                f"({str(error) or 'hashes are missing'}): run `datastorage verify`."
            ) from None

    def _write_tiles(self, tiles: TileSet, source: IO[bytes]) -> ArchivedFile:
        source.seek(0)
        with self.folder.create(TILES_NAME) as file:
            while piece := source.read(WIDTH * HASH_BYTES * _TILES_AT_ONCE):
                file.write(piece)
        assert file.size == tiles.file_bytes
        return ArchivedFile(TILES_NAME, file.sha256, file.size, 0)

    async def _consistency(self, previous: PreviousPart | None, checkpoint: Checkpoint) -> tuple[str, ...]:
        if previous is None:
            return ()
        ranges = merkle.consistency_ranges(previous.tree_size, checkpoint.size)
        return tuple(one.hex() for one in await range_roots(self.connection, self.due.log, ranges))


def _positions_of(seen: dict[int, int]) -> Positions:
    return Positions(
        (tile * WIDTH + first, tile * WIDTH + end) for tile, bits in seen.items() for first, end in _runs(bits)
    )


def _runs(bits: int) -> list[tuple[int, int]]:
    """The ranges of ones in a number, from its lowest bit on."""
    runs, at = [], 0
    while bits:
        zeros = (bits & -bits).bit_length() - 1
        bits >>= zeros
        ones = (~bits & (bits + 1)).bit_length() - 1
        runs.append((at + zeros, at + zeros + ones))
        bits >>= ones
        at += zeros + ones
    return runs
