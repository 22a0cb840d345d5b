"""A copy of the log against the database: what differs, and on which side it was changed (docs/evidence.md).

The copy is read once, a portion at a time; each portion is compared in a snapshot of its own, which is younger than the portion. What
was purged or erased since the copy was made, and what a continued log admits to have lost, is no difference.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import asyncpg

from app.db import LONG_FETCH_SECONDS, Connection
from app.errors import Fatal
from app.events import kubernetes
from app.events.log import LOG_POSITIONS, Log
from app.events.positions import Positions
from app.export.select import sealed_positions
from app.query.filter import EventFilter
from app.sql import load
from app.stream.compare import Difference, Side, compare
from app.stream.copied import Copied, CopiedControl, CopiedEvent, CopiedManifest, Unreadable
from app.stream.place import parse_place, place_text
from app.stream.places import Places
from app.tlog.continued import Seam, keys_of, newest_log, read_seam
from app.tlog.evidence import NO_EVIDENCE, PURGED, leaves_at, read_evidence, read_self_events
from app.tlog.note import Checkpoint, PublicKey
from app.tlog.tiles import HashesMissing
from app.tlog.tiles import log_size as tiled_log_size
from app.verify.checkpoints import LogState, checkpoint_defect, parse_checkpoint, signers
from app.verify.extent import log_size
from app.verify.row import DEFECTS_MAX
from app.verify.snapshot import SQL as VERIFY_SQL
from app.verify.tree import read_tree

SQL = load("stream")
_EVENTS_AT_ONCE = 200
_POSITIONS_AT_ONCE = 50_000
_CHECKPOINTS_MAX = 10_000
"""Of the copy, each compared with the log. If there are more, every other one is."""
_NAMES_MAX = 100
_FORM = "expected what a stream says"


@dataclass(slots=True)
class CopyResult:
    """What was found."""

    events: int = 0
    """Of the logs, in the copy; one that came twice counts twice."""
    counts: Counter[str] = field(default_factory=Counter)
    """of events: same, different, purged, erased, lost, content not comparable, unsealed; positions: missing, left out; manifests: filtered,
    filter not signed; lines: cut off"""
    differences: list[Difference] = field(default_factory=list)
    """The first DEFECTS_MAX."""
    by_side: Counter[Side] = field(default_factory=Counter)
    first: int | None = None
    end: int = 0
    """The copy's places, from the first one up to, not including, this one."""
    checkpoints: int = 0
    """In the copy."""
    compared_checkpoints: int = 0
    signatures: Counter[str] = field(default_factory=Counter)
    """By label of the key: how many of the copy's checkpoints it has signed."""
    is_filtered: bool = False
    """It need not have all events, as the caller says."""

    @property
    def count(self) -> int:
        """How many differences there are."""
        return sum(self.by_side.values())

    def add(self, difference: Difference) -> None:
        self.by_side[difference.side] += 1
        if len(self.differences) < DEFECTS_MAX:
            self.differences.append(difference)


@dataclass(slots=True)
class _LogState:
    """What is signed of one log."""

    agreed: int = 0
    """The largest signed size at which the log is what was signed."""
    contradicted: int = 0
    """The largest signed size at which it is not."""
    seam: Seam | None = None
    """How it was closed."""


