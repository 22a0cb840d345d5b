"""The archive's table in Apache Iceberg's format: its schema, and one snapshot more for each part, written by pyiceberg.

The pointer to the newest metadata is a row of Postgres, which the run moves itself, in the transaction that records the part.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from logging import ERROR, getLogger
from typing import Any
from uuid import UUID

from pyiceberg.catalog.noop import NoopCatalog
from pyiceberg.io.pyarrow import PyArrowFileIO, parquet_file_to_data_file, schema_to_pyarrow
from pyiceberg.manifest import DataFile
from pyiceberg.partitioning import PartitionField, PartitionSpec
from pyiceberg.schema import Schema
from pyiceberg.serializers import FromInputFile, ToOutputFile
from pyiceberg.table import FileScanTask, Table
from pyiceberg.table.metadata import TableMetadata, new_table_metadata
from pyiceberg.table.sorting import SortField, SortOrder
from pyiceberg.transforms import IdentityTransform, MonthTransform

from app.archive.columns import COLUMNS, NAMES, SORTED_BY
from app.archive.storage import METADATA, Storage

IDENTIFIER = ("audit", "events")
CATALOG = "datastorage"
_PROPERTIES = {
    "write.parquet.compression-codec": "zstd",
    "write.metadata.metrics.default": "none",
    "write.metadata.previous-versions-max": "100",
}
_PARTITION_IDS_FROM = 1000
SNAPSHOTS_MAX = 100
"""After so many the table is written anew. Each file of metadata lists all snapshots, and each snapshot all manifests: without an end, what a part costs grows with their number."""
_WRITER = "archive-id"
"""In each snapshot: the id in the names of the files that were written for it."""


def _field_id(name: str) -> int:
    return NAMES.index(name) + 1


SCHEMA = Schema.model_validate(
    {
        "type": "struct",
        "fields": [
            {"id": _field_id(column.name), "name": column.name, "type": column.type, "required": column.required}
            for column in COLUMNS
        ],
    }
)
_SPEC = PartitionSpec(
    PartitionField(_field_id("event_timestamp"), _PARTITION_IDS_FROM, MonthTransform(), "month"),
    PartitionField(_field_id("log_id"), _PARTITION_IDS_FROM + 1, IdentityTransform(), "log"),
)
_SORT_ORDER = SortOrder(*(SortField(_field_id(name), IdentityTransform()) for name in SORTED_BY))
ARROW_SCHEMA = schema_to_pyarrow(SCHEMA)


@dataclass(frozen=True, slots=True)
class ListedFile:
    """A file of events as the newest snapshot lists it."""

    name: str | None
    """Its path in the archive; None if it is elsewhere."""
    location: str
    bytes: int
    events: int
    partition: tuple[int, int]
    """Months since 1970, and the log's id."""
    hides_rows: bool
    """Whether something says that rows of it are deleted."""


