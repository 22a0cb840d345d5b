"""Rows of the archive's files in another order than theirs, with as many in memory as fit."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from itertools import groupby
from typing import Any, NamedTuple

import pyarrow as pa

from app.archive.columns import NAMES, rows_of
from app.archive.question import FoundRow
from app.archive.reader import Group, batches_at

_ROWS_AT_ONCE = 128
_PORTION_BYTES = 1024**2
_GROUP_BITS = 32


def packed(group: int, row: int) -> int:
    """The number of a row group and that of one of its rows, as one number."""
    return group << _GROUP_BITS | row


class Places(NamedTuple):
    """Where rows are, in the order in which they are wanted."""

    groups: Sequence[Group]
    rows: pa.Array
    """Of each row the number of its group and its own, packed()."""

    def at(self, number: int) -> tuple[int, int]:
        """Number of the group and of the row of the n-th one."""
        place: int = self.rows[number].as_py()
        return divmod(place, 1 << _GROUP_BITS)

    def read(self, bytes_max: int) -> Iterator[tuple[Group, dict[str, Any]]]:
        """The rows, each with its row group. About so many bytes of them are in memory at once, but at least one row."""
        row_bytes = cache(lambda number: self.groups[number].row_bytes)
        start = 0
        while start < len(self.rows):
            end, size = start, 0
            while end < len(self.rows):
                size += row_bytes(self.at(end)[0])
                if size > bytes_max and end > start:
                    break
                end += 1
            while (window := self._window(start, end, bytes_max)) is None:  # large rows beside small ones
                end = start + (end - start + 1) // 2
            yield from window
            start = end

    def _window(self, start: int, end: int, bytes_max: int) -> Iterator[tuple[Group, dict[str, Any]]] | None:
        """The rows from the n-th one up to, not including, another; None if they are far more than so many bytes, and not one row."""
        wanted = [self.at(number) for number in range(start, end)]
        by_group: defaultdict[int, set[int]] = defaultdict(set)
        for number, row in wanted:
            by_group[number].add(row)
        batches, size = list[pa.RecordBatch](), 0
        chosen = [(self.groups[number], by_group[number]) for number in sorted(by_group)]
        for file, in_file in groupby(chosen, key=lambda one: one[0].file):
            with file.open() as opened:
                for group, rows in in_file:
                    for _, batch in batches_at(opened, group.number, rows):
                        batches.append(batch.select(list(NAMES)))
                        size += batch.nbytes
                        if size > 1.5 * bytes_max and end - start > 1:
                            return None
        return self._in_order(pa.concat_batches(batches), wanted)

    def _in_order(
        self, window: pa.RecordBatch, wanted: Sequence[tuple[int, int]]
    ) -> Iterator[tuple[Group, dict[str, Any]]]:
        """The rows of a window, in which they are in the order of groups and rows."""
        at = {place: number for number, place in enumerate(sorted(wanted))}
        for start in range(0, len(wanted), _ROWS_AT_ONCE):
            some = wanted[start : start + _ROWS_AT_ONCE]
            rows = window.take(pa.array([at[place] for place in some], pa.int64()))
            for (number, _), row in zip(some, rows_of([column.to_pylist() for column in rows.columns]), strict=True):
                yield self.groups[number], row


def in_portions(found: Iterable[FoundRow]) -> Iterator[list[FoundRow]]:
    """As they are answered."""
    portion, size = list[FoundRow](), 0
    for one in found:
        portion.append(one)
        size += len(one.row["event_data"])
        if len(portion) == _ROWS_AT_ONCE or size >= _PORTION_BYTES:
            yield portion
            portion, size = [], 0
    if portion:
        yield portion
