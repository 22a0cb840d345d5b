"""Tests of what happens after seconds, in which these pass at once and however long the machine takes for the rest."""

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any, ParamSpec

_P = ParamSpec("_P")
_SETTLED_SECONDS = 0.02
"""Without anything to receive, after which nothing is on its way on this machine."""


class _Selector(selectors.DefaultSelector):
    """Whoever waits for a time with nothing to receive has waited for it."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None or timeout <= 0:
            return super().select(timeout)
        received = super().select(min(timeout, _SETTLED_SECONDS))
        if not received:
            self.seconds += timeout
        return received


class _Loop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._passed = _Selector()
        super().__init__(self._passed)

    def time(self) -> float:
        return self._passed.seconds


def without_waiting(test: Callable[_P, Coroutine[Any, Any, None]]) -> Callable[_P, None]:
    """The test in a loop of its own, whose clock stands still but for what its tasks wait for. Threads and processes are not waited for."""

    @wraps(test)
    def run(*args: _P.args, **kwargs: _P.kwargs) -> None:
        with asyncio.Runner(loop_factory=_Loop) as runner:
            runner.run(test(*args, **kwargs))

    return run
