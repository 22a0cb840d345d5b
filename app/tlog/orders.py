"""Holds and retention policies as the log itself records them, and where the tables differ from that.

Both are orders: somebody has placed a hold, or set for how long the events of a category stay. What the log records is followed; what a
table says differently was not ordered through the service.
"""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, NamedTuple
from uuid import UUID

from app.db import LONG_FETCH_SECONDS, Connection
from app.events.log import LOG_POSITIONS, Log, place_of
from app.events.positions import Positions, Range
from app.events.record import Row
from app.tlog.evidence import (
    ARCHIVED,
    EXPIRED,
    HOLD_ADOPTED,
    HOLD_PLACED,
    HOLD_RELEASED,
    POLICY_REMOVED,
    POLICY_SET,
    PURGED,
    read_self_events,
)
from app.tlog.tiles import SQL

TYPES = [HOLD_PLACED, HOLD_RELEASED, HOLD_ADOPTED, POLICY_SET, POLICY_REMOVED]
SELECTOR = ("correlation_id", "actor_id", "resource_type", "resource_id", "time_from", "time_to")
"""The columns of a hold that say what it covers, and the members of its events."""
_TIMES = frozenset({"time_from", "time_to"})
REPLACED = "replaced"
"""The reason of the release of a hold that a newer one with the same selector replaces."""
_SEEDED = ("gateway", "workflow", "remediation", "analysis", "notification", "apifrontend")
_SEEDED_DAYS = 2555

DifferenceKind = Literal["hold removed", "hold invented", "hold edited", "policy edited", "early purge"]


@dataclass(frozen=True, slots=True)
class Release:
    """The end of a hold. Times are text, in UTC with six digits of fraction; None if the event has none, as those of earlier releases."""

    reason: str
    by: str
    at: str | None
    index: int
    """The place of the event that ended it, among the positions of all logs."""
    is_gone: bool = False
    """Of a row: whether there is no event at that position any more."""


@dataclass(frozen=True, slots=True)
class Hold:
    """A hold as the log records it, or as its row does."""

    hold_id: str
    selector: tuple[str | None, ...]
    reason: str
    by: str
    at: str | None
    index: int
    """The place of the event that placed it, among the positions of all logs."""
    release: Release | None = None

    @property
    def name(self) -> str:
        """Its id and its selector, as text for messages."""
        selector = ", ".join(f"{n} {v}" for n, v in zip(SELECTOR, self.selector, strict=True) if v is not None)
        return f"{self.hold_id} ({selector})"

    def columns(self) -> dict[str, str | None]:
        """Its id and its selector by their names in the table."""
        return {"hold_id": self.hold_id} | dict(zip(SELECTOR, self.selector, strict=True))


class Policy(NamedTuple):
    """How long events of one category stay, in days; None for a bound that the settings decide."""

    retention_days: int
    floor_days: int | None = None
    ceiling_days: int | None = None

    def __str__(self) -> str:
        bounds = [
            f"{name} {days}" for name, days in zip(("floor", "ceiling"), self[1:], strict=True) if days is not None
        ]
        return ", ".join([f"{self.retention_days} days", *bounds])


class PolicyChange(NamedTuple):
    """A policy that was set, or None when it was removed; by whom, when and why. All empty for what the first migration has set."""

    policy: Policy | None
    place: int = -1
    policy_id: str = ""
    by: str = ""
    at: datetime | None = None
    reason: str = ""


class Difference(NamedTuple):
    """Something that the tables say and the log does not, or the other way round. The message begins with the kind."""

    kind: DifferenceKind
    message: str
    place: int | None = None
    """Of the event that the tables differ from, among the positions of all logs."""
    correlation_id: str = ""


