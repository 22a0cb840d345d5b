"""A database for the bench alone: on the server that was named, else on an embedded one that is durable."""

import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import asyncpg

from app.embedded import EmbeddedPostgres


@contextmanager
def work_directory() -> Iterator[Path]:
    """Where logs and the embedded server's data lie. /var/tmp is on a disk where /tmp may be memory, which needs no fsync."""
    directory = Path(tempfile.mkdtemp(prefix="datastorage-bench-", dir="/var/tmp"))
    directory.chmod(0o755)  # the embedded server has a user of its own when this one is root
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@contextmanager
def server(url: str | None, directory: Path) -> Iterator[str]:
    """URL of the server, which is started when none is named."""
    if url is not None:
        yield url
        return
    with EmbeddedPostgres.start(directory / "embedded") as postgres:
        yield postgres.url


@asynccontextmanager
async def fresh(server_url: str) -> AsyncIterator[str]:
    """URL of an empty database, dropped in the end. One that a killed bench left behind is replaced."""
    await _execute(server_url, "DROP DATABASE IF EXISTS datastorage_bench WITH (FORCE)")
    await _execute(server_url, "CREATE DATABASE datastorage_bench")
    try:
        yield urlsplit(server_url)._replace(path="/datastorage_bench").geturl()
    finally:
        await _execute(server_url, "DROP DATABASE IF EXISTS datastorage_bench WITH (FORCE)")


async def _execute(url: str, statement: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


class ServerFacts(NamedTuple):
    """What a result means nothing without."""

    version: str
    fsync: str
    synchronous_commit: str
    backend: int


async def facts(connection: "asyncpg.Connection[asyncpg.Record]") -> ServerFacts:
    """The server's version and durability, and the process id of `connection`'s backend."""
    row = await connection.fetchrow(
        "SELECT current_setting('server_version'), current_setting('fsync'), current_setting('synchronous_commit'), "
        "pg_backend_pid()"
    )
    assert row is not None
    return ServerFacts(*row)
