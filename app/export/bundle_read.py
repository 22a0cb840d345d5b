"""Reads all about one correlation for a bundle: rows, what the log records about them, notifications, and the proofs.

Everything is read in one snapshot, in which the published checkpoint has to cover every entry: until then there is no bundle.
"""

from asyncio import sleep, to_thread
from bisect import bisect_left
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import orjson

from app.db import Connection
from app.errors import Conflict, NotFound, TooLarge
from app.events.canonical import loads
from app.events.log import Log
from app.events.notification import STORED
from app.events.positions import Positions
from app.events.record import Row
from app.export.bundle import (
    FORMAT,
    Bundle,
    BundledEvent,
    BundledGap,
    BundledLog,
    BundledNotification,
    ChainEnd,
    Timestamp,
    bundle_file,
)
from app.export.bundle_entry import bundled_event, bundled_notification, masked_text, unproved_row
from app.export.bundle_page import PageContent, page
from app.export.manifest import rfc3339_microseconds
from app.export.select import ExportQuery, rows_at, sealed_rows, unsealed_rows
from app.sql import load
from app.tlog import merkle
from app.tlog.evidence import ERASED, PURGED, RESTORED, read_evidence, read_records
from app.tlog.gaps import Gap, judge_gap_by_leaf
from app.tlog.keys import SigningKey
from app.tlog.note import Checkpoint, MalformedNote, Note, NoValidSignature, encoded_base64, verified_checkpoint
from app.tlog.prove import NotSignedYet
from app.tlog.tiles import SQL as TLOG_SQL
from app.tlog.tiles import range_roots
from app.verify.snapshot import SQL as VERIFY_SQL

SQL = load("export")
ENTRIES_MAX = 10_000
BYTES_MAX = 64 * 1024**2
_POSITION_END = 2**63 - 1
_LOWEST = -(2**63)
_ENTRIES_AT_ONCE = 64
_HOLDS = ["datastorage.hold.placed", "datastorage.hold.released", "datastorage.hold.adopted"]


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


@dataclass(frozen=True, slots=True)
class _Tree:
    """The tree under which the proofs stand: of the checkpoint `note`."""

    size: int
    root: bytes
    note: str


@dataclass(slots=True)
class _Found:
    """What is stored about the correlation. `bytes_left` is how much more fits into the file."""

    events: list[BundledEvent] = field(default_factory=list)
    unproved: list[str] = field(default_factory=list)
    notifications: list[BundledNotification] = field(default_factory=list)
    selectors: dict[str, set[Any]] = field(default_factory=dict)
    """By names of columns, what holds may select these events by."""
    entries_left: int = field(default_factory=lambda: ENTRIES_MAX)
    bytes_left: int = field(default_factory=lambda: BYTES_MAX)

    def count(self, size: int) -> None:
        """One entry more, of about this size. Raises BundleTooLarge."""
        self.entries_left -= 1
        self.bytes_left -= size
        if self.entries_left < 0 or self.bytes_left < 0:
            raise BundleTooLarge(
                f"There is more about this correlation than a bundle has space for ({ENTRIES_MAX:,} entries, {BYTES_MAX // 1024**2} MiB): "
                "export it with GET /api/v1/audit/export?format=ndjson&correlation_id=…, which has no limit."
            )


