"""What the log records of the archive: its parts, what was erased of them since, and which of them have expired."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any
from uuid import UUID

from app.db import Connection, connect
from app.events.log import LOG_POSITIONS, Log, place_of
from app.events.own import correlation_of
from app.events.positions import NO_POSITIONS, Positions
from app.retention.logged import read_open_log
from app.settings import Settings
from app.sql import load
from app.tlog.continued import newest_log
from app.tlog.evidence import ARCHIVED, ERASED, EXPIRED, LOCKED, UNLOCKED, read_evidence, read_self_events
from app.verify.snapshot import SQL as VERIFY

SQL = load("archive")


@dataclass(frozen=True, slots=True)
class RecordedErasure:
    """One event of the log that says that others are erased."""

    erasure_id: UUID
    log_id: int
    log_index: int
    about: int
    """The id of the log of the positions."""
    positions: Positions

    @property
    def place(self) -> int:
        return place_of(self.log_id, self.log_index)


@dataclass(frozen=True, slots=True)
class FormerPart:
    """A part that another one has replaced."""

    archive_id: UUID
    location: str
    manifest_sha256: str


@dataclass(frozen=True, slots=True)
class RecordedPart:
    """One part."""

    archive_id: UUID
    log_id: int
    month: str
    """As 2026-01."""
    location: str
    """URL of its folder."""
    manifest_sha256: str
    tree_size: int
    """Of its checkpoint."""
    positions: Positions
    place: int
    """Of its first event."""
    recorded_at: datetime
    replaced: tuple[FormerPart, ...] = ()
    """Those that were there before it, the first one first."""
    first_place: int = 0
    """Of the first event of the first one of them; else its own."""

    def pending(self, erasures: Sequence[RecordedErasure]) -> list[RecordedErasure]:
        """What was erased of it since it was recorded: the content is still in it. Only its own positions.

        All that was erased before is in it as such, since a part is only recorded if nothing was erased while it was written.
        """
        later = [one for one in erasures if one.about == self.log_id and one.place > self.place]
        own = [
            replace(one, positions=Positions(r for a, b in one.positions.ranges for r in self.positions.within(a, b)))
            for one in later
        ]
        return [one for one in own if one.positions]

    def among(self, places: Positions) -> Positions:
        """Those of its positions that are at one of these places."""
        start = place_of(self.log_id, 0)
        return Positions(
            (a - start, b - start)
            for first, end in self.positions.ranges
            for a, b in places.within(start + first, start + end)
        )


@dataclass(frozen=True, slots=True)
class ExpiredPart:
    """A part that was over, and is not in the archive any more."""

    part: RecordedPart
    expiry_id: UUID
    """It is in the names of the table's files that were written then."""
    positions: Positions
    """Of the events that are purged by it; the other ones of the part have rows."""
    place: int
    """Of the first event that says so."""
    recorded_at: datetime


@dataclass(frozen=True, slots=True)
class Recorded:
    """All parts that there were, in the order in which they were archived first."""

    parts: list[RecordedPart]
    """Those that are there."""
    expired: list[ExpiredPart]

    @property
    def every(self) -> list[RecordedPart]:
        """Both."""
        return sorted([*self.parts, *(one.part for one in self.expired)], key=lambda part: part.first_place)

    @property
    def former_ids(self) -> set[UUID]:
        """The ids of parts whose files are to be deleted: they have expired, or others have replaced them."""
        return {one.archive_id for part in self.every for one in part.replaced} | {
            one.part.archive_id for one in self.expired
        }

    @property
    def gone(self) -> list[RecordedPart]:
        """The parts that are not there any more: those that have expired, and those that others have replaced."""
        return [one.part for one in self.expired] + [
            replace(
                part,
                archive_id=former.archive_id,
                location=former.location,
                manifest_sha256=former.manifest_sha256,
                replaced=(),
            )
            for part in self.every
            for former in part.replaced
        ]

    def metadata_ids(self) -> list[UUID] | None:
        """In the names of the table's files: the part that replaced another last, or the last expiry, and the parts after it. None if there was neither.

        Both write the whole table anew: the snapshots before list the smallest and the largest values of what was erased, or has expired.
        """
        writers = [(part.place, part.archive_id) for part in self.parts]
        writers += [(one.place, one.expiry_id) for one in self.expired]
        anew = [part.place for part in self.every if part.replaced] + [one.place for one in self.expired]
        return [one for place, one in sorted(writers) if place >= max(anew)] if anew else None


async def read_parts(connection: Connection, log: Log) -> list[RecordedPart]:
    """The parts that are there, as `log` and those before it record them. `connection` is in a snapshot."""
    return (await read_recorded(connection, log)).parts


async def read_recorded(connection: Connection, log: Log) -> Recorded:
    """The parts that `log` and those before it record. `connection` is in a snapshot."""
    events = [
        (place_of(row["log_id"], row["log_index"]), payload, row["recorded_at"])
        async for payload, row in read_self_events(connection, log, [ARCHIVED, EXPIRED])
    ]
    events.sort(key=lambda one: one[0])
    every = _parts_of([one for one in events if one[1]["event_type"] == ARCHIVED])
    expired = _expired_of([one for one in events if one[1]["event_type"] == EXPIRED], every)
    gone = {one.part.archive_id for one in expired}
    return Recorded([part for part in every if part.archive_id not in gone], expired)


async def record_version(connection: Connection, log: Log, types: Sequence[str]) -> tuple[Any, ...]:
    """What changes whenever the log records an event of some types, of which each is the service's own. Costs no more than counting them."""
    return log.id, *map(tuple, await connection.fetch(SQL["record_version"], list(types)))


