"""The processes that are measured: started, asked what they use, and stopped by their ids."""

import asyncio
import os
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from bench import client

ROOT = Path(__file__).parent.parent
_START_SECONDS = 60.0
_STOP_SECONDS = 40.0
_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
_KIB = 1024
# Fields of /proc/<pid>/stat, counted from the one behind the command's name, which may hold spaces.
_PARENT, _USER, _SYSTEM, _CHILDREN_USER, _CHILDREN_SYSTEM = 1, 11, 12, 13, 14


class Service:
    """A service that takes events."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, log: Path) -> None:
        self.process = process
        self.port = port
        self.log = log

    def cpu_seconds(self) -> float:
        """CPU time it has used so far."""
        return cpu_seconds(self.process.pid)

    def resident_bytes(self) -> int:
        """Memory it holds now."""
        return _status_bytes(self.process.pid, "VmRSS")

    def peak_bytes(self) -> int:
        """The most memory it has held since forget_peak()."""
        return _status_bytes(self.process.pid, "VmHWM")

    def forget_peak(self) -> None:
        """Let peak_bytes() begin anew."""
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")

    def last_words(self) -> str:
        """The end of its log."""
        return self.log.read_text("utf-8", "replace")[-2_000:]


@asynccontextmanager
async def service(module: str, arguments: list[str], database_url: str, directory: Path) -> AsyncIterator[Service]:
    """`python -m module arguments` with default settings, ready on a free port; stopped in the end, whatever happens."""
    port = _free_port()
    kept = {k: v for k, v in os.environ.items() if not k.startswith("DATASTORAGE_")}
    for name in ("CONFIG_PATH", "PORT", "HEALTH_PORT"):
        kept.pop(name, None)
    environment = kept | {
        "PYTHONPATH": str(ROOT),
        "DATASTORAGE_PORT": str(port),
        "DATASTORAGE_DATABASE_URL": database_url,
    }
    log = directory / f"{module}-{port}.log"
    with log.open("wb") as output:
        # Away from the project, whose .env is not meant for the bench.
        process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments], cwd=directory, env=environment, stdout=output, stderr=output
        )
    started = Service(process, port, log)
    try:
        await _ready(started)
        yield started
    finally:
        _stop(process)


async def _ready(started: Service) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while True:
        try:
            await client.request(started.port, client.get("/readyz"))
        except (OSError, client.Refused) as error:
            if started.process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"bench: the service did not start: {error}\n{started.last_words()}") from None
            await asyncio.sleep(0.05)
        else:
            return


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _free_port() -> int:
    with socket.create_server((client.HOST, 0)) as server:
        return int(server.getsockname()[1])


def own_cpu_seconds() -> float:
    """CPU time that this process, the client, has used so far."""
    return time.process_time()


def cpu_seconds(pid: int) -> float:
    """CPU time that one process has used so far."""
    stat = _stat(pid)
    return (int(stat[_USER]) + int(stat[_SYSTEM])) / _TICKS_PER_SECOND


def postgres_cpu(backend: int) -> Callable[[], float]:
    """What tells the CPU time of the whole server, also of its processes that have ended, known by one of its backends.

    NaN always when the server runs elsewhere.
    """
    try:
        postmaster = int(_stat(backend)[_PARENT])
        if not all("postgres" in Path(f"/proc/{pid}/comm").read_text() for pid in (backend, postmaster)):
            raise ProcessLookupError
    except (OSError, ProcessLookupError):
        return lambda: float("nan")
    return lambda: _family_cpu_seconds(postmaster)


def _family_cpu_seconds(parent: int) -> float:
    stat = _stat(parent)
    total = sum(int(stat[field]) for field in (_USER, _SYSTEM, _CHILDREN_USER, _CHILDREN_SYSTEM)) / _TICKS_PER_SECOND
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                if int(_stat(int(entry.name))[_PARENT]) == parent:
                    total += cpu_seconds(int(entry.name))
            except (FileNotFoundError, ProcessLookupError):
                continue  # it ended meanwhile, and is among the parent's children now
    return total


def _stat(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def _status_bytes(pid: int, name: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * _KIB
    raise ProcessLookupError(f"/proc/{pid}/status has no {name}")
