"""The files of events: Parquet, compressed with zstd, in row groups that fit into memory. Writes and reads them."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import IO, Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from app.archive.columns import COLUMNS, DELTA, NAMES, PLAIN, SORTED_BY, rows_of
from app.archive.part_files import ArchivedFile
from app.archive.storage import HashedFile, Storage

GROUP_EVENTS = 8_192
GROUP_BYTES = 16 * 1024**2
FILE_BYTES = 512 * 1024**2
_BATCH_EVENTS = 1_024
_ZSTD_LEVEL = 6
_STATISTICS = [column.name for column in COLUMNS if column.has_statistics]
_DICTIONARIES = [name for name in NAMES if name not in {*DELTA, *PLAIN}]


class EventFiles:
    """Writes rows, in the order in which they come, to one file or several of a part. They are there when `close()` has returned."""

    def __init__(self, storage: Storage, schema: pa.Schema) -> None:
        self.written: list[ArchivedFile] = []
        self._storage = storage
        self._schema = schema
        self._stack = ExitStack()
        self._writer: pq.ParquetWriter | None = None
        self._file: HashedFile | None = None
        self._events = 0
        self._batches: list[pa.RecordBatch] = []
        self._rows: list[list[Any]] = []
        self._group_events = self._group_bytes = 0

    def add(self, values: list[Any]) -> None:
        """Add a row, as values_of() makes it."""
        self._rows.append(values)
        if len(self._rows) == _BATCH_EVENTS:
            self._end_batch()

    def close(self) -> None:
        """Write what is left."""
        self._end_batch()
        self._end_group()
        self._end_file()

    def abandon(self) -> None:
        """Leave the file that is being written unfinished."""
        self._writer = None
        self._stack.pop_all()

    def _end_batch(self) -> None:
        if not self._rows:
            return
        columns = zip(*self._rows, strict=True)
        arrays = [_array(values, field) for values, field in zip(columns, self._schema, strict=True)]
        batch = pa.record_batch(arrays, schema=self._schema)
        self._rows = []
        self._batches.append(batch)
        self._group_events += batch.num_rows
        self._group_bytes += batch.nbytes
        if self._group_events >= GROUP_EVENTS or self._group_bytes >= GROUP_BYTES:
            self._end_group()

    def _end_group(self) -> None:
        if not self._batches:
            return
        if self._writer is None:
            self._begin_file()
        assert self._writer is not None
        assert self._file is not None
        self._writer.write_table(pa.Table.from_batches(self._batches), row_group_size=self._group_events)
        self._events += self._group_events
        self._batches, self._group_events, self._group_bytes = [], 0, 0
        if self._file.size >= FILE_BYTES:
            self._end_file()

    def _begin_file(self) -> None:
        self._file = self._stack.enter_context(self._storage.create(f"events-{len(self.written)}.parquet"))
        self._writer = pq.ParquetWriter(
            cast(Any, self._file),
            self._schema,
            compression="zstd",
            compression_level=_ZSTD_LEVEL,
            use_dictionary=_DICTIONARIES,
            column_encoding=dict.fromkeys(DELTA, "DELTA_BINARY_PACKED"),
            write_statistics=_STATISTICS,
            write_page_index=True,
            sorting_columns=[pq.SortingColumn(NAMES.index(name)) for name in SORTED_BY],
            store_schema=False,
        )

    def _end_file(self) -> None:
        if self._writer is None or self._file is None:
            return
        name, file = f"events-{len(self.written)}.parquet", self._file
        self._writer.close()
        self._stack.close()
        self.written.append(ArchivedFile(name, file.sha256, file.size, self._events))
        self._writer, self._file, self._events = None, None, 0


def _array(values: Sequence[Any], field: pa.Field) -> pa.Array:
    if isinstance(field.type, pa.BaseExtensionType):
        return pa.ExtensionArray.from_storage(field.type, pa.array(values, field.type.storage_type))
    return pa.array(values, field.type)


def group_count(stream: IO[bytes]) -> int:
    """How many row groups an open file has."""
    return int(pq.read_metadata(stream).num_row_groups)


def row_groups(storage: Storage, name: str) -> list[int]:
    """How many events each row group of a file has. OSError or pa.ArrowException if it cannot be read."""
    with storage.open(name) as stream, pq.ParquetFile(stream) as file:
        return [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)]


def read_rows(storage: Storage, name: str, groups: Sequence[int]) -> Iterator[dict[str, Any]]:
    """The rows of some row groups of a file. OSError or pa.ArrowException if it cannot be read, ValueError if it is another kind of file."""
    with storage.open(name) as stream:
        yield from read_rows_of(stream, groups)


def read_rows_of(stream: IO[bytes] | pa.NativeFile, groups: Sequence[int]) -> Iterator[dict[str, Any]]:
    """As read_rows(), of an open file."""
    with open_events(stream) as file:
        for batch in file.iter_batches(_BATCH_EVENTS, row_groups=list(groups), use_threads=False):
            yield from rows_of([_values(column) for column in batch.columns])


UNREADABLE = (OSError, pa.ArrowException, ValueError)
"""What reading a file of events may raise."""


def damage_of(folder: Storage, file: ArchivedFile, error: Exception) -> str:
    """What is wrong with a file that could not be read. Raises `error` if its bytes are those that were signed: then the storage fails."""
    try:
        is_intact = folder.copy_to(file.name, None) == (file.sha256, file.bytes)
    except FileNotFoundError:
        return f"removed: {file.name} is missing"
    if not is_intact:
        return f"edited: {file.name} is not as it was signed"
    if isinstance(error, OSError):
        raise error
    return f"edited: {file.name} cannot be read: {error}"


def open_events(stream: IO[bytes] | pa.NativeFile, metadata: pq.FileMetaData | None = None) -> pq.ParquetFile:
    """An open file, whose metadata may be known, with the columns of the archive; ValueError if it has others."""
    file = pq.ParquetFile(stream, metadata=metadata, pre_buffer=False)
    if metadata is None and (found := _described(file)) != _EXPECTED:
        raise ValueError(f"it has other columns: {sorted(set(found) ^ set(_EXPECTED))[:3]}")
    return file


def _values(column: pa.Array) -> list[Any]:
    return cast("list[Any]", column.to_pylist())


_PHYSICAL = {
    "int": "INT32 None",
    "long": "INT64 None",
    "uuid": "FIXED_LEN_BYTE_ARRAY UUID",
    "string": "BYTE_ARRAY String",
    "date": "INT32 Date",
    "boolean": "BOOLEAN None",
    "timestamptz": "INT64 Timestamp(isAdjustedToUTC=true, timeUnit=microseconds",
    "fixed[16]": "FIXED_LEN_BYTE_ARRAY None",
    "fixed[32]": "FIXED_LEN_BYTE_ARRAY None",
}
_EXPECTED = [f"{number} {column.name} {_PHYSICAL[column.type]}" for number, column in enumerate(COLUMNS, 1)]


def _described(file: pq.ParquetFile) -> list[str]:
    """The columns of a file in words: id, name and type."""
    described = []
    for number in range(len(file.schema)):
        column, field = file.schema.column(number), file.schema_arrow.field(number)
        field_id = (field.metadata or {}).get(b"PARQUET:field_id", b"").decode()
        kind = str(column.logical_type).partition(", is_from")[0]
        described.append(f"{field_id} {column.path} {column.physical_type} {kind}")
    return described
