"""Reads all about one correlation for a bundle: rows, what the logs record about them, notifications, and the proofs.

Everything is read in one snapshot, in which a checkpoint has to cover every entry: until then there is no bundle.
"""

from asyncio import sleep, to_thread
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from math import inf
from typing import Any
from uuid import UUID, uuid4

from app.db import Connection
from app.errors import NotFound, TooLarge
from app.events.canonical import loads
from app.events.log import Log, place_of
from app.events.notification import STORED
from app.events.record import Row, place
from app.export.bundle import (
    FORMAT,
    Bundle,
    BundledEvent,
    BundledGap,
    BundledLog,
    BundledNotification,
    ChainEnd,
    bundle_file,
)
from app.export.bundle_entry import bundled_event, bundled_notification, masked_text, unproved_row
from app.export.bundle_evidence import (
    Selectors,
    Unmarked,
    differing_holds,
    find_gaps,
    places_of_digests,
    places_of_holds,
    places_of_removals,
    uncovered_by_purges,
)
from app.export.bundle_page import PageContent, page
from app.export.bundle_proofs import Tree, read_tree, with_proof, with_proofs
from app.export.bundle_timestamps import read_timestamps
from app.export.manifest import rfc3339_microseconds
from app.export.select import correlation_rows, rows_at
from app.sql import load
from app.tlog.evidence import is_evidence
from app.tlog.keys import SigningKey
from app.verify.snapshot import SQL as VERIFY_SQL

SQL = load("export")
ENTRIES_MAX = 10_000
BYTES_MAX = 64 * 1024**2


class BundleTooLarge(TooLarge):
    """The correlation has too much for one bundle."""

    slug = "bundle-too-large"
    title = "Bundle Too Large"


@dataclass(frozen=True, slots=True)
class BundleQuery:
    """What a bundle is asked for, with the names that exports have."""

    correlation_id: str
    redact_pii: bool = False
    format: str = "bundle"

    def filters(self) -> dict[str, Any]:
        return {"correlation_id": self.correlation_id}


class _Space:
    """How much more fits into the file."""

    def __init__(self) -> None:
        self.entries, self.bytes = ENTRIES_MAX, BYTES_MAX

    def use(self, size: int) -> None:
        """One entry more, of about this size. Raises BundleTooLarge."""
        self.entries -= 1
        self.bytes -= size
        if self.entries < 0 or self.bytes < 0:
            raise BundleTooLarge(
                f"There is more about this correlation than a bundle has space for ({ENTRIES_MAX:,} entries, "
                f"{BYTES_MAX // 1024**2} MiB): export it with GET /api/v1/audit/export?format=ndjson&correlation_id=…, which has no limit."
            )


