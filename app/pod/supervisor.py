"""Starts the processes of a pod, restarts those that end, and stops them in order.

It does nothing else, so that it does not fail: it never has an event loop, and each process is forked from it as it was at the
start. When it dies, the kernel kills all others; when the writer dies, it does.

It stops the pod thus: the fronts take requests for as long as routers may send some, answer them and end; then the writer commits
or spools what it has and ends; then the readers end.
"""

import ctypes
import gc
import logging
import os
import resource
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn

from app.errors import Fatal
from app.pod.plan import Slot, slots
from app.pod.state import NOBODY, PodState
from app.presence import Presence
from app.settings import Settings

STOP_SIGNAL = signal.SIGUSR1
"""From the supervisor to a process. The usual ones are ignored there: a terminal or a service manager sends them to all."""
SHOW_SIGNAL = signal.SIGUSR2
"""To those that take no connections: the service stops, but the fronts still take requests. The writer shows it, and readers end
their streams, for which the fronts would wait. Another signal, since the kernel merges equal ones."""
_PR_SET_PDEATHSIG, _PR_SET_NAME = 1, 15
_PAUSES = (0.05, 5.0)
"""Seconds before the first restart of a process, and at most."""
_STABLE_SECONDS = 30.0
_GRACE_SECONDS = 10.0  # beyond the settings, before a process that does not stop is killed

log = logging.getLogger(__name__)


class _Child:
    """A slot, and the process that fills it."""

    def __init__(self, slot: Slot) -> None:
        self.slot = slot
        self.pid = 0
        self.pause = _PAUSES[0]
        self.started = 0.0
        self.restart_at: float | None = None
        self.kill_at: float | None = None