@dataclass(slots=True)
class Orders:
    """Every hold and policy that the log records."""

    holds: dict[str, Hold] = field(default_factory=dict)
    """By id, released ones too."""
    _changes: dict[str, list[PolicyChange]] = field(default_factory=lambda: defaultdict(list))
    _adopts: bool = False

    def active_holds(self) -> list[Hold]:
        return [hold for hold in self.holds.values() if hold.release is None]

    def policy_at(self, category: str, place: int) -> Policy | None:
        """The policy of a category before this place in the logs."""
        changes = self._changes.get(category, [])
        count = bisect_right(changes, place - 1, key=lambda change: change.place)
        return changes[count - 1].policy if count else _seeded(category).policy

    def policies(self) -> dict[str, PolicyChange]:
        """The policies at the end of the log, with their last change, by category."""
        newest = {category: _seeded(category) for category in _SEEDED}
        newest |= {category: changes[-1] for category, changes in self._changes.items()}
        return {category: change for category, change in sorted(newest.items()) if change.policy is not None}

    def is_adopted(self) -> bool:
        """Whether the log has an event that it can have only once all orders are recorded."""
        return self._adopts or bool(self._changes)

    def add(self, place: int, payload: Mapping[str, Any], row: Row) -> None:
        """Add the next event of one of TYPES, in the order of the logs; `place` is its place among their positions."""
        match payload["event_type"]:
            case "datastorage.hold.placed":
                hold = _hold(payload, place)
                if (replaced := self.holds.get(payload.get("replaces", ""))) and replaced.release is None:
                    release = Release(REPLACED, hold.by, hold.at, place)
                    self.holds[replaced.hold_id] = replace(replaced, release=release)
                self.holds.setdefault(hold.hold_id, hold)
            case "datastorage.hold.released":
                released = self.holds.get(payload["hold_id"])
                if released is not None and released.release is None:
                    at = _time(payload.get("released_at"))
                    release = Release(payload["reason"], payload["released_by"], at, place)
                    self.holds[released.hold_id] = replace(released, release=release)
            case "datastorage.hold.adopted":
                in_log = payload["log_id"]
                hold = _hold(payload, place_of(in_log, payload["placed_index"]))
                if "released_index" in payload:
                    at = _time(payload["released_at"])
                    release = Release(
                        payload["release_reason"],
                        payload["released_by"],
                        at,
                        place_of(in_log, payload["released_index"]),
                    )
                    hold = replace(hold, release=release)
                self.holds[hold.hold_id] = hold
                self._adopts = True
            case "datastorage.policy.set":
                policy = Policy(*(payload.get(name) for name in Policy._fields))  # type: ignore[arg-type]  # checked when it was written
                by, at = payload["set_by"], row["event_timestamp"]
                change = PolicyChange(policy, place, payload["policy_id"], by, at, payload["reason"])
                self._changes[payload["category"]].append(change)
            case _:
                by, at = payload["removed_by"], row["event_timestamp"]
                change = PolicyChange(None, place, payload["policy_id"], by, at, payload["reason"])
                self._changes[payload["category"]].append(change)


async def read_orders(connection: Connection, log: Log) -> Orders:
    """What this log and those before it record. `connection` is in a snapshot. The events are never purged nor erased, and are few."""
    events = [
        (place_of(row["log_id"], row["log_index"]), payload, {n: row[n] for n in ("log_index", "event_timestamp")})
        async for payload, row in read_self_events(connection, log, TYPES)
    ]
    orders = Orders()
    for place, payload, row in sorted(events, key=lambda event: event[0]):
        try:
            orders.add(place, payload, row)
        except (KeyError, TypeError, ValueError):  # no event of the service: it has members that no schema lets pass
            continue
    return orders


async def version(connection: Connection, own: Sequence[UUID] = ()) -> str:
    """A text that differs when the log has another order, except the events `own`, or an active hold's row is another one. Cheap."""
    found: str = await connection.fetchval(SQL["orders_version"], TYPES, own, timeout=LONG_FETCH_SECONDS)
    return found


async def is_adopted(connection: Connection) -> bool:
    """Whether all holds and policies of the time before the log recorded them have events by now."""
    if not await connection.fetchval(SQL["has_adoptions"]):
        return False
    return bool(await connection.fetchval(SQL["is_adopted"]))


async def stored_holds(connection: Connection) -> dict[str, Hold]:
    """The rows of the table, by id."""
    found = {}
    for row in await connection.fetch(SQL["stored_holds"], timeout=LONG_FETCH_SECONDS):
        release = None
        if row["is_released"]:
            release = Release(
                row["release_reason"],
                row["released_by"],
                row["released_at"],
                place_of(row["released_log"], row["released_index"]),
                row["is_release_gone"],
            )
        selector = tuple(row[name] for name in SELECTOR)
        found[row["hold_id"]] = Hold(
            *(row["hold_id"], selector, row["reason"], row["placed_by"]),
            *(row["placed_at"], place_of(row["placed_log"], row["placed_index"]), release),
        )
    return found


async def stored_policies(connection: Connection) -> dict[str, Policy]:
    """The rows of the table, by category."""
    rows = await connection.fetch(SQL["stored_policies"], timeout=LONG_FETCH_SECONDS)
    return {row["event_category"]: Policy(*(row[name] for name in Policy._fields)) for row in rows}


def adoptable_holds(orders: Orders, stored: Mapping[str, Hold]) -> list[Hold]:
    """The rows of which the log has no event, or none of their release, which was purged or erased by an earlier release."""
    return [row for row in stored.values() if _is_adoptable(orders.holds.get(row.hold_id), row)]


