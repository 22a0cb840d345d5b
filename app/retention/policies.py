"""Retention policies: set, removed and listed. A change is an event of the log and its row, in one transaction of the log."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4

from app.db import Connection, Engine, connect, driver_connection
from app.errors import NotFound
from app.events.explain import bad_fields
from app.events.log import Log
from app.ingest.link import Flush
from app.ingest.self_events import self_event
from app.retention.adoption import adopt
from app.retention.logged import action_store, commit_action, read_open_log
from app.settings import Settings
from app.sql import load
from app.tlog.orders import Difference, Policy, PolicyChange, differences, read_orders

SQL = load("retention")
CATEGORY_LENGTH_MAX = 50
DAYS_MAX = 36_500
"""A hundred years, which every time in the table can be moved by."""


@dataclass(frozen=True, slots=True)
class PolicyOrder:
    """Who orders a policy to be set or removed, and why."""

    by: str
    reason: str


async def set_policy(settings: Settings, log: Log, category: str, policy: Policy, order: PolicyOrder) -> None:
    """Set how long the events of a category stay, from the next run on. BadRequest names what is not valid; see also action_store()."""
    _check(category, policy, order)
    payload: dict[str, Any] = {"event_type": "datastorage.policy.set", "category": category, "set_by": order.by}
    payload |= days_of(policy)
    await _change(settings, log, payload | {"reason": order.reason}, order)


async def remove_policy(settings: Settings, log: Log, category: str, order: PolicyOrder) -> None:
    """Leave the events of a category to their own days, within the settings' bounds. NotFound if it has no policy."""
    _check(category, None, order)
    payload = {"event_type": "datastorage.policy.removed", "category": category, "removed_by": order.by}
    await _change(settings, log, payload | {"reason": order.reason}, order)


def _check(category: str, policy: Policy | None, order: PolicyOrder) -> None:
    """BadRequest if one of them is not valid, naming the member of the request."""
    faults = {}
    if not category.strip() or len(category) > CATEGORY_LENGTH_MAX or "\0" in category:
        faults["event_category"] = f"expected a category of 1 to {CATEGORY_LENGTH_MAX} characters"
    for name, days in policy._asdict().items() if policy is not None else ():
        if days is not None and not 1 <= days <= DAYS_MAX:
            faults[f"/{name}"] = f"expected a number of days from 1 to {DAYS_MAX}, got {days}"
    if policy is not None and None not in policy[1:] and policy.floor_days > policy.ceiling_days:  # type: ignore[operator]  # both are there
        faults["/ceiling_days"] = f"expected at least the {policy.floor_days} of floor_days, got {policy.ceiling_days}"
    if not order.reason.strip():
        faults["/reason"] = "expected why, got nothing"
    if faults:
        raise bad_fields(faults)


async def change_from(settings: Settings, category: str, policy: Policy | None, order: PolicyOrder) -> None:
    """set_policy(), or remove_policy() for None, by a command, which connects with the role for retention."""
    async with _command(settings) as (role, log, connection):
        await adopt(connection, role, log)
        if policy is None:
            await remove_policy(role, log, category, order)
        else:
            await set_policy(role, log, category, policy, order)


async def list_from(settings: Settings) -> tuple[dict[str, PolicyChange], list[Difference]]:
    """read_policies() by a command."""
    async with _command(settings) as (_, log, connection):
        return await read_policies(connection, log)


@asynccontextmanager
async def _command(settings: Settings) -> AsyncIterator[tuple[Settings, Log, Connection]]:
    """The settings with the role for retention, the log, and a connection."""
    if settings.retention_url is not None:
        settings = settings.model_copy(update={"database_url": settings.retention_url})
    connection = await connect(settings)
    try:
        yield settings, await read_open_log(connection, settings), connection
    finally:
        await connection.close()


async def policies(engine: Engine, log: Log) -> dict[str, PolicyChange]:
    """The policies that the log records, by category, each with its last change."""
    async with driver_connection(engine) as connection:
        found, _ = await read_policies(connection, log)
        return found


async def read_policies(connection: Connection, log: Log) -> tuple[dict[str, PolicyChange], list[Difference]]:
    """The policies that the log records, by category, and where the table differs."""
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        orders = await read_orders(connection, log)
        found = await differences(connection, orders)
        return orders.policies(), [one for one in found if one.kind == "policy edited"]


async def _change(settings: Settings, log: Log, payload: dict[str, Any], order: PolicyOrder) -> None:
    async with action_store(settings, log) as store:
        connection = await store.connection()
        recorded, _ = await read_policies(connection, store.log)
        known = recorded.get(payload["category"])
        if known is None and payload["event_type"] == "datastorage.policy.removed":
            raise NotFound(f"There is no retention policy for the category {payload['category']}.")
        stored_id = await connection.fetchval(SQL["policy_id"], payload["category"])
        policy_id = UUID(known.policy_id) if known is not None and known.policy_id else stored_id or uuid4()
        event = self_event(log.first_name, payload | {"policy_id": str(policy_id)}, about=policy_id, actor_id=order.by)

        async def write(connection: Connection, flush: Flush) -> None:
            del flush
            await connection.fetchval(SQL["write_policy"], event.id)

        await commit_action(store, [event], write)


def listed(category: str, change: PolicyChange) -> dict[str, Any]:
    """A policy as lists of the service and of the command have it."""
    assert change.policy is not None
    listed = {"event_category": category} | days_of(change.policy)
    if change.at is None:
        return listed
    return listed | {"set_by": change.by, "set_at": f"{change.at:%Y-%m-%dT%H:%M:%S.%fZ}", "reason": change.reason}


def days_of(policy: Policy) -> dict[str, int]:
    """The days that a policy sets, by their names in the API."""
    return {name: days for name, days in policy._asdict().items() if days is not None}
