"""Programs of Postgres as children of this process, which they do not outlive."""

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from app.embedded.place import Place

_LOG_BYTES_MAX = 16 * 1024 * 1024
_TAIL_LINES = 20
_STOP_SECONDS = 20.0
_QUIT_SECONDS = 10.0
_PR_SET_PDEATHSIG = 1


@contextmanager
def spawned(
    place: Place, program: str, *arguments: str, stdin: int = subprocess.DEVNULL
) -> Iterator[tuple[subprocess.Popen[bytes], Callable[[], str]]]:
    """A program of Postgres as our child, and a function that gives its last words; it is ended on leaving."""
    with ExitStack() as resources:
        log = _open_log(place.log)
        resources.callback(os.close, log)
        begin = os.lseek(log, 0, os.SEEK_END)
        process = subprocess.Popen(  # noqa: S603  # our own program and arguments
            [place.binaries / program, *arguments],
            stdin=stdin,
            stdout=log,
            stderr=log,
            cwd="/",
            env={"LC_ALL": "C", "TZ": "UTC", "PATH": os.defpath} | _stale_pid(place.data),
            pass_fds=(place.lock,),
            start_new_session=True,  # the terminal's Ctrl-C is for the service, which flushes first
            preexec_fn=_die_with_parent(),  # noqa: PLW1509  # at start there is one thread; runs after setuid, which would undo it
            user=place.account.uid if place.account else None,
            group=place.account.gid if place.account else None,
            extra_groups=() if place.account else None,
            umask=0o077,
        )
        resources.callback(_end, process)
        yield process, lambda: _tail(place.log, begin)


def _die_with_parent() -> Callable[[], None]:
    """For the child to call before exec: fast shutdown when the parent dies, however it dies."""
    if sys.platform != "linux":
        return lambda: None  # nothing like it there: the server of a killed parent goes on until somebody ends it
    prctl, parent = ctypes.CDLL(None).prctl, os.getpid()

    def ask() -> None:
        # A fast shutdown writes at most shared_buffers; after an immediate one the next start reads up to 2 GB of WAL.
        # A parent that was gone before the call sends no signal any more.
        if prctl(_PR_SET_PDEATHSIG, signal.SIGINT, 0, 0, 0) or os.getppid() != parent:
            os._exit(1)

    return ask


def _stale_pid(data: Path) -> dict[str, str]:
    """Environment that makes Postgres ignore the pid a crash left behind, which may be some other process by now.

    pg_ctl's way to name a process that cannot be the owner of the data. A server that somebody else started on the data
    is refused all the same: Postgres looks for processes attached to its shared memory.
    """
    path = data / "postmaster.pid"
    try:
        pid = path.read_text("utf-8").partition("\n")[0].strip()
    except FileNotFoundError:
        return {}
    if pid.isdecimal():
        return {"PG_GRANDPARENT_PID": pid}
    path.unlink()  # cut off by a crash of the machine; Postgres would ask for this
    return {}


def _open_log(path: Path) -> int:
    if path.exists() and path.stat().st_size > _LOG_BYTES_MAX:
        path.rename(path.with_suffix(".log.1"))
    return os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o600)


def _tail(path: Path, begin: int) -> str:
    with path.open("rb") as log:
        log.seek(begin)
        lines = log.read().decode("utf-8", "replace").splitlines()
    return "\n".join(lines[-_TAIL_LINES:])


def _end(process: subprocess.Popen[bytes]) -> None:
    """Fast shutdown, then an immediate one, which loses nothing either: the next start reads the WAL."""
    for stop, seconds in ((signal.SIGINT, _STOP_SECONDS), (signal.SIGQUIT, _QUIT_SECONDS)):
        process.send_signal(stop)
        with suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
            return
    process.kill()
    process.wait()
