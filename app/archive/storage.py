"""Where the archive is: a directory, or a bucket of an S3-compatible store, as pyarrow reaches them."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import pyarrow as pa
from pyarrow.fs import FileSelector, FileSystem, FileType, LocalFileSystem, S3FileSystem

from app.archive.part_files import MANIFEST_NAME
from app.errors import Fatal, Unavailable

if TYPE_CHECKING:
    from app.archive.question import ArchivePlace
    from app.settings import Settings

PARTS, METADATA = "parts", "metadata"
_PIECE_BYTES = 1024 * 1024
_FILE = "file://"


class StorageAway(Unavailable):
    """The archive's storage does not answer, or refuses what it is asked."""


@dataclass(frozen=True)
class Storage:
    """A folder: that of the whole archive, or of one part. Paths are relative to it. All raise OSError."""

    url: str
    options: dict[str, Any] = field(default_factory=dict, repr=False)
    """What S3FileSystem takes."""

    @cached_property
    def filesystem(self) -> FileSystem:
        """The store. Opened once, and anew in each process."""
        return LocalFileSystem() if self.is_local else S3FileSystem(**self.options)

    @property
    def is_local(self) -> bool:
        return self.url.startswith(_FILE)

    def path(self, name: str = "") -> str:
        """A path as the store has it."""
        base = self.url.removeprefix(_FILE if self.is_local else "s3://")
        return f"{base}/{name}" if name else base

    def location(self, name: str) -> str:
        """A path as a URL."""
        return f"{self.url}/{name}"

    def folder(self, name: str) -> "Storage":
        """A folder in this one."""
        return Storage(self.location(name), self.options)

    def name_of(self, location: str) -> str | None:
        """The path of a URL; None if it is elsewhere."""
        return location.removeprefix(f"{self.url}/") if location.startswith(f"{self.url}/") else None

    def __getstate__(self) -> dict[str, Any]:
        return {"url": self.url, "options": self.options}

    @contextmanager
    def create(self, name: str) -> Iterator["HashedFile"]:
        """A new file. It is there, whole and on the disk, only if the context ends without an error."""
        if self.is_local:
            Path(self.path(name)).parent.mkdir(parents=True, exist_ok=True)
        stream = self.filesystem.open_output_stream(self.path(name))
        yield HashedFile(stream)
        stream.close()
        self.sync(name)

    def sync(self, name: str) -> None:
        """Have the disk have a file, and its name. A bucket has what it has confirmed."""
        if self.is_local:
            path = Path(self.path(name))
            for one in (path, path.parent, path.parent.parent):
                descriptor = os.open(one, os.O_RDONLY)
                try:
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)

    def open(self, name: str) -> pa.NativeFile:
        """A file, to be read anywhere."""
        return self.filesystem.open_input_file(self.path(name))

    def read(self, name: str) -> bytes:
        """A small file."""
        with self.filesystem.open_input_stream(self.path(name)) as stream:
            return bytes(stream.read())

    def copy_to(self, name: str, target: IO[bytes] | None) -> tuple[str, int]:
        """Read all of a file; its SHA-256 in hex, and its bytes. `target` gets them."""
        digest, size = sha256(), 0
        with self.filesystem.open_input_stream(self.path(name)) as stream:
            while piece := stream.read(_PIECE_BYTES):
                digest.update(piece)
                size += len(piece)
                if target is not None:
                    target.write(piece)
        return digest.hexdigest(), size

    def names(self, folder: str = "") -> list[str]:
        """The files of a folder and of those in it."""
        selector = FileSelector(self.path(folder), recursive=True, allow_not_found=True)
        start = len(self.path()) + 1
        return [one.path[start:] for one in self.filesystem.get_file_info(selector) if one.type == FileType.File]

    def part_folders(self) -> Iterator[str]:
        """The folders with a manifest; empty text stands for this one."""
        for name in sorted(self.names()):
            folder, _, last = f"/{name}".rpartition("/")
            if last == MANIFEST_NAME:
                yield folder.removeprefix("/")

    def delete(self, name: str) -> None:
        """Delete a file."""
        self.filesystem.delete_file(self.path(name))

    def delete_folder(self, name: str) -> None:
        """Delete a folder with all in it, if there is one."""
        if self.filesystem.get_file_info(self.path(name)).type == FileType.Directory:
            self.filesystem.delete_dir(self.path(name))


class HashedFile:
    """A file that is written, as pyarrow's writer wants it, with the digest and the number of its bytes."""

    def __init__(self, stream: pa.NativeFile) -> None:
        self._stream = stream
        self._digest = sha256()
        self.size = 0
        self.closed = False

    def write(self, content: Any) -> int:
        """Write bytes; how many."""
        view = memoryview(content).cast("B")
        self._stream.write(view)
        self._digest.update(view)
        self.size += len(view)
        return len(view)

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()

    def flush(self) -> None:
        """Nothing: the store has a file when it is closed."""

    def writable(self) -> bool:
        return True

    def close(self) -> None:
        """Nothing: whoever has opened the file closes it."""


def archive_storage(settings: "Settings | ArchivePlace") -> Storage:
    """The archive of these settings. Fatal if they name none, or a file of credentials cannot be read."""
    if settings.archive_url is None:
        raise Fatal(
            "There is no archive: DATASTORAGE_ARCHIVE_URL says where it is, file:///directory or s3://bucket/prefix."
        )
    return Storage(
        settings.archive_url.rstrip("/"), {} if settings.archive_url.startswith(_FILE) else _s3_options(settings)
    )


def directory_storage(directory: Path) -> Storage:
    """A directory of this machine."""
    return Storage(f"{_FILE}{directory.resolve()}")


def _s3_options(settings: "Settings | ArchivePlace") -> dict[str, Any]:
    options: dict[str, Any] = {"region": settings.archive_s3_region}
    if settings.archive_s3_endpoint is not None:
        options["endpoint_override"] = settings.archive_s3_endpoint
    for name, file in (
        ("access_key", settings.archive_s3_access_key_file),
        ("secret_key", settings.archive_s3_secret_key_file),
    ):
        if file is not None:
            try:
                options[name] = file.read_text("utf-8").strip()
            except OSError as error:
                raise Fatal(f"The archive's credentials cannot be read: {error}.") from None
    return options
