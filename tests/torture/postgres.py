"""A durable Postgres that can be killed, stopped, frozen and started again, any number of times."""

import asyncio
import os
import pwd
import shutil
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

import asyncpg

from app import schema
from app.embedded import data_directory
from tests.services import free_port, own_host

DEBIAN = Path("/usr/lib/postgresql/15/bin")
LOG_NAME = "torture.example/datastorage"
_START_SECONDS = 60.0
_POLL_SECONDS = 0.02
_SETTINGS = {
    "fsync": "on",
    "full_page_writes": "on",
    "synchronous_commit": "on",
    "shared_buffers": "64MB",
    "max_connections": "60",
    "min_wal_size": "4MB",
    "max_wal_size": "64MB",
    "restart_after_crash": "on",
}


def binaries(version: int) -> Path:
    """The programs of Debian's Postgres 15, or of the embedded 18."""
    if version == 15:
        return DEBIAN
    package = data_directory.package_directory()
    return (
        data_directory.copied_binaries(package, data_directory.postgres_account())
        if os.geteuid() == 0
        else package / f"pginstall{data_directory.MAJOR}/bin"
    )


class Postgres:
    """One server on its own data directory and port, with the settings that operators are asked to use."""

    def __init__(self, programs: Path, directory: Path) -> None:
        self.directory = directory
        self.data = directory / "data"
        self._programs = programs
        self._host = own_host()
        self._port = free_port(self._host)
        self._process: subprocess.Popen[bytes] | None = None
        self._should_run = False

    @property
    def url(self) -> str:
        """The database with the schema."""
        return f"postgresql://datastorage@{self._host}:{self._port}/datastorage?sslmode=disable"

    @property
    def empty_url(self) -> str:
        """The database without a schema."""
        return f"postgresql://datastorage@{self._host}:{self._port}/empty?sslmode=disable"

    @property
    def maintenance_url(self) -> str:
        return f"postgresql://datastorage@{self._host}:{self._port}/postgres?sslmode=disable"

    @property
    def pid(self) -> int:
        """Of its main process; it has been started."""
        assert self._process is not None
        return self._process.pid

    async def initialise(self) -> None:
        """Create the data directory with two databases: `datastorage` with the schema, `empty` without."""
        _give(self.directory)
        options = ("--username", "datastorage", "--auth", "trust", "--encoding", "UTF8", "--locale", "C.UTF-8")
        made = self._spawn("initdb", "--pgdata", str(self.data), "--wal-segsize", "1", "--no-instructions", *options)
        assert made.wait() == 0, (self.directory / "log").read_text()
        await self.start()
        connection = await asyncpg.connect(self.maintenance_url)
        await connection.execute("CREATE DATABASE datastorage")
        await connection.execute("CREATE DATABASE empty")
        await connection.close()
        await schema.upgrade(self.url, LOG_NAME)
        await self.stop()

    def copy(self, directory: Path) -> "Postgres":
        """Another server on a copy of the data of this one, which must be stopped."""
        _give(directory)
        subprocess.run(["cp", "-a", "--reflink=auto", self.data, directory / "data"], check=True)
        return Postgres(self._programs, directory)

    def standby(self, directory: Path) -> "Postgres":
        """A standby of this running server, made by pg_basebackup, that is not started yet."""
        _give(directory)
        conninfo = f"host={self._host} port={self._port} user=datastorage"
        made = Postgres(self._programs, directory)
        options = ("--dbname", conninfo, "--write-recovery-conf", "--checkpoint=fast", "--no-sync")
        copied = made._spawn("pg_basebackup", "--pgdata", str(made.data), *options)
        assert copied.wait() == 0, (directory / "log").read_text()
        return made

    async def set_standbys(self, names: str) -> None:
        """synchronous_standby_names"""
        await self._run(f"ALTER SYSTEM SET synchronous_standby_names = '{names}'", "SELECT pg_reload_conf()")

    async def promote(self) -> None:
        await self._run("SELECT pg_promote()")

    async def start(self) -> None:
        """Return when it accepts connections. May be called again: a server that has ended is started again."""
        self._should_run = True
        self._launch()
        async with asyncio.timeout(_START_SECONDS):
            while not await self._answers():
                self._launch()
                await asyncio.sleep(_POLL_SECONDS)

    def launch(self) -> None:
        """As start(), without waiting."""
        self._should_run = True
        self._launch()

    def _launch(self) -> None:
        if self._process is not None and self._process.poll() is None:
            return
        where = {
            "listen_addresses": self._host,
            "port": str(self._port),
            "unix_socket_directories": str(self.directory),
        }
        settings = _SETTINGS | where
        arguments = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        (self.data / "postmaster.pid").unlink(missing_ok=True)  # the process that it names was ended by this class
        self._process = self._spawn("postgres", "-D", str(self.data), *arguments)

    async def _answers(self) -> bool:
        try:
            connection = await asyncpg.connect(self.maintenance_url, timeout=5)
        except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
            return False
        await connection.close()
        return True

    async def stop(self, sig: signal.Signals = signal.SIGINT) -> None:
        """Fast shutdown (SIGINT), or an immediate one (SIGQUIT)."""
        if self._process is not None and self._process.poll() is None:
            self.thaw()
            self._process.send_signal(sig)
            await self._ended()

    async def kill(self) -> None:
        """Postmaster and all its children at once, as when the machine's memory killer is thorough."""
        family = self._family()
        for pid in family:
            send(pid, signal.SIGKILL)
        await self._ended()
        while any(alive(pid) for pid in family):
            await asyncio.sleep(_POLL_SECONDS)

    async def kill_backend(self) -> None:
        """One of its children, which makes the postmaster end all sessions and recover."""
        children = self._family()[1:]
        if children:
            send(children[-1], signal.SIGKILL)

    def freeze(self) -> None:
        """Stop all of its processes (SIGSTOP); every connection stays open."""
        for pid in self._family():
            send(pid, signal.SIGSTOP)

    def thaw(self) -> None:
        for pid in reversed(self._family()):
            send(pid, signal.SIGCONT)

    async def refuse_writes(self) -> None:
        """From its next transaction on, each session is read-only unless it asks for more."""
        await self._run("ALTER SYSTEM SET default_transaction_read_only = on", "SELECT pg_reload_conf()")

    async def demote(self) -> None:
        """Start it again as a standby, which has nobody to follow and takes no writes."""
        await self.stop()
        (self.data / "standby.signal").touch()
        await self.start()

    async def accept_writes(self) -> None:
        """End what the two above began."""
        if (self.data / "standby.signal").exists():
            await self._run("SELECT pg_promote()")
        if "read_only" in (self.data / "postgresql.auto.conf").read_text():
            await self._run("ALTER SYSTEM RESET default_transaction_read_only", "SELECT pg_reload_conf()")

    async def _run(self, *statements: str) -> None:
        connection = await asyncpg.connect(self.maintenance_url, timeout=_START_SECONDS)
        for statement in statements:
            await connection.execute(statement)
        await connection.close()

    def close(self) -> None:
        """Kill it."""
        if self._process is not None and self._process.poll() is None:
            for pid in self._family():
                send(pid, signal.SIGKILL)
            self._process.wait()

    def _family(self) -> list[int]:
        if self._process is None or self._process.poll() is not None:
            return []
        pid = self._process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return [pid, *map(int, children)]

    async def _ended(self) -> None:
        assert self._process is not None
        while self._process.poll() is None:
            await asyncio.sleep(_POLL_SECONDS)

    def _spawn(self, program: str, *arguments: str) -> subprocess.Popen[bytes]:
        user = unprivileged()
        with (self.directory / "log").open("ab") as log:
            return subprocess.Popen(
                [self._programs / program, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                env={"LC_ALL": "C", "TZ": "UTC", "PATH": os.defpath},
                start_new_session=True,
                user=user and user.pw_uid,
                group=user and user.pw_gid,
                extra_groups=() if user else None,
                umask=0o077,
            )


def unprivileged() -> pwd.struct_passwd | None:
    """Who runs Postgres, or another server that refuses root, when we are root."""
    if os.geteuid():
        return None
    for name in ("postgres", "nobody"):
        with suppress(KeyError):
            return pwd.getpwnam(name)
    raise RuntimeError("Postgres does not run as root, and there is no user `postgres` or `nobody`")


def _give(directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    if user := unprivileged():
        shutil.chown(directory, user.pw_uid, user.pw_gid)
    directory.chmod(0o755)


def send(pid: int, sig: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, sig)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
