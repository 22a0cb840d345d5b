"""How many cores this process may use."""

import os
from pathlib import Path

_MOUNT = Path("/sys/fs/cgroup")


def granted_cores() -> float:
    """Cores that the scheduler and the control group (cpu.max, also of groups above) grant to this process."""
    cores = float(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    return min([cores, *_quotas(_MOUNT, _own_group())])


def _own_group() -> str:
    """Path of this process's group below the mount; empty if there is no version 2 of control groups."""
    try:
        lines = Path("/proc/self/cgroup").read_text("utf-8").splitlines()
    except OSError:
        return ""
    return next((line.removeprefix("0::/") for line in lines if line.startswith("0::/")), "")


def _quotas(mount: Path, group: str) -> list[float]:
    """The quotas, in cores, of the group and of all above it."""
    found = []
    path = mount / group
    for directory in (path, *path.parents):
        if not directory.is_relative_to(mount):
            break
        found += _quota(directory)
    return found


def _quota(directory: Path) -> list[float]:
    try:
        if (current := directory / "cpu.max").exists():
            quota, period = current.read_text("utf-8").split()
            return [] if quota == "max" else [int(quota) / int(period)]
        earlier = directory / "cpu"  # version 1
        quota, period = ((earlier / f"cpu.cfs_{name}_us").read_text("utf-8") for name in ("quota", "period"))
        return [] if int(quota) <= 0 else [int(quota) / int(period)]
    except (OSError, ValueError):
        return []
