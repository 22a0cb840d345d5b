"""The embedded Postgres: nobody else gets in, nothing is lost, and no process stays behind."""

import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import asyncpg
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from app.embedded import EmbeddedPostgres
from app.errors import Fatal
from tests.databases import scratch
from tests.services import free_port

ROOT = Path(__file__).parent.parent.parent
OWNER = """
import sys, time
from pathlib import Path
from app.embedded import EmbeddedPostgres
with EmbeddedPostgres.start(Path(sys.argv[1])) as postgres:
    print(postgres.pid, postgres.url, flush=True)
    time.sleep(60)
"""


@pytest.fixture(scope="module")
def made() -> Iterator[Path]:
    """A data directory after its first start."""
    with scratch() as directory:
        EmbeddedPostgres.start(directory, durable=False).stop()
        yield directory


@pytest.fixture
def empty() -> Iterator[Path]:
    with scratch() as directory:
        yield directory


@pytest.fixture
def directory(empty: Path, made: Path) -> Iterator[Path]:
    """A copy of the data directory, for one test, which has to leave no process on it."""
    copy = empty / "state"
    subprocess.run(["cp", "-a", made, copy], check=True)
    yield copy
    ended = wait_for(lambda: not servers(copy))
    for left in servers(copy):
        os.kill(left, signal.SIGKILL)
    assert ended


