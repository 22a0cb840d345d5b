"""The release before this one and this one, one after the other and side by side, on one database under load: `make versions`.

Nothing may be lost, stored twice, fail or be called a defect. Prints a table; exit code 1 if something was wrong.
"""

import argparse
import asyncio
import sys
import tempfile
import time
from pathlib import Path

from tests.torture.world import Unwell
from tests.versions import release
from tests.versions.side import two_replicas
from tests.versions.stages import HEAD, Story

_SHARES = 2.25
"""Stages that last as long as the one side by side, in all; the others take as long as they take."""


async def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.versions", description=__doc__)
    parser.add_argument("--base", default=release.BASE, help="the revision of the release before")
    parser.add_argument("--minutes", type=float, default=1.0, help="about; up to 60 and more")
    parser.add_argument("--pause", type=float, default=1.0, help="seconds between two requests of each of 40 clients")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--directory", type=Path, default=Path(tempfile.gettempdir()), help="on a disk, not in memory")
    options = parser.parse_args()
    before, this = release.before(options.base), release.this()
    seconds = options.minutes * 60 / _SHARES
    began = time.monotonic()
    async with two_replicas(options.directory, before, options.seed, options.pause) as side:
        story = Story(side, before, this, seconds, turns=max(6, round(options.minutes * 4)))
        try:
            await story.run()
        except Unwell as error:
            print(f"ended early: {error}", file=sys.stderr)
            return 1
        finally:
            print(f"\nbefore: {options.base}, {time.monotonic() - began:,.0f} s", HEAD, sep="\n\n")
            print(*(one.row() for one in story.outcomes), sep="\n")
            print(*(f"- {one.name}: {text}" for one in story.outcomes for text in one.wrong), sep="\n")
            print(f"\nacts: {dict(story.acts.done)}")
    return 1 if any(one.wrong or one.lost or one.doubled for one in story.outcomes) else 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