class ArchiveTable:
    """The table as one file of metadata describes it, or a new one."""

    def __init__(
        self, storage: Storage, location: str | None, metadata: TableMetadata, unlisted: Sequence[str] = ()
    ) -> None:
        self.location = location
        """Of the metadata; None for a table that is not stored yet."""
        self._unlisted = unlisted
        """Files of a table that is not stored yet."""
        self._storage = storage
        self._metadata = metadata
        self._io = _file_io(storage)

    @classmethod
    def load(cls, storage: Storage, location: str | None) -> "ArchiveTable":
        """The table that `location` describes; a new one for None. What is no metadata makes pyiceberg raise anything."""
        if location is not None:
            return cls(storage, location, FromInputFile.table_metadata(_file_io(storage).new_input(location)))
        return cls.new(storage, [])

    @classmethod
    def new(cls, storage: Storage, names: Sequence[str]) -> "ArchiveTable":
        """A table with these files, which is not stored yet."""
        metrics = {
            f"write.metadata.metrics.column.{column.name}": "truncate(64)"
            for column in COLUMNS
            if column.has_statistics
        }
        metadata = new_table_metadata(SCHEMA, _SPEC, _SORT_ORDER, storage.url, _PROPERTIES | metrics)
        return cls(storage, None, metadata, names)

    @property
    def is_full(self) -> bool:
        """Whether append() writes the table anew, with one snapshot."""
        return len(self._metadata.snapshots) >= SNAPSHOTS_MAX

    @property
    def writers(self) -> list[str]:
        """The ids in the names of the files that its snapshots need."""
        summaries = [one.summary for one in self._metadata.snapshots]
        return [one.get(_WRITER, "") for one in summaries if one is not None]

    def append(self, archive_id: UUID, names: list[str]) -> str:
        """Write the metadata of the table with these files more; its location. The names of all new files have this id of a part."""
        if self.is_full:
            return self._write_anew(archive_id, [*(task.file for task in self._scan()), *self._described(names)])
        return self._write(self._metadata, archive_id, self._described([*self._unlisted, *names]))

    def replace(self, archive_id: UUID, replaced: str, names: list[str]) -> str:
        """As append(), without the files of the folder `replaced`, and as a table that has never had another snapshot than this one.

        Earlier snapshots, and entries of files that were deleted, have smallest and largest values of what is to be gone.
        """
        others = [task.file for task in self._scan() if not task.file.file_path.startswith(f"{replaced}/")]
        unlisted = [one for one in self._unlisted if not self._storage.location(one).startswith(f"{replaced}/")]
        return self._write_anew(archive_id, [*others, *self._described([*unlisted, *names])])

    def _write_anew(self, archive_id: UUID, files: list[DataFile]) -> str:
        """Write the metadata of the table with one snapshot, which has these files."""
        history: dict[str, Any] = {
            "current_snapshot_id": None,
            "snapshots": [],
            "refs": {},
            "snapshot_log": [],
            "metadata_log": [],
        }
        metadata = self._metadata.model_copy(update=history | {"statistics": [], "partition_statistics": []})
        return self._write(metadata, archive_id, files)

    def _described(self, names: list[str]) -> list[DataFile]:
        with _quiet_pyiceberg():
            return [parquet_file_to_data_file(self._io, self._metadata, self._storage.location(name)) for name in names]

    def _write(self, base: TableMetadata, archive_id: UUID, files: list[DataFile]) -> str:
        transaction = self._table(base).transaction()
        producer = transaction.update_snapshot(snapshot_properties={_WRITER: str(archive_id)}).fast_append()
        producer.commit_uuid = archive_id
        for file in files:
            producer.append_data_file(file)
        producer.commit()
        metadata = transaction.table_metadata
        location = self._storage.location(f"{METADATA}/{base.next_sequence_number() - 1:05}-{archive_id}.metadata.json")
        ToOutputFile.table_metadata(metadata, self._io.new_output(location), overwrite=True)
        for name in self._storage.names(METADATA):
            if str(archive_id) in name:
                self._storage.sync(name)
        return location

    def _table(self, metadata: TableMetadata) -> Table:
        return Table(IDENTIFIER, metadata, self.location or "", self._io, NoopCatalog(CATALOG))

    def _scan(self) -> Iterable[FileScanTask]:
        return self._table(self._metadata).scan().plan_files()

    def differences(self) -> Iterator[str]:
        """In what the table is not as `load()` makes it: an engine would show other columns than were written."""
        metadata = self._metadata
        if metadata.location != self._storage.url:
            yield f"its location is {metadata.location}"
        if metadata.schema() != SCHEMA or len(metadata.schemas) != 1:
            yield "its columns are not those of the archive"
        if metadata.spec() != _SPEC or len(metadata.partition_specs) != 1:
            yield "its partitions are not those of the archive"
        if metadata.name_mapping() is not None:
            yield "it maps columns by names"

    def files(self) -> Iterator[ListedFile]:
        """The files of the newest snapshot."""
        for task in self._scan():
            file = task.file
            month, log_id = file.partition[0], file.partition[1]
            yield ListedFile(
                self._storage.name_of(file.file_path),
                file.file_path,
                file.file_size_in_bytes,
                file.record_count,
                (month, log_id),
                bool(task.delete_files),
            )


def _file_io(storage: Storage) -> PyArrowFileIO:
    names = {"endpoint_override": "s3.endpoint", "region": "s3.region"}
    names |= {"access_key": "s3.access-key-id", "secret_key": "s3.secret-access-key"}
    return PyArrowFileIO({names[name]: value for name, value in storage.options.items()})


@contextmanager
def _quiet_pyiceberg() -> Iterator[None]:
    """It warns of each column that has no statistics, which is on purpose."""
    logger = getLogger("pyiceberg.io.pyarrow")
    level = logger.level
    logger.setLevel(ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def months_since_1970(month: Any) -> int:
    """As Iceberg numbers the months of a partition; `month` is a date."""
    return int((month.year - 1970) * 12 + month.month - 1)