@dataclass(slots=True)
class BundleExport:
    """One request for a bundle, and what of it was sent."""

    query: BundleQuery
    exported_by: str
    log: Log
    key: SigningKey | None
    export_id: UUID = field(default_factory=uuid4)
    event_count: int = 0
    first_position: int | None = None
    last_position: int | None = None
    file_sha256: str | None = None

    async def read(self, connection: Connection) -> bytes:
        """The file. `connection` is in a snapshot.

        Raises NotFound where nothing is stored of the correlation, NotSignedYet, BundleTooLarge, and Conflict when a proof is not valid.
        """
        found = await self._rows(connection)
        head = await connection.fetchrow(VERIFY_SQL["chain_head"], self.query.correlation_id)
        await self._notifications(connection, found)
        if not (found.events or found.unproved or head or found.notifications):
            raise NotFound(f"There is nothing about a correlation {self.query.correlation_id}.")
        tree = await self._tree(connection)
        gaps = [gap async for gap in self._gaps(connection, found, head, tree)]
        evidence = await self._evidence(connection, found, gaps)
        if tree is not None:
            found.events = await _with_proofs(connection, self.log, found.events, tree)
            evidence = await _with_proofs(connection, self.log, evidence, tree)
        self.event_count = len(found.events) + len(found.unproved)
        if found.events:
            self.first_position, self.last_position = found.events[0].position, found.events[-1].position
        chain = None if head is None else ChainEnd(head["length"], head["hash"])
        log = BundledLog(self.log.id, self.log.name, None, None, None, None, [])
        if tree is not None:
            log = replace(log, size=tree.size, root=encoded_base64(tree.root), checkpoint=tree.note)
            log = replace(log, timestamps=await self._timestamps(connection, tree))
        shown: dict[str, Any] = {"events": found.events, "gaps": gaps, "evidence": evidence, "unproved": found.unproved}
        shown["notifications"] = found.notifications
        file = await to_thread(self._file, log, chain, shown)
        self.file_sha256 = sha256(file).hexdigest()
        return file

    def _file(self, log: BundledLog, chain: ChainEnd | None, shown: dict[str, Any]) -> bytes:
        redacted = self.query.redact_pii
        shown |= {"correlation_id": masked_text(self.query.correlation_id, redacted=redacted), "redacted": redacted}
        taken: dict[str, Any] = {
            "exported_at": rfc3339_microseconds(datetime.now(UTC)),
            "exported_by": masked_text(self.exported_by, redacted=redacted),
        }
        words = page(PageContent(log=log.name, size=log.size, **shown, **taken))
        bundle = Bundle(format=FORMAT, page=words, logs=[log], chain=chain, **shown)
        return bundle_file(bundle, str(self.export_id), **taken, key=self.key)

    async def _timestamps(self, connection: Connection, tree: _Tree) -> list[Timestamp]:
        """The earliest timestamp that covers all of the correlation's events, and proof that the tree continues its checkpoint."""
        size = 0 if self.last_position is None else self.last_position + 1
        row = await connection.fetchrow(TLOG_SQL.of(self.log)["timestamp_covering"], size)
        if row is None or not 0 < row["size"] <= tree.size or self.key is None:
            return []
        try:
            if verified_checkpoint(row["note"], self.key.all_public).size != row["size"]:
                return []
        except (MalformedNote, NoValidSignature):  # somebody has changed it, as `datastorage verify` tells
            return []
        ranges = merkle.consistency_ranges(row["size"], tree.size)
        hashes = [encoded_base64(one) for one in await range_roots(connection, self.log, ranges)]
        return [Timestamp(row["note"], hashes, encoded_base64(row["token"]))]

    async def _tree(self, connection: Connection) -> _Tree | None:
        """The tree of the published checkpoint; None where none is signed, so that nothing can be proved."""
        if self.key is None:
            return None
        row = await connection.fetchrow(TLOG_SQL.of(self.log)["published_checkpoint"])
        if row is None:
            raise NotSignedYet
        checkpoint = Checkpoint.parse(Note.parse(row["note"]).text)
        return _Tree(checkpoint.size, checkpoint.root, row["note"])

    async def _rows(self, connection: Connection) -> _Found:
        """The correlation's rows: those that the log has as events, in the order of the log, and the others."""
        found = _Found(selectors={name: set() for name in ("actor_id", "resource", "event_timestamp")})
        query = ExportQuery(format="ndjson", correlation_id=self.query.correlation_id)
        async for rows in sealed_rows(connection, query, self.log, _LOWEST, _POSITION_END):
            for row in rows:
                found.count(_size(row))
                if (event := self._entry(row)) is None:
                    found.unproved.append(unproved_row(row, redacted=self.query.redact_pii))
                elif (
                    not found.events or found.events[-1].position != event.position
                ):  # else a copy, with another date at most
                    found.events.append(event)
                found.selectors["actor_id"].add(row["actor_id"])
                found.selectors["resource"].add((row["resource_type"], row["resource_id"]))
                found.selectors["event_timestamp"].add(row["event_timestamp"])
            await sleep(0)
        async for rows in unsealed_rows(connection, query, self.log, None):
            for row in rows:
                found.count(_size(row))
                found.unproved.append(unproved_row(row, redacted=self.query.redact_pii))
            await sleep(0)
        return found

    def _entry(self, row: Row) -> BundledEvent | None:
        """The entry of a row that the log has as it is; None for any other."""
        try:
            entry = bundled_event(row, None, redacted=self.query.redact_pii)
        except ValueError:
            return None
        return entry if row["sealed"] and entry.leaf == row["event_hash"] else None

    async def _notifications(self, connection: Connection, found: _Found) -> None:
        rows = await connection.fetch(SQL["notifications"], self.query.correlation_id, found.entries_left + 1)
        for row in rows:
            found.count(2 * sum(len(value) for value in row.values() if isinstance(value, str)))
            found.notifications.append(bundled_notification(row, self.log, redacted=self.query.redact_pii))

    # Gaps, and what the log records.

    async def _gaps(
        self, connection: Connection, found: _Found, head: asyncpg.Record | None, tree: _Tree | None
    ) -> AsyncIterator[BundledGap]:
        """The chain positions without an event, each with the place of its last one if the log records that it was purged."""
        gaps = list(_gaps(found.events, head))
        purged = (await read_evidence(connection, self.log)).purged if gaps and tree else Positions()
        for gap in gaps:
            first = gap.chain_end - gap.missing
            missing = BundledGap(first, gap.chain_end, gap.last_hash, None, None, None)
            if tree is not None and (await judge_gap_by_leaf(connection, self.log, gap, purged)).is_purge:
                end = _POSITION_END if gap.position_after is None else gap.position_after
                arguments = bytes.fromhex(gap.last_hash), gap.position_before, end
                position = await connection.fetchval(TLOG_SQL.of(self.log)["position_of_leaf"], *arguments)
                [proof] = await _proofs(connection, self.log, [(position, gap.last_hash)], tree)
                missing = replace(
                    missing, log=self.log.name, position=position, proof=[encoded_base64(one) for one in proof]
                )
            yield missing

    async def _evidence(self, connection: Connection, found: _Found, gaps: Sequence[BundledGap]) -> list[BundledEvent]:
        """The self events about these events: holds; purges of what is missing, and their restores; erasures."""
        positions = {
            row["log_index"]
            for row in await connection.fetch(SQL["hold_events"], _HOLDS)
            if _selects(loads(row["event_data"]), self.query.correlation_id, found.selectors)
        }
        wanted = _wanted(found.events, gaps)
        if wanted:
            async for payload, position in read_records(connection, self.log):
                named = Positions.parse(str(payload.get("positions")))
                if any(named.count(first, end) for first, end in wanted.get(payload["event_type"], ())):
                    positions.add(position)
        covering = {one.covered_by.position for one in found.notifications if one.covered_by is not None}
        events: list[BundledEvent] = []
        for row in await rows_at(
            connection, self.log, sorted((positions | covering) - {one.position for one in found.events})
        ):
            if row["log_index"] not in positions and row["event_type"] != STORED:
                continue  # whatever the row of a notification says, no other event is shown for it
            found.count(_size(row))
            entry = self._entry(row)
            if entry is not None and (not events or events[-1].position != entry.position):
                events.append(entry)
        if uncovered := covering - {one.position for one in events}:
            await self._forget_purged_covers(connection, found, uncovered)
        return events

    async def _forget_purged_covers(self, connection: Connection, found: _Found, uncovered: set[int]) -> None:
        """Where the event that had a notification's digest was purged, nothing covers the notification any more."""
        purged = (await read_evidence(connection, self.log)).purged
        for number, one in enumerate(found.notifications):
            place = one.covered_by
            if place is not None and place.position in uncovered and place.position in purged:
                found.notifications[number] = replace(one, salt=None, committed=None, covered_by=None)


