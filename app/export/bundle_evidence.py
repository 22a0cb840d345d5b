"""Which self events belong into a bundle: what the logs record of holds, purges, erasures and losses of the correlation's events."""

from asyncio import sleep
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from itertools import pairwise
from typing import Any

import orjson

from app.db import Connection
from app.events.canonical import loads
from app.events.log import LOG_POSITIONS, Log, place_of
from app.events.positions import Positions
from app.events.record import Row
from app.export.bundle import BundledEvent, BundledGap, BundledNotification, ChainEnd
from app.sql import load
from app.tlog.evidence import ERASED, PURGED, RESTORED, read_evidence, read_records
from app.tlog.gaps import Gap, judge_gap_by_leaf, place_of_leaf
from app.tlog.orders import Hold, differences, read_orders, without_unadopted
from app.tlog.proof import CONTINUED

SQL = load("export")
_HOLDS = ["datastorage.hold.placed", "datastorage.hold.released", "datastorage.hold.adopted"]
_PLACE_END = 2**62


@dataclass(slots=True)
class Selectors:
    """What holds may select the correlation's events by."""

    actors: set[Any] = field(default_factory=set)
    resources: set[Any] = field(default_factory=set)
    times: set[datetime] = field(default_factory=set)

    def add(self, row: Row) -> None:
        self.actors.add(row["actor_id"])
        self.resources.add((row["resource_type"], row["resource_id"]))
        self.add_time(row["event_timestamp"])

    def add_time(self, time: datetime) -> None:
        """Add a time, unless it is infinite, which the driver returns without a zone: no hold ends there."""
        if time.tzinfo is not None:
            self.times.add(time)

    def are_covered_by(self, payload: Any, correlation_id: str) -> bool:
        """Whether the selector in the payload of a hold's event covers one of the rows. Members that are no texts select nothing."""
        if not isinstance(payload, dict):
            return False
        texts = {name: value for name, value in payload.items() if isinstance(value, str)}
        if texts.get("correlation_id") == correlation_id or texts.get("actor_id") in self.actors:
            return True
        if (texts.get("resource_type"), texts.get("resource_id")) in self.resources:
            return True
        try:
            first, end = (datetime.fromisoformat(texts[name]) for name in ("time_from", "time_to"))
            return any(first <= time <= end for time in self.times)
        except (KeyError, TypeError, ValueError):
            return False


async def find_gaps(
    connection: Connection, log: Log, events: Sequence[BundledEvent], head: ChainEnd | None
) -> list[BundledGap]:
    """The chain positions without an event, each with the place of its last one if a log records that it was purged or lost."""
    found = []
    gaps = list(_gaps(log, events, head))
    missing = (await read_evidence(connection, log)).missing if gaps else Positions()
    for gap in gaps:
        bundled = BundledGap(gap.chain_end - gap.missing, gap.chain_end, gap.last_hash, None, None, None)
        if (await judge_gap_by_leaf(connection, log, gap, missing)).is_purge:
            end = _PLACE_END if gap.position_after is None else gap.position_after
            place = await place_of_leaf(connection, log, gap.last_hash, gap.position_before, end)
            assert place is not None
            log_id, position = divmod(place, LOG_POSITIONS)
            bundled = replace(bundled, log=log.name_of(log_id), position=position)
        found.append(bundled)
    return found


def _gaps(log: Log, events: Sequence[BundledEvent], head: ChainEnd | None) -> Iterator[Gap]:
    """The gaps between the entries and after them; their positions are places."""
    next_index, before = 0, -1
    for event, place in zip(events, _places(log, events), strict=True):
        record = orjson.loads(event.record)
        index = record["chain_index"]
        if index is not None and index > next_index:
            yield Gap(index - next_index, index, before, place, record["previous_event_hash"] or "")
        next_index, before = max(next_index, (index or 0) + 1), place
    if head is not None and next_index < head.length:
        yield Gap(head.length - next_index, head.length, before, None, head.hash)


async def places_of_holds(connection: Connection, log: Log, correlation_id: str, selectors: Selectors) -> set[int]:
    """The places of the self events about holds that cover, or covered, any of the correlation's events."""
    return {
        place_of(row["log_id"], row["log_index"])
        for row in await connection.fetch(SQL["hold_events"], _HOLDS)
        if 0 <= row["log_id"] <= log.id and selectors.are_covered_by(loads(row["event_data"]), correlation_id)
    }


