"""How many processes a pod has, and what each of them does."""

import sys
from dataclasses import dataclass
from enum import Enum

from app.cores import granted_cores
from app.settings import PROCESSES_MAX, Settings

_READERS_OF_LARGE_POD = 2
_LARGE_POD = 6
_POOL_OF_OTHERS = 4
"""Connections for what a front or the writer reads: parents and notifications."""


class Role(Enum):
    """What a process is for; the value is in its name."""

    WRITER = "writer"
    READER = "reader"
    FRONT = "front"


@dataclass(frozen=True)
class Slot:
    """One process of the plan, whatever its number in the system."""

    role: Role
    index: int
    """Among all processes of the pod, from 0."""
    accepts: bool
    """It takes connections from outside."""

    @property
    def name(self) -> str:
        """As /proc/PID/comm shows it."""
        return f"ds-{self.role.value}" + ("" if self.role is Role.WRITER else f"-{self.index}")


def slots(processes: int) -> list[Slot]:
    """The plan of a pod of at least two processes.

    Two: the writer takes the connections too, so that an event goes from process to process nowhere. From three on, the
    writer only writes.
    """
    readers = _READERS_OF_LARGE_POD if processes >= _LARGE_POD else 1
    roles = [Role.WRITER] + [Role.READER] * readers + [Role.FRONT] * (processes - 1 - readers)
    accepting = Role.FRONT if processes > 1 + readers else Role.WRITER
    return [Slot(role, index, role is accepting) for index, role in enumerate(roles)]


def alike(slot: Slot, processes: int) -> int:
    """How many processes of the pod have the role of this one."""
    return sum(one.role is slot.role for one in slots(processes))


def settings_of(slot: Slot, settings: Settings, processes: int) -> Settings:
    """The settings of one process: its share of what the settings give to the pod."""
    plan = slots(processes)
    accepting = sum(one.accepts for one in plan)
    is_reader = slot.role is Role.READER
    pool = max(1, settings.pool_connections_max // alike(slot, processes)) if is_reader else _POOL_OF_OTHERS
    # The writer's inbox is the pod's; of the others this bounds the bodies that are being read.
    inbox = settings.inbox_bytes_max if slot.role is Role.WRITER else settings.inbox_bytes_max // accepting
    return settings.model_copy(
        update={"pool_connections_max": min(pool, settings.pool_connections_max), "inbox_bytes_max": inbox}
    )


def process_count(settings: Settings) -> int:
    """The setting, else one for each core that this process may use."""
    if sys.platform != "linux":
        return 1  # sockets without files, and signals when a parent dies, are Linux's
    return settings.processes or max(1, min(PROCESSES_MAX, round(granted_cores())))
