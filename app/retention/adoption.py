"""What the tables had before the log recorded all holds and policies becomes events of it, once.

Holds that were placed through the service have their events already, unless an earlier release has purged or erased these. Policies have
none: until now they were changed by SQL. From here on the log is followed, and a difference in a table is one that nobody ordered.
"""

import logging
from collections.abc import Iterator
from typing import Any
from uuid import UUID, uuid4

from app.db import Connection
from app.errors import AuditError, BadRequest, DatabaseAway
from app.events.log import LOG_POSITIONS, Log
from app.ingest.accept import Event
from app.ingest.link import Flush
from app.ingest.self_events import ACTOR, self_event
from app.ingest.store import Store
from app.retention.in_force import OrdersChanged
from app.retention.logged import action_store, commit_action
from app.settings import Settings
from app.sql import load
from app.tlog.orders import (
    SELECTOR,
    Hold,
    Orders,
    Policy,
    adoptable_holds,
    is_adopted,
    read_orders,
    stored_holds,
    stored_policies,
    version,
)

SQL = load("retention")
_TRIES = 10
_REASON = "found in the table when the log began to record policies"

logger = logging.getLogger(__name__)


class AlreadyAdopted(AuditError):
    """Another process has done it."""


async def adopt(connection: Connection, settings: Settings, log: Log) -> None:
    """Record holds and policies that the log does not know, unless that has been done. Raises DatabaseAway.

    Of all processes that try, one does it. If it cannot be done now, that is logged, and the next start tries again.
    """
    if await is_adopted(connection):
        return
    try:
        async with action_store(settings, log) as store:
            for _ in range(_TRIES):
                if await _try_to_adopt(store):
                    return
    except DatabaseAway:
        raise
    except AuditError as error:
        extra = {"error": repr(error.__cause__ or error)}
        logger.warning("holds and policies of the tables could not be recorded in the log yet", extra=extra)


async def _try_to_adopt(store: Store) -> bool:
    """False if somebody has changed a hold or a policy meanwhile."""
    connection = await store.connection()
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        read = await version(connection)
        orders = await read_orders(connection, store.log)
        holds, policies = await stored_holds(connection), await stored_policies(connection)
        log_size = await connection.fetchval(SQL.of(store.log)["log_size"]) or 0
    events = [*_holds(store.log, adoptable_holds(orders, holds)), *_policies(store.log, orders, policies)]

    async def end(connection: Connection, flush: Flush) -> None:
        if await version(connection, [event.id for event in events]) != read:
            raise OrdersChanged
        if not await connection.fetchval(SQL["end_adoption"], flush.first_index):
            raise AlreadyAdopted

    try:
        if events:
            await commit_action(store, events, end)
            logger.info("holds and policies of the tables are recorded in the log now", extra={"events": len(events)})
        else:
            await connection.fetchval(SQL["end_adoption"], log_size)
    except OrdersChanged:
        return False
    except AlreadyAdopted:
        pass
    return True


def _holds(log: Log, rows: list[Hold]) -> Iterator[Event]:
    for row in rows:
        in_log, index = divmod(row.index, LOG_POSITIONS)
        payload: dict[str, Any] = {"event_type": "datastorage.hold.adopted", "hold_id": row.hold_id, "log_id": in_log}
        payload |= {n: v for n, v in zip(SELECTOR, row.selector, strict=True) if v is not None}
        payload |= {"reason": row.reason, "placed_by": row.by, "placed_at": row.at, "placed_index": index}
        if (end := row.release) is not None:
            payload |= {"release_reason": end.reason, "released_by": end.by}
            payload |= {"released_at": end.at, "released_index": end.index - in_log * LOG_POSITIONS}
        try:
            yield self_event(log.first_name, payload, about=UUID(row.hold_id))
        except BadRequest as error:  # what no release has ever written; verification names it
            logger.warning("a row of holds is none", extra={"hold_id": row.hold_id, "error": error.detail})


def _policies(log: Log, orders: Orders, stored: dict[str, Policy]) -> Iterator[Event]:
    recorded = orders.policies()
    for category in sorted({*recorded, *stored}):
        policy, policy_id = stored.get(category), uuid4()
        if category in recorded and recorded[category].policy == policy:
            continue
        payload: dict[str, Any] = {"policy_id": str(policy_id), "category": category, "reason": _REASON}
        if policy is None:
            payload |= {"event_type": "datastorage.policy.removed", "removed_by": ACTOR}
        else:
            days = {name: days for name, days in policy._asdict().items() if days is not None}
            payload |= {"event_type": "datastorage.policy.set", **days, "set_by": ACTOR, "adopted": True}
        yield self_event(log.first_name, payload, about=policy_id)