async def _with_proofs(
    connection: Connection, log: Log, events: Sequence[BundledEvent], tree: _Tree
) -> list[BundledEvent]:
    """The entries with their inclusion proofs."""
    proved = []
    for start in range(0, len(events), _ENTRIES_AT_ONCE):
        some = events[start : start + _ENTRIES_AT_ONCE]
        proofs = await _proofs(connection, log, [(event.position, event.leaf) for event in some], tree)
        proved += [
            replace(event, proof=[*map(encoded_base64, proof)]) for event, proof in zip(some, proofs, strict=True)
        ]
        await sleep(0)
    return proved


async def _proofs(
    connection: Connection, log: Log, leaves: Sequence[tuple[int, str]], tree: _Tree
) -> list[list[bytes]]:
    """The inclusion proofs of leaves, by position and hash. Raises NotSignedYet for one that the checkpoint does not cover yet."""
    if any(position >= tree.size for position, _ in leaves):
        raise NotSignedYet
    ranges = [merkle.inclusion_ranges(position, tree.size) for position, _ in leaves]
    roots = iter(await range_roots(connection, log, [one for some in ranges for one in some]))
    proofs = [[next(roots) for _ in some] for some in ranges]
    for (position, leaf), proof in zip(leaves, proofs, strict=True):
        if not merkle.verify_inclusion(position, tree.size, bytes.fromhex(leaf), proof, tree.root):
            raise Conflict(
                f"Position {position} of the log is not as it was signed, so it cannot be proved: run `datastorage verify`."
            )
    return proofs


