"""Terminal output of the simulator: a progress line on stderr, and a table."""

import asyncio
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager

_TERMINAL_SECONDS = 0.2
_FILE_SECONDS = 2.0


@asynccontextmanager
async def progress(line: Callable[[], str]) -> AsyncIterator[None]:
    """Write `line()` to stderr while the body runs: in place on a terminal, else as a new line every two seconds."""
    terminal = sys.stderr.isatty()
    before, after = ("\r", "\x1b[K") if terminal else ("", "\n")

    async def repeat() -> None:
        while True:
            await asyncio.sleep(_TERMINAL_SECONDS if terminal else _FILE_SECONDS)
            sys.stderr.write(before + line() + after)
            sys.stderr.flush()

    task = asyncio.create_task(repeat())
    try:
        yield
    finally:
        task.cancel()
        sys.stderr.write(before + line() + after + "\n" * terminal)


def table(columns: Mapping[str, Counter[str]]) -> str:
    """A row for each event type that any column counts, and the totals."""
    names = sorted(set().union(*columns.values()))
    rows = [
        ["event type", *columns],
        *([name, *(str(column[name]) for column in columns.values())] for name in names),
        ["total", *(str(column.total()) for column in columns.values())],
    ]
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    return "".join(_row(row, widths) for row in rows)


def _row(cells: list[str], widths: list[int]) -> str:
    numbers = (cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True))
    return "  ".join([cells[0].ljust(widths[0]), *numbers]) + "\n"
