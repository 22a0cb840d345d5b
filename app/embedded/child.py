"""Programs of Postgres as child processes that end no later than this process."""

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from app.embedded.data_directory import DataDirectory

_LOG_BYTES_MAX = 16 * 1024 * 1024
_TAIL_LINES = 20
_STOP_SECONDS = 20.0
_QUIT_SECONDS = 10.0
_PR_SET_PDEATHSIG = 1


@contextmanager
def child_process(
    directory: DataDirectory, program: str, *arguments: str, stdin: int = subprocess.DEVNULL
) -> Iterator[tuple[subprocess.Popen[bytes], Callable[[], str]]]:
    """Run a program of Postgres. Yields the process, and a function that returns the end of its log; stops it on exit."""
    with ExitStack() as resources:
        log = _open_log(directory.log)
        resources.callback(os.close, log)
        begin = os.lseek(log, 0, os.SEEK_END)
        process = subprocess.Popen(  # noqa: S603  # our own program and arguments
            [directory.binaries / program, *arguments],
            stdin=stdin,
            stdout=log,
            stderr=log,
            cwd="/",
            env={"LC_ALL": "C", "TZ": "UTC", "PATH": os.defpath} | _ignore_stale_pid(directory.data),
            pass_fds=(directory.lock,),
            start_new_session=True,  # the terminal's Ctrl-C is for the service, which flushes first
            preexec_fn=_end_with_parent(),  # noqa: PLW1509  # at start there is one thread; runs after setuid, which would undo it
            user=directory.account.uid if directory.account else None,
            group=directory.account.gid if directory.account else None,
            extra_groups=() if directory.account else None,
            umask=0o077,
        )
        resources.callback(_stop, process)
        yield process, lambda: _log_since(directory.log, begin)


def _end_with_parent() -> Callable[[], None]:
    """A function for the child to call before exec: it requests a fast shutdown when the parent dies, however it dies."""
    if sys.platform != "linux":
        return lambda: None  # no such call there: the server of a killed parent runs until somebody stops it
    prctl, parent = ctypes.CDLL(None).prctl, os.getpid()

    def request_signal() -> None:
        # A fast shutdown writes at most shared_buffers; after an immediate one the next start reads up to 2 GB of WAL.
        # A parent that ended before the call sends no signal.
        if prctl(_PR_SET_PDEATHSIG, signal.SIGINT, 0, 0, 0) or os.getppid() != parent:
            os._exit(1)

    return request_signal


def _ignore_stale_pid(data: Path) -> dict[str, str]:
    """Environment that makes Postgres ignore the pid that a crash left in its pid file, which can be another process by now.

    pg_ctl uses the same variable to name a process that cannot be the owner of the data. If somebody else runs a server on
    the data, Postgres still refuses to start: it looks for processes attached to its shared memory.
    """
    path = data / "postmaster.pid"
    try:
        pid = path.read_text("utf-8").partition("\n")[0].strip()
    except FileNotFoundError:
        return {}
    if pid.isdecimal():
        return {"PG_GRANDPARENT_PID": pid}
    path.unlink()  # truncated by a crash of the machine; Postgres would ask the user to remove it
    return {}


def _open_log(path: Path) -> int:
    if path.exists() and path.stat().st_size > _LOG_BYTES_MAX:
        path.rename(path.with_suffix(".log.1"))
    return os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o600)


def _log_since(path: Path, begin: int) -> str:
    with path.open("rb") as log:
        log.seek(begin)
        lines = log.read().decode("utf-8", "replace").splitlines()
    return "\n".join(lines[-_TAIL_LINES:])


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Fast shutdown, then an immediate one. Neither loses data: after the second the next start reads the WAL."""
    for number, seconds in ((signal.SIGINT, _STOP_SECONDS), (signal.SIGQUIT, _QUIT_SECONDS)):
        process.send_signal(number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
            return
    process.kill()
    process.wait()
