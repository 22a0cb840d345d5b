"""Waiting for the effect of another process."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

_PATIENCE_SECONDS = 30.0
_PAUSE_SECONDS = 0.05

_Result = TypeVar("_Result")


def until(poll: Callable[[], _Result | None]) -> _Result:
    """The first result of `poll` that is not None; fails if there is none for a long time."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while (result := poll()) is None:
        assert time.monotonic() < deadline, "the expected effect did not happen"
        time.sleep(_PAUSE_SECONDS)
    return result


async def eventually(poll: Callable[[], Awaitable[_Result | None]]) -> _Result:
    """As until(), for a coroutine function."""
    async with asyncio.timeout(_PATIENCE_SECONDS):
        while (result := await poll()) is None:  # noqa: ASYNC110 -- the state of another process
            await asyncio.sleep(_PAUSE_SECONDS)
    return result