@dataclass(slots=True)
class _Part:
    """What events of the copy say that may be of one part of an export: it is believed when its manifest is known, or that it has none."""

    number: int = 0
    first: int | None = None
    end: int = 0
    """Their places, from the first one up to, not including, this one."""
    kinds: set[str] = field(default_factory=set)
    redacted: str | None = None
    """Where the first one is that says that it was redacted."""


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
        self._keys = keys
        self._evidence = NO_EVIDENCE
        self._evidence_at: tuple[Log, int] | None = None
        """The log, and how long it was, when that was read."""
        self._events, self._absent = Places(), Places()
        self._checkpoints: dict[tuple[str, int, bytes], tuple[str, str]] = {}
        """By log, size and root: where it stands, and its note."""
        self._of_manifests: set[tuple[str, int, bytes]] = set()
        """Those of them that only manifests of exports have, which were signed when the export was made: it need not have all of their events."""
        self._absences: list[tuple[str, int, int]] = []
        self._seams: list[tuple[str, int, int]] = []
        """Where each stands, its place, and the size of the closed log."""
        self._open: list[Difference] = []
        self._claimed: tuple[int, str] | None = None
        """The largest place before which the copy says that everything was sent, and where it says so."""
        self._redacted: str | None = None
        """Where the first event is that says that it was redacted, and no manifest that is of it says so too."""
        self._part = _Part()
        self._kinds: set[str] = set()
        """Of its events, those that a stream has only where they are asked for."""
        self._foreign: Counter[str] = Counter()
        """Names of logs that the database has not."""
        self._states: dict[int, _LogState] = {}

    async def begin(self) -> None:
        name = await self._connection.fetchval(VERIFY_SQL["log_name"])
        if name is None:
            raise Fatal("The table logs has no row for log 0: run `datastorage verify`.")
        self._log = Log(0, name)
        await self._read_sizes()

    async def _read_sizes(self) -> None:
        """The logs that there are now, and how long each is."""
        self._log = await newest_log(self._connection, self._log, self._keys)
        self._sizes: dict[int, int] = {}
        for log in self._log.and_earlier():
            seam = None if log.is_open else await read_seam(self._connection, Log(log.id + 1, log.first_name))
            if seam is None:
                rows = await self._connection.fetch(VERIFY_SQL.of(log)["stored_checkpoints"])
                notes, keys = [row["note"] for row in rows], keys_of(log, self._keys)
                self._sizes[log.id] = await log_size(self._connection, log, notes, keys)
            else:
                self._sizes[log.id] = seam.size
            self._states.setdefault(log.id, _LogState()).seam = seam

    def _log_named(self, name: object) -> Log | None:
        return next((log for log in self._log.and_earlier() if log.name == name), None)

    # What is no event.

    def add(self, item: CopiedControl | CopiedManifest | Unreadable) -> None:
        match item:
            case Unreadable(where, reason, is_cut):
                self.result.counts["cut off"] += is_cut
                if not is_cut:
                    self._add("copy", "edited", reason, where)
            case CopiedManifest(where, manifest, is_signed, _, defect):
                if defect is not None:
                    self._add("copy", "edited", defect, where)
                if self._keys and not is_signed:
                    self._add("copy", "wrong key", "the manifest has no signature by the key", where)
                if manifest.checkpoint is not None:
                    self._add_checkpoint(where, manifest.checkpoint, is_of_manifest=True)
                self._end_part(item)
            case CopiedControl(where, record):
                try:
                    self._add_record(where, record)
                except (KeyError, ValueError, TypeError) as error:
                    self._add("copy", "edited", f"{_FORM}: {error!r}", where)

    def _end_part(self, copied: CopiedManifest | None = None) -> None:
        """Believe what the events of a part say, as far as the manifest that is of them does not say otherwise."""
        part, self._part = self._part, _Part()
        if copied is not None and copied.part != part.number:
            self._believe(part, None)
            part = _Part()
        self._believe(part, copied)

    def _believe(self, part: _Part, copied: CopiedManifest | None) -> None:
        manifest = None if copied is None or copied.defect is not None else copied.manifest
        if part.redacted is not None and (manifest is None or not manifest.redacted):
            self._redacted = self._redacted or part.redacted
        if copied is not None and manifest is not None and manifest.filter.keys() - {"include"}:
            # Whoever has taken events out of a copy can write a manifest of the rest, but not sign it.
            self.result.counts["filtered" if copied.is_signed else "filter not signed"] += 1
            if copied.is_signed:
                return
        elif manifest is not None and manifest.next is None and part.first is not None:
            log = self._log_named(manifest.log)
            if log is not None:
                self._extend(part.first, log.place(max(0, min(manifest.log_size, self._sizes[log.id]))))
        self._kinds |= part.kinds
        if part.first is not None:
            self._extend(part.first, part.end)

    def _add(self, side: Side, kind: str, message: str, where: str | None, place: int | None = None) -> None:
        self.result.add(Difference(side, kind, message, place, where=where))

    def _add_record(self, where: str, record: dict[str, object]) -> None:  # noqa: C901 -- a case for each record
        match record["stream"]:
            case "absent":
                first, end = self._place(record["first"]), self._place(record["end"])
                if len(self._absences) < DEFECTS_MAX or self._has(first, end):
                    self._add_absence(where, first, end)
            case "seam":
                place, size = self._place(record["place"]), record["size"]
                if not isinstance(size, int):
                    raise TypeError("size is no number")
                if len(self._seams) < DEFECTS_MAX:
                    self._seams.append((where, place, size))
            case "checkpoint":
                place, text = self._place(record["place"]), record["note"]
                checkpoint = self._add_checkpoint(where, text)
                if checkpoint is not None and checkpoint.size != place % LOG_POSITIONS:
                    self._add("copy", "edited", f"the checkpoint is of {checkpoint.size} events", where, place)
            case "object":  # the manifest of one: all that matches is in it, from the one place up to the other
                first, end = self._place(record["first"]), self._place(record["next"])
                self._extend(first, end)
                if record["checkpoint"] is not None:
                    self._add_checkpoint(where, record["checkpoint"])
            case "position" | "closed":  # everything before it was sent
                place = self._place(record["place"])
                self._extend(place, place)
                if self._claimed is None or place > self._claimed[0]:
                    self._claimed = place, where
            case other:
                raise ValueError(f"a stream says nothing of {str(other)[:60]!r}")

    def _add_absence(self, where: str, first: int, end: int) -> None:
        """What the copy says of positions that the log does not have yet is looked at again in the end: it may grow meanwhile."""
        if self._has(first, end):
            self._absent.add_range(first, end)
            self._extend(first, end)
        else:
            self._absences.append((where, first, end))

    def _has(self, first: int, end: int) -> bool:
        """Whether a log has all these places."""
        log = self._log_at(first)
        return log is not None and first < end <= log.place(self._sizes[log.id])

    def _place(self, text: object) -> int:
        if not isinstance(text, str):
            raise TypeError("expected a place as text")
        return parse_place(text)

    def _log_at(self, place: int) -> Log | None:
        return next((log for log in self._log.and_earlier() if log.has(place)), None)

    def _add_checkpoint(self, where: str, text: object, *, is_of_manifest: bool = False) -> Checkpoint | None:
        self.result.checkpoints += 1
        checkpoint = parse_checkpoint(text) if isinstance(text, str) else None
        if checkpoint is None or not isinstance(text, str):
            self._add("copy", "forged checkpoint", "it is not a checkpoint", where)
            return None
        key = checkpoint.origin, checkpoint.size, checkpoint.root
        if not is_of_manifest:
            self._of_manifests.discard(key)
        elif key not in self._checkpoints:
            self._of_manifests.add(key)
        self._checkpoints.setdefault(key, (where, text))
        if len(self._checkpoints) > _CHECKPOINTS_MAX:
            self._checkpoints = dict(list(self._checkpoints.items())[1::2])  # the last one stays
            self._of_manifests &= self._checkpoints.keys()
        return checkpoint

    def _extend(self, first: int, end: int) -> None:
        """The copy has something about these places."""
        self.result.first = first if self.result.first is None else min(self.result.first, first)
        self.result.end = max(self.result.end, end)

    # Events.

    async def compare(self, portion: Sequence[CopiedEvent]) -> None:
        """Compare some events with what the log and the rows have at their places."""
        if not portion:
            return
        async with self._connection.transaction(isolation="repeatable_read", readonly=True):
            await self._connection.execute(VERIFY_SQL["long_statement_timeout"])
            await self._find_new_logs()
            placed = [(place, one) for one in portion if (place := self._place_of(one)) is not None]
            leaves = await leaves_at(self._connection, self._log, sorted({place for place, _ in placed}))
            rows = await self._rows_at({place for place, _ in placed})
            await self._read_evidence_of(rows, placed)
            for place, copied in placed:
                self._compare(copied, place, rows.get(place, ()), leaves.get(place))

    async def _find_new_logs(self) -> None:
        known = self._log
        if await newest_log(self._connection, known, self._keys) != known:
            await self._read_sizes()

    def _place_of(self, copied: CopiedEvent) -> int | None:
        """The place of an event that has one in a log of the database."""
        event, position = copied.event, copied.event["log_index"]
        if position is None:
            self.result.counts["unsealed"] += 1
            return None
        log = self._log_named(event["log"])
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

    async def _rows_at(self, places: set[int]) -> dict[int, list[asyncpg.Record]]:
        found: dict[int, list[asyncpg.Record]] = {}
        for log in self._log.and_earlier():
            positions = [place - log.place(0) for place in places if log.has(place)]
            if positions:
                for row in await self._connection.fetch(SQL.of(log)["rows_at"], positions, timeout=LONG_FETCH_SECONDS):
                    found.setdefault(log.place(row["log_index"]), []).append(row)
        return found

    async def _read_evidence_of(
        self, rows: dict[int, list[asyncpg.Record]], placed: Sequence[tuple[int, CopiedEvent]]
    ) -> None:
        """Read what was purged and erased if what is known of it does not explain these rows, and the log has grown since."""
        known = self._evidence
        marked = (place for place, there in rows.items() for row in there if row["payload_commitment"] is not None)
        if any(place not in rows and place not in known.missing for place, _ in placed) or any(
            place not in known.erased for place in marked
        ):
            at = self._log, await self._length()
            if at != self._evidence_at:
                self._evidence, self._evidence_at = await read_evidence(self._connection, self._log), at

    async def _length(self) -> int:
        """How long the last log is; -1 if that cannot be said, since it has no flush."""
        try:
            return await tiled_log_size(self._connection, self._log)
        except HashesMissing:
            return -1

    def _compare(self, copied: CopiedEvent, place: int, rows: Sequence[asyncpg.Record], leaf: str | None) -> None:
        result = self.result
        result.events += 1
        if copied.part != self._part.number:
            self._end_part()
            self._part.number = copied.part
        part = self._part
        if (kind := _kind(copied.event)) is not None:
            part.kinds.add(kind)
        if copied.event["redacted"] and part.redacted is None:
            part.redacted = copied.where
        known_end = self._log_at(place)
        if known_end is not None and (leaf is not None or place < known_end.place(self._sizes[known_end.id])):
            self._events.add(place)
            part.first = place if part.first is None else min(part.first, place)
            part.end = max(part.end, place + 1)
        try:
            verdicts = [compare(copied, place, row, leaf, self._log, self._evidence.erased) for row in rows or (None,)]
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
            if (why := self._why_absent(place)) is None and leaf is not None:
                event_id = str(copied.event["event_id"])
                message = "the event is missing, and no purge of it is recorded"
                found.append(Difference("database", "removed", message, place, event_id, copied.where))
            elif why is not None and verdict == "same":
                verdict = why
        self._count(verdict, found, place)

    def _why_absent(self, place: int) -> str | None:
        """Why a place has no row: purged or lost, as the log records; None if it does not."""
        if place in self._evidence.purged:
            return "purged"
        return "lost" if place in self._evidence.lost or self._is_admitted(place) else None

    def _is_admitted(self, place: int) -> bool:
        """Whether a closed log admits that what was at this place is not what it had signed."""
        log = self._log_at(place)
        seam = None if log is None else self._states[log.id].seam
        return seam is not None and log is not None and place - log.place(0) >= seam.agreed_size < seam.signed_size

    def _count(self, verdict: str, found: Sequence[Difference], place: int) -> None:
        result = self.result
        if found and all(one.is_open or one.kind == "removed" for one in found) and self._is_admitted(place):
            result.counts["lost"] += 1
            return
        result.counts["different" if found else verdict] += 1
        for one in found:
            if one.is_open and len(self._open) < DEFECTS_MAX:
                self._open.append(one)
            else:
                result.add(replace(one, side="either") if one.is_open else one)

    # The end.

    async def finish(self) -> CopyResult:
        result = self.result
        self._end_part()
        async with self._connection.transaction(isolation="repeatable_read", readonly=True):
            await self._connection.execute(VERIFY_SQL["long_statement_timeout"])
            await self._read_sizes()
            names = {name for name, _, _ in self._checkpoints}
            of_ours = result.events or result.counts["unsealed"] or any(self._log_named(name) for name in names)
            if self._foreign and not of_ours:
                [(other, _)] = self._foreign.most_common(1)
                raise Fatal(f"The copy is of the log {other!r}, the database has {self._log.first_name!r}.")
            late, self._absences = self._absences, []
            for absence in late:
                self._add_absence(*absence)
            for where, first, end in self._absences:
                self._open.append(
                    Difference("either", "inserted", f"the log has no {_between(first, end)}", first, None, where)
                )
            await self._compare_checkpoints()
            for one in self._open:
                result.add(self._decided(one))
            self._compare_seams()
            self._compare_claims()
            await self._compare_absent()
            await self._find_missing()
        return result

    async def _compare_checkpoints(self) -> None:
        """Compare the copy's checkpoints with the log's leaves; and where a side is still open, those of the database too."""
        for name in sorted({name for name, _, _ in self._checkpoints}):
            if self._log_named(name) is None:
                where = next(where for (origin, _, _), (where, _) in self._checkpoints.items() if origin == name)
                self._add(
                    "either",
                    "inserted",
                    f"a checkpoint is of the log {name[:200]!r}, which the database has not",
                    where,
                )
        for log in self._log.and_earlier():
            copied = {key: value for key, value in self._checkpoints.items() if key[0] == log.name}
            stored: list[str] = []
            if any(one.place is not None and log.has(one.place) for one in self._open):
                rows = await self._connection.fetch(
                    VERIFY_SQL.of(log)["stored_checkpoints"], timeout=LONG_FETCH_SECONDS
                )
                stored = [row["note"] for row in rows]
            if not copied and not stored:
                continue
            parsed = [checkpoint for note in stored if (checkpoint := parse_checkpoint(note)) is not None]
            sizes = {size for _, size, _ in copied} | {one.size for one in parsed}
            tree = await read_tree(self._connection, log, sizes, self._sizes[log.id])
            state = LogState(log.name, self._sizes[log.id], tree.roots)
            for where, note in copied.values():
                self._compare_checkpoint(log, state, where, note)
            for note in stored:
                self._learn(log, state, note)

    def _compare_checkpoint(self, log: Log, state: LogState, where: str, note: str) -> None:
        keys, checkpoint = keys_of(log, self._keys), parse_checkpoint(note)
        assert checkpoint is not None
        self.result.signatures.update(key.label for key in signers(note, keys))
        self.result.compared_checkpoints += checkpoint.size in state.roots or checkpoint.size > state.size
        defect = checkpoint_defect("the copy's checkpoint", note, keys, state)
        seam = self._states[log.id].seam
        if (
            defect is not None
            and defect.kind in {"edited", "rolled back"}
            and seam is not None
            and seam.admits(checkpoint)
        ):
            self.result.counts["admitted checkpoints"] += 1
            return
        self._learn(log, state, note)
        if defect is None:
            if (checkpoint.origin, checkpoint.size, checkpoint.root) not in self._of_manifests:
                self._extend_signed(log, checkpoint)
            return
        is_signed = bool(keys) and defect.kind in {"edited", "rolled back"}
        side: Side = "database" if is_signed else "copy" if keys else "either"
        message = defect.message.removeprefix(f"{defect.kind}: ")
        self._add(side, defect.kind, message, where, log.place(checkpoint.size))

    def _extend_signed(self, log: Log, checkpoint: Checkpoint) -> None:
        """A copy with a checkpoint has all events that it covers, from its first one on."""
        if self.result.first is not None and checkpoint.size:
            self._extend(self.result.first, log.place(checkpoint.size))

    def _learn(self, log: Log, state: LogState, note: str) -> None:
        """What a checkpoint that one of the keys has signed says of the log."""
        keys, checkpoint = keys_of(log, self._keys), parse_checkpoint(note)
        if checkpoint is None or checkpoint.origin != log.name or not keys:
            return
        defect = checkpoint_defect("", note, keys, state)
        known = self._states[log.id]
        if defect is None and checkpoint.size in state.roots:
            known.agreed = max(known.agreed, checkpoint.size)
        elif defect is not None and defect.kind in {"edited", "rolled back"}:
            known.contradicted = max(known.contradicted, checkpoint.size)

    def _decided(self, one: Difference) -> Difference:
        """A difference with the side that what was signed decides."""
        log = None if one.place is None else self._log_at(one.place)
        if log is None or one.place is None:
            return replace(one, side="either")
        position, known = one.place - log.place(0), self._states[log.id]
        if position < known.agreed:
            return replace(
                one, side="both" if one.row_agrees else "copy", message=f"{one.message}, which is as it was signed"
            )
        if position < known.contradicted:
            one = replace(one, kind="removed" if one.kind == "inserted" else one.kind)
            return replace(one, side="database", message=f"{one.message}, which is not what was signed")
        if one.row_agrees:
            return replace(one, side="database", message=f"{one.message}; the row has the copy's")
        return replace(one, side="either", message=f"{one.message}; no signed checkpoint decides which one was logged")

    def _compare_seams(self) -> None:
        for where, place, size in self._seams:
            log = self._log_at(place)
            if log is None or log.id == 0 or place != log.place(0):
                self._add("either", "rolled back", "the log was not continued there", where, place)
            elif size != self._sizes[log.id - 1]:
                message = f"the closed log has {self._sizes[log.id - 1]} positions, the copy says {size}"
                self._add("either", "edited", message, where, place)

    def _compare_claims(self) -> None:
        """What the copy says of itself: how far it goes, and that events in it are redacted."""
        if self._claimed is not None:
            place, where = self._claimed
            log = self._log_at(place)
            end = 0 if log is None else log.place(self._sizes[log.id])
            if place > end and not (log is not None and self._is_admitted(place)):
                message = f"it says that everything before {place_text(place)} was sent, but the log ends before"
                self._add("either", "rolled back", message, where, place)
        if self._redacted is not None:
            message = "it says that it is redacted, as only an export is, but no manifest that is of it says so"
            self._add("copy", "edited", message, self._redacted)

    async def _compare_absent(self) -> None:
        """What the copy says is absent is absent, or was when it was made."""
        once_purged: Positions | None = None
        for first, end, log in self._windows():
            ranges = [*self._absent.ranges(first, end)]
            if not ranges:
                continue
            present = await self._present(log, first, end)
            suspect = Positions(ranges).without(self._evidence.missing)
            there = Positions.of(place for place in present for _ in suspect.within(place, place + 1))
            if there and once_purged is None:
                once_purged = await self._once_purged()
            for a, b in there.without(once_purged or Positions()).ranges:
                message = f"the copy says that there was no event at {_between(a, b)}; the database has it"
                self._add("either", "inserted", message, None, a)

    async def _once_purged(self) -> Positions:
        """All that a purge has named, also what was restored then."""
        ranges = []
        async for payload, row in read_self_events(self._connection, self._log, [PURGED]):
            start = int(payload.get("log_id", 0)) * LOG_POSITIONS
            named = Positions.parse(str(payload.get("positions"))).within(0, LOG_POSITIONS)
            ranges += [(start + a, start + b) for a, b in named]
            del row
        return Positions(ranges)

    async def _find_missing(self) -> None:
        """Positions that the copy should have and has not."""
        self._evidence = await read_evidence(self._connection, self._log)
        for first, end, log in self._windows():
            gaps = Positions(self._events.ranges(first, end, absent=True)).without(
                Positions(self._absent.ranges(first, end))
            )
            if not gaps:
                continue
            present = await self._present(log, first, end)
            base = log.place(0)
            usual = await sealed_positions(self._connection, self._expected(), log, first - base, end - base)
            in_gaps = {place for place in present if place in gaps}
            missing = Positions.of(place for place in in_gaps if place - base in usual)
            self.result.counts["left out"] += len(in_gaps) - missing.size
            if self.result.is_filtered:
                self.result.counts["not in the copy"] += missing.size
            else:
                self.result.counts["missing"] += missing.size
                for a, b in missing.ranges:
                    self._add(
                        "copy", "removed", f"no event is at {_between(a, b)}, where the database has one", None, a
                    )
            for a, b in gaps.without(Positions.of(present)).without(self._evidence.missing).ranges:
                if not self._is_admitted(a):
                    message = (
                        f"no event is at {_between(a, b)}, no purge of it is recorded, and the copy has none either"
                    )
                    self._add("database", "removed", message, None, a)

    def _expected(self) -> EventFilter:
        """What a copy has that is no filtered one: what a stream has, and what it had to be asked for if there is any of its kind."""
        include = "all" if len(self._kinds) > 1 else next(iter(self._kinds), None)
        return EventFilter.model_validate({"include": include})

    async def _present(self, log: Log, first: int, end: int) -> set[int]:
        """The places between two places of a log at which there is a row."""
        base = log.place(0)
        rows = await self._connection.fetch(SQL.of(log)["positions_between"], first - base, end - base)
        return {base + row["log_index"] for row in rows}

    def _windows(self) -> Iterator[tuple[int, int, Log]]:
        """The copy's range, a part of a log at a time."""
        if self.result.first is None:
            return
        for log in self._log.and_earlier():
            first = max(self.result.first, log.place(0))
            end = min(self.result.end, log.place(self._sizes[log.id]))
            for start in range(first, end, _POSITIONS_AT_ONCE):
                yield start, min(end, start + _POSITIONS_AT_ONCE), log


def _kind(event: dict[str, Any]) -> str | None:
    """By which `include` an event is asked for, if it has to be (query/filter.py)."""
    category, event_type = event["event_category"], event["event_type"]
    if category == kubernetes.CATEGORY:
        return "kubernetes"
    is_own = category == "security" and isinstance(event_type, str) and event_type.startswith("datastorage.")
    return "self" if is_own and event_type != "datastorage.ratelimit.denied" else None


def _between(first: int, end: int) -> str:
    return place_text(first) if end == first + 1 else f"{place_text(first)} to {place_text(end - 1)}"
