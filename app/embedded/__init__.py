"""Postgres for local runs and tests: a private server, our direct child, that lives no longer than this process.

All of it is kept in one directory: `postgres/` (the data), `socket/`, `postgres.log` and two locks. This process holds
`owner.lock`; every process of the server inherits `postgres.lock`. Whoever has the first and has waited for the second
knows that nothing runs on the data any more, whatever a pid file says.
"""

import os
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Self
from urllib.parse import quote, urlencode

from app.embedded.child import spawned
from app.embedded.place import Place, private_directory, take
from app.errors import Fatal
from app.state_dir import state_dir

_NAME = "datastorage"  # of the role, which is the superuser, and of the database
_PORT = 5432
_SOCKET_PATH_BYTES_MAX = 107
_START_SECONDS = 120.0  # a crash may have left 2 GB of WAL to be read again
_POLL_SECONDS = 0.005

_CONFIGURATION = {
    "unix_socket_permissions": "0700",
    "shared_buffers": "128MB",
    "max_connections": "100",
    "max_wal_size": "2GB",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "fsync": "on",
    "full_page_writes": "on",
    "synchronous_commit": "on",
}
_NOT_DURABLE = {"fsync": "off", "full_page_writes": "off", "max_wal_size": "256MB"}  # may lie in memory


class EmbeddedPostgres:
    """A running server. Nobody but its user and root can enter the directory of its socket, so it asks for no password."""

    def __init__(self, place: Place, process: subprocess.Popen[bytes], url: str, resources: ExitStack) -> None:
        self.url = url
        """postgresql://datastorage@/datastorage?host=<directory of the socket>&port=5432"""
        self.log = place.log
        self._process = process
        self._resources = resources

    @classmethod
    def start(cls, data_dir: Path | None = None, *, tcp_port: int | None = None, durable: bool = True) -> Self:
        """Take the data up, or make it the first time, and return when the server takes connections.

        `tcp_port` adds that port on 127.0.0.1, where nobody gets in before the role was given a password. Without
        `durable`, a crash of the machine loses the data. Raises Fatal, saying what to do. To be called from the main
        thread: the server dies with the thread that started it.
        """
        assert threading.current_thread() is threading.main_thread()
        directory = state_dir(data_dir)
        with ExitStack() as resources:
            try:
                place = take(directory, resources)
                if not place.data.exists():
                    _initialise(place)
                port = tcp_port or _PORT
                socket = _socket(place, port, resources)
                options = _CONFIGURATION | ({} if durable else _NOT_DURABLE)
                options |= {"port": str(port), "listen_addresses": "127.0.0.1" if tcp_port else ""}
                process = resources.enter_context(_postmaster(place, socket, options))
            except OSError as error:
                raise Fatal(f"The embedded Postgres cannot use {directory}: {error}") from error
            return cls(place, process, _url(socket.parent, port), resources.pop_all())

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait(self) -> None:
        """Return when the server has ended, for whatever reason."""
        self._process.wait()

    def stop(self) -> None:
        """End every session, write everything to the data files, and return when the server is gone."""
        self._resources.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def running_url(data_dir: Path | None = None) -> str | None:
    """The URL of a server that another process runs on the data, if its socket is where it usually is; else None."""
    socket = state_dir(data_dir) / "socket" / f".s.PGSQL.{_PORT}"
    return _url(socket.parent, _PORT) if socket.exists() else None


def _url(directory: Path, port: int) -> str:
    query = urlencode({"host": directory, "port": port}, safe="/", quote_via=quote)
    return f"postgresql://{_NAME}@/{_NAME}?{query}"


def _initialise(place: Place) -> None:
    """Make the data directory and the database in it. A crash leaves `postgres.new`, which the next start removes."""
    new = place.directory / "postgres.new"
    shutil.rmtree(new, ignore_errors=True)
    private_directory(new, place.account)
    # The collation that Postgres brings itself: code points, the same on every system.
    _run(
        place,
        *("initdb", "--pgdata", str(new), "--username", _NAME, "--encoding", "UTF8", "--locale", "C"),
        *("--locale-provider", "builtin", "--builtin-locale", "C.UTF-8", "--data-checksums"),
        *("--auth-local", "trust", "--auth-host", "scram-sha-256", "--no-instructions"),
    )
    create = f"CREATE DATABASE {_NAME}\n".encode()
    _run(place, "postgres", "--single", "-D", str(new), "-c", "exit_on_error=on", "template1", statements=create)
    new.rename(place.data)


def _run(place: Place, program: str, *arguments: str, statements: bytes = b"") -> None:
    with spawned(place, program, *arguments, stdin=subprocess.PIPE) as (process, said):
        process.communicate(statements)
        if process.returncode:
            raise Fatal(f"The embedded Postgres could not be set up; {program} says:\n{said()}")


def _socket(place: Place, port: int, resources: ExitStack) -> Path:
    """Where the server will listen: in an empty directory beside the data, or a temporary one if that path is too long."""
    directory, name = place.directory / "socket", f".s.PGSQL.{port}"
    if len(os.fsencode(directory / name)) > _SOCKET_PATH_BYTES_MAX:
        directory = Path(resources.enter_context(tempfile.TemporaryDirectory(prefix="datastorage-"))) / "socket"
        directory.parent.chmod(0o755)
    shutil.rmtree(directory, ignore_errors=True)
    private_directory(directory, place.account)
    return directory / name


@contextmanager
def _postmaster(place: Place, socket: Path, options: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """The server, from taking connections to its end."""
    quoted = str(socket.parent).replace('"', '""')
    options = options | {"unix_socket_directories": f'"{quoted}"'}
    settings = [argument for name, value in options.items() for argument in ("-c", f"{name}={value}")]
    with spawned(place, "postgres", "-D", str(place.data), *settings) as (process, said):
        deadline = time.monotonic() + _START_SECONDS
        while not (socket.exists() and _is_ready(place.data / "postmaster.pid")):
            if process.poll() is not None or time.monotonic() > deadline:
                raise Fatal(f"The embedded Postgres did not start; the end of {place.log}:\n{said()}")
            time.sleep(_POLL_SECONDS)
        yield process


def _is_ready(pid_file: Path) -> bool:
    """Whether the server says that it takes connections. The file is this server's, as it is written before the socket is."""
    try:
        lines = pid_file.read_text("utf-8").splitlines()
    except FileNotFoundError:
        return False
    return len(lines) > 7 and lines[7].strip() == "ready"