async def read_locks(connection: Connection, log: Log) -> dict[UUID, frozenset[str]]:
    """By part, for which holds `log` and those before it say that its files are locked. `connection` is in a snapshot."""
    events = [
        (place_of(row["log_id"], row["log_index"]), payload)
        async for payload, row in read_self_events(connection, log, [LOCKED, UNLOCKED])
    ]
    locks = {
        UUID(one["archive_id"]): frozenset(one.get("holds", ())) for _, one in sorted(events, key=lambda one: one[0])
    }
    return {archive_id: holds for archive_id, holds in locks.items() if holds}


_Event = tuple[int, dict[str, Any], datetime]
"""Place, payload, and when it was recorded."""


def _expired_of(events: Sequence[_Event], parts: Sequence[RecordedPart]) -> list[ExpiredPart]:
    """What has expired. An event that names a part otherwise than it is recorded says nothing; verification names it."""
    by_id = {str(part.archive_id): part for part in parts}
    expired: dict[str, ExpiredPart] = {}
    for place, payload, recorded_at in events:
        part, positions = by_id.get(payload["archive_id"]), Positions.parse(payload["positions"])
        if (
            part is None
            or (part.manifest_sha256, part.log_id) != (payload["manifest_sha256"], payload["log_id"])
            or place < part.place
            or positions.without(part.positions)
        ):
            continue
        one = expired.setdefault(
            payload["archive_id"],
            ExpiredPart(part, UUID(payload["expiry_id"]), NO_POSITIONS, place, recorded_at),
        )
        both = Positions([*one.positions.ranges, *positions.ranges])
        expired[payload["archive_id"]] = replace(one, positions=both)
    return list(expired.values())


def _parts_of(events: Sequence[_Event]) -> list[RecordedPart]:
    parts: dict[str, RecordedPart] = {}
    """By the id of the part that was archived first."""
    first_ids: dict[str, str] = {}
    for place, payload, recorded_at in events:
        log_id, archive_id = payload["log_id"], str(payload["archive_id"])
        end = min(place - place_of(log_id, 0), LOG_POSITIONS)  # an event says nothing about what comes after it
        positions = Positions(Positions.parse(payload["positions"]).within(0, end)) if end > 0 else NO_POSITIONS
        first_id = first_ids.setdefault(archive_id, first_ids.get(payload.get("replaces", ""), archive_id))
        before = parts.get(first_id)
        same = before if before is not None and before.archive_id == UUID(archive_id) else None
        parts[first_id] = RecordedPart(
            UUID(archive_id),
            log_id,
            payload["month"],
            payload["location"],
            payload["manifest_sha256"],
            payload["tree_size"],
            positions if same is None else Positions([*same.positions.ranges, *positions.ranges]),
            place if same is None else same.place,
            recorded_at,
            _replaced(before) if same is None else same.replaced,
            place if before is None else before.first_place,
        )
    return list(parts.values())


def _replaced(before: RecordedPart | None) -> tuple[FormerPart, ...]:
    if before is None:
        return ()
    return *before.replaced, FormerPart(before.archive_id, before.location, before.manifest_sha256)


async def read_erasures(connection: Connection, log: Log, erasure_id: UUID | None = None) -> list[RecordedErasure]:
    """The erasures that `log` and those before it record, or one of them. `connection` is in a snapshot."""
    erasures = []
    correlations = None if erasure_id is None else [correlation_of(ERASED, erasure_id)]
    async for payload, row in read_self_events(connection, log, [ERASED], correlations):
        about = payload.get("log_id", 0)
        positions = Positions.parse(str(payload.get("positions")))
        one = RecordedErasure(UUID(payload["erasure_id"]), row["log_id"], row["log_index"], about, positions)
        end = min(one.place - place_of(about, 0), LOG_POSITIONS)
        if end > 0:
            erasures.append(replace(one, positions=Positions(positions.within(0, end))))
    return erasures


async def count_in_archive(settings: Settings, erasure_id: UUID) -> int:
    """How many events of an erasure have their content in the archive until its next run. Needs no access to the archive."""
    if settings.retention_url is not None:
        settings = settings.model_copy(update={"database_url": settings.retention_url})
    connection = await connect(settings, statement_timeout="0")
    try:
        log = await read_open_log(connection, settings)
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            parts = await read_parts(connection, log)
            erasures = await read_erasures(connection, log, erasure_id) if parts else []
    finally:
        await connection.close()
    return sum(one.positions.size for part in parts for one in part.pending(erasures))


async def count_removed(settings: Settings) -> int:
    """How many events are in the archive only. Needs no access to the archive."""
    connection = await connect(settings, statement_timeout="0")
    try:
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            name = await connection.fetchval(VERIFY["log_name"])
            if name is None:
                return 0
            return (await read_evidence(connection, await newest_log(connection, Log(0, name)))).archived.size
    finally:
        await connection.close()


def archived_positions(parts: Sequence[RecordedPart], log_id: int) -> Positions:
    """The positions of one log that are in some part."""
    return Positions(one for part in parts if part.log_id == log_id for one in part.positions.ranges)


def removed_positions(parts: Sequence[RecordedPart], archived: Positions) -> dict[UUID, Positions]:
    """By part, those of its positions that are among the places `archived`; only parts that have any."""
    return {part.archive_id: positions for part in parts if (positions := part.among(archived))}


def places_in_no_part(parts: Sequence[RecordedPart], archived: Positions) -> Positions:
    """Those of the places `archived` that no part has any more: one that was recorded in place of theirs has less."""
    starts = [(place_of(part.log_id, 0), part.positions.ranges) for part in parts]
    return archived.without(Positions((start + a, start + b) for start, ranges in starts for a, b in ranges))
