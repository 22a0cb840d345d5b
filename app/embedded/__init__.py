"""Postgres for local runs and tests: a private server, a direct child that ends no later than this process.

In: a data directory. Out: the URL of a running server with a database of ours. Guaranteed: one owner per directory, no server
left running, and committed data survives a kill of this process.

Everything is in one directory: `postgres/` (the data), `socket/`, `postgres.log` and two lock files. This process locks
`owner.lock`; every process of the server inherits the lock on `postgres.lock`. A process that has locked the first and then
the second knows that nothing else runs on the data, whatever a pid file names.

data_directory.py  locks the directory, finds the binaries and the user that Postgres runs as
child.py           runs a program of Postgres as a child process that ends with this one
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

from app.embedded.child import child_process
from app.embedded.data_directory import DataDirectory, acquire, private_directory
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
_NOT_DURABLE = {"fsync": "off", "full_page_writes": "off", "max_wal_size": "256MB"}  # the directory may be in memory


class EmbeddedPostgres:
    """A server on data that this process alone owns. Only its user and root can enter the directory of its socket, so it asks
    for no password.
    """

    def __init__(self, directory: DataDirectory, socket: Path, options: dict[str, str], resources: ExitStack) -> None:
        self.url = _url(socket.parent, int(options["port"]))
        """postgresql://datastorage@/datastorage?host=<directory of the socket>&port=5432, known before the server runs."""
        self.log = directory.log
        self._directory = directory
        self._socket = socket
        self._options = options
        self._resources = resources
        self._stopping = False

    @classmethod
    def start(cls, data_dir: Path | None = None, *, tcp_port: int | None = None, durable: bool = True) -> Self:
        """A running server: reserve(), then launch(). Raises Fatal."""
        postgres = cls.reserve(data_dir, tcp_port=tcp_port, durable=durable)
        try:
            postgres.launch()
        except BaseException:
            postgres.stop()
            raise
        return postgres

    @classmethod
    def reserve(cls, data_dir: Path | None = None, *, tcp_port: int | None = None, durable: bool = True) -> Self:
        """Become the owner of the data. Nothing runs yet. Raises Fatal when another process owns it, or Postgres cannot use it.

        `tcp_port` adds that port on 127.0.0.1, which nobody can use before the role has a password. Without `durable`, a
        crash of the machine loses the data.
        """
        path = state_dir(data_dir)
        options = _CONFIGURATION | ({} if durable else _NOT_DURABLE)
        options |= {"port": str(tcp_port or _PORT), "listen_addresses": "127.0.0.1" if tcp_port else ""}
        with _usable(path), ExitStack() as resources:
            directory = acquire(path, resources)
            socket = _socket_path(directory, tcp_port or _PORT, resources)
            return cls(directory, socket, options, resources.pop_all())

    def launch(self) -> None:
        """Start the server; the data is created at the first start. Returns when the server accepts connections. Raises Fatal.

        Call it from the main thread: the server ends with the thread that started it.
        """
        assert threading.current_thread() is threading.main_thread()
        with _usable(self._directory.path):
            if not self._directory.data.exists():
                _initialise(self._directory)
            shutil.rmtree(self._socket.parent, ignore_errors=True)
            private_directory(self._socket.parent, self._directory.account)
            postmaster = _postmaster(self._directory, self._socket, self._options)
            self._process = self._resources.enter_context(postmaster)

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait(self) -> bool:
        """Wait until the server has ended. Returns whether it ended without stop()."""
        self._process.wait()
        return not self._stopping

    def stop(self) -> None:
        """Stop the server: sessions end, all data is written to the data files. Returns when it has ended."""
        self._stopping = True
        self._resources.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def running_url(data_dir: Path | None = None) -> str | None:
    """The URL of a server that another process runs on the data; None if its socket is not in its usual place."""
    socket = state_dir(data_dir) / "socket" / f".s.PGSQL.{_PORT}"
    return _url(socket.parent, _PORT) if socket.exists() else None


@contextmanager
def _usable(path: Path) -> Iterator[None]:
    """Raises Fatal, naming the directory, when something in it cannot be used."""
    try:
        yield
    except OSError as error:
        raise Fatal(f"The embedded Postgres cannot use {path}: {error}") from error


def _url(directory: Path, port: int) -> str:
    query = urlencode({"host": directory, "port": port}, safe="/", quote_via=quote)
    return f"postgresql://{_NAME}@/{_NAME}?{query}"


def _initialise(directory: DataDirectory) -> None:
    """Create the data and the database in it. A crash leaves `postgres.new`, which the next start removes."""
    new = directory.path / "postgres.new"
    shutil.rmtree(new, ignore_errors=True)
    private_directory(new, directory.account)
    # The built-in collation: by code points, the same on every system.
    _run(
        directory,
        *("initdb", "--pgdata", str(new), "--username", _NAME, "--encoding", "UTF8", "--locale", "C"),
        *("--locale-provider", "builtin", "--builtin-locale", "C.UTF-8", "--data-checksums"),
        *("--auth-local", "trust", "--auth-host", "scram-sha-256", "--no-instructions"),
    )
    create = f"CREATE DATABASE {_NAME}\n".encode()
    _run(directory, "postgres", "--single", "-D", str(new), "-c", "exit_on_error=on", "template1", statements=create)
    new.rename(directory.data)


def _run(directory: DataDirectory, program: str, *arguments: str, statements: bytes = b"") -> None:
    with child_process(directory, program, *arguments, stdin=subprocess.PIPE) as (process, log_tail):
        process.communicate(statements)
        if process.returncode:
            raise Fatal(f"The embedded Postgres could not be set up; {program} reports:\n{log_tail()}")


def _socket_path(directory: DataDirectory, port: int, resources: ExitStack) -> Path:
    """Path of the server's socket, in a directory beside the data, or in a temporary one if that path is too long."""
    parent, name = directory.path / "socket", f".s.PGSQL.{port}"
    if len(os.fsencode(parent / name)) > _SOCKET_PATH_BYTES_MAX:
        parent = Path(resources.enter_context(tempfile.TemporaryDirectory(prefix="datastorage-"))) / "socket"
        parent.parent.chmod(0o755)
    return parent / name


@contextmanager
def _postmaster(directory: DataDirectory, socket: Path, options: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """A running server. Yields when it accepts connections, and stops it on exit."""
    quoted = str(socket.parent).replace('"', '""')
    options = options | {"unix_socket_directories": f'"{quoted}"'}
    settings = [argument for name, value in options.items() for argument in ("-c", f"{name}={value}")]
    with child_process(directory, "postgres", "-D", str(directory.data), *settings) as (process, log_tail):
        deadline = time.monotonic() + _START_SECONDS
        while not (socket.exists() and _is_ready(directory.data / "postmaster.pid")):
            if process.poll() is not None or time.monotonic() > deadline:
                raise Fatal(f"The embedded Postgres did not start; the end of {directory.log}:\n{log_tail()}")
            time.sleep(_POLL_SECONDS)
        yield process


def _is_ready(pid_file: Path) -> bool:
    """Whether the pid file says that the server accepts connections. It is of this server: it is written before the socket."""
    try:
        lines = pid_file.read_text("utf-8").splitlines()
    except FileNotFoundError:
        return False
    return len(lines) > 7 and lines[7].strip() == "ready"
