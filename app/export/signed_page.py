"""Writes an export of `format=json`, the reference's: one page of events, whether each is unchanged, and a signature.

Signed is the JCS (RFC 8785) of the whole answer without `signature` and `detached_signature`. Events are hashed and sent in pieces,
so that a page of any size needs little memory.
"""

import base64
from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any
from uuid import UUID, uuid4

import orjson

from app.db import Connection
from app.events.canonical import canonical, loads
from app.events.log import Log, place_of
from app.events.positions import Positions
from app.events.record import Row
from app.export.archived import Archive, FromArchive, LinkFromArchive, OldestArchived, in_one_order
from app.export.certificate import ALGORITHM, ExportKeyPair, detached_signature
from app.export.manifest import LeftOut
from app.export.page_of_both import find_page
from app.export.row import mask, verdict_on
from app.export.select import ExportQuery, Portions, page_links, page_rows
from app.sql import load
from app.tlog.evidence import NO_ERASURES, read_evidence
from app.tlog.gaps import Gap, judge_gap_by_leaf

SQL = load("export")
_TEXTS = (
    *("event_type", "event_category", "event_action", "event_outcome", "correlation_id"),
    *("event_hash", "previous_event_hash"),
)


@dataclass(slots=True)
class SignedPage:
    """One request for a page: what of it was sent, and which events on it were changed."""

    query: ExportQuery
    exported_by: str
    log: Log
    key_pair: ExportKeyPair
    hmac_key: bytes | None = None
    archive: Archive | None = None
    export_id: UUID = field(default_factory=uuid4)
    event_count: int = 0
    tampered: list[str] = field(default_factory=list)
    unverified: int = 0
    """Unsealed events that have no hash, or one that cannot be computed here: they are not called valid, nor tampered with."""
    unsealed: int = 0
    left_out: LeftOut | None = None
    first_position: None = None
    last_position: None = None

    async def stream(self, connection: Connection, finished: Callable[[], Awaitable[None]]) -> AsyncGenerator[bytes]:
        """The answer, in pieces. `finished` is awaited before the signature: if it raises, the answer is cut there."""
        if self.archive is not None:
            self.left_out = await self.archive.begin(connection, {})
        digest = sha256()
        pending = b'{"events":['
        async with self._oldest() as oldest:
            links, on_page = await self._page(connection, oldest)
            if (
                oldest is not None
            ):  # its rows may take longer than the deadline of a query, which ends with the first piece
                digest.update(pending)
                yield pending
                pending = b""
            async for rows in on_page:
                pending += b"," if self.event_count else b""
                pending += b",".join([self._event(row, links) for row in rows])
                digest.update(pending)
                yield pending
                pending = b""
        await finished()
        yield pending + self._end(digest, pending)

    def _oldest(self) -> AbstractAsyncContextManager[OldestArchived | None]:
        if self.archive is None:
            return nullcontext()
        return self.archive.oldest(self.query.offset + self.query.limit)

    async def _page(
        self, connection: Connection, oldest: OldestArchived | None
    ) -> "tuple[_Links, AsyncIterator[Sequence[Row]]]":
        """What links the events of the page, and the events."""
        page = await find_page(connection, self.query, self.log, oldest)
        stored = await page_links(connection, self.query, page.offset, page.limit)
        archived = await oldest.links(connection, page.archived) if oldest and page.archived else ()
        linked: list[Row] = [*stored, *archived]
        links = _Links(linked)
        await links.complete(connection, self.log)
        rows = page_rows(connection, self.query, self.log, page.offset, page.limit)
        if oldest is None or not archived:
            return links, rows
        ranks = await _ranks(connection, {row["correlation_id"] for row in linked})
        places = [(ranks[one["correlation_id"]], one.key) for one in archived]
        chosen = [number for _, number in sorted(zip(places, page.archived, strict=True))]
        return links, _merged(rows, oldest.rows(connection, chosen), ranks)

    def _end(self, digest: Any, pending: bytes) -> bytes:
        now = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"
        metadata, verification = self._metadata(now), self._verification(now)
        signed = canonical({"export_metadata": metadata, "hash_chain_verification": verification})
        digest.update(pending + b"]," + signed[1:])
        signature = base64.b64encode(self.key_pair.sign(digest.digest())).decode()
        answer: dict[str, Any] = {
            "export_metadata": metadata | {"signature": signature},
            "hash_chain_verification": verification,
        }
        if self.query.include_detached_signature:
            answer["detached_signature"] = detached_signature(self.key_pair.fingerprint, signature)
        return b"]," + orjson.dumps(answer)[1:] + b"\n"

    def _event(self, row: Row, links: "_Links") -> bytes:
        """The event as JCS. Verified is the stored row, also when what is shown is masked."""
        self.event_count += 1
        stored = row | row.proof if isinstance(row, FromArchive) else row
        by_itself = verdict_on(stored, self.log, self.hmac_key, links.erased)
        valid = links.fits(row) and by_itself is True
        if by_itself is None and not links.stands_twice(row):
            self.unverified += 1
        elif not valid:
            self.tampered.append(row["event_id"])
        self.unsealed += not row["sealed"]
        event = {name: mask(self.query, row[name] or "") for name in _TEXTS} | {
            "event_id": row["event_id"],
            "version": mask(self.query, row["event_version"]),
            "event_timestamp": row["event_timestamp"].isoformat()[:19] + "Z",
            "event_data": orjson.Fragment(canonical(mask(self.query, loads(row["event_data"])))),
            "hash_chain_valid": valid,
            "legal_hold": bool(row["legal_hold"]),
        }
        if not row["sealed"]:
            event["sealed"] = False
        if isinstance(row, FromArchive):
            event["archive_id"] = str(row.part.archive_id)
        return orjson.dumps(event, option=orjson.OPT_SORT_KEYS)

    def _metadata(self, now: str) -> dict[str, Any]:
        query = self.query
        return {
            "export_timestamp": now,
            "export_format": "json",
            "query_filters": mask(query, query.filters()) | {"offset": query.offset, "limit": query.limit},
            "total_events": self.event_count,
            "signature_algorithm": ALGORITHM,
            "certificate_fingerprint": self.key_pair.fingerprint,
            "exported_by": mask(query, self.exported_by),
        } | LeftOut.member(self.left_out)

    def _verification(self, now: str) -> dict[str, Any]:
        valid = self.event_count - len(self.tampered) - self.unverified
        more = {"unverified_events": self.unverified, "unsealed_events": self.unsealed}
        return {
            "total_events_verified": self.event_count - self.unverified,
            "valid_chain_events": valid,
            "broken_chain_events": len(self.tampered),
            "chain_integrity_percentage": 100.0 * valid / self.event_count if self.event_count else 100.0,
            "verification_timestamp": now,
            "tampered_event_ids": self.tampered,
            "not_covered": ["legal_hold"],
        } | {name: count for name, count in more.items() if count}


