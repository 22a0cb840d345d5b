"""What the log itself records, read from self events, each of which is verified first: what was purged or erased; findings, holds and policies."""

from collections import defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Any

from app.db import Connection, portions
from app.events.canonical import loads
from app.events.log import LOG_POSITIONS, Log, place_of
from app.events.own import agree
from app.events.positions import Positions, Range
from app.events.record import Row, is_logged
from app.tlog.proof import CONTINUED
from app.tlog.tiles import SQL

PURGED, RESTORED, ERASED = "datastorage.retention.purged", "datastorage.retention.restored", "datastorage.event.erased"
HOLD_PLACED, HOLD_RELEASED, HOLD_ADOPTED = (
    f"datastorage.hold.{action}" for action in ("placed", "released", "adopted")
)
POLICY_SET, POLICY_REMOVED = "datastorage.policy.set", "datastorage.policy.removed"
ARCHIVED, EXPIRED = "datastorage.archive.stored", "datastorage.archive.expired"
LOCKED, UNLOCKED = "datastorage.archive.locked", "datastorage.archive.unlocked"
FOUND, ACKNOWLEDGED = "datastorage.finding.recorded", "datastorage.finding.acknowledged"
_REMOVALS = (PURGED, RESTORED, ERASED, CONTINUED)
RECORDS = (*_REMOVALS, ARCHIVED, EXPIRED)
"""Types of the events that read_evidence() reads."""


@dataclass(frozen=True, slots=True)
class Erasures:
    """Places (place_of) whose rows may be marked as erased, and what their payloads have to be."""

    positions: Positions = field(default_factory=Positions)
    left: Mapping[str, Positions] = field(default_factory=dict)
    """By digest of the payload that an erasure has left: where it has. Erasures of before December 2026 do not say."""

    def __contains__(self, position: object) -> bool:
        return position in self.positions

    def __bool__(self) -> bool:
        return bool(self.positions)

    def left_at(self, position: object) -> set[str]:
        """The digests of the payloads that may stand at a position; none if any neutral one may."""
        return {digest for digest, positions in self.left.items() if position in positions}

    def within(self, first: int, end: int) -> "Erasures":
        """Those at positions from `first` up to, not including, `end`."""
        left = {digest: Positions(positions.within(first, end)) for digest, positions in self.left.items()}
        return Erasures(Positions(self.positions.within(first, end)), {d: p for d, p in left.items() if p})


NO_ERASURES = Erasures()


def left_digest(payload: bytes) -> str:
    """The digest of what an erasure leaves of a payload, in canonical form."""
    return sha256(payload).hexdigest()


@dataclass(frozen=True, slots=True)
class Evidence:
    """Positions whose rows may be missing, and positions whose rows may be marked as erased.

    They are places (place_of): of any log. In log 0 a place is the position.
    """

    purged: Positions = field(default_factory=Positions)
    erased: Erasures = NO_ERASURES
    lost: Positions = field(default_factory=Positions)
    """Missing too: admitted by the event with which a log was continued."""
    archived: Positions = field(default_factory=Positions)
    """Those of the purged and the lost ones that are in a part of the archive which has not expired: there their events are now."""

    def within(self, first: int, end: int) -> "Evidence":
        """The evidence about places from `first` up to, not including, `end`."""
        purged, lost, archived = (Positions(one.within(first, end)) for one in (self.purged, self.lost, self.archived))
        return Evidence(purged, self.erased.within(first, end), lost, archived)

    @property
    def missing(self) -> Positions:
        """Places whose rows may be missing, for whatever reason."""
        return Positions([*self.purged.ranges, *self.lost.ranges]) if self.lost else self.purged


NO_EVIDENCE = Evidence()


async def read_evidence(connection: Connection, log: Log, correlation_ids: Sequence[str] | None = None) -> Evidence:
    """The evidence in `log` and those before it, or only that in some correlations. Self events that do not match the log are ignored.

    `connection` is in a snapshot. Only self events are read, and a few at a time, whatever else their correlations contain.
    """
    return await _read(connection, log, RECORDS, correlation_ids)


async def read_erased(connection: Connection, log: Log) -> Erasures:
    """What is erased, as read_evidence() has it, without reading what is recorded of purges and of the archive."""
    return (await _read(connection, log, [ERASED], None)).erased


async def _read(
    connection: Connection, log: Log, types: Sequence[str], correlation_ids: Sequence[str] | None
) -> Evidence:
    recorded = _Recorded()
    async for payload, row in read_self_events(connection, log, types, correlation_ids):
        recorded.add(payload, place_of(row["log_id"], row["log_index"]))
    return recorded.evidence()


async def read_records(
    connection: Connection, log: Log, correlation_ids: Sequence[str] | None = None
) -> AsyncIterator[tuple[dict[str, Any], int]]:
    """The self events that are evidence: payload and place of each. As read_evidence()."""
    async for payload, row in read_self_events(connection, log, _REMOVALS, correlation_ids):
        yield payload, place_of(row["log_id"], row["log_index"])


