"""Starts services by forking a process that has imported the application, and has them prepare no statements: a fifth of the CPU of a start from nothing.

That a start from nothing works is the subject of tests/blackbox/test_starting.py and of the checks of image and chart.
"""

import atexit
import contextlib
import gc
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

_ROOT = Path(__file__).parent.parent
_POLL_SECONDS = 0.01
_MESSAGE_BYTES_MAX = 100_000


class Process:
    """A process of the fork server, with what tests use of subprocess.Popen."""

    def __init__(self, server: "_Server", pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._server = server

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = self._server.call({"wait": self.pid})
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        deadline = None if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            if deadline is not None and time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(str(self.pid), timeout or 0)
            time.sleep(_POLL_SECONDS)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:  # until then it is at least a zombie, and its number nobody else's
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def start(arguments: list[str], directory: Path, env: dict[str, str], output: BinaryIO) -> Process:
    """Run `datastorage` with these arguments in a process that has this environment and nothing else of the caller's."""
    server = _server()
    message = {"arguments": arguments, "directory": str(directory), "env": env}
    return Process(server, server.call(message, output.fileno()))


class _Server:
    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(  # ends when its socket is closed, also if this process is killed
                [sys.executable, "-c", f"from tests.forkserver import serve; serve({theirs.fileno()})"],
                cwd=_ROOT,
                env=os.environ | {"PYTHONPATH": str(_ROOT)},
                pass_fds=[theirs.fileno()],
            )
        atexit.register(self._end)

    def _end(self) -> None:
        self._socket.close()
        self._process.wait()

    def call(self, message: dict[str, Any], *files: int) -> Any:
        socket.send_fds(self._socket, [json.dumps(message).encode()], files)
        return json.loads(self._socket.recv(_MESSAGE_BYTES_MAX))


@cache
def _server() -> _Server:
    return _Server()


def serve(descriptor: int) -> NoReturn:
    """Answer until the other end is closed; a process that was forked runs its command instead and exits."""
    import app.logs
    import app.main
    import app.serve
    import app.tracing  # all that `datastorage serve` imports
    from app.cli import main

    app.main._warm = _unwarmed  # type: ignore[assignment]  # whatever its arguments are
    gc.freeze()
    # A terminal interrupts every process of its group; this one has to end the services that hang.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    calls = socket.socket(fileno=descriptor)
    running: set[int] = set()
    while True:
        content, files, _, _ = socket.recv_fds(calls, _MESSAGE_BYTES_MAX, 1)
        if not content:
            break
        message = json.loads(content)
        if "wait" in message:
            pid, status = os.waitpid(message["wait"], os.WNOHANG)
            running.discard(pid)
            answer = os.waitstatus_to_exitcode(status) if pid else None
        else:
            answer = os.fork()
            if not answer:
                calls.close()
                _become(message, files[0])
                _run_to_end(main)
            os.close(files[0])
            running.add(answer)
        calls.send(json.dumps(answer).encode())
    for pid in running:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    sys.exit()


def _run_to_end(main: Callable[[], int]) -> NoReturn:
    """As sys.exit(main()), without taking apart all that was imported, which is most of the CPU of a stop."""
    code: Any = 1
    try:
        code = main()
    except SystemExit as end:
        code = end.code
    except BaseException:  # noqa: BLE001 -- as an interpreter shows it
        traceback.print_exc()
    threading._shutdown()  # type: ignore[attr-defined]  # as an interpreter ends: its threads first
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code or 0)


async def _unwarmed(*_: object) -> None:
    """To prepare all statements of reads takes two thirds of the CPU of a start; tests/postgres/test_story_order.py does it."""


def _become(message: dict[str, Any], output: int) -> None:
    """Take the arguments, directory, environment and output of the process that is to be started."""
    with open(os.devnull, "rb") as nothing:  # noqa: PTH123 -- a device
        os.dup2(nothing.fileno(), 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
    os.chdir(message["directory"])
    os.environ.clear()
    os.environ.update(message["env"])
    sys.argv = ["datastorage", *message["arguments"]]
    signal.signal(signal.SIGINT, signal.default_int_handler)  # where tests run in the background it was ignored
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