class Supervisor:
    """The process that was started; the others are its children."""

    def __init__(
        self, settings: Settings, processes: int, state: PodState, presence: Presence, sockets: list[socket.socket]
    ) -> None:
        self._settings = settings
        self._state = state
        self._presence = presence
        self._sockets = sockets
        self._children = [_Child(slot) for slot in slots(processes)]
        self._writer = self._children[0]
        self._is_stopping = False
        self._stopped_by = signal.SIGTERM

    def run(self, serve: Callable[[Slot], None]) -> NoReturn:
        """Run `serve` in a process for each slot until a stop signal, then exit. Raises Fatal when the writer ends by itself."""
        _raise_file_limit()
        wakeup, wakeup_end = socket.socketpair()
        wakeup_end.setblocking(False)
        watched = (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)
        earlier = [signal.signal(number, lambda *_: None) for number in watched]
        signal.set_wakeup_fd(wakeup_end.fileno(), warn_on_full_buffer=False)
        gc.collect()
        gc.freeze()  # so that the pages of what exists stay shared
        try:
            for child in self._children:
                self._fork(child, serve)
            while any(child.pid for child in self._children):
                self._on_signals(_wait_for_signals(wakeup, self._next_time()))
                self._reap()
                self._do_what_is_due(serve)
        finally:
            self._kill_all()
            signal.set_wakeup_fd(-1)
            for number, handler in zip(watched, earlier, strict=True):
                signal.signal(number, handler)
            wakeup.close()
            wakeup_end.close()
        if self._presence.fatal is not None:
            raise self._presence.fatal
        raise SystemExit(0 if self._stopped_by == signal.SIGTERM else 130)

    def _fork(self, child: _Child, serve: Callable[[Slot], None]) -> None:
        child.restart_at, child.started = None, time.monotonic()
        supervisor = os.getpid()
        child.pid = os.fork()
        if child.pid == 0:
            _become(child.slot, supervisor, serve)

    def _on_signals(self, numbers: bytes) -> None:
        for number in numbers:
            if number != signal.SIGCHLD:
                self._stopped_by = signal.Signals(number)
                self._stop()

    def _stop(self) -> None:
        """Begin to stop. At the second signal, do not wait for routers."""
        first, self._is_stopping = not self._is_stopping, True
        if first:
            self._presence.shutting_down = True
            for sock in self._sockets:
                sock.close()
        limit = (self._settings.propagation_delay_ms + self._settings.shutdown_timeout_ms) / 1000
        for child in self._children:
            child.restart_at = None
            if child.slot.accepts and child.pid:
                _order_stop(child, limit)
        if first:
            for child in self._running(accepting=False):
                os.kill(child.pid, SHOW_SIGNAL)
        if first and self._writer.pid and not self._writer.slot.accepts:
            self._stop_writer_after_fronts()

    def _reap(self) -> None:
        for child in self._children:
            if child.pid and (ended := os.waitpid(child.pid, os.WNOHANG))[0]:
                child.pid, child.kill_at = 0, None
                self._state.ready[child.slot.index] = False
                self._state.connections[child.slot.index] = NOBODY
                self._on_end(child, os.waitstatus_to_exitcode(ended[1]))

    def _on_end(self, child: _Child, code: int) -> None:
        if self._is_stopping:
            if child.slot.accepts:
                self._stop_writer_after_fronts()
            if child is self._writer:
                for other in self._running(accepting=False):
                    _order_stop(other, 0.0)
            if code:
                log.warning("a process ended with an error while the service stopped", extra=_about(child, code))
        elif child is self._writer:
            if code > 0:
                self._kill_all()
                raise SystemExit(code)  # it has printed why
            self._presence.fatal = Fatal(f"The process that writes was ended by signal {-code}.")
            self._kill_all()
        else:
            if time.monotonic() - child.started > _STABLE_SECONDS:
                child.pause = _PAUSES[0]
            child.restart_at = time.monotonic() + child.pause
            child.pause = min(2 * child.pause, _PAUSES[1])
            log.error("a process ended and is started again", extra=_about(child, code))

    def _stop_writer_after_fronts(self) -> None:
        """Order the writer to stop if no process takes connections any more; perhaps none did when the stop began."""
        if not self._running(accepting=True) and self._writer.pid:
            _order_stop(self._writer, self._settings.shutdown_timeout_ms / 1000)

    def _running(self, *, accepting: bool) -> list[_Child]:
        return [child for child in self._children if child.pid and child.slot.accepts == accepting]

    def _next_time(self) -> float | None:
        """When something is due without a signal."""
        times = (time for child in self._children for time in (child.restart_at, child.kill_at) if time is not None)
        return min(times, default=None)

    def _do_what_is_due(self, serve: Callable[[Slot], None]) -> None:
        now = time.monotonic()
        for child in self._children:
            if child.restart_at is not None and child.restart_at <= now:
                self._fork(child, serve)
            if child.kill_at is not None and child.kill_at <= now and child.pid:
                log.error("a process did not stop in time and is killed", extra=_about(child, None))
                child.kill_at = None
                os.kill(child.pid, signal.SIGKILL)

    def _kill_all(self) -> None:
        """End what still runs, at once."""
        running = [child for child in self._children if child.pid]
        for child in running:
            os.kill(child.pid, signal.SIGKILL)
        for child in running:
            os.waitpid(child.pid, 0)
            child.pid = 0
        for child in self._children:
            child.restart_at = child.kill_at = None


def _about(child: _Child, code: int | None) -> dict[str, object]:
    return {"ended": child.slot.name, "exit_code": code}


def _order_stop(child: _Child, limit_seconds: float) -> None:
    """Order a process to stop; it is killed if that takes longer than `limit_seconds` and a grace period."""
    os.kill(child.pid, STOP_SIGNAL)
    if child.kill_at is None:
        child.kill_at = time.monotonic() + limit_seconds + _GRACE_SECONDS


def _wait_for_signals(wakeup: socket.socket, until: float | None) -> bytes:
    """The numbers of the signals that came; empty when it is time for something else."""
    timeout = None if until is None else max(0.0, until - time.monotonic())
    return wakeup.recv(256) if select.select([wakeup], [], [], timeout)[0] else b""


def _raise_file_limit() -> None:
    """A relayed request has two open files, so that the usual limit would halve the number of connections."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _become(slot: Slot, supervisor: int, serve: Callable[[Slot], None]) -> NoReturn:
    """What the child does. It leaves without unwinding the stack of the supervisor, which has other things to close."""
    code = 1
    try:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.set_wakeup_fd(-1)
        libc = ctypes.CDLL(None)
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        libc.prctl(_PR_SET_NAME, slot.name.encode(), 0, 0, 0)
        if os.getppid() != supervisor:
            os._exit(1)  # it died before it would have killed this process
        serve(slot)
        code = 0
    except Fatal as error:
        sys.stderr.write(f"datastorage: {error.detail}\n")
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:  # the top of a process
        log.exception("a process ends unexpectedly")
    finally:
        with suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)
