"""What a copy says besides its events: records of a stream, manifests of exports and objects, and lines that are neither."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from app.events import kubernetes
from app.events.log import LOG_POSITIONS
from app.events.positions import Positions
from app.query.filter import EventFilter
from app.stream.compare import Difference
from app.stream.copied import CopiedControl, CopiedEvent, CopiedManifest, Unreadable
from app.stream.copy_checkpoints import CopiedCheckpoints
from app.stream.copy_logs import KnownLogs, between
from app.stream.copy_result import CopyResult
from app.stream.place import parse_place, place_text
from app.stream.places import Places
from app.tlog.note import PublicKey
from app.verify.row import DEFECTS_MAX

_FORM = "expected what a stream says"


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


class CopiedRecords:
    """What was read of the copy besides its events, and what is compared of that in the end."""

    def __init__(
        self, logs: KnownLogs, keys: Sequence[PublicKey], checkpoints: CopiedCheckpoints, result: CopyResult
    ) -> None:
        self.absent = Places()
        """What the copy says is absent."""
        self._logs, self._keys, self._checkpoints, self._result = logs, keys, checkpoints, result
        self._absences: list[tuple[str, int, int]] = []
        self._seams: list[tuple[str, int, int]] = []
        """Where each stands, its place, and the size of the closed log."""
        self._claimed: tuple[int, str] | None = None
        """The largest place before which the copy says that everything was sent, and where it says so."""
        self._redacted: str | None = None
        """Where the first event is that says that it was redacted, and no manifest that is of it says so too."""
        self._part = _Part()
        self._kinds: set[str] = set()
        """Of its events, those that a stream has only where they are asked for."""

    def expected(self) -> EventFilter:
        """What a copy has that is no filtered one: what a stream has, and what it had to be asked for if there is any of its kind."""
        include = "all" if len(self._kinds) > 1 else next(iter(self._kinds), None)
        return EventFilter.model_validate({"include": include})

    # Read one after another.

    def add(self, item: CopiedControl | CopiedManifest | Unreadable) -> None:
        """Add what is no event. The events before it were compared."""
        match item:
            case Unreadable(where, reason, is_cut):
                self._result.counts["cut off"] += is_cut
                if not is_cut:
                    self._result.report("copy", "edited", reason, where)
            case CopiedManifest(where, manifest, is_signed, _, defect):
                if defect is not None:
                    self._result.report("copy", "edited", defect, where)
                if self._keys and not is_signed:
                    self._result.report("copy", "wrong key", "the manifest has no signature by the key", where)
                if manifest.checkpoint is not None:
                    self._checkpoints.add(where, manifest.checkpoint, is_of_manifest=True)
                self.end_part(item)
            case CopiedControl(where, record):
                try:
                    self._add_record(where, record)
                except (KeyError, ValueError, TypeError) as error:
                    self._result.report("copy", "edited", f"{_FORM}: {error!r}", where)

    def note_event(self, copied: CopiedEvent) -> None:
        """An event, which may be of the same part of an export as the one before it."""
        if copied.part != self._part.number:
            self.end_part()
            self._part.number = copied.part
        part = self._part
        if (kind := _kind(copied.event)) is not None:
            part.kinds.add(kind)
        if copied.event["redacted"] and part.redacted is None:
            part.redacted = copied.where

    def note_place(self, place: int) -> None:
        """The place of that event, if a log has it."""
        part = self._part
        part.first = place if part.first is None else min(part.first, place)
        part.end = max(part.end, place + 1)

    def end_part(self, copied: CopiedManifest | None = None) -> None:
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
            self._result.counts["filtered" if copied.is_signed else "filter not signed"] += 1
            if copied.is_signed:
                return
        elif manifest is not None and manifest.next is None and part.first is not None:
            log = self._logs.named(manifest.log)
            if log is not None:
                self._result.extend(part.first, log.place(max(0, min(manifest.log_size, self._logs.sizes[log.id]))))
        self._kinds |= part.kinds
        if part.first is not None:
            self._result.extend(part.first, part.end)

    def _add_record(self, where: str, record: dict[str, object]) -> None:  # noqa: C901 -- a case for each record
        match record["stream"]:
            case "absent":
                first, end = _place(record["first"]), _place(record["end"])
                if len(self._absences) < DEFECTS_MAX or self._logs.has(first, end):
                    self._add_absence(where, first, end)
            case "seam":
                place, size = _place(record["place"]), record["size"]
                if not isinstance(size, int):
                    raise TypeError("size is no number")
                if len(self._seams) < DEFECTS_MAX:
                    self._seams.append((where, place, size))
            case "checkpoint":
                place, text = _place(record["place"]), record["note"]
                checkpoint = self._checkpoints.add(where, text)
                if checkpoint is not None and checkpoint.size != place % LOG_POSITIONS:
                    message = f"the checkpoint is of {checkpoint.size} events"
                    self._result.report("copy", "edited", message, where, place)
            case "object":  # the manifest of one: all that matches is in it, from the one place up to the other
                first, end = _place(record["first"]), _place(record["next"])
                self._result.extend(first, end)
                if record["checkpoint"] is not None:
                    self._checkpoints.add(where, record["checkpoint"])
            case "position" | "closed":  # everything before it was sent
                place = _place(record["place"])
                self._result.extend(place, place)
                if self._claimed is None or place > self._claimed[0]:
                    self._claimed = place, where
            case other:
                raise ValueError(f"a stream says nothing of {str(other)[:60]!r}")

    def _add_absence(self, where: str, first: int, end: int) -> None:
        """What the copy says of positions that the log does not have yet is looked at again in the end: it may grow meanwhile."""
        if self._logs.has(first, end):
            self.absent.add_range(first, end)
            self._result.extend(first, end)
        else:
            self._absences.append((where, first, end))

    # Compared in the end.

    def undecided_absences(self) -> list[Difference]:
        """What the copy says of positions that the log does not have."""
        late, self._absences = self._absences, []
        for absence in late:
            self._add_absence(*absence)
        return [
            Difference("either", "inserted", f"the log has no {between(first, end)}", first, None, where)
            for where, first, end in self._absences
        ]

    def compare_seams(self) -> None:
        """Where the copy says that a log was continued, it was."""
        for where, place, size in self._seams:
            log = self._logs.at(place)
            if log is None or log.id == 0 or place != log.place(0):
                self._result.report("either", "rolled back", "the log was not continued there", where, place)
            elif size != self._logs.sizes[log.id - 1]:
                message = f"the closed log has {self._logs.sizes[log.id - 1]} positions, the copy says {size}"
                self._result.report("either", "edited", message, where, place)

    def compare_claims(self) -> None:
        """What the copy says of itself: how far it goes, and that events in it are redacted."""
        if self._claimed is not None:
            place, where = self._claimed
            log = self._logs.at(place)
            end = 0 if log is None else self._logs.end_of(log)
            if place > end and not (log is not None and self._logs.is_admitted(place)):
                message = f"it says that everything before {place_text(place)} was sent, but the log ends before"
                self._result.report("either", "rolled back", message, where, place)
        if self._redacted is not None:
            message = "it says that it is redacted, as only an export is, but no manifest that is of it says so"
            self._result.report("copy", "edited", message, self._redacted)

    async def compare_absent(self) -> None:
        """What the copy says is absent is absent, or was when it was made."""
        once_purged: Positions | None = None
        for first, end, log in self._logs.windows(self._result.first, self._result.end):
            ranges = [*self.absent.ranges(first, end)]
            if not ranges:
                continue
            present = await self._logs.present(log, first, end)
            suspect = Positions(ranges).without(self._logs.evidence.missing)
            there = Positions.of(place for place in present for _ in suspect.within(place, place + 1))
            if there and once_purged is None:
                once_purged = await self._logs.once_purged()
            for a, b in there.without(once_purged or Positions()).ranges:
                message = f"the copy says that there was no event at {between(a, b)}; the database has it"
                self._result.report("either", "inserted", message, None, a)


def _place(text: object) -> int:
    if not isinstance(text, str):
        raise TypeError("expected a place as text")
    return parse_place(text)


def _kind(event: dict[str, Any]) -> str | None:
    """By which `include` an event is asked for, if it has to be (query/filter.py)."""
    category, event_type = event["event_category"], event["event_type"]
    if category == kubernetes.CATEGORY:
        return "kubernetes"
    is_own = category == "security" and isinstance(event_type, str) and event_type.startswith("datastorage.")
    return "self" if is_own and event_type != "datastorage.ratelimit.denied" else None
