"""`datastorage serve` with hooks for the harness: its clock, its spool's thread, its spool's reserve.

Each is asked for by an environment variable; without them the service is unchanged.
"""

import os
import sys
import threading
import time
from datetime import datetime, timedelta, tzinfo
from pathlib import Path

from app import cli, main
from app.api import post
from app.ingest import accept, spool, spool_file

CLOCK, THREAD, RESERVE = "TORTURE_CLOCK", "TORTURE_SPOOL_THREAD", "TORTURE_SPOOL_RESERVE"


def _offset_seconds() -> float:
    try:
        return float(Path(os.environ[CLOCK]).read_text("ascii") or 0)
    except FileNotFoundError:
        return 0.0


class JumpingTime:
    """In place of `datetime` where the service asks for the time of day."""

    @staticmethod
    def now(zone: tzinfo) -> datetime:
        return datetime.now(zone) + timedelta(seconds=_offset_seconds())


class _JumpingSeconds:
    """In place of the module `time` in the spool."""

    @staticmethod
    def time() -> float:
        return time.time() + _offset_seconds()


def _patch() -> None:
    if CLOCK in os.environ:
        for module in (post, main):
            module.datetime = JumpingTime  # type: ignore[attr-defined]
        accept.time_ns = lambda: time.time_ns() + int(_offset_seconds() * 1e9)  # type: ignore[attr-defined]
        for module in (spool, spool_file):
            module.time = _JumpingSeconds  # type: ignore[attr-defined]
    if RESERVE in os.environ:
        spool.FREE_BYTES_MIN = int(os.environ[RESERVE])
    if THREAD in os.environ:
        opened = spool_file.SpoolFile._open

        def noted(self: spool_file.SpoolFile) -> object:
            Path(os.environ[THREAD]).write_text(str(threading.get_native_id()), "ascii")
            return opened(self)

        spool_file.SpoolFile._open = noted  # type: ignore[method-assign,assignment]


if __name__ == "__main__":
    _patch()
    sys.exit(cli.main())
