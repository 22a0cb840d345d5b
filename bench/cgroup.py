"""A control group of its own for a service: its limit of memory, and what it used at most. Needs root, and cgroups version 1 or 2."""

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

_ROOT = Path("/sys/fs/cgroup")
_REMOVAL_TRIES = 100


class MemoryGroup:
    """One group. Peaks count all that the kernel charges to it: heap, buffers of sockets where it counts them, page cache."""

    def __init__(self, path: Path, *, v2: bool) -> None:
        self._path, self._v2 = path, v2
        self._home = path.parent

    @contextlib.contextmanager
    def joined(self) -> Iterator[None]:
        """Within the block this process is a member, so that what it starts is one for good."""
        _move(self._path)
        try:
            yield
        finally:
            _move(self._home)

    def peak_mb(self) -> float:
        """The most that was charged at any time."""
        return self._number("memory.peak" if self._v2 else "memory.max_usage_in_bytes") / 1e6

    def anonymous_mb(self) -> float:
        """What is charged now without page cache."""
        lines = (self._path / "memory.stat").read_text().splitlines()
        name = "anon" if self._v2 else "total_rss"
        return next(int(line.split()[1]) for line in lines if line.split()[0] == name) / 1e6

    def kills(self) -> int:
        """Processes that were killed since the limit was reached."""
        lines = (self._path / ("memory.events" if self._v2 else "memory.oom_control")).read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.split()[0] == "oom_kill")

    def _number(self, name: str) -> int:
        return int((self._path / name).read_text())


@contextlib.contextmanager
def memory_group(bytes_max: int) -> Iterator[MemoryGroup]:
    """A new group with this limit, removed at the end."""
    v2 = "memory" in _text(_ROOT / "cgroup.controllers").split()
    path = (_ROOT if v2 else _ROOT / "memory") / f"datastorage-bench-{os.getpid()}"
    path.mkdir()
    try:
        (path / ("memory.max" if v2 else "memory.limit_in_bytes")).write_text(str(bytes_max))
        yield MemoryGroup(path, v2=v2)
    finally:
        for _ in range(_REMOVAL_TRIES):  # a process that has just ended is still in it
            with contextlib.suppress(OSError):
                path.rmdir()
                break
            time.sleep(0.1)


def _move(group: Path) -> None:
    (group / "cgroup.procs").write_text(str(os.getpid()))


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else ""