def _is_adoptable(hold: Hold | None, row: Hold) -> bool:
    return hold is None or (hold.release is None and row.release is not None and row.release.is_gone)


def hold_differences(orders: Orders, stored: Mapping[str, Hold]) -> Iterator[Difference]:
    """Where the rows of holds are not what the log records."""
    for hold in orders.holds.values():
        row = stored.get(hold.hold_id)
        if row is None or (hold.release is None and row.release is not None):
            what = "the table has no hold" if row is None else "the table says that it has ended: hold"
            until = "no release of it" if hold.release is None else f"its release at {_where(hold.release.index)}"
            yield _of_hold("hold removed", f"{what} {hold.name}; the log records it, and {until}", hold)
        elif names := _differing(hold, row):
            yield _of_hold(
                "hold edited", f"{', '.join(names)} of hold {hold.name} differs from what the log records", hold
            )
    for hold_id, row in stored.items():
        if hold_id not in orders.holds:
            yield _of_hold("hold invented", f"the table has a hold {row.name}, of which the log has no event", row)


def policy_differences(orders: Orders, stored: Mapping[str, Policy]) -> Iterator[Difference]:
    """Where the rows of policies are not what the log records."""
    recorded = orders.policies()
    for category in sorted({*recorded, *stored}):
        wanted = recorded[category].policy if category in recorded else None
        if stored.get(category) != wanted:
            message = f"the policy of {category} is {stored.get(category) or 'absent'} in the table, {wanted or 'absent'} in the log"
            yield Difference("policy edited", f"policy edited: {message}")


async def without_unadopted(connection: Connection, orders: Orders) -> Orders:
    """What the log records, until the adoption without the holds that it will record. `connection` is in the snapshot of `orders`."""
    if orders.is_adopted() or await is_adopted(connection):
        return orders
    adoptable = {hold.hold_id for hold in adoptable_holds(orders, await stored_holds(connection))}
    return Orders({hold_id: hold for hold_id, hold in orders.holds.items() if hold_id not in adoptable})


async def differences(
    connection: Connection, orders: Orders, concerns: Callable[[Hold], bool] | None = None
) -> list[Difference]:
    """Where holds and policies of the tables are not what the log records. `connection` is in the snapshot that `orders` was read in.

    Before the adoption what it will record is none. With `concerns` only those of holds of which this is true, in the log or the table.
    """
    holds, recorded = await stored_holds(connection), orders.holds
    are_adopted = orders.is_adopted() or await is_adopted(connection)
    left_out = set[str]() if are_adopted else {hold.hold_id for hold in adoptable_holds(orders, holds)}
    if concerns is not None:
        wanted = {hold.hold_id for hold in (*holds.values(), *recorded.values()) if concerns(hold)}
        left_out |= (holds.keys() | recorded.keys()) - wanted
    found = hold_differences(Orders(_without(recorded, left_out)), _without(holds, left_out))
    if concerns is not None or not are_adopted:
        return list(found)
    return [*found, *policy_differences(orders, await stored_policies(connection))]


def _without(holds: Mapping[str, Hold], ids: Collection[str]) -> dict[str, Hold]:
    return {hold_id: hold for hold_id, hold in holds.items() if hold_id not in ids}


async def early_purges(connection: Connection, log: Log, orders: Orders) -> AsyncIterator[Difference]:
    """A difference for each purge that followed another policy than the log's at that time, or not even its own.

    Or that names a part of the archive that has not what it purged. So for each expiry of a part, which purges what was there only.

    Purges of earlier releases do not name what they followed. `connection` is in a snapshot.
    """
    parts: _Parts | None = None
    for kind in (PURGED, EXPIRED):
        async for payload, row in read_self_events(connection, log, [kind]):
            archives = [payload] if kind == EXPIRED else payload.get("archives")
            if "policies" not in payload and archives is None:
                continue
            if archives is not None and parts is None:
                parts = await _archived_parts(connection, log)
            try:
                reason = _early(payload, row, orders) or _unarchived(payload, row, archives, parts or {})
            except (KeyError, TypeError, ValueError, OverflowError):
                reason = "what it says of the policies that it followed cannot be read"
            if reason:
                place = place_of(row["log_id"], row["log_index"])
                what = (
                    f"expiry of part {payload['archive_id']}" if kind == EXPIRED else f"purge {payload['operation_id']}"
                )
                message = f"early purge: the {what} at {_where(place)}: {reason}"
                yield Difference("early purge", message, place, row["correlation_id"])


_Parts = Mapping[str, tuple[str, list[tuple[int, Range]]]]
"""By archive_id of parts: the manifest's digest, and places, each with that of the event that records it."""


