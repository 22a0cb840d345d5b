"""A real PgBouncer in front of Postgres, configured as Debian ships it but for its addresses: session pooling."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from tests.services import free_port
from tests.torture.postgres import unprivileged

_START_SECONDS = 20.0
_POLL_SECONDS = 0.02


def program() -> str | None:
    """Where PgBouncer is, if it is installed (Debian: package pgbouncer)."""
    return shutil.which("pgbouncer", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin")


needs_pgbouncer = pytest.mark.skipif(program() is None, reason="there is no pgbouncer (apt-get install pgbouncer)")


@contextmanager
def pgbouncer(server_url: str, files: Path | None = None, **options: object) -> Iterator["PgBouncer"]:
    """One that runs. Its options may name copies of the files in the directory `files`."""
    with tempfile.TemporaryDirectory(prefix="pgbouncer-") as scratch:
        Path(scratch).chmod(0o755)
        one = PgBouncer(server_url, Path(scratch) / "files", **options)
        for file in files.iterdir() if files else ():
            shutil.copy(file, Path(scratch) / "files")
            (Path(scratch) / "files" / file.name).chmod(0o644)
        one.start()
        try:
            yield one
        finally:
            one.kill()


class PgBouncer:
    """One PgBouncer for the database of `server_url`, whose user needs no password. It can be killed and started again."""

    def __init__(self, server_url: str, directory: Path, **options: object) -> None:
        """`options` are lines of the section [pgbouncer], such as pool_mode="transaction"."""
        parts = urlsplit(server_url)
        query = parse_qs(parts.query)
        host = query.get("host", [parts.hostname])[0] or "127.0.0.1"
        port = query.get("port", [parts.port or 5432])[0]
        self._host = str(options.get("listen_addr", "127.0.0.1")).partition(",")[0]
        self.port = free_port(self._host)
        self.url = f"postgresql://{parts.username}@{self._host}:{self.port}{parts.path}?sslmode=disable"
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None
        directory.mkdir()
        users = directory / "userlist.txt"
        users.write_text(f'"{parts.username}" ""\n')
        settings = {
            "listen_addr": self._host,
            "listen_port": self.port,
            "unix_socket_dir": "",
            "auth_type": "trust",
            "auth_file": users,
        }
        lines = (f"{name} = {value}" for name, value in (settings | options).items())
        text = f"[databases]\n* = host={host} port={port}\n[pgbouncer]\n" + "\n".join(lines) + "\n"
        (directory / "pgbouncer.ini").write_text(text)
        directory.chmod(0o755)

    @property
    def log(self) -> str:
        return (self._directory / "log").read_text("utf-8", "replace")

    @property
    def runs(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Return when it takes connections, whether Postgres does or not. May be called while it runs, or is about to end."""
        deadline = time.monotonic() + _START_SECONDS
        while not (self.runs and self._answers()):
            assert time.monotonic() < deadline, self.log
            if not self.runs:
                self._process = self._spawn()
            time.sleep(_POLL_SECONDS)

    def signal(self, sig: signal.Signals) -> None:
        if self.runs:
            assert self._process is not None
            self._process.send_signal(sig)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        if self._process is not None:
            self._process.wait()

    def _spawn(self) -> subprocess.Popen[bytes]:
        command = program()
        assert command is not None, "there is no pgbouncer"
        user = unprivileged()  # as root it refuses to run
        with (self._directory / "log").open("ab") as log:
            return subprocess.Popen(
                [command, "pgbouncer.ini"],
                cwd=self._directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                user=user and user.pw_uid,
                group=user and user.pw_gid,
                extra_groups=() if user else None,
            )

    def _answers(self) -> bool:
        with suppress(OSError), socket.create_connection((self._host, self.port), timeout=1):
            return True
        return False
