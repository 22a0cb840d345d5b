"""Legal holds: placed, released and listed.

A hold is a record with one selector. Its record and the self event about it are one transaction of the log, so that every writer
that writes after it has read it. Rows that exist already are marked before that transaction, the newest of them within it.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import orjson

from app.db import Connection, Engine, fetch
from app.errors import NotFound, Unavailable
from app.events.log import LOG_POSITIONS, Log
from app.ingest.link import Flush
from app.ingest.self_events import self_event
from app.ingest.store import Store
from app.retention.logged import action_store, commit_action
from app.settings import Settings
from app.sql import load
from app.tlog.evidence import read_evidence
from app.tlog.orders import REPLACED, read_orders, stored_holds

SQL = load("retention")
_SLOW_SECONDS = 600.0
_ROWS_IN_FLUSH_MAX = 10_000
"""More rows are unmarked after the release was committed, since nobody can write to the log during its transaction."""


class HoldChanged(Unavailable):
    """Another request has just changed this hold; read it again and send the request again."""


@dataclass(frozen=True, slots=True)
class Selector:
    """What a hold covers. Exactly one of the four is set: correlation, actor, resource, time (both ends included)."""

    correlation_id: str | None = None
    actor_id: str | None = None
    resource_type: str | None = None
    resource_id: str | None = None
    time_from: datetime | None = None
    time_to: datetime | None = None

    def columns(self) -> tuple[Any, ...]:
        return (
            *(self.correlation_id, self.actor_id, self.resource_type, self.resource_id),
            *(self.time_from, self.time_to),
        )

    def members(self) -> dict[str, str]:
        """The members of a self event's payload: those that are set."""
        named = zip(self.__slots__, self.columns(), strict=True)
        return {name: _text(value) for name, value in named if value is not None}


@dataclass(frozen=True, slots=True)
class Placement:
    """A hold that was placed, and how many of the stored events it covers."""

    hold_id: UUID
    placed_at: datetime
    events: int


@dataclass(frozen=True, slots=True)
class Release:
    """The end of a hold, and how many events are no longer held: those under another hold are not counted."""

    released_at: datetime
    events: int


@dataclass(frozen=True, slots=True)
class HoldOrder:
    """Who orders a hold to be placed or released, and why."""

    by: str
    reason: str


async def place(settings: Settings, log: Log, selector: Selector, order: HoldOrder) -> Placement:
    """Hold the events that match `selector`: stored ones, those in the archive only, which are not counted, and future ones.

    It replaces an active hold with the same selector.

    Raises NotFound for a correlation without events, HoldChanged, LockTimeout, DatabaseAway or DatabaseFailed.
    """
    hold_id, now = uuid4(), datetime.now(UTC)
    mark = order.reason, order.by, now
    async with action_store(settings, log) as store:
        connection = await store.connection()
        await connection.execute(SQL["lock_holds"])
        marked_in = store.log
        log_size: int = await connection.fetchval(SQL.of(store.log)["log_size"]) or 0
        async with connection.transaction():
            await connection.execute(SQL["long_statement_timeout"])
            covered = await _mark_rows(connection, selector, (marked_in, None, log_size), mark)
        if not covered and selector.correlation_id is not None and not await _is_archived(store, selector):
            raise _no_event(selector.correlation_id)
        replaced = await connection.fetchval(SQL["active_hold"], *selector.columns())
        payload = {"event_type": "datastorage.hold.placed", "hold_id": str(hold_id), "reason": order.reason}
        payload |= {"placed_by": order.by, "placed_at": _text(now), **selector.members()}
        if replaced is not None:
            payload["replaces"] = str(replaced)
        covered_later = 0

        async def record(connection: Connection, flush: Flush) -> None:
            nonlocal covered_later
            if replaced is not None:
                await _release_hold_row(connection, replaced, HoldOrder(order.by, REPLACED), now, flush)
            await connection.execute(
                SQL.of(flush.log)["place_hold"],
                *selector.columns(),
                order.reason,
                order.by,
                now,
                hold_id,
                flush.first_index,
            )
            first = (
                log_size if flush.log == marked_in else None
            )  # the log was continued meanwhile: once more, all of it
            covered_later = await _mark_rows(connection, selector, (flush.log, first, flush.first_index), mark)

        await commit_action(store, [self_event(log.first_name, payload, about=hold_id, actor_id=order.by)], record)
    return Placement(hold_id, now, covered + covered_later)


async def _is_archived(store: Store, selector: Selector) -> bool:
    """Whether events of a correlation without rows may be in the archive only. Which correlations are there Postgres does not know."""
    connection = await store.connection()
    if not await connection.fetchval(SQL["had_events"], selector.correlation_id):
        return False
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        return bool((await read_evidence(connection, store.log)).archived)


async def require_events(engine: Engine, correlation_id: str) -> None:
    """NotFound for a correlation without events."""
    if not (await fetch(engine, SQL["has_events"], correlation_id))[0]["has_events"]:
        raise _no_event(correlation_id)


def _no_event(correlation_id: str) -> NotFound:
    return NotFound(f"There is no event of correlation {correlation_id}.")