async def read_self_events(
    connection: Connection, log: Log, types: Sequence[str], correlation_ids: Sequence[str] | None = None
) -> AsyncIterator[tuple[dict[str, Any], Row]]:
    """The self events of some types in `log` and those before it: payload and row of each. As read_evidence()."""
    async for rows in portions(connection, SQL["evidence"], list(types), correlation_ids, widest="event_data"):
        for row in rows:
            if (payload := believed_payload(row, log)) is not None:
                yield payload, row


def believed_payload(row: Row, log: Log) -> dict[str, Any] | None:
    """The payload of a row of the statement `evidence` if `log`, or one before it, has it as a self event; else None."""
    payload = loads(row["event_data"])  # whoever may INSERT decides how deep it is, and how large its numbers are
    return payload if is_evidence(row, payload) and _is_of_its_log(row, log) else None


def is_evidence(row: Row, payload: Any) -> bool:
    """Whether the columns of a self event agree with its payload, as they do in all that the service writes and in no other event."""
    return agree(row["event_type"], row["event_category"], row["correlation_id"], payload)


class _Recorded:
    """What the self events that were read so far record."""

    def __init__(self) -> None:
        self._purged: dict[str, list[Range]] = defaultdict(list)
        self._restored: dict[str, list[Range]] = defaultdict(list)
        self._erased: list[Range] = []
        self._left: dict[str, list[Range]] = defaultdict(list)
        self._lost: list[Range] = []
        self._in_parts: dict[str, list[Range]] = defaultdict(list)
        self._expired: dict[str, list[Range]] = defaultdict(list)

    def add(self, payload: dict[str, Any], place: int) -> None:
        """Add the event at this place. It counts only for positions before its own, of its log or of one before that."""
        log_id = payload.get("log_id", 0)
        if not isinstance(log_id, int) or not 0 <= log_id <= place // LOG_POSITIONS:
            return
        start = place_of(log_id, 0)
        end = min(place - start, LOG_POSITIONS)
        ranges = [(start + a, start + b) for a, b in Positions.parse(str(payload.get("positions"))).within(0, end)]
        match payload["event_type"]:
            case "datastorage.log.continued":
                if place == place_of(log_id + 1, 0):  # it is the first event of the next log
                    self._lost += ranges
            case "datastorage.retention.purged":
                self._purged[payload["operation_id"]] += ranges
            case "datastorage.retention.restored":
                self._restored[payload["operation_id"]] += ranges
            case "datastorage.archive.stored":
                self._in_parts[payload["archive_id"]] += ranges
            case "datastorage.archive.expired":
                self._expired[payload["archive_id"]] += ranges
            case _:
                self._erased += ranges
                self._add_left(payload, start, end)

    def _add_left(self, payload: dict[str, Any], start: int, limit: int) -> None:
        """Add what an erasure says that it left: a digest for each of its positions below `limit`, in their order.

        `start` is the first place of the log of these positions.
        """
        digests = payload.get("left")
        if not isinstance(digests, list):
            return
        at = 0
        for first, end in Positions.parse(str(payload.get("positions"))).ranges:
            for one, digest in enumerate(digests[at : at + end - first], first):
                if 0 <= one < limit:
                    self._left[str(digest)].append((start + one, start + one + 1))
            at += end - first

    def evidence(self) -> Evidence:
        """The positions that are purged and not restored by the same operation, and those that are erased."""
        not_restored = [
            remaining
            for operation, ranges in self._purged.items()
            for remaining in Positions(ranges).without(Positions(self._restored[operation])).ranges
        ]
        left = {digest: Positions(ranges) for digest, ranges in self._left.items()}
        evidence = Evidence(Positions(not_restored), Erasures(Positions(self._erased), left), Positions(self._lost))
        missing = evidence.missing
        in_parts = Positions(one for ranges in self._in_parts.values() for one in ranges).without(
            self._of_expired_parts()
        )
        return replace(evidence, archived=missing.without(missing.without(in_parts)))

    def _of_expired_parts(self) -> Positions:
        """Of the positions that have expired those that their part had: what somebody says of another part is nothing about it."""
        ranges = list[Range]()
        for archive_id, expired in self._expired.items():
            of_part = Positions(self._in_parts.get(archive_id, ()))
            ranges += (one for first, end in expired for one in of_part.within(first, end))
        return Positions(ranges)


async def leaves_at(connection: Connection, log: Log, places: list[int]) -> dict[int, str]:
    """The leaf hashes at these places of `log` and those before it, in hex, where there are any."""
    leaves: dict[int, str] = {}
    for one in log.and_earlier():
        positions = [place - one.place(0) for place in places if one.place(0) <= place < one.place(LOG_POSITIONS)]
        if not one.id:
            positions += [place for place in places if place < 0]
        for row in await connection.fetch(SQL.of(one)["leaves_at"], positions) if positions else []:
            leaves[one.place(row["position"])] = row["leaf"].hex()
    return leaves


def _is_of_its_log(row: Row, log: Log) -> bool:
    """Whether a row is the event that its log has at its position. A self event that is evidence is never erased."""
    if row["payload_commitment"] is not None or row["event_date"] != row["event_timestamp"].date():
        return False
    return is_logged(row, log) and bool(row["event_hash"] == row["leaf"])
