"""The long form: `python -m tests.torture --faults 500 --seed 1`. Interrupted, it prints what it has."""

import argparse
import asyncio
import signal
import sys
import tempfile
from collections.abc import Coroutine
from pathlib import Path

from tests.torture.faults import KINDS, Kind
from tests.torture.run import Report, torture


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.torture", description=__doc__)
    parser.add_argument("--faults", type=int, default=500, help="how many to count, spread over the kinds")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--kind", action="append", type=_kinds, help="only this one, or all that begin so; several times"
    )
    parser.add_argument("--postgres", type=int, choices=(15, 18), default=18)
    parser.add_argument("--directory", type=Path, default=Path(tempfile.gettempdir()), help="on a disk, not in memory")
    parser.add_argument("--stop-seconds", type=float, default=60.0, help="how long a stopped Postgres stays stopped")
    arguments = parser.parse_args()
    report = Report()
    kinds = [kind for several in arguments.kind or [KINDS.values()] for kind in several]
    try:
        asyncio.run(_until_signalled(torture(report, kinds, arguments)))
    except asyncio.CancelledError:
        print("interrupted", file=sys.stderr)
    print(report.table())
    return 0 if report.is_good else 1


def _kinds(text: str) -> list[Kind]:
    found = [KINDS[text]] if text in KINDS else [kind for name, kind in KINDS.items() if name.startswith(text)]
    if not found:
        raise argparse.ArgumentTypeError(f"no kind begins so; there are: {', '.join(KINDS)}")
    return found


async def _until_signalled(work: Coroutine[None, None, None]) -> None:
    """Run `work` until SIGINT or SIGTERM; a background job of a shell ignores SIGINT unless a handler is set."""
    task = asyncio.current_task()
    assert task is not None
    for sig in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(sig, task.cancel)
    await work


if __name__ == "__main__":
    sys.exit(main())
