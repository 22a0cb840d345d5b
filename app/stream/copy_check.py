"""A copy of the log against the database: what differs, and on which side it was changed (docs/evidence.md).

The copy is read once, a portion at a time; each portion is compared in a snapshot of its own, which is younger than the portion. What
was purged or erased since the copy was made, and what a continued log admits to have lost, is no difference.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import asyncpg

from app.db import Connection
from app.errors import Fatal
from app.events.log import LOG_POSITIONS
from app.events.positions import Positions
from app.export.select import sealed_positions
from app.stream.compare import Difference, compare
from app.stream.copied import Copied, CopiedControl, CopiedEvent, CopiedManifest, Unreadable
from app.stream.copy_checkpoints import CopiedCheckpoints
from app.stream.copy_logs import KnownLogs, between
from app.stream.copy_records import CopiedRecords
from app.stream.copy_result import CopyResult
from app.stream.places import Places
from app.tlog.evidence import leaves_at
from app.tlog.note import PublicKey
from app.verify.row import DEFECTS_MAX
from app.verify.snapshot import SQL as VERIFY_SQL

_EVENTS_AT_ONCE = 200
_NAMES_MAX = 100


async def check_copy(
    connection: Connection,
    copy: Iterable[Copied],
    keys: Sequence[PublicKey],
    *,
    is_filtered: bool,
    show: Callable[[int], None],
) -> CopyResult:
    """Compare a copy with the database. `is_filtered`: it need not have all events. `show` is told how many were compared.

    Fatal if there is no log, or if all that the copy has is of another one.
    """
    checker = _Checker(connection, keys, is_filtered=is_filtered)
    await checker.begin()
    portion: list[CopiedEvent] = []
    for item in copy:
        if isinstance(item, CopiedEvent):
            portion.append(item)
            if len(portion) == _EVENTS_AT_ONCE:
                await checker.compare(portion)
                portion.clear()
                show(checker.result.events)
        else:
            if isinstance(item, CopiedManifest):  # it is of the events before it
                await checker.compare(portion)
                portion.clear()
            checker.add(item)
    await checker.compare(portion)
    return await checker.finish()


class _Checker:
    def __init__(self, connection: Connection, keys: Sequence[PublicKey], *, is_filtered: bool) -> None:
        self.result = CopyResult(is_filtered=is_filtered)
        self._connection = connection
        self._logs = KnownLogs(connection, keys)
        self._checkpoints = CopiedCheckpoints(connection, self._logs, keys, self.result)
        self._records = CopiedRecords(self._logs, keys, self._checkpoints, self.result)
        self._events = Places()
        self._open: list[Difference] = []
        self._foreign: Counter[str] = Counter()
        """Names of logs that the database has not."""

    async def begin(self) -> None:
        await self._logs.begin()

    def add(self, item: CopiedControl | CopiedManifest | Unreadable) -> None:
        self._records.add(item)

    async def compare(self, portion: Sequence[CopiedEvent]) -> None:
        """Compare some events with what the log and the rows have at their places."""
        if not portion:
            return
        async with self._connection.transaction(isolation="repeatable_read", readonly=True):
            await self._connection.execute(VERIFY_SQL["long_statement_timeout"])
            await self._logs.find_new()
            placed = [(place, one) for one in portion if (place := self._place_of(one)) is not None]
            places = {place for place, _ in placed}
            leaves = await leaves_at(self._connection, self._logs.last, sorted(places))
            rows = await self._logs.rows_at(places)
            await self._logs.explain(sorted(places), rows)
            for place, copied in placed:
                self._compare(copied, place, rows.get(place, ()), leaves.get(place))

    def _place_of(self, copied: CopiedEvent) -> int | None:
        """The place of an event that has one in a log of the database."""
        event, position = copied.event, copied.event["log_index"]
        if position is None:
            self.result.counts["unsealed"] += 1
            return None
        log = self._logs.named(event["log"])
        if (
            log is None
            or isinstance(position, bool)
            or not isinstance(position, int)
            or not 0 <= position < LOG_POSITIONS
        ):
            if log is None and len(self._foreign) < _NAMES_MAX:
                self._foreign[str(event["log"])[:200]] += 1
            what = (
                f"it is of the log {str(event['log'])[:200]!r}, which the database has not"
                if log is None
                else "it has no position"
            )
            self.result.add(Difference("either", "inserted", what, None, str(event["event_id"])[:60], copied.where))
            return None
        return log.place(position)

    def _compare(self, copied: CopiedEvent, place: int, rows: Sequence[asyncpg.Record], leaf: str | None) -> None:
        result, erased = self.result, self._logs.evidence.erased
        result.events += 1
        self._records.note_event(copied)
        known = self._logs.at(place)
        if known is not None and (leaf is not None or place < self._logs.end_of(known)):
            self._events.add(place)
            self._records.note_place(place)
        try:
            verdicts = [compare(copied, place, row, leaf, self._logs.last, erased) for row in rows or (None,)]
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
            result.counts["different"] += 1
            event_id = str(copied.event["event_id"])[:60]
            result.add(Difference("copy", "edited", f"it is no event: {error}", place, event_id, copied.where))
            return
        verdict: str
        verdict, found = min(verdicts, key=lambda one: len(one[1]))  # the row that was logged, if others are there too
        if len(rows) > 1:
            found.append(
                Difference("database", "inserted", "several rows are at this position", place, None, copied.where)
            )
        if not rows:
            if (why := self._logs.why_absent(place)) is None and leaf is not None:
                event_id = str(copied.event["event_id"])
                message = "the event is missing, and no purge of it is recorded"
                found.append(Difference("database", "removed", message, place, event_id, copied.where))
            elif why is not None and verdict == "same":
                verdict = why
        self._count(verdict, found, place)

    def _count(self, verdict: str, found: Sequence[Difference], place: int) -> None:
        result = self.result
        if found and all(one.is_open or one.kind == "removed" for one in found) and self._logs.is_admitted(place):
            result.counts["lost"] += 1
            return
        result.counts["different" if found else verdict] += 1
        for one in found:
            if one.is_open and len(self._open) < DEFECTS_MAX:
                self._open.append(one)
            else:
                result.add(replace(one, side="either") if one.is_open else one)

    async def finish(self) -> CopyResult:
        result = self.result
        self._records.end_part()
        async with self._connection.transaction(isolation="repeatable_read", readonly=True):
            await self._connection.execute(VERIFY_SQL["long_statement_timeout"])
            await self._logs.read_sizes()
            of_ours = (
                result.events or result.counts["unsealed"] or any(map(self._logs.named, self._checkpoints.names()))
            )
            if self._foreign and not of_ours:
                [(other, _)] = self._foreign.most_common(1)
                raise Fatal(f"The copy is of the log {other!r}, the database has {self._logs.last.first_name!r}.")
            self._open += self._records.undecided_absences()
            await self._checkpoints.compare(self._open)
            for one in self._open:
                result.add(self._checkpoints.decided(one))
            self._records.compare_seams()
            self._records.compare_claims()
            await self._records.compare_absent()
            await self._find_missing()
        return result

    async def _find_missing(self) -> None:
        """Positions that the copy should have and has not."""
        await self._logs.read_evidence()
        for first, end, log in self._logs.windows(self.result.first, self.result.end):
            gaps = Positions(self._events.ranges(first, end, absent=True)).without(
                Positions(self._records.absent.ranges(first, end))
            )
            if not gaps:
                continue
            present = await self._logs.present(log, first, end)
            base = log.place(0)
            usual = await sealed_positions(self._connection, self._records.expected(), log, first - base, end - base)
            in_gaps = {place for place in present if place in gaps}
            missing = Positions.of(place for place in in_gaps if place - base in usual)
            self.result.counts["left out"] += len(in_gaps) - missing.size
            if self.result.is_filtered:
                self.result.counts["not in the copy"] += missing.size
            else:
                self.result.counts["missing"] += missing.size
                for a, b in missing.ranges:
                    message = f"no event is at {between(a, b)}, where the database has one"
                    self.result.report("copy", "removed", message, None, a)
            for a, b in gaps.without(Positions.of(present)).without(self._logs.evidence.missing).ranges:
                if not self._logs.is_admitted(a):
                    message = (
                        f"no event is at {between(a, b)}, no purge of it is recorded, and the copy has none either"
                    )
                    self.result.report("database", "removed", message, None, a)
