"""The few facts that all processes of a pod share, in memory that they have in common: reading one costs no message.

Each field has one process that writes it.
"""

import ctypes
import mmap

from app.settings import PROCESSES_MAX

_NAME_BYTES_MAX = 1024
NOBODY = 2**31 - 1
"""As the number of connections of a process that is not there."""


class PodState(ctypes.Structure):
    """Zeros at first."""

    started: bool
    """Events can be accepted, if only into the spool."""
    database_seen: bool
    """The writer has reached the database, and its schema fits."""
    away: bool
    """Postgres was away at the writer's last flush."""
    has_spool: bool
    has_spooled: bool
    """Events wait in the spool."""
    busy_seconds: float
    """As WriterState has it."""
    log_name: bytes
    """Of the first log."""
    log_id: int
    """The log that events are written to."""
    ready: "ctypes.Array[ctypes.c_bool]"
    """For each process, whether it answers."""
    connections: "ctypes.Array[ctypes.c_int]"
    """For each process, how many connections from outside it has."""
    _fields_ = [
        *((name, ctypes.c_bool) for name in ("started", "database_seen", "away", "has_spool", "has_spooled")),
        ("busy_seconds", ctypes.c_double),
        ("log_name", ctypes.c_char * _NAME_BYTES_MAX),
        ("log_id", ctypes.c_int),
        ("ready", ctypes.c_bool * PROCESSES_MAX),
        ("connections", ctypes.c_int * PROCESSES_MAX),
    ]


def shared_state() -> PodState:
    """A state that is shared with every process that is forked from now on."""
    state = PodState.from_buffer(mmap.mmap(-1, ctypes.sizeof(PodState)))
    for index in range(PROCESSES_MAX):
        state.connections[index] = NOBODY
    return state