def _gaps(events: Sequence[BundledEvent], head: asyncpg.Record | None) -> Iterator[Gap]:
    next_index, before = 0, -1
    for event in events:
        record = orjson.loads(event.record)
        index = record["chain_index"]
        if index is not None and index > next_index:
            yield Gap(index - next_index, index, before, event.position, record["previous_event_hash"] or "")
        next_index, before = max(next_index, (index or 0) + 1), event.position
    if head is not None and next_index < head["length"]:
        yield Gap(head["length"] - next_index, head["length"], before, None, head["hash"])


def _wanted(events: Sequence[BundledEvent], gaps: Sequence[BundledGap]) -> dict[str, list[tuple[int, int]]]:
    """By type of self event, the ranges of positions about which those events are needed that name any of them."""
    erased = [(event.position, event.position + 1) for event in events if event.is_erased]
    places = sorted(event.position for event in events)
    purged = []
    for gap in gaps:
        if gap.position is not None:
            at = bisect_left(places, gap.position)
            purged.append((places[at - 1] + 1 if at else 0, gap.position + 1))
    wanted = {ERASED: erased, PURGED: purged, RESTORED: purged}
    return {name: ranges for name, ranges in wanted.items() if ranges}


def _selects(payload: Any, correlation_id: str, selectors: dict[str, set[Any]]) -> bool:
    """Whether the selector of a hold, in the payload of its event, covers one of the correlation's rows."""
    if not isinstance(payload, dict):
        return False
    if payload.get("correlation_id") == correlation_id or payload.get("actor_id") in selectors["actor_id"]:
        return True
    if (payload.get("resource_type"), payload.get("resource_id")) in selectors["resource"]:
        return True
    try:
        first, end = (datetime.fromisoformat(payload[name]) for name in ("time_from", "time_to"))
        return any(first <= time <= end for time in selectors["event_timestamp"])
    except (KeyError, TypeError, ValueError):
        return False


def _size(row: asyncpg.Record) -> int:
    return sum(len(row[name] or "") for name in ("event_data", "event_metadata", "error_message", "actor_id"))