async def _archived_parts(connection: Connection, log: Log) -> _Parts:
    parts: dict[str, tuple[str, list[tuple[int, Range]]]] = {}
    async for payload, row in read_self_events(connection, log, [ARCHIVED]):
        known = parts.setdefault(payload["archive_id"], (payload["manifest_sha256"], []))
        start, at = place_of(payload["log_id"], 0), place_of(row["log_id"], row["log_index"])
        known[1].extend((at, (start + a, start + b)) for a, b in Positions.parse(payload["positions"]).ranges)
    return parts


def _unarchived(
    payload: Mapping[str, Any], row: Row, archives: Sequence[Mapping[str, Any]] | None, parts: _Parts
) -> str:
    """Why a purge that names parts of the archive cannot rely on them; empty if it names none, or they have all that it purged."""
    if archives is None:
        return ""
    at, within = place_of(row["log_id"], row["log_index"]), list[Range]()
    for named in archives:
        digest, ranges = parts.get(named["archive_id"], ("", []))
        if digest != named["manifest_sha256"]:
            return f"the log records no part {named['archive_id']} of the archive with the manifest {named['manifest_sha256']}"
        within += [one for recorded, one in ranges if recorded < at]
    start = place_of(payload.get("log_id", 0), 0)
    purged = Positions((start + a, start + b) for a, b in Positions.parse(payload["positions"]).ranges)
    left = purged.without(Positions(within))
    return f"{left.size} of its events are in no part of the archive that it names" if left else ""


def _early(payload: Mapping[str, Any], row: Row, orders: Orders) -> str:
    """Why a purge was too early; empty if it was not, as far as can be known."""
    cutoff = datetime.fromisoformat(payload["cutoff"])
    if payload["event_type"] == EXPIRED and not payload["policies"]:
        return "it does not say which policies it followed"
    if cutoff > row["recorded_at"]:
        return f"it purged what is due at {cutoff.isoformat()}, which was in the future"
    for followed in payload.get("policies", []):
        category, floor, ceiling = followed["category"], followed["floor_days"], followed["ceiling_days"]
        policy = orders.policy_at(category, place_of(row["log_id"], row["log_index"]))
        wanted = policy or Policy(0)
        differs = followed.get("retention_days") != (policy.retention_days if policy else None)
        if differs or wanted.floor_days not in {None, floor} or wanted.ceiling_days not in {None, ceiling}:
            own = Policy(followed.get("retention_days", 0), floor, ceiling)
            return f"it followed {own} for {category}, but the policy in the log was {policy or 'absent'}"
        days = min(ceiling, max(floor, wanted.retention_days))
        if datetime.fromisoformat(followed["newest"]) >= cutoff - timedelta(days=days):
            return f"it purged an event of {category} of {followed['newest']}, which was not yet {days} days old"
    return ""


def _of_hold(kind: DifferenceKind, message: str, hold: Hold) -> Difference:
    return Difference(kind, f"{kind}: {message}", hold.index, hold.selector[0] or "")


def _where(place: int) -> str:
    """A place in words."""
    log_id, position = divmod(place, LOG_POSITIONS)
    return f"position {position} of log {log_id}" if log_id else f"position {position}"


def _differing(hold: Hold, row: Hold) -> list[str]:
    """What of a row is not what the log records."""
    pairs: list[tuple[str, object, object]] = [*zip(SELECTOR, hold.selector, row.selector, strict=True)]
    pairs += [
        ("reason", hold.reason, row.reason),
        ("placed_by", hold.by, row.by),
        ("placed_index", hold.index, row.index),
    ]
    pairs += [("placed_at", hold.at or row.at, row.at)]
    if hold.release is not None:
        if row.release is None:
            return ["the release"]
        ours, theirs = hold.release, row.release
        pairs += [("release_reason", ours.reason, theirs.reason), ("released_by", ours.by, theirs.by)]
        pairs += [("released_at", ours.at or theirs.at, theirs.at), ("released_index", ours.index, theirs.index)]
    return [name for name, recorded, found in pairs if recorded != found]


def _hold(payload: Mapping[str, Any], index: int) -> Hold:
    selector = tuple(_time(payload.get(name)) if name in _TIMES else payload.get(name) for name in SELECTOR)
    return Hold(
        payload["hold_id"], selector, payload["reason"], payload["placed_by"], _time(payload.get("placed_at")), index
    )


def _time(text: str | None) -> str | None:
    """A time as the statement stored_holds writes it."""
    return None if text is None else f"{datetime.fromisoformat(text).astimezone(UTC):%Y-%m-%dT%H:%M:%S.%fZ}"


def _seeded(category: str) -> PolicyChange:
    """What the first migration sets, before any event."""
    return PolicyChange(Policy(_SEEDED_DAYS) if category in _SEEDED else None)
