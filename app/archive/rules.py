"""By the columns of a part's files: which of its events are over by the rules of a purge, and which a hold covers."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from app.archive.matching import id_bytes
from app.archive.writing import SQL
from app.db import Connection
from app.retention.policy import Terms

ReadColumn = Callable[[str], pa.Array]
"""The values of a column of some rows."""
Bounds = Callable[[str], tuple[Any, Any] | None]
"""The smallest and the largest value of a column of some rows; None if nobody knows."""
OF_HOLDS = ("correlation_id", "actor_id", "resource_type", "resource_id", "event_timestamp")
"""The columns that selectors are about."""
COLUMNS = (*OF_HOLDS, "log_index", "event_category", "event_type", "retention_days")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_Kind = tuple[str, str, int | None]
"""Category, type and own days of an event."""


class _Selector(NamedTuple):
    hold_id: str
    correlation_id: str | None
    actor_id: str | None
    resource_type: str | None
    resource_id: str | None
    time_from: int | None
    time_to: int | None
    """Microseconds since 1970."""

    @property
    def is_of_correlation(self) -> bool:
        """Whether it is about a correlation alone."""
        return self.correlation_id is not None and not any((self.actor_id, self.resource_id, self.time_from))

    def may_cover(self, bounds: Bounds) -> bool:
        """Whether it can cover one of some rows."""
        if self.time_from is not None and self.time_to is not None:
            times = bounds("event_timestamp")
            if times is None or (_since_1970(times[0]) <= self.time_to and _since_1970(times[1]) >= self.time_from):
                return True
        values = {name: getattr(self, name) for name in ("correlation_id", "actor_id", "resource_id")}
        return any(
            value is not None and ((found := bounds(name)) is None or found[0] <= value <= found[1])
            for name, value in values.items()
        )

    def covers(self, column: ReadColumn) -> pa.Array:
        """Which rows it covers."""
        masks = []
        for name, value in (("correlation_id", self.correlation_id), ("actor_id", self.actor_id)):
            if value is not None:
                masks.append(pc.equal(column(name), value))
        if self.resource_id is not None and self.resource_type is not None:
            of_type = pc.equal(column("resource_type"), self.resource_type)
            masks.append(pc.and_(pc.equal(column("resource_id"), self.resource_id), of_type))
        if self.time_from is not None and self.time_to is not None:
            times = pc.cast(column("event_timestamp"), pa.int64())
            masks.append(pc.and_(pc.greater_equal(times, self.time_from), pc.less_equal(times, self.time_to)))
        return _any(masks) if masks else pa.array([False] * len(column("event_timestamp")))


class GroupColumns:
    """Columns of a row group of a file of events."""

    def __init__(self, opened: pq.ParquetFile, group: int, names: Sequence[str] = COLUMNS) -> None:
        table = opened.read_row_group(group, columns=list(names), use_threads=False)
        self._arrays = {name: id_bytes(table.column(name)) for name in names}
        self.rows = table.num_rows

    def __call__(self, name: str) -> pa.Array:
        return self._arrays[name]


class Holds:
    """What holds cover that are in force: those of the table and those of the log, as hold_of() of Postgres has them."""

    def __init__(self, selectors: Sequence[_Selector]) -> None:
        self._selectors = selectors
        self.ids = frozenset(one.hold_id for one in selectors)
        self._others = [one for one in selectors if not one.is_of_correlation]
        self._of_correlations = {one.correlation_id: one for one in selectors if one.is_of_correlation}

    @classmethod
    async def read(cls, connection: Connection) -> "Holds":
        """`connection` follows the holds of the log (InForce)."""
        return cls([_Selector(*row) for row in await connection.fetch(SQL["active_selectors"])])

    def __bool__(self) -> bool:
        """Whether there is any."""
        return bool(self._selectors)

    def may_cover(self, bounds: Bounds) -> bool:
        """Whether one of them can cover one of some rows."""
        return any(one.may_cover(bounds) for one in self._selectors)

    def covering(self, column: ReadColumn) -> tuple[pa.Array | None, list[str]]:
        """Which rows are covered, and the ids of the holds that cover some; None without any hold."""
        masks = [(one.hold_id, one.covers(column)) for one in self._others]
        ids = [hold_id for hold_id, mask in masks if pc.any(mask).as_py()]
        found = [mask for _, mask in masks]
        if self._of_correlations:
            values = column("correlation_id")
            held = pc.is_in(values, value_set=pa.array(self._of_correlations, values.type))
            found.append(held)
            ids += [self._of_correlations[one].hold_id for one in pc.unique(pc.filter(values, held)).to_pylist()]
        if not found:
            return None, []
        return pc.fill_null(_any(found), fill_value=False), ids


@dataclass(slots=True)
class Judged:
    """What the rules say of events."""

    events: int = 0
    newest: dict[str, int] = field(default_factory=dict)
    """By category, when the newest event that is over has happened, in microseconds since 1970."""
    not_over: int = 0
    until: int = 0
    """When the last of these is over, in microseconds since 1970."""
    held: int = 0
    holds: set[str] = field(default_factory=set)
    """The ids of those that cover them."""
    without_end: list[int] = field(default_factory=list)
    """The positions of events that are never over."""

    def __bool__(self) -> bool:
        """Whether something is over, and nothing has to stay but what is never over."""
        return bool(self.newest) and not self.not_over and not self.held


class Rules:
    """The rules at one time. The connection follows the holds and policies of the log (InForce)."""

    def __init__(self, connection: Connection, terms: Terms, holds: Holds) -> None:
        self._connection = connection
        self._terms = terms
        self._holds = holds
        self._cutoffs: dict[_Kind, int | None] = {}
        self._now = _since_1970(terms.now)

    async def add(self, judged: Judged, column: ReadColumn) -> None:
        """Judge some rows."""
        kinds = list(zip(*(column(name).to_pylist() for name in COLUMNS[-3:]), strict=True))
        times = pc.cast(column("event_timestamp"), pa.int64()).to_pylist()
        await self._read_cutoffs({*kinds} - self._cutoffs.keys())
        for kind, time, position in zip(kinds, times, column("log_index").to_pylist(), strict=True):
            before = self._cutoffs[kind]
            if before is None:
                judged.without_end.append(position)
            elif time < before:
                judged.newest[kind[0]] = max(time, judged.newest.get(kind[0], time))
            else:
                judged.not_over += 1
                judged.until = max(judged.until, time + self._now - before)
        judged.events += len(kinds)
        held, ids = self._holds.covering(column)
        judged.holds |= {*ids}
        judged.held += pc.sum(held).as_py() if held is not None else 0

    async def _read_cutoffs(self, kinds: Collection[_Kind]) -> None:
        if not kinds:
            return
        wanted = list(kinds)
        columns = [list(values) for values in zip(*wanted, strict=True)]
        rows = await self._connection.fetch(SQL["cutoffs"], *self._terms.columns(), *columns)
        self._cutoffs |= {kind: row["before"] for kind, row in zip(wanted, rows, strict=True)}


def _any(masks: Sequence[pa.Array]) -> pa.Array:
    every = masks[0]
    for one in masks[1:]:
        every = pc.or_kleene(every, one)
    return every


def _since_1970(time: datetime) -> int:
    """In microseconds."""
    return (time.astimezone(UTC) - _EPOCH) // timedelta(microseconds=1)
