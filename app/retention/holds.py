"""Legal holds: placed, released and listed.

A hold is a record with one selector. Its record and the event that tells of it are one transaction of the log, so that a
writer who writes after it has seen it; rows that are there already are marked before it, and the last of them with it.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import asyncpg
from sqlalchemy.ext.asyncio import AsyncEngine

from app.db import Connection, fetch
from app.errors import NotFound, Unavailable
from app.ingest.link import Flush
from app.ingest.self_events import self_event
from app.ingest.store import Store
from app.retention.logged import acting, commit
from app.settings import Settings
from app.sql import load

SQL = load("retention")
_SLOW_SECONDS = 600.0
_ROWS_AT_ONCE = 10_000
"""More rows are freed after the release, since nobody can write while it is committed."""


class HoldChanged(Unavailable):
    """Somebody else has just changed this hold; look at it and send the request again."""


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
        """As the payload of an event tells it."""
        named = zip(self.__slots__, self.columns(), strict=True)
        return {name: _text(value) for name, value in named if value is not None}


@dataclass(frozen=True, slots=True)
class Placed:
    """A hold that was placed, and how many of the events that were there it covers."""

    hold_id: UUID
    placed_at: datetime
    events: int


@dataclass(frozen=True, slots=True)
class Released:
    """A hold that ended, and how many rows are free now: what another hold covers is not."""

    released_at: datetime
    events: int


@dataclass(frozen=True, slots=True)
class HoldOrder:
    """Who wants a hold placed or released, and why."""

    by: str
    reason: str


async def place(settings: Settings, log_name: str, selector: Selector, order: HoldOrder) -> Placed:
    """Hold what `selector` fits, now and later. A hold with the same selector is replaced. NotFound for an unknown correlation."""
    hold_id, now = uuid4(), datetime.now(UTC)
    mark = order.reason, order.by, now
    async with acting(settings, log_name) as store:
        connection = await store.connection()
        await connection.execute(SQL["lock_holds"])
        next_index: int = await connection.fetchval(SQL["log_end"]) or 0
        async with connection.transaction():
            await connection.execute(SQL["unhurried"])
            covered = await _mark(connection, selector, (None, next_index), mark)
        if not covered and selector.correlation_id is not None:
            raise NotFound(f"There is no event of correlation {selector.correlation_id}.")
        replaced = await connection.fetchval(SQL["active_hold"], *selector.columns())
        payload = {"event_type": "datastorage.hold.placed", "hold_id": str(hold_id), "reason": order.reason}
        payload |= {"placed_by": order.by, **selector.members()}
        if replaced is not None:
            payload["replaces"] = str(replaced)
        later = 0

        async def act(connection: Connection, flush: Flush) -> None:
            nonlocal later
            if replaced is not None:
                await _end(connection, replaced, HoldOrder(order.by, "replaced"), now, flush.first_index)
            await connection.execute(
                SQL["place_hold"], *selector.columns(), order.reason, order.by, now, hold_id, flush.first_index
            )
            later = await _mark(connection, selector, (next_index, flush.first_index), mark)

        await commit(store, [self_event(log_name, payload, about=hold_id, actor_id=order.by)], act)
    return Placed(hold_id, now, covered + later)


async def release_correlation(settings: Settings, log_name: str, correlation_id: str, order: HoldOrder) -> Released:
    """End the hold of a correlation, and free its rows, also those that SQL alone has held. NotFound if none is."""
    selector = Selector(correlation_id=correlation_id)
    async with acting(settings, log_name) as store:
        connection = await store.connection()
        await connection.execute(SQL["lock_holds"])
        hold_id = await connection.fetchval(SQL["active_hold"], *selector.columns())

        async def free(connection: Connection) -> int:
            return int(await connection.fetchval(SQL["release_correlation"], correlation_id, order.reason))

        return await _release(store, hold_id, selector, order, free)


async def release(settings: Settings, log_name: str, hold_id: UUID, order: HoldOrder) -> Released:
    """End one hold by its id. NotFound when there is none that is active."""
    async with acting(settings, log_name) as store:
        connection = await store.connection()
        await connection.execute(SQL["lock_holds"])
        hold = await connection.fetchrow(SQL["hold"], hold_id)
        if hold is None or hold["released_at"] is not None:
            raise NotFound(f"There is no active hold {hold_id}.")
        selector = Selector(*(hold[name] for name in Selector.__slots__))
        mark = hold["placed_at"], hold["placed_by"]

        async def free(connection: Connection) -> int:
            arguments = mark[0], order.reason, mark[1]
            return int(await connection.fetchval(SQL["release_marked"], *arguments, timeout=_SLOW_SECONDS))

        many = await connection.fetchval(SQL["marked_count"], *mark) > _ROWS_AT_ONCE
        released = await _release(store, hold_id, selector, order, None if many else free)
        if many:  # a crash before this leaves rows held that need not be, which a release of their correlation ends
            connection = await store.connection()
            async with connection.transaction():
                await connection.execute(SQL["unhurried"])
                await connection.execute(SQL["authorize_release"])
                released = Released(released.released_at, await free(connection))
    return released


async def holds(engine: AsyncEngine, *, history: bool) -> list[asyncpg.Record]:
    """Active holds, newest first; with `history` those that were released too."""
    return await fetch(engine, SQL["holds"], history)


async def _release(
    store: Store,
    hold_id: UUID | None,
    selector: Selector,
    order: HoldOrder,
    free: Callable[[Connection], Awaitable[int]] | None,
) -> Released:
    now, freed = datetime.now(UTC), 0
    payload = {"event_type": "datastorage.hold.released", "reason": order.reason, "released_by": order.by}
    payload |= selector.members()
    if hold_id is not None:
        payload["hold_id"] = str(hold_id)

    async def act(connection: Connection, flush: Flush) -> None:
        nonlocal freed
        if hold_id is not None:
            await _end(connection, hold_id, order, now, flush.first_index)
        if free is not None:
            await connection.execute(SQL["authorize_release"])
            freed = await free(connection)
            if hold_id is None and not freed:
                raise NotFound(f"Nothing of correlation {selector.correlation_id} is held.")

    await commit(store, [self_event(store.log_name, payload, about=hold_id, actor_id=order.by)], act)
    return Released(now, freed)


async def _end(connection: Connection, hold_id: UUID, order: HoldOrder, now: datetime, index: int) -> None:
    if await connection.execute(SQL["end_hold"], hold_id, order.reason, order.by, now, index) != "UPDATE 1":
        raise HoldChanged


async def _mark(
    connection: Connection, selector: Selector, part: tuple[int | None, int], mark: tuple[str, str, datetime]
) -> int:
    """How many rows the selector fits in one part of the log; all of them are marked."""
    arguments = *selector.columns(), *part, *mark
    return int(await connection.fetchval(SQL["hold_rows"], *arguments, timeout=_SLOW_SECONDS))


def _text(value: str | datetime) -> str:
    return value if isinstance(value, str) else value.astimezone(UTC).isoformat().replace("+00:00", "Z")
