"""The service and its Postgres as processes, and the CPU time and memory that they used."""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.request import urlopen

import asyncpg

ROOT = Path(__file__).parent.parent
_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Running:
    """A service that is ready."""

    port: int
    pid: int

    def cpu_seconds(self) -> float:
        return cpu_seconds(self.pid)

    def resident_mb(self) -> float:
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * _PAGE / 1e6

    def metric(self, name: str) -> float:
        with urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        return next(float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{name} "))

    def peak_mb(self) -> float:
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024 / 1e6


@contextlib.contextmanager
def service(*command: str, tree: Path = ROOT, **settings: object) -> Iterator[Running]:
    """`datastorage serve`, or another module, of the checkout at `tree`, on a free port."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="datastorage-bench-", ignore_cleanup_errors=True) as directory:
        settings = {"port": port, "spool_dir": f"{directory}/spool", "processes": 1} | settings
        env = os.environ | {
            f"DATASTORAGE_{name.upper()}": str(value) for name, value in settings.items() if value is not None
        }
        with Path(f"{directory}/log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", *(command or ("app", "serve"))], cwd=tree, env=env, stdout=log, stderr=log
            )
        try:
            _wait_until_ready(process, port, Path(f"{directory}/log"))
            yield Running(port, process.pid)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


def _wait_until_ready(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    for _ in range(1_200):
        with contextlib.suppress(OSError), urlopen(f"http://127.0.0.1:{port}/readyz", timeout=1):
            return
        if process.poll() is not None:
            break
        time.sleep(0.1)
    raise SystemExit(f"bench: the service does not become ready:\n{log.read_text()[-2000:]}")


def create_databases(server_url: str, *names: str) -> None:
    """Create empty databases on the server."""
    asyncio.run(_create(server_url, names))


async def _create(server_url: str, names: Sequence[str]) -> None:
    connection = await asyncpg.connect(server_url)
    for name in names:
        await connection.execute(f"CREATE DATABASE {name}")
    await connection.close()


def database_url(server_url: str, name: str) -> str:
    """The URL of a database that create_databases made."""
    return server_url.replace("/datastorage?", f"/{name}?")


def postgres_cpu_seconds(pid: int) -> float:
    """CPU time of all processes of the server whose main process is `pid`, including those that have ended."""
    return cpu_seconds(pid) + sum(cpu_seconds(child) for child in descendants(pid))


def cpu_seconds(pid: int) -> float:
    with contextlib.suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return sum(map(int, fields[11:15])) / _TICKS  # own time and that of children that have ended
    return 0.0


def descendants(pid: int) -> Iterator[int]:
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in map(int, (task / "children").read_text().split()):
                yield child
                yield from descendants(child)
