"""A run of the archive that ends itself with SIGKILL at a step: `python -m tests.archive.killed STEP URL DIRECTORY`. It writes each step to stdout."""

import asyncio
import os
import signal
import sys
from pathlib import Path

from app.archive import run
from tests.archive.archived import NOW, settings_of
from tests.archive.test_killed import SELECTION


def main() -> None:
    step, url, directory = sys.argv[1:]

    def on_step(name: str) -> None:
        sys.stdout.write(f"{name}\n")
        sys.stdout.flush()
        if name == step:
            os.kill(os.getpid(), signal.SIGKILL)

    asyncio.run(run.run(settings_of(url, Path(directory)), NOW, SELECTION, on_step=on_step))


if __name__ == "__main__":
    main()
