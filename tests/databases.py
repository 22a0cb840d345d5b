"""Where the tests' Postgres comes from, and databases on it that live as long as one test."""

import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

import asyncpg

IMAGE = "postgres:15"
SHM_BYTES_MIN = 2 * 1024**3


@contextmanager
def server() -> Iterator[str]:
    """URL of a Postgres on which databases may be made.

    DATASTORAGE_TEST_DATABASE names where it comes from, `dsn`, `testcontainers` or `embedded`, and then nothing else is
    tried. Unset, the first that is available is used, in this order.
    """
    named = os.environ.get("DATASTORAGE_TEST_DATABASE")
    if named not in {None, *_SOURCES}:
        raise ValueError(f"DATASTORAGE_TEST_DATABASE is {named!r}, not one of {', '.join(_SOURCES)}")
    chosen = named or next(source for source, (is_there, _) in _SOURCES.items() if is_there())
    with _SOURCES[chosen][1]() as url:
        yield url


@asynccontextmanager
async def connected(url: str) -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
    # As the service's sessions: what has to be planned with a table read as a whole is expensive to Postgres before 18, which compiles it.
    connection = await asyncpg.connect(url, server_settings={"jit": "off"})
    try:
        yield connection
    finally:
        await connection.close()


async def create(server_url: str, *, template: str = "template0") -> str:
    """URL of a new database that is a copy of `template`."""
    name = f"test_{uuid4().hex}"
    async with connected(server_url) as connection:
        # By files: half of the time, where nothing waits for the disk.
        await connection.execute(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY file_copy")
    return urlsplit(server_url)._replace(path=f"/{name}").geturl()


async def drop(server_url: str, database_url: str) -> None:
    """Drop a database, and end the connections to it."""
    async with connected(server_url) as connection:
        await connection.execute(f"DROP DATABASE {name_of(database_url)} WITH (FORCE)")


async def copy_of(server_url: str, database_url: str) -> str:
    """URL of a new database that has what `database_url` has now, as a standby has to which nothing more comes.

    Connections to `database_url` end; those that are tried meanwhile are refused.
    """
    async with _unused(server_url, database_url):
        return await create(server_url, template=name_of(database_url))


async def fail_over(server_url: str, database_url: str, standby_url: str) -> None:
    """Put a copy in the place of `database_url`, of which nothing is left, and end the connections to it."""
    async with connected(server_url) as connection, _unused(server_url, database_url):
        await connection.execute(f"DROP DATABASE {name_of(database_url)} WITH (FORCE)")
        await connection.execute(f"ALTER DATABASE {name_of(standby_url)} RENAME TO {name_of(database_url)}")


@asynccontextmanager
async def _unused(server_url: str, database_url: str) -> AsyncIterator[None]:
    """Nobody is connected to the database."""
    name = name_of(database_url)
    async with connected(server_url) as connection:
        await connection.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        await connection.fetch("SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity WHERE datname = $1", name)
        yield
        await connection.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")


def name_of(database_url: str) -> str:
    return urlsplit(database_url).path.removeprefix("/")


@contextmanager
def migrated(server_url: str, migrate: Callable[[str], Awaitable[object]]) -> Iterator[str]:
    """Name of a database that `migrate` was run on, to be copied; nobody stays connected to it."""
    url = asyncio.run(create(server_url))
    try:
        asyncio.run(_awaited(migrate(url)))
        yield name_of(url)
    finally:
        asyncio.run(drop(server_url, url))


async def _awaited(migration: Awaitable[object]) -> None:
    await migration


@contextmanager
def _dsn() -> Iterator[str]:
    """One server, or of several with spaces between them one for each process of a parallel run."""
    urls = os.environ["DATASTORAGE_TEST_DSN"].split()
    number = os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")
    yield urls[int(number) % len(urls)]


@contextmanager
def _testcontainers() -> Iterator[str]:
    if not _has_image():
        raise RuntimeError(f"no container engine answers that has the image {IMAGE}; tests never pull it")
    # The reaper is one more image that would be pulled.
    os.environ["TESTCONTAINERS_RYUK_DISABLED"] = "true"
    from testcontainers.community.postgres import PostgresContainer

    with PostgresContainer(IMAGE, driver=None) as container:
        yield container.get_connection_url()


def _has_image() -> bool:
    # In a process of its own: this client leaves its socket open when nobody answers, which is an error of a test here.
    probe = f"import docker; docker.from_env(timeout=5).images.get({IMAGE!r})"
    return subprocess.run([sys.executable, "-c", probe], capture_output=True, check=False).returncode == 0


@contextmanager
def _embedded() -> Iterator[str]:
    from app.embedded import EmbeddedPostgres

    with scratch() as directory, EmbeddedPostgres.start(directory, durable=False) as postgres:
        yield postgres.url


@contextmanager
def scratch() -> Iterator[Path]:
    """A directory for an embedded Postgres, in memory where there is room: ext4 is slow to make files after many were removed."""
    memory = Path("/dev/shm")
    in_memory = memory.is_dir() and shutil.disk_usage(memory).free > SHM_BYTES_MIN
    with tempfile.TemporaryDirectory(prefix="datastorage-", dir=memory if in_memory else None) as directory:
        Path(directory).chmod(0o755)  # started by root, Postgres runs as another user
        yield Path(directory)


_SOURCES: dict[str, tuple[Callable[[], bool], Callable[[], AbstractContextManager[str]]]] = {
    "dsn": (lambda: "DATASTORAGE_TEST_DSN" in os.environ, _dsn),
    "testcontainers": (_has_image, _testcontainers),
    "embedded": (lambda: True, _embedded),
}
