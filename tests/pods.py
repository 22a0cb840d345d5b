"""The processes of a running service, by what they do."""

import os
import signal
from pathlib import Path

from tests.services import Service


def pids(service: Service, role: str) -> list[int]:
    """Of `role`: writer, reader or front. Those that have ended and were not waited for do not count."""
    return [pid for pid in children(service) if _name(pid).startswith(f"ds-{role}")]


def children(service: Service) -> list[int]:
    """Every process that the service's supervisor has started."""
    pid = service.process.pid
    try:
        return [int(text) for text in Path(f"/proc/{pid}/task/{pid}/children").read_text("utf-8").split()]
    except OSError:
        return []


def is_running(pid: int) -> bool:
    """Whether there is such a process, and it has not ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def kill(pid: int, number: signal.Signals = signal.SIGKILL) -> None:
    """Send a signal."""
    os.kill(pid, number)


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text("utf-8").strip()
    except OSError:
        return ""