async def places_of_digests(connection: Connection, log: Log, correlation_id: str) -> set[int]:
    """The places of the self events that have digests of notifications about the correlation, whether or not these are still there."""
    rows = await connection.fetch(SQL["notification_events"], correlation_id)
    return {place_of(row["log_id"], row["log_index"]) for row in rows if 0 <= row["log_id"] <= log.id}


@dataclass(slots=True)
class Unmarked:
    """Events that no legal_hold column shows as held, by what holds may select each by."""

    _events: list[tuple[Selectors, str]] = field(default_factory=list)

    def add(self, row: Row) -> None:
        """Add an event of the log, unless it is marked. An erased one has no actor and no resource any more."""
        if row["legal_hold"] is True:
            return
        one = Selectors()
        if row["payload_commitment"] is None:
            one.add(row)
        else:
            one.add_time(row["event_timestamp"])
        self._events.append((one, f"event {row['event_id']} at position {row['log_index']}"))

    def held_by(self, hold: Hold, correlation_id: str) -> Iterator[str]:
        """Those that a hold covers, in words."""
        columns = hold.columns()
        return (name for selectors, name in self._events if selectors.are_covered_by(columns, correlation_id))


async def differing_holds(
    connection: Connection, log: Log, correlation_id: str, selectors: Selectors, unmarked: Unmarked
) -> list[str]:
    """Where tables and marks are not what the log records of the holds that cover the correlation: what verification would say."""
    orders = await read_orders(connection, log)

    def concerns(hold: Hold) -> bool:
        return selectors.are_covered_by(hold.columns(), correlation_id)

    found = [one.message for one in await differences(connection, orders, concerns)]
    for hold in (await without_unadopted(connection, orders)).active_holds():
        await sleep(0)
        if not concerns(hold):
            continue
        found += [
            f"hold removed: the hold {hold.hold_id} covers the {name}, but its row does not show it"
            for name in unmarked.held_by(hold, correlation_id)
        ]
    return found


async def places_of_removals(
    connection: Connection, log: Log, events: Sequence[BundledEvent], gaps: Sequence[BundledGap]
) -> set[int]:
    """The places of the self events about erasures of these events, and about purges, losses and restores of what is missing."""
    places = set()
    wanted = _wanted(log, events, gaps)
    if wanted:
        async for payload, place in read_records(connection, log):
            log_id = payload.get("log_id", 0)
            if not isinstance(log_id, int) or not 0 <= log_id <= log.id:
                continue  # no release has written it
            start = place_of(log_id, 0)
            named = Positions.parse(str(payload.get("positions")))
            ranges = wanted.get(payload["event_type"], ())
            if any(named.count(first - start, end - start) for first, end in ranges):
                places.add(place)
    return places


def _wanted(log: Log, events: Sequence[BundledEvent], gaps: Sequence[BundledGap]) -> dict[str, list[tuple[int, int]]]:
    """By type of self event, the ranges of places about which those events are needed that name any of them."""
    places = _places(log, events)
    erased = [(place, place + 1) for event, place in zip(events, places, strict=True) if event.is_erased]
    ids = {one.name: one.id for one in log.and_earlier()}
    ends = {place_of(ids[gap.log], gap.position) for gap in gaps if gap.log is not None and gap.position is not None}
    everything = [-1, *sorted([*places, *ends])]
    missing = [(before + 1, place + 1) for before, place in pairwise(everything) if place in ends]
    wanted = {ERASED: erased, PURGED: missing, RESTORED: missing, CONTINUED: missing}
    return {name: ranges for name, ranges in wanted.items() if ranges}


async def uncovered_by_purges(
    connection: Connection, log: Log, notifications: Sequence[BundledNotification], places: set[int]
) -> list[BundledNotification]:
    """The notifications, without the cover of those at `places` that were purged: the event that had the digest is gone."""
    missing = (await read_evidence(connection, log)).missing
    ids = {one.name: one.id for one in log.and_earlier()}
    shown = []
    for one in notifications:
        place = None if one.covered_by is None else place_of(ids[one.covered_by.log], one.covered_by.position)
        is_gone = place in places and place in missing
        shown.append(replace(one, salt=None, committed=None, covered_by=None) if is_gone else one)
    return shown


def _places(log: Log, events: Sequence[BundledEvent]) -> list[int]:
    ids = {one.name: one.id for one in log.and_earlier()}
    return [place_of(ids[event.log], event.position) for event in events]
