"""Waiting for the effect of another process."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

_PATIENCE_SECONDS = 30.0
_PAUSE_SECONDS = 0.05
_TURNS_TO_ACCEPT = 3  # of the loop: it accepts, makes the transport, calls connection_made()

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


async def stop_accepting(server: asyncio.Server) -> None:
    """Close `server`; when this returns, each connection that it had accepted has reached its protocol, which may close it.

    Python 3.11 leaves the socket of a connection open whose transport is made after the server was closed.
    """
    loop = asyncio.get_running_loop()
    for listening in server.sockets:
        loop.remove_reader(listening.fileno())
    for _ in range(_TURNS_TO_ACCEPT):
        await asyncio.sleep(0)
    server.close()
