"""What operators order about sinks. Each order changes who gets the events of the log, so it is recorded in the log, in one transaction."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from uuid import uuid4

from app.db import Connection
from app.errors import NotFound
from app.events.log import Log
from app.ingest.link import Flush
from app.ingest.self_events import self_event
from app.retention.logged import action_store, commit_action
from app.settings import Settings
from app.stream import cursor
from app.stream.cursor import SinkState, read_states
from app.stream.place import place_text

PAUSED, RESUMED = "datastorage.sink.paused", "datastorage.sink.resumed"
REWOUND, REMOVED = "datastorage.sink.rewound", "datastorage.sink.removed"
SINK_ORDERS = (PAUSED, RESUMED, REWOUND, REMOVED)
"""Types of the self events."""

Change = Callable[[Connection], Awaitable[bool]]


@dataclass(frozen=True, slots=True)
class SinkOrder:
    """About which sink something is ordered, by whom and why."""

    sink: str
    by: str
    reason: str | None = None


async def set_paused(settings: Settings, log: Log, order: SinkOrder, *, paused: bool) -> bool:
    """Stop a sink, or let it go on. False, and nothing is recorded, if it is so already. Raises NotFound, and as commit_action()."""

    def is_so(state: SinkState) -> bool:
        return state.paused == paused

    async def change(connection: Connection) -> bool:
        return await cursor.pause(connection, order.sink, paused=paused)

    return await _record(settings, log, order, PAUSED if paused else RESUMED, change, is_so=is_so)


async def rewind(settings: Settings, log: Log, order: SinkOrder, place: int) -> None:
    """Have a sink go on from a place, whether it has been there or not. Raises NotFound, and as commit_action()."""

    async def change(connection: Connection) -> bool:
        return await cursor.rewind(connection, order.sink, place)

    await _record(settings, log, order, REWOUND, change, to=place_text(place))


async def remove(settings: Settings, log: Log, order: SinkOrder) -> None:
    """Forget a sink. If it is configured, it begins anew, where its entry says. Raises NotFound, and as commit_action()."""

    async def change(connection: Connection) -> bool:
        return await cursor.remove(connection, order.sink)

    await _record(settings, log, order, REMOVED, change)


async def _record(
    settings: Settings,
    log: Log,
    order: SinkOrder,
    event_type: str,
    change: Change,
    *,
    is_so: Callable[[SinkState], bool] = lambda _: False,
    **members: str,
) -> bool:
    """Change a sink, and write the event, unless it `is_so` already."""

    async def action(connection: Connection, flush: Flush) -> None:
        del flush
        if not await change(connection):
            raise _no_sink(order)

    async with action_store(settings, log) as store:
        states = {one.name: one for one in await read_states(await store.connection())}
        if (state := states.get(order.sink)) is None:
            raise _no_sink(order)
        if is_so(state):
            return False
        order_id = uuid4()
        payload = {"event_type": event_type, "order_id": str(order_id), "sink": order.sink, "address": state.address}
        payload |= {"place": place_text(state.place)} | members | {"ordered_by": order.by}
        if order.reason is not None:
            payload["reason"] = order.reason
        await commit_action(store, [self_event(log.first_name, payload, about=order_id, actor_id=order.by)], action)
    return True


def _no_sink(order: SinkOrder) -> NotFound:
    return NotFound(f"There is no sink {order.sink[:60]!r} that has delivered: `datastorage sink list` shows them.")
