"""A value that is read from files which an operator may change while the service runs. It is reloaded when they change."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from app.errors import Fatal

_T = TypeVar("_T")
_CHECK_SECONDS = 1.0


class WatchedFiles(Generic[_T]):
    """The value that `read` returns for `paths`. Whether they have changed is checked when the value is asked for, at most
    once a second.

    What `read` raises at the first reading is raised to the caller. Later the last value stays, and `failed` is called with
    the error (OSError or Fatal) at each check, until the files can be read. `changed` is called with each new value.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        read: Callable[[], _T],
        *,
        changed: Callable[[_T], None],
        failed: Callable[[Exception], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._paths = paths
        self._read = read
        self._changed = changed
        self._failed = failed
        self._clock = clock
        self._checked_at = clock()
        self._signature = self._current_signature()  # before the reading: a later change is found by the next check
        self._value = read()

    def value(self) -> _T:
        """The newest value that could be read."""
        if self._clock() - self._checked_at >= _CHECK_SECONDS:
            self._check()
        return self._value

    def _check(self) -> None:
        self._checked_at = self._clock()
        try:
            signature = self._current_signature()
            if signature == self._signature:
                return
            self._value = self._read()
        except (OSError, Fatal) as error:
            self._failed(error)
        else:
            self._signature = signature
            self._changed(self._value)

    def _current_signature(self) -> list[tuple[int, int, int]]:
        """Changes whenever one of the files is written or replaced."""
        return [(s.st_ino, s.st_mtime_ns, s.st_size) for s in (path.stat() for path in self._paths)]
