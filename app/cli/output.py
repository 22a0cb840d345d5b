"""What a command shows: on a terminal tables by rich in colours, folded to its width, and a pager; in a pipe plain columns.

Every text that is shown passes visible() first, headings and ids too: it may come from an event.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, BinaryIO
from unicodedata import east_asian_width

from app.terminal import visible, visible_json

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

_STYLES = {
    **dict.fromkeys(("success", "Approved", "held", "sent", "delivered"), "green"),
    **dict.fromkeys(("failure", "Rejected", "failed", "Failed", "TimedOut", "critical"), "red"),
    **dict.fromkeys(("pending", "Expired", "Blocked", "high"), "yellow"),
}
"""Of a cell that is one of these words."""
WARNING = "bold yellow"
DEFECT = "bold red"
GOOD = "green"
_on_screen: list["Output"] = []
"""Has an element once a command has begun to write its answer on a terminal."""
_CELL_COLUMNS_MIN = 13
"""Columns of a terminal for each of a table, below which one that does not fit is no table any more."""
_NOTHING = "-"
"""Stands in a pipe for an empty cell, so that each column is always there."""


def add_output(parser: argparse.ArgumentParser) -> None:
    options = parser.add_argument_group("output")
    options.add_argument("--json", action="store_true", help="as JSON: of a list one object a line, else one document")
    options.add_argument("--no-pager", action="store_true", help="print a long answer at once")


@contextmanager
def shown(arguments: argparse.Namespace) -> Iterator["Output"]:
    """Where a command shows its answer. On a terminal it goes through a pager, which ends at once if the answer fits."""
    output = _open(arguments)
    if output.is_folded:
        _on_screen.append(output)
    try:
        yield output
    except BrokenPipeError:
        if output.pager is None:
            raise  # else somebody has left the pager, having seen enough
    finally:
        output.close()


def show_list(
    arguments: argparse.Namespace, found: Sequence[dict[str, Any]], show_table: "Callable[[Output], None]", nothing: str
) -> None:
    """All of `found` as a table, or each as JSON where that was asked for; `nothing` says that there is none."""
    with shown(arguments) as out:
        if out.is_json:
            for one in found:
                out.record(one)
        elif found:
            show_table(out)
        out.flush()
    if not found:
        note(nothing)


class Output:
    """Shows texts and tables, or JSON where that was asked for."""

    def __init__(
        self, stream: IO[str], *, is_json: bool, console: "Console | None", pager: "subprocess.Popen[str] | None"
    ) -> None:
        self.is_json = is_json
        self.pager = pager
        self._stream = stream
        self._console = console
        self._widths: dict[tuple[str, ...], list[int]] = {}
        """Of tables in a pipe: the columns of a later page are never narrower."""

    @property
    def is_folded(self) -> bool:
        """Whether it is a terminal, where tables are as wide as it is."""
        return self._console is not None

    def line(self, text: str = "", style: str = "") -> None:
        """One line of words, folded on a terminal."""
        text = visible(text)
        if self._console is None:
            self._stream.write(f"{text}\n")
        else:
            self._console.print(_styled(text, style), soft_wrap=False)

    def aside(self, text: str, style: str = "") -> None:
        """Words about the answer: below it on a terminal, else on standard error, since they are no line of a pipe."""
        if self.is_folded:
            self.line(text, style)
        else:
            note(text)

    def heading(self, text: str) -> None:
        self.line()
        self.line(text, "bold")

    def table(self, head: Sequence[str], rows: Sequence[Sequence[str]], *, header: bool = True) -> None:
        """A table. Without `header` it goes on an earlier one. On a narrow terminal each row has one line for each cell."""
        if self._console is None:
            self._plain_table(head, rows, header=header)
        elif self._is_too_narrow(head, rows):
            for row in rows:
                members = [[name, cell] for name, cell in zip(head, row, strict=True) if cell]
                self._console.print(_rich_table(["", ""], members, header=False))
                self.line()
        else:
            self._console.print(_rich_table(head, rows, header=header))

    def _is_too_narrow(self, head: Sequence[str], rows: Sequence[Sequence[str]]) -> bool:
        """Whether the cells of a table would be folded to pieces that nobody reads."""
        if self._console is None or self._console.width >= _CELL_COLUMNS_MIN * len(head):
            return False
        widths = [max(map(_columns_of, map(visible, column))) + 2 for column in zip(head, *rows, strict=True)]
        return sum(widths) > self._console.width

    def row(self, head: Sequence[str], cells: Sequence[str], *, header: bool) -> None:
        """One row of an answer that goes on: its columns can grow, and never shrink."""
        if self._console is None:
            self._plain_table(head, [cells], header=header)
            return
        widths = self._widths.setdefault(tuple(head), [len(name) for name in head])
        texts = [visible(cell) for cell in cells]
        widths[:] = [max(width, _columns_of(text)) for width, text in zip(widths, texts, strict=True)]
        if header:
            self._console.print(_padded(head, widths, "bold"), soft_wrap=True)
        self._console.print(_padded(texts, widths), soft_wrap=True)

    def json_line(self, text: str) -> None:
        """One line that is JSON already."""
        self._stream.write(visible_json(text) + "\n")

    def record(self, value: Any) -> None:
        """One object on one line, as JSON."""
        self._stream.write(visible_json(json.dumps(value, ensure_ascii=False)) + "\n")

    def document(self, value: Any) -> None:
        """One JSON document on several lines."""
        self._stream.write(visible_json(json.dumps(value, ensure_ascii=False, indent=2)) + "\n")

    def flush(self) -> None:
        self._stream.flush()

    def close(self) -> None:
        if self.pager is None:
            return
        try:
            self._stream.close()
        except BrokenPipeError:
            pass
        finally:
            _wait_for(self.pager)

    def _plain_table(self, head: Sequence[str], rows: Sequence[Sequence[str]], *, header: bool) -> None:
        texts = [[visible(cell) or _NOTHING for cell in row] for row in rows]
        if header:
            texts.insert(0, [visible(cell) for cell in head])
        widths = self._widths.setdefault(tuple(head), [0] * len(head))
        for row in texts:
            widths[:] = [max(width, _columns_of(cell)) for width, cell in zip(widths, row, strict=True)]
        for row in texts:
            cells = [cell + " " * (width - _columns_of(cell)) for width, cell in zip(widths, row, strict=True)]
            self._stream.write("  ".join(cells).rstrip() + "\n")


@contextmanager
def progress(text: str) -> Iterator[None]:
    """While the body runs a terminal's standard error says what is waited for, unless an answer is on it already."""
    if _on_screen or not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        yield
        return
    _write_over(text)
    try:
        yield
    finally:
        _write_over("")


