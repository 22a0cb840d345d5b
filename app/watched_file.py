"""What was read from files that an operator may change while the service runs: read again when they have changed."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from app.errors import Fatal

_T = TypeVar("_T")
_CHECK_SECONDS = 1.0


class WatchedFiles(Generic[_T]):
    """What `read` makes of `paths`. At most once a second, when it is asked for, it is checked whether they have changed.

    What `read` raises at the first reading is raised; later the old value stays, and `failed` gets what was raised until the
    files are good again. `changed` gets each new value.
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
        self._signature = self._stat()
        self._value = read()

    def value(self) -> _T:
        """The newest value that could be read."""
        if self._clock() - self._checked_at >= _CHECK_SECONDS:
            self._check()
        return self._value

    def _check(self) -> None:
        self._checked_at = self._clock()
        try:
            signature = self._stat()
            if signature == self._signature:
                return
            self._value = self._read()
        except (OSError, Fatal) as error:
            self._failed(error)
        else:
            self._signature = signature
            self._changed(self._value)

    def _stat(self) -> list[tuple[int, int, int]]:
        return [(s.st_ino, s.st_mtime_ns, s.st_size) for s in (path.stat() for path in self._paths)]