@dataclass(slots=True)
class BundleExport:
    """One request for a bundle, and what of it was sent."""

    query: BundleQuery
    exported_by: str
    log: Log
    key: SigningKey | None
    archived: Sequence[Row] = ()
    """Events of the correlation that are in the archive alone, as correlation_rows() has those of Postgres."""
    export_id: UUID = field(default_factory=uuid4)
    event_count: int = 0
    first_position: int | None = None
    last_position: int | None = None
    file_sha256: str | None = None
    _space: _Space = field(default_factory=_Space)
    _events: list[BundledEvent] = field(default_factory=list)
    _unproved: list[str] = field(default_factory=list)
    _notifications: list[BundledNotification] = field(default_factory=list)
    _selectors: Selectors = field(default_factory=Selectors)
    _unmarked: Unmarked = field(default_factory=Unmarked)
    _differing: list[str] = field(default_factory=list)

    async def read(self, connection: Connection) -> bytes:
        """The file. `connection` is in a snapshot.

        Raises NotFound where nothing is stored of the correlation, NotSignedYet, BundleTooLarge, and Conflict when a proof is not valid.
        """
        await self._read_rows(connection)
        await self._read_notifications(connection)
        head = await connection.fetchrow(VERIFY_SQL["chain_head"], self.query.correlation_id)
        if not (self._events or self._unproved or self._notifications or head):
            raise NotFound(f"There is nothing about a correlation {self.query.correlation_id}.")
        self._note_positions()
        chain = None if head is None else ChainEnd(head["length"], head["hash"])
        gaps = await find_gaps(connection, self.log, self._events, chain)
        evidence = await self._read_evidence(connection, gaps)
        about = self.query.correlation_id
        self._differing = await differing_holds(connection, self.log, about, self._selectors, self._unmarked)
        logs = [BundledLog(self.log.id, self.log.name, None, None, None, None, [])]
        if self.key is not None:
            trees = await self._read_trees(connection, gaps, evidence)
            gaps = [await with_proof(connection, gap, trees) for gap in gaps]
            self._events = await with_proofs(connection, self._events, trees)
            evidence = await with_proofs(connection, evidence, trees)
            logs = [await self._bundled(connection, tree, self.key) for tree in trees.values()]
        file = await to_thread(self._file, logs, chain, gaps, evidence)
        self.file_sha256 = sha256(file).hexdigest()
        return file

    def _file(
        self, logs: list[BundledLog], chain: ChainEnd | None, gaps: list[BundledGap], evidence: list[BundledEvent]
    ) -> bytes:
        redacted = self.query.redact_pii
        shown: dict[str, Any] = {"events": self._events, "gaps": gaps, "evidence": evidence, "unproved": self._unproved}
        shown |= {"notifications": self._notifications, "redacted": redacted}
        shown |= {"correlation_id": masked_text(self.query.correlation_id, redacted=redacted)}
        taken: dict[str, Any] = {
            "exported_at": rfc3339_microseconds(datetime.now(UTC)),
            "exported_by": masked_text(self.exported_by, redacted=redacted),
        }
        differing = [masked_text(one, redacted=redacted) for one in self._differing]
        words = page(PageContent(log=logs[-1].name, size=logs[-1].size, differing=differing, **shown, **taken))
        bundle = Bundle(format=FORMAT, page=words, logs=logs, chain=chain, **shown)
        return bundle_file(bundle, str(self.export_id), **taken, key=self.key)

    def _note_positions(self) -> None:
        """What the self event of the export says: positions are those of the open log."""
        self.event_count = len(self._events) + len(self._unproved)
        positions = [event.position for event in self._events if event.log == self.log.name]
        if positions:
            self.first_position, self.last_position = positions[0], positions[-1]

    async def _read_rows(self, connection: Connection) -> None:
        """The correlation's rows: those that a log has as events, in the order of the logs, and the others."""
        archived = deque(sorted(self.archived, key=_order))
        async for rows in correlation_rows(connection, self.query.correlation_id):
            for row in rows:
                while archived and _order(archived[0]) <= _order(row):
                    self._add(archived.popleft())
                if self._add(row):
                    self._unmarked.add(row)
            await sleep(0)
        while archived:
            self._add(archived.popleft())

    def _add(self, row: Row) -> bool:
        """Add a row; whether the log has it."""
        self._space.use(_size(row))
        self._selectors.add(row)
        if (event := self._entry(row)) is None:
            self._unproved.append(unproved_row(self._of_log(row), redacted=self.query.redact_pii))
            return False
        _append(self._events, event)
        return True

    async def _read_notifications(self, connection: Connection) -> None:
        rows = await connection.fetch(SQL["notifications"], self.query.correlation_id, self._space.entries + 1)
        for row in rows:
            self._space.use(2 * sum(len(value.encode()) for value in row.values() if isinstance(value, str)))
            self._notifications.append(bundled_notification(row, self.log, redacted=self.query.redact_pii))

    async def _read_evidence(self, connection: Connection, gaps: list[BundledGap]) -> list[BundledEvent]:
        """The self events about these events: holds; purges of what is missing, and their restores; erasures; digests of notifications."""
        ids = self._ids()
        covers = {place_of(ids[p.log], p.position) for one in self._notifications if (p := one.covered_by) is not None}
        places = await places_of_holds(connection, self.log, self.query.correlation_id, self._selectors)
        places |= await places_of_removals(connection, self.log, self._events, gaps)
        digests = await places_of_digests(connection, self.log, self.query.correlation_id)
        own = {place_of(ids[event.log], event.position) for event in self._events}
        events: list[BundledEvent] = []
        for log in self.log.and_earlier():
            wanted = {place - log.place(0): place for place in (places | covers | digests) - own if log.has(place)}
            for row in await rows_at(connection, log.id, sorted(wanted)) if wanted else []:
                # Whatever the row of a notification says, no other event than one with a digest is shown for it.
                place = wanted[row["log_index"]]
                is_digest = row["event_type"] == STORED and (
                    place in covers or is_evidence(row, loads(row["event_data"]))
                )
                if place in places or is_digest:
                    self._space.use(_size(row))
                    _append(events, self._entry(row))
        found = {place_of(ids[event.log], event.position) for event in events}
        if uncovered := covers - found:
            self._notifications = await uncovered_by_purges(connection, self.log, self._notifications, uncovered)
        return events

    async def _read_trees(
        self, connection: Connection, gaps: list[BundledGap], evidence: list[BundledEvent]
    ) -> dict[str, Tree]:
        """By name of the log, the trees that prove all entries; where a seam vouches for one, its event is added to the evidence."""
        trees: dict[str, Tree] = {}
        seams: list[BundledEvent] = []
        for log in self.log.and_earlier():
            entries = [event.position for event in (*self._events, *evidence, *seams) if event.log == log.name]
            entries += [gap.position for gap in gaps if gap.log == log.name and gap.position is not None]
            if not entries and log is not self.log:
                continue
            tree = trees[log.name] = await read_tree(connection, log, max(entries, default=-1))
            if tree.note is None:
                for row in await rows_at(connection, log.id + 1, [0]):
                    _append(seams, self._entry(row, redacted=False))
        known = {(event.log, event.position) for event in (*self._events, *evidence)}
        evidence += [event for event in seams if (event.log, event.position) not in known]
        ids = self._ids()
        evidence.sort(key=lambda event: (ids[event.log], event.position))
        return trees

    async def _bundled(self, connection: Connection, tree: Tree, key: SigningKey) -> BundledLog:
        """The entry of a log, with the timestamps that cover the events."""
        positions = [event.position for event in self._events if event.log == tree.log.name]
        return tree.bundled(
            await read_timestamps(connection, tree.log, tree.size, positions, key.of(tree.log).all_public)
        )

    def _entry(self, row: Row, *, redacted: bool | None = None) -> BundledEvent | None:
        """The entry of a row that a log has as it is; None for any other."""
        try:
            masked = self.query.redact_pii if redacted is None else redacted
            entry = bundled_event(self._of_log(row), None, redacted=masked)
        except ValueError:
            return None
        return entry if row["sealed"] and entry.leaf == row["event_hash"] else None

    def _of_log(self, row: Row) -> dict[str, Any]:
        """The row with the name of its log."""
        columns: dict[str, Any] = dict(row)  # type: ignore[call-overload]  # a record or a dict
        return columns | {"log": self.log.name_of(columns.pop("log_id"))}

    def _ids(self) -> dict[str, int]:
        return {log.name: log.id for log in self.log.and_earlier()}


def _append(events: list[BundledEvent], event: BundledEvent | None) -> None:
    """Append an entry, unless it is the last one once more: a copy of a row with another date."""
    if event is not None and (not events or (events[-1].log, events[-1].position) != (event.log, event.position)):
        events.append(event)


def _order(row: Row) -> float:
    """In the order of the logs; those without a position come last."""
    at = place(row)
    return inf if at is None else at


def _size(row: Row) -> int:
    """Bytes of its texts: as characters they could be a fourth of what the file needs."""
    names = ("event_data", "event_metadata", "error_message", "actor_id")
    return sum(len((row[name] or "").encode()) for name in names)
