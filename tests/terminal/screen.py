"""A terminal for tests: a pty with a command on it, and what it has written."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.services import OTHER_SETTINGS, ROOT
from tests.waiting import until

_ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[=>]")


class Screen:
    """A command on a terminal of so many columns and lines."""

    def __init__(self, process: subprocess.Popen[bytes], descriptor: int) -> None:
        self.process = process
        self._descriptor = descriptor
        self._written = b""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def raw(self) -> str:
        """All that was written, with its escape sequences."""
        return self._written.decode("utf-8", "replace")

    @property
    def text(self) -> str:
        """What was written, without escape sequences."""
        return _ANSI.sub("", self.raw).replace("\r\n", "\n")

    def wait_for(self, text: str) -> None:
        until(lambda: True if text in self.text else None)

    def type(self, keys: str) -> None:
        os.write(self._descriptor, keys.encode())

    def resize(self, columns: int, lines: int) -> None:
        """As a window that is dragged: the kernel tells the programs in front."""
        fcntl.ioctl(self._descriptor, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def code(self) -> int:
        """The exit code, once it has ended."""
        code = self.process.wait(60)
        self._reader.join(10)
        return code

    def _read(self) -> None:
        while True:
            try:
                chunk = os.read(self._descriptor, 65536)
            except OSError:  # the other end is closed
                return
            if not chunk:
                return
            self._written += chunk


@contextmanager
def screen(
    arguments: Sequence[str], directory: Path, columns: int = 120, lines: int = 40, **environment: str
) -> Iterator[Screen]:
    """`datastorage` on a terminal of its own, so that Ctrl-C is its."""
    main, side = pty.openpty()
    fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
    others = {
        name: value for name, value in os.environ.items() if not name.startswith((*OTHER_SETTINGS, "LC_", "LANG"))
    }
    for name in ("NO_COLOR", "PAGER", "LESS", "COLUMNS", "LINES"):
        others.pop(name, None)
    process = subprocess.Popen(
        ["setsid", "--ctty", sys.executable, "-m", "app", *arguments],
        cwd=directory,
        env=others
        | {"PYTHONPATH": str(ROOT), "TERM": "xterm-256color", "LANG": "C.UTF-8", "PAGER": "cat"}
        | environment,
        stdin=side,
        stdout=side,
        stderr=side,
    )
    os.close(side)
    try:
        yield Screen(process, main)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        os.close(main)
