"""One finding: defects of one kind that were found together, their id and their event's payload. Pure.

The same are defects of the same kind at the same position of the log, or of the same subject: a chain, a row, a checkpoint.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple
from uuid import UUID, uuid5

import orjson

from app.events.log import LOG_POSITIONS, Log
from app.events.positions import Positions, Range
from app.tlog.evidence import FOUND
from app.verify.row import Defect

RANGES_MAX = 1_000
SUBJECTS_MAX = 100
CORRELATIONS_MAX = 10
_TEXT_MAX = 300
_MORE = "more"
"""A subject that stands for all further ones of the kind."""
_NAMESPACE = UUID("5f1c1d0e-6a0b-5d3c-9b7e-1f2a43c0d9e8")

Subject = int | str
"""A position in the log, or what else a defect is about."""


class Acknowledgement(NamedTuple):
    """That somebody has seen a finding."""

    by: str
    reason: str
    at: datetime


@dataclass(frozen=True, slots=True)
class Finding:
    """Defects of one kind in one log, as an event of the log has them, or will have them."""

    id: UUID
    kind: str
    log_id: int
    positions: Positions
    subjects: tuple[str, ...]
    defect_count: int
    detail: str
    correlation_ids: tuple[str, ...] = ()
    alarm: str = ""
    recorded_at: datetime | None = None
    """None as long as its event was not read from the log."""
    place: int | None = None
    """Where it is among the events of all logs; None as above."""
    acknowledgement: Acknowledgement | None = None

    def covers(self, kind: str, log_id: int, subject: Subject) -> bool:
        """Whether a defect of this kind in this log belongs to this finding."""
        if (kind, log_id) != (self.kind, self.log_id):
            return False
        if isinstance(subject, int):
            return subject in self.positions
        return subject in self.subjects or _MORE in self.subjects

    def payload(self) -> dict[str, Any]:
        """The payload of the event that records it."""
        members = {"alarm": self.alarm, "subjects": list(self.subjects), "correlation_ids": list(self.correlation_ids)}
        return {
            "event_type": FOUND,
            "finding_id": str(self.id),
            "kind": self.kind,
            "log_id": self.log_id,
            "positions": str(self.positions),
            "defect_count": self.defect_count,
            "detail": self.detail,
        } | {name: value for name, value in members.items() if value}

    def listed(self) -> dict[str, Any]:
        """The finding as it is shown. Members without a value are left out: nothing may be null."""
        position = None if self.place is None else self.place % LOG_POSITIONS
        members = self.payload() | {"recorded_at": _text(self.recorded_at), "log_index": position}
        if self.acknowledgement is not None:
            by, reason, at = self.acknowledgement
            members |= {"acknowledged_by": by, "reason": reason, "acknowledged_at": _text(at)}
        del members["event_type"]
        return {name: value for name, value in members.items() if value is not None}

    @classmethod
    def of_payload(cls, payload: dict[str, Any], recorded_at: datetime, place: int) -> "Finding":
        """The finding that an event of the log records. Raises KeyError, TypeError or ValueError if it is none of ours."""
        return cls(
            UUID(payload["finding_id"]),
            str(payload["kind"]),
            int(payload.get("log_id", 0)),
            Positions.parse(str(payload["positions"])),
            tuple(map(str, payload.get("subjects", ()))),
            int(payload["defect_count"]),
            str(payload["detail"]),
            tuple(map(str, payload.get("correlation_ids", ()))),
            str(payload.get("alarm", "")),
            recorded_at,
            place,
        )


def _text(time: datetime | None) -> str | None:
    return None if time is None else f"{time.astimezone(UTC):%Y-%m-%dT%H:%M:%S.%f}Z"


def subject_of(defect: Defect) -> Subject:
    """What makes a defect the same as another one of its kind."""
    if defect.subject:
        return defect.subject
    if defect.position is not None:
        return defect.position
    if defect.event_id is not None:
        return f"event {defect.event_id}"
    return f"correlation {defect.correlation_id}" if defect.correlation_id else defect.message[:_TEXT_MAX]


@dataclass(slots=True)
class Group:
    """Defects of one kind that are not recorded yet, however many there are."""

    kind: str
    alarm: str = ""
    ranges: list[Range] = field(default_factory=list)
    subjects: dict[str, None] = field(default_factory=dict)
    """In the order in which they came."""
    correlation_ids: dict[str, None] = field(default_factory=dict)
    count: int = 0
    detail: str = ""

    def add(self, defect: Defect, subject: Subject) -> None:
        self.count += 1
        self.detail = self.detail or defect.message[:_TEXT_MAX]
        if isinstance(subject, int):
            self.ranges.append((subject, subject + 1))
            if len(self.ranges) > 2 * RANGES_MAX:
                self.ranges = _joined(self.ranges)
        else:
            self.subjects[subject if len(self.subjects) < SUBJECTS_MAX else _MORE] = None
        if defect.correlation_id and len(self.correlation_ids) < CORRELATIONS_MAX:
            self.correlation_ids[defect.correlation_id] = None

    def covers(self, subject: Subject) -> bool:
        """Whether a defect of the kind has been added already."""
        if isinstance(subject, int):
            return any(first <= subject < end for first, end in self.ranges)
        return subject in self.subjects or _MORE in self.subjects

    def finding(self, log: Log, after: UUID | None) -> Finding:
        """The finding of this group in a log. `after` is the acknowledged finding after which the first of its defects has come back.

        Every replica computes the same id for the same.
        """
        positions, subjects = Positions(_joined(self.ranges)), tuple(self.subjects)
        same = [log.first_name, log.id, self.kind, str(positions), subjects, after and str(after)]
        finding_id = uuid5(_NAMESPACE, orjson.dumps(same).decode())
        correlation_ids = tuple(self.correlation_ids)
        return Finding(
            *(finding_id, self.kind, log.id, positions, subjects, self.count, self.detail, correlation_ids, self.alarm)
        )


def _joined(ranges: Sequence[Range]) -> list[Range]:
    """At most RANGES_MAX ranges, in order, that have all of these positions: those nearest to each other are joined."""
    ordered = Positions(ranges).ranges
    excess = len(ordered) - RANGES_MAX
    if excess <= 0:
        return ordered
    by_distance = sorted(range(1, len(ordered)), key=lambda at: ordered[at][0] - ordered[at - 1][1])
    joins, joined = set(by_distance[:excess]), list[Range]()
    for at, (first, end) in enumerate(ordered):
        if at in joins:
            joined[-1] = joined[-1][0], end
        else:
            joined.append((first, end))
    return joined