class _Links:
    """What the events of a page link to, on the page or before it.

    This is not the link check of app/verify/chain.py, which reads one chain in order and counts its gaps: a page has events of many
    chains in any order, so the event before each is looked up, and the answer is yes or no. What the answer vouches for is what
    verification of the correlation would not call a defect: a missing event before is excused by its own purge only, and no event
    fits whose id stands twice.
    """

    def __init__(self, rows: Iterable[Row]) -> None:
        self._stored: dict[tuple[str, int], list[str]] = defaultdict(list)
        # Correlations and hashes to which unsealed events link; after `complete`, those of them that are stored.
        self._linked: set[tuple[str, str]] = set()
        self._firsts: set[tuple[str, str]] = set()
        """Correlations and ids of unsealed events that may link to none."""
        self._purged_before: set[tuple[str, int]] = set()
        """Correlations and chain positions of events before which others were purged."""
        self._twice: set[str] = set()
        """Ids that stand in several rows."""
        self.erased = NO_ERASURES
        """What was erased, as recorded in the log."""
        self._before: dict[tuple[str, int], str] = {}
        """By correlation and chain position the leaves of events that are in the archive beside those of the page."""
        self._rows = list(rows)
        for row in self._rows:
            if isinstance(row, LinkFromArchive) and row.hash_before is not None:
                self._before[row["correlation_id"], row["chain_index"] - 1] = row.hash_before
            if row["chain_index"] is not None:
                self._stored[row["correlation_id"], row["chain_index"]].append(row["event_hash"] or "")
            elif row["previous_event_hash"]:
                self._linked.add((row["correlation_id"], row["previous_event_hash"]))

    async def complete(self, connection: Connection, log: Log) -> None:
        """Read the events before those of the page, and what the log records of purges and erasures where it matters."""
        if self._linked:
            found = await connection.fetch(SQL["linked"], *_columns(self._linked))
            self._linked = {(row["correlation_id"], row["event_hash"]) for row in found}
        if unsealed := {row["correlation_id"] for row in self._rows if row["chain_index"] is None}:
            found = await connection.fetch(SQL["first_without_link"], list(unsealed))
            self._firsts = {(row["correlation_id"], row["event_id"]) for row in found}
        found = await connection.fetch(SQL["ids_that_stand_twice"], [row["event_id"] for row in self._rows])
        self._twice = {row["event_id"] for row in found}
        if archived := [row["event_id"] for row in self._rows if isinstance(row, LinkFromArchive)]:
            found = await connection.fetch(SQL["ids_beside_the_archive"], archived)
            self._twice |= {row["event_id"] for row in found}
        before = {(correlation, index - 1) for correlation, index in self._stored if index} - self._stored.keys()
        for place in before & self._before.keys():
            self._stored[place].append(self._before[place])
        before -= self._before.keys()
        if before:
            for row in await connection.fetch(SQL["before"], *_columns(before)):
                self._stored[row["correlation_id"], row["chain_index"]].append(row["event_hash"] or "")
        missing = before - self._stored.keys()
        if missing or any(row["erased"] for row in self._rows):
            evidence = await read_evidence(connection, log)
            self.erased = evidence.erased
            await self._judge_gaps(connection, log, missing, evidence.purged)
        self._rows.clear()

    async def _judge_gaps(
        self, connection: Connection, log: Log, missing: Collection[tuple[str, int]], purged: Positions
    ) -> None:
        """Find the events of the page before which others were purged."""
        for row in self._rows:
            correlation, index = row["correlation_id"], row["chain_index"]
            if index is None or row["log_index"] is None or (correlation, index - 1) not in missing:
                continue
            end = await connection.fetchrow(SQL["end_before"], correlation, index)
            assert end is not None
            last_hash = row["previous_event_hash"] or ""
            place = place_of(row["log_id"], row["log_index"])
            gap = Gap(index - end["chain_index"] - 1, index, int(end["place"]), place, last_hash)
            if (await judge_gap_by_leaf(connection, log, gap, purged)).is_purge:
                self._purged_before.add((correlation, index))

    def stands_twice(self, row: Row) -> bool:
        """Whether another row has the event's id."""
        return row["event_id"] in self._twice

    def fits(self, row: Row) -> bool:
        """Whether the event links to the one before it and is the only one at its chain position. An unsealed one may link to any."""
        correlation, index, previous = row["correlation_id"], row["chain_index"], row["previous_event_hash"] or ""
        if self.stands_twice(row):
            return False
        if row["log_index"] is None:
            if index is not None or not row["event_hash"]:
                return index is None
            return (
                (correlation, previous) in self._linked if previous else (correlation, row["event_id"]) in self._firsts
            )
        if not index:
            return index == 0 and not previous and len(self._stored[correlation, 0]) == 1
        before = self._stored.get((correlation, index - 1))
        follows = (correlation, index) in self._purged_before if before is None else previous in before
        return len(self._stored[correlation, index]) == 1 and bool(previous) and follows


async def _ranks(connection: Connection, correlations: Collection[str]) -> dict[str, int]:
    """By correlation which one of them it is, as Postgres orders them."""
    ordered = await connection.fetch(SQL["correlations_in_order"], list(correlations))
    return {row["correlation_id"]: rank for rank, row in enumerate(ordered)}


async def _merged(
    stored: Portions, archived: AsyncGenerator[list[FromArchive]], ranks: Mapping[str, int]
) -> AsyncGenerator[Sequence[Row]]:
    """The rows of a page, those of a correlation together, in the order of time and id."""

    def place(row: Row) -> tuple[Any, ...]:
        time = row["event_timestamp" if isinstance(row, FromArchive) else "time"]
        return ranks[row["correlation_id"]], time, row["event_id"]

    async for here, there in in_one_order(stored, archived, place):
        yield sorted([*here, *there], key=place) if there else here


def _columns(pairs: Collection[tuple[str, Any]]) -> tuple[list[str], list[Any]]:
    return [name for name, _ in pairs], [value for _, value in pairs]