@contextmanager
def owner(directory: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that starts Postgres on `directory`, as `datastorage serve` does."""
    process = subprocess.Popen([sys.executable, "-c", OWNER, directory], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    with process:
        yield process
        process.kill()


def started(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Process id and URL of its Postgres."""
    assert process.stdout is not None
    pid, url = process.stdout.readline().split()
    return int(pid), url


def servers(directory: Path) -> set[int]:
    """Every process of Postgres that works on the data."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if (process / "cwd").readlink() == directory / "postgres":
                found.add(int(process.name))
    return found


def wait_for(condition: Callable[[], bool], seconds: float = 5) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


async def execute(url: str, *statements: str) -> object:
    connection = await asyncpg.connect(url)
    try:
        return [await connection.fetchval(statement) for statement in statements][-1]
    finally:
        await connection.close()


async def test_first_start(empty: Path) -> None:
    """A fresh machine gets no database, or one that sorts, encodes or stores data otherwise than we rely on."""
    with EmbeddedPostgres.start(empty / "a b" / "state") as postgres:
        names = "'data_checksums', 'fsync', 'full_page_writes', 'synchronous_commit', 'server_encoding'"
        settings = f"SELECT string_agg(setting, ' ' ORDER BY name) FROM pg_settings WHERE name IN ({names})"
        assert await execute(postgres.url, settings) == "on on on UTF8 on"
        assert await execute(postgres.url, "SELECT 'a' < 'B' OR lower('Ä') <> 'ä'") is False


async def test_second_start_keeps_what_was_written(directory: Path) -> None:
    """Committed data is lost after a restart."""
    with EmbeddedPostgres.start(directory) as postgres:
        await execute(postgres.url, "CREATE TABLE kept AS SELECT 7 AS n")
    with EmbeddedPostgres.start(directory) as postgres:
        assert await execute(postgres.url, "SELECT n FROM kept") == 7
    assert servers(directory) == set()


async def test_url_suits_sqlalchemy(directory: Path) -> None:
    """Alembic and the read path cannot use the URL that asyncpg can."""
    with EmbeddedPostgres.start(directory) as postgres:
        engine = create_async_engine(postgres.url.replace("postgresql:", "postgresql+asyncpg:"))
        async with engine.connect() as connection:
            assert await connection.scalar(text("SELECT current_database()")) == "datastorage"
        await engine.dispose()


async def test_killed_parent_takes_the_server_along(directory: Path) -> None:
    """`kill -9` of the service leaves Postgres behind, or loses what it had committed."""
    with owner(directory) as process:
        pid, url = started(process)
        await execute(url, "CREATE TABLE kept AS SELECT 7 AS n")
        assert pid in servers(directory)
        process.kill()
        assert wait_for(lambda: not servers(directory))
    with EmbeddedPostgres.start(directory) as postgres:
        assert await execute(postgres.url, "SELECT n FROM kept") == 7


def test_start_waits_for_a_leftover_server(directory: Path) -> None:
    """Two servers work on one data directory when the first service was killed and its Postgres takes long to end."""
    with owner(directory) as killed:
        leftover, _ = started(killed)
        os.kill(leftover, signal.SIGSTOP)
        killed.kill()
        with owner(directory) as process:
            assert not wait_for(lambda: not servers(directory) or process.poll() is not None, 0.5)
            os.kill(leftover, signal.SIGCONT)
            assert started(process)[0] != leftover


def test_second_owner_is_refused(directory: Path) -> None:
    """The second service on a data directory gets no clear error, or disturbs the first."""
    with owner(directory) as process:
        pid, _ = started(process)
        with pytest.raises(
            Fatal, match=rf"Another DataStorage \(process {process.pid}\) runs on .*DATASTORAGE_DATA_DIR"
        ):
            EmbeddedPostgres.start(directory)
        assert pid in servers(directory)


async def test_server_that_is_not_ours_is_respected(directory: Path) -> None:
    """A Postgres that somebody runs on the data without our locks gets a second one beside it, or is ended."""
    with EmbeddedPostgres.start(directory) as postgres:
        for lock in ("owner.lock", "postgres.lock"):
            (directory / lock).unlink()
        pid_file = (directory / "postgres/postmaster.pid").read_text()
        with owner(directory) as process:
            assert process.wait(10) == 1
        assert (directory / "postgres/postmaster.pid").read_text() == pid_file
        assert "still in use" in postgres.log.read_text()


@pytest.mark.parametrize("content", ["{pid}\n{data}\n1700000000\n5432\n\n\n    12345    678\nready   \n", "", "?"])
def test_stale_pid_file(directory: Path, content: str) -> None:
    """A pid file that a crash left behind prevents the start of Postgres, because its number is another process by now."""
    data = directory / "postgres"
    as_owner = {"user": data.stat().st_uid} if os.geteuid() == 0 else {}
    with subprocess.Popen(["sleep", "60"], **as_owner) as other:  # type: ignore[call-overload]  # keywords by name
        try:
            (data / "postmaster.pid").write_text(content.format(pid=other.pid, data=data))
            with EmbeddedPostgres.start(directory) as postgres:
                assert (data / "postmaster.pid").read_text().startswith(f"{postgres.pid}\n")
            assert other.poll() is None
        finally:
            other.kill()


def test_interrupted_first_start(empty: Path) -> None:
    """Half a data directory, which an interrupted first start left, is used as a whole one."""
    (empty / "postgres.new").mkdir()
    (empty / "postgres.new/PG_VERSION").write_text("18\n")
    EmbeddedPostgres.start(empty, durable=False).stop()
    left = {path.name for path in empty.iterdir()}
    assert left == {"owner.lock", "postgres", "postgres.lock", "postgres.log", "socket"}


def test_nobody_else_gets_in(directory: Path) -> None:
    """Postgres runs as root, gets the terminal's signals, or other users reach its data or its socket."""
    with EmbeddedPostgres.start(directory) as postgres:
        running_as = Path(f"/proc/{postgres.pid}").stat().st_uid
        assert running_as == (os.geteuid() or running_as) != 0
        assert os.getsid(postgres.pid) == postgres.pid
        for private in (directory / "postgres", directory / "socket"):
            assert (stat.S_IMODE(private.stat().st_mode), private.stat().st_uid) == (0o700, running_as)


def listening_inodes(pid: int) -> set[str]:
    """Inodes of TCP sockets that a process has open."""
    tcp = [
        line.split()[9] for v in ("tcp", "tcp6") for line in Path(f"/proc/{pid}/net/{v}").read_text().splitlines()[1:]
    ]
    opened = {str(entry.readlink()) for entry in Path(f"/proc/{pid}/fd").iterdir()}
    return {inode for inode in tcp if f"socket:[{inode}]" in opened}


async def test_tcp_only_when_asked(directory: Path) -> None:
    """Postgres listens on the network unasked, or lets somebody in there who has no password."""
    with EmbeddedPostgres.start(directory) as postgres:
        assert listening_inodes(postgres.pid) == set()
    port = free_port()
    with EmbeddedPostgres.start(directory, tcp_port=port) as postgres:
        assert len(listening_inodes(postgres.pid)) == 1
        tcp = f"127.0.0.1:{port}/datastorage"
        await execute(postgres.url, "ALTER ROLE datastorage PASSWORD 'secret'")
        assert await execute(f"postgresql://datastorage:secret@{tcp}", "SELECT 1") == 1
        with pytest.raises(asyncpg.InvalidPasswordError):
            await execute(f"postgresql://datastorage:guess@{tcp}", "SELECT 1")


def test_long_path(directory: Path) -> None:
    """The socket's address is too long under a deep home directory, or its replacement stays in /tmp."""
    deep = directory.rename(directory.with_name("d" * 100))
    with EmbeddedPostgres.start(deep) as postgres:
        (socket,) = Path(parse_qs(urlsplit(postgres.url).query)["host"][0]).glob(".s.PGSQL.*[0-9]")
        assert not socket.is_relative_to(deep)
    assert not socket.parent.parent.exists()


def test_failed_start_says_why(directory: Path) -> None:
    """When Postgres does not start, the message does not contain what Postgres reports."""
    with (directory / "postgres/postgresql.conf").open("a") as configuration:
        configuration.write("nonsense = 1\n")
    with pytest.raises(Fatal, match='unrecognized configuration parameter "nonsense"'):
        EmbeddedPostgres.start(directory)
