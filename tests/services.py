"""The service as processes of its own, reached only over HTTP."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from urllib.request import urlopen

from app.state_dir import find_state_dir
from tests import forkserver

ROOT = Path(__file__).parent.parent
READY_SECONDS = 60.0
STOP_SECONDS = 45.0
PROCESSES = int(os.environ.get("DATASTORAGE_TEST_PROCESSES", "1"))
"""Of each service that a test does not start with another number."""
OTHER_SETTINGS = ("DATASTORAGE_", "CONFIG_PATH", "PORT", "HEALTH_PORT")

_WORKERS, _WORKER = (
    int(os.environ.get(f"PYTEST_XDIST_WORKER{name}", default).removeprefix("gw"))
    for name, default in (("_COUNT", "1"), ("", "0"))
)
_PORTS = range(10_000 + _WORKER, 32_000, _WORKERS)
_ports = islice(cycle(_PORTS), os.getpid() * 97 % len(_PORTS), None)
_own_spools: set[Path] = set()
_spawned: list[forkserver.Process] = []


@dataclass(frozen=True)
class Service:
    """A running `datastorage serve`."""

    url: str
    process: forkserver.Process
    log: Path


def spawn(settings: dict[str, object], directory: Path) -> Service:
    """The process on a free port, unless the settings have one, in an empty directory, so that no file of the machine's user changes its settings."""
    directory.mkdir()
    port, log = int(str(settings.get("port") or free_port())), directory / "log"
    env = {name: value for name, value in os.environ.items() if not name.startswith(OTHER_SETTINGS)}
    env |= {
        f"DATASTORAGE_{name.upper()}": str(value)
        for name, value in (_defaults(directory) | settings | {"port": port}).items()
        if value is not None
    }
    with log.open("wb") as output:
        process = forkserver.start(["serve"], directory, env | {"PYTHONPATH": str(ROOT)}, output)
    _spawned.append(process)
    return Service(f"http://127.0.0.1:{port}", process, log)


def kill_running() -> None:
    """Kill what a failed test did not stop."""
    for process in _spawned:
        if process.poll() is None:
            process.kill()
            process.wait()
    _spawned.clear()


def _defaults(directory: Path) -> dict[str, object]:
    """PROCESSES processes, and directories instead of those in the user's state directory."""
    return {"processes": PROCESSES, "spool_dir": directory / "spool", "signer_cert_dir": directory / "certificate"}


def free_port(host: str = "127.0.0.1") -> int:
    """A port that nobody listens on, and that the system gives to no connection either, since it is below those that it chooses from.

    The workers of a test run have no port in common; other processes begin elsewhere, so that two seldom choose the same.
    """
    for port in _ports:
        with suppress(OSError), socket.create_server((host, port)):
            _own_spools.update(path for path in _spools(port) if not path.exists())
            return port
    raise AssertionError("no port is free")


def stray_spools() -> list[Path]:
    """Spools that services on our ports have left where a service has its own: the next one on the port would replay them."""
    return sorted(path for path in _own_spools if path.exists())


def _spools(port: int) -> list[Path]:
    directory = find_state_dir(None)
    return [] if directory is None else [directory / f"spool-{port}"]


def own_host() -> str:
    """A loopback address that no other test process uses: what dies and comes back on its port finds nobody else there."""
    if sys.platform != "linux":
        return "127.0.0.1"
    pid = os.getpid()
    return f"127.{1 + (pid >> 16) % 254}.{pid >> 8 & 255}.{pid & 255}"


def wait_until_ready(service: Service, url: str | None = None) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while not is_ready(url or service.url):
        assert service.process.poll() is None, f"the service ended:\n{service.log.read_text()}"
        assert time.monotonic() < deadline, f"the service does not become ready:\n{service.log.read_text()}"
        time.sleep(0.02)


def is_ready(url: str) -> bool:
    try:
        with urlopen(f"{url}/readyz", timeout=5) as answer:
            return int(answer.status) == 200
    except OSError:
        return False


def stop(services: Sequence[Service]) -> list[int]:
    """Stop those that still run. Returns their exit codes; one that does not stop in time is killed."""
    running = [service for service in services if service.process.poll() is None]
    for service in running:
        service.process.send_signal(signal.SIGTERM)
    return [_exit_code(service) for service in running]


def _exit_code(service: Service) -> int:
    try:
        return service.process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        service.process.kill()
        return service.process.wait()


@contextmanager
def lasting(settings: dict[str, object], directory: Path) -> Iterator[Service]:
    """A ready service for several tests, which stays when one of them ends. It has to end well."""
    service = spawn(settings, directory)
    _spawned.remove(service.process)
    try:
        wait_until_ready(service)
        yield service
    finally:
        codes = stop([service])
    assert codes in ([0], []), service.log.read_text()
