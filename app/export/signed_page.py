"""The reference's export: one page of events, whether each is what it was, and a signature over all of it.

What is signed is the JCS of the whole answer without `signature` and `detached_signature`. Events are sent as they are
signed, in pieces, so that a page of any width takes little memory.
"""

import base64
from collections import defaultdict
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any
from uuid import UUID, uuid4

import orjson

from app.db import Connection
from app.events.canonical import canonical, loads
from app.events.record import Row
from app.export.certificate import ExportKeyPair
from app.export.row import is_own, masked
from app.export.select import ExportQuery, page, places
from app.sql import load
from app.tlog.evidence import read_evidence

SQL = load("export")
ALGORITHM = "SHA256withRSA"
_TEXTS = (
    *("event_type", "event_category", "event_action", "event_outcome", "correlation_id"),
    *("event_hash", "previous_event_hash"),
)


@dataclass(slots=True)
class SignedPage:
    """One page, and what was found on it."""

    query: ExportQuery
    exported_by: str
    log: str
    key_pair: ExportKeyPair
    hmac_key: bytes | None = None
    export_id: UUID = field(default_factory=uuid4)
    events: int = 0
    tampered: list[str] = field(default_factory=list)
    first_position: None = None
    last_position: None = None

    async def stream(self, connection: Connection, finished: Callable[[], Awaitable[None]]) -> AsyncGenerator[bytes]:
        """The answer, in pieces. `finished` is awaited before the signature: what it raises cuts the answer."""
        links = _Links(await places(connection, self.query))
        await links.complete(connection, self.log)
        digest = sha256()
        ready = b'{"events":['
        async for rows in page(connection, self.query, self.log):
            ready += b"," if self.events else b""
            ready += b",".join([self._event(row, links) for row in rows])
            digest.update(ready)
            yield ready
            ready = b""
        await finished()
        yield ready + self._end(digest, ready)

    def _end(self, digest: Any, before: bytes) -> bytes:
        now = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"
        metadata, verification = self._metadata(now), self._verification(now)
        signed = canonical({"export_metadata": metadata, "hash_chain_verification": verification})
        digest.update(before + b"]," + signed[1:])
        signature = base64.b64encode(self.key_pair.sign(digest.digest())).decode()
        answer: dict[str, Any] = {
            "export_metadata": metadata | {"signature": signature},
            "hash_chain_verification": verification,
        }
        if self.query.include_detached_signature:
            answer["detached_signature"] = (
                f"-----BEGIN SIGNATURE-----\nAlgorithm: {ALGORITHM}\nCertificate-Fingerprint: {self.key_pair.fingerprint}\n\n"
                f"{signature}\n-----END SIGNATURE-----\n"
            )
        return b"]," + orjson.dumps(answer)[1:] + b"\n"

    def _event(self, row: Row, links: "_Links") -> bytes:
        """The event as JCS. What is verified is what is stored, whatever is shown of it."""
        self.events += 1
        valid = links.hold(row) and is_own(row, self.log, self.hmac_key)
        if not valid:
            self.tampered.append(row["event_id"])
        event = {name: masked(self.query, row[name] or "") for name in _TEXTS} | {
            "event_id": row["event_id"],
            "version": masked(self.query, row["event_version"]),
            "event_timestamp": row["event_timestamp"].isoformat()[:19] + "Z",
            "event_data": orjson.Fragment(canonical(masked(self.query, loads(row["event_data"])))),
            "hash_chain_valid": valid,
            "legal_hold": bool(row["legal_hold"]),
        }
        return orjson.dumps(event, option=orjson.OPT_SORT_KEYS)

    def _metadata(self, now: str) -> dict[str, Any]:
        query = self.query
        return {
            "export_timestamp": now,
            "export_format": "json",
            "query_filters": masked(query, query.filters()) | {"offset": query.offset, "limit": query.limit},
            "total_events": self.events,
            "signature_algorithm": ALGORITHM,
            "certificate_fingerprint": self.key_pair.fingerprint,
            "exported_by": masked(query, self.exported_by),
        }

    def _verification(self, now: str) -> dict[str, Any]:
        valid = self.events - len(self.tampered)
        return {
            "total_events_verified": self.events,
            "valid_chain_events": valid,
            "broken_chain_events": len(self.tampered),
            "chain_integrity_percentage": 100.0 * valid / self.events if self.events else 100.0,
            "verification_timestamp": now,
            "tampered_event_ids": self.tampered,
        }


class _Links:
    """What the events of a page link to, on the page or before it."""

    def __init__(self, places: Iterable[Row]) -> None:
        self._stored: dict[tuple[str, int], list[str]] = defaultdict(list)
        # What unsealed events link to; once it was looked up, what of it is there.
        self._linked: set[tuple[str, str]] = set()
        self._purged = False
        for row in places:
            if row["chain_index"] is not None:
                self._stored[row["correlation_id"], row["chain_index"]].append(row["event_hash"] or "")
            elif row["previous_event_hash"]:
                self._linked.add((row["correlation_id"], row["previous_event_hash"]))

    async def complete(self, connection: Connection, log: str) -> None:
        """Look up what the page does not hold. What is nowhere was removed, unless the log says that something was purged."""
        if self._linked:
            found = await connection.fetch(SQL["linked"], *_columns(self._linked))
            self._linked = {(row["correlation_id"], row["event_hash"]) for row in found}
        before = {(correlation, index - 1) for correlation, index in self._stored if index} - self._stored.keys()
        if not before:
            return
        for row in await connection.fetch(SQL["before"], *_columns(before)):
            self._stored[row["correlation_id"], row["chain_index"]].append(row["event_hash"] or "")
        if before - self._stored.keys():
            self._purged = bool((await read_evidence(connection, log)).purged)

    def hold(self, row: Row) -> bool:
        """Whether the event follows one of its chain, and is alone at its place. An unsealed one may follow any."""
        correlation, index, previous = row["correlation_id"], row["chain_index"], row["previous_event_hash"] or ""
        if row["log_index"] is None:
            return index is None and (not previous or (correlation, previous) in self._linked)
        if not index:
            return index == 0 and not previous and len(self._stored[correlation, 0]) == 1
        before = self._stored.get((correlation, index - 1))
        follows = self._purged if before is None else previous in before
        return len(self._stored[correlation, index]) == 1 and bool(previous) and follows


def _columns(pairs: Collection[tuple[str, Any]]) -> tuple[list[str], list[Any]]:
    return [name for name, _ in pairs], [value for _, value in pairs]
