"""Waiting for what another process will do."""

import time
from collections.abc import Callable
from typing import TypeVar

_PATIENCE_SECONDS = 30.0
_PAUSE_SECONDS = 0.05

_Found = TypeVar("_Found")


def until(look: Callable[[], _Found | None]) -> _Found:
    """What `look` finds at last; fails when it finds nothing for a long time."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while (found := look()) is None:
        assert time.monotonic() < deadline, "what was waited for did not happen"
        time.sleep(_PAUSE_SECONDS)
    return found