def _write_over(text: str) -> None:
    """Put `text` in place of the line that is there, as much of it as fits on one."""
    sys.stderr.write(f"\r{visible(text)[: shutil.get_terminal_size().columns - 1]}\x1b[K")
    sys.stderr.flush()


def note(text: str) -> None:
    """A line for people beside the answer."""
    sys.stderr.write(f"{visible(text)}\n")


def note_left_out(left_out: Any, text: str) -> None:
    """Say beside an answer which events of the archive it has not, if it says so, and what that means."""
    if left_out is not None:
        months = ", ".join(map(str, left_out["months"]))
        note(f"left out: {left_out['events']:,} event(s) of {months} are in the archive alone: {text}")


def store(path: Path, content: bytes) -> None:
    """Write the file at once: whoever finds it finds it whole, also after a crash."""
    with storing(path) as file:
        file.write(content)


@contextmanager
def storing(path: Path) -> Iterator[BinaryIO]:
    """A file to write, and to read; it is at `path` when the body has ended, and nowhere if that raises."""
    new = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with new.open("x+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _open(arguments: argparse.Namespace) -> Output:
    if arguments.json or not sys.stdout.isatty():
        return Output(sys.stdout, is_json=arguments.json, console=None, pager=None)
    from rich.console import Console

    class Screen(Console):
        def on_broken_pipe(self) -> None:
            """Not to the console's own end of the program, which is an exit with 1: somebody has left the pager."""
            raise BrokenPipeError

    size = shutil.get_terminal_size()
    pager = None if arguments.no_pager else _start_pager()
    stream = sys.stdout if pager is None or pager.stdin is None else pager.stdin
    console = Screen(
        file=stream,
        width=size.columns,
        force_terminal=True,
        highlight=False,
        markup=False,
        emoji=False,
        legacy_windows=False,
    )
    return Output(stream, is_json=False, console=console, pager=pager)


def _start_pager() -> "subprocess.Popen[str] | None":
    """PAGER, else less, in a way that ends at once if all fits on the screen. None where there is none."""
    command = os.environ.get("PAGER", "less").split()
    if not command or command[0] == "cat" or (path := shutil.which(command[0])) is None:
        return None
    environment = {"LESS": "-FRX"} | os.environ
    return subprocess.Popen(  # noqa: S603 -- the user's own pager
        [path, *command[1:]],
        stdin=subprocess.PIPE,
        env=environment,
        text=True,
        encoding=sys.stdout.encoding,
        errors="backslashreplace",
    )


def _wait_for(pager: "subprocess.Popen[str]") -> None:
    """Until the user leaves it: Ctrl-C is the pager's meanwhile."""
    while True:
        try:
            pager.wait()
        except KeyboardInterrupt:
            continue
        return


def _styled(text: str, style: str = "") -> "Text":
    from rich.text import Text

    return Text(text, style=style, overflow="fold")


def _padded(cells: Sequence[str], widths: Sequence[int], style: str = "") -> "Text":
    line = _styled("")
    for cell, width in zip(cells, widths, strict=True):
        line.append(cell + " " * (width - _columns_of(cell) + 2), style or _STYLES.get(cell, ""))
    line.rstrip()
    return line


def _rich_table(head: Sequence[str], rows: Sequence[Sequence[str]], *, header: bool) -> Any:
    from rich.table import Table

    table = Table(box=None, show_header=header, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    for name in head:
        table.add_column(_styled(visible(name)), overflow="fold")
    for row in rows:
        table.add_row(*(_styled(visible(cell), _STYLES.get(cell, "")) for cell in row))
    return table


def _columns_of(text: str) -> int:
    """How many columns of a terminal a text takes."""
    if text.isascii():
        return len(text)
    return sum(2 if east_asian_width(character) in "WF" else 1 for character in text)