async def release_correlation(settings: Settings, log: Log, correlation_id: str, order: HoldOrder) -> Release:
    """End the hold of a correlation and unmark its rows, also those held by SQL alone. NotFound if none of it is held."""
    selector = Selector(correlation_id=correlation_id)
    async with action_store(settings, log) as store:
        connection = await store.connection()
        await connection.execute(SQL["lock_holds"])
        hold_id = await connection.fetchval(SQL["active_hold"], *selector.columns())
        if hold_id is None:
            await _put_back(connection, store.log, correlation_id=correlation_id)
            hold_id = await connection.fetchval(SQL["active_hold"], *selector.columns())

        async def unmark(connection: Connection) -> int:
            return int(await connection.fetchval(SQL["release_correlation"], correlation_id, order.reason))

        return await _release(store, hold_id, selector, order, unmark)


async def release(settings: Settings, log: Log, hold_id: UUID, order: HoldOrder) -> Release:
    """End one hold by its id and unmark its rows. NotFound if there is no active hold with this id."""
    async with action_store(settings, log) as store:
        connection = await store.connection()
        await connection.execute(SQL["lock_holds"])
        hold = await connection.fetchrow(SQL["hold"], hold_id)
        if hold is None:
            await _put_back(connection, store.log, hold_id=str(hold_id))
            hold = await connection.fetchrow(SQL["hold"], hold_id)
        if hold is None or hold["released_at"] is not None:
            raise NotFound(f"There is no active hold {hold_id}.")
        selector = Selector(*(hold[name] for name in Selector.__slots__))
        mark = hold["placed_at"], hold["placed_by"]

        async def unmark(connection: Connection) -> int:
            arguments = mark[0], order.reason, mark[1]
            return int(await connection.fetchval(SQL["release_marked"], *arguments, timeout=_SLOW_SECONDS))

        many = await connection.fetchval(SQL["marked_count"], *mark) > _ROWS_IN_FLUSH_MAX
        released = await _release(store, hold_id, selector, order, None if many else unmark)
        if many:  # a crash before this leaves rows marked without a hold; releasing their correlation unmarks them
            connection = await store.connection()
            async with connection.transaction():
                await connection.execute(SQL["long_statement_timeout"])
                await connection.execute(SQL["authorize_release"])
                released = Release(released.released_at, await unmark(connection))
    return released


async def _put_back(
    connection: Connection, log: Log, *, hold_id: str | None = None, correlation_id: str | None = None
) -> None:
    """Write the row of an active hold that the log records and the table has lost, so that it can be released."""
    if not await connection.fetchval(SQL["may_be_placed"], hold_id, correlation_id):
        return
    async with connection.transaction(isolation="repeatable_read"):
        orders = await read_orders(connection, log)
        stored = await stored_holds(connection)
        for hold in orders.active_holds():
            if hold.hold_id not in stored and (
                hold.hold_id == hold_id or hold.selector[0] == correlation_id is not None
            ):
                members = [hold.columns()]
                await connection.execute(
                    SQL["put_back_hold"],
                    orjson.dumps(members).decode(),
                    hold.reason,
                    hold.by,
                    hold.at,
                    *reversed(divmod(hold.index, LOG_POSITIONS)),
                )


async def holds(engine: Engine, *, history: bool) -> list[asyncpg.Record]:
    """The active holds, newest first; with `history` the released ones, too."""
    return await fetch(engine, SQL["holds"], history)


async def _release(
    store: Store,
    hold_id: UUID | None,
    selector: Selector,
    order: HoldOrder,
    unmark: Callable[[Connection], Awaitable[int]] | None,
) -> Release:
    now, unmarked = datetime.now(UTC), 0
    payload = {"event_type": "datastorage.hold.released", "reason": order.reason, "released_by": order.by}
    payload |= {"released_at": _text(now), **selector.members()}
    if hold_id is not None:
        payload["hold_id"] = str(hold_id)

    async def record(connection: Connection, flush: Flush) -> None:
        nonlocal unmarked
        if hold_id is not None:
            await _release_hold_row(connection, hold_id, order, now, flush)
        if unmark is not None:
            await connection.execute(SQL["authorize_release"])
            unmarked = await unmark(connection)
            if hold_id is None and not unmarked:
                raise NotFound(f"Nothing of correlation {selector.correlation_id} is held.")

    await commit_action(store, [self_event(store.log.first_name, payload, about=hold_id, actor_id=order.by)], record)
    return Release(now, unmarked)


async def _release_hold_row(
    connection: Connection, hold_id: UUID, order: HoldOrder, now: datetime, flush: Flush
) -> None:
    if (
        await connection.execute(
            SQL.of(flush.log)["release_hold"], hold_id, order.reason, order.by, now, flush.first_index
        )
        != "UPDATE 1"
    ):
        raise HoldChanged


_Part = tuple[Log, int | None, int]
"""Positions of a log from the first up to, not including, the second. None: from the beginning, with all logs before and unsealed rows."""


async def _mark_rows(connection: Connection, selector: Selector, part: _Part, mark: tuple[str, str, datetime]) -> int:
    """Mark the rows that match the selector in a part of the log. The number of marked rows."""
    log, *positions = part
    arguments = *selector.columns(), *positions, *mark
    return int(await connection.fetchval(SQL.of(log)["mark_rows"], *arguments, timeout=_SLOW_SECONDS))


def _text(value: str | datetime) -> str:
    return value if isinstance(value, str) else value.astimezone(UTC).isoformat().replace("+00:00", "Z")
