"""Runs of the archive that end themselves with SIGKILL at a step: `python -m tests.archive.killed URL DIRECTORY`.

Of each line of stdin, a step, it makes one run in a process of its own, which also removes what is archived if the line says `remove` before
the step, or has parts expire if it says `expire`. It writes each step to stdout, and then how the process has ended.
The processes are forked, since to import the archive takes longer than a run.
"""

import asyncio
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from app.archive import removing, run
from tests.archive.archived import DAYS, NOW, settings_of
from tests.archive.test_killed import SELECTION


def main() -> None:
    url, directory = sys.argv[1:]
    for line in sys.stdin:
        pid = os.fork()
        if not pid:
            _run(line.rstrip("\n"), url, directory)
        _, status = os.waitpid(pid, 0)
        _write(f"{END}{os.waitstatus_to_exitcode(status)}")


END, REMOVE, EXPIRE = "= ", "remove ", "expire "


def _run(step: str, url: str, directory: str) -> None:
    def on_step(name: str) -> None:
        _write(name)
        if name == step:
            os.kill(os.getpid(), signal.SIGKILL)

    code, selection, terms = 1, SELECTION, dict[str, Any]()
    if step.startswith(REMOVE):
        step, selection = step.removeprefix(REMOVE), replace(SELECTION, remove=True)
    if step.startswith(EXPIRE):
        step, selection, terms = step.removeprefix(EXPIRE), replace(SELECTION, expire=True), DAYS
    removing.BATCH_ROWS = 10
    try:
        asyncio.run(run.run(settings_of(url, Path(directory), **terms), NOW, selection, on_step=on_step))
        code = 0
    finally:
        os._exit(code)


def _write(text: str) -> None:
    os.write(1, f"{text}\n".encode())


if __name__ == "__main__":
    main()
