"""The holds and policies that a run or an erasure follows: those that the log records.

A hold that only the log has is set for the session, so that the SQL functions find it beside those of the table; a hold that only the
table has holds as well. Policies of the table are not read at all. What differs is reported, and stays as it is.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import orjson

from app.db import Connection
from app.errors import AuditError
from app.events.log import Log
from app.sql import load
from app.tlog.orders import Difference, Hold, Orders, differences, read_orders, stored_holds, version

SQL = load("retention")


class OrdersChanged(AuditError):
    """A hold or a policy has changed since it was read."""


@dataclass(slots=True)
class InForce:
    """What is followed, as last read."""

    differences: dict[str, Difference] = field(default_factory=dict)
    """Where the tables differ from the log, by message; each that was ever found."""
    orders: Orders = field(default_factory=Orders)
    _version: str = ""
    _settings: tuple[str, str] = "", ""
    """Missing holds and policies as the SQL functions read them."""

    async def refresh(self, connection: Connection, log: Log) -> None:
        """Read the log again, if anything has changed, and have the statements of this session or transaction follow it."""
        found = await version(connection)
        if found != self._version:
            async with connection.transaction(isolation=None if connection.is_in_transaction() else "repeatable_read"):
                self._version = await version(connection)
                self.orders = await read_orders(connection, log)
                self.differences |= {one.message: one for one in await differences(connection, self.orders)}
                stored = await stored_holds(connection)
            missing = [hold for hold in self.orders.active_holds() if not _covers(stored.get(hold.hold_id), hold)]
            policies = [
                {"event_category": category} | change.policy._asdict()
                for category, change in self.orders.policies().items()
                if change.policy is not None
            ]
            empty = [{"event_category": ""}]  # else the table would be read
            self._settings = _json([hold.columns() for hold in missing]), _json(policies or empty)
        await self._follow(connection)

    async def require_unchanged(self, connection: Connection) -> None:
        """OrdersChanged if a hold or a policy is another one by now. `connection` is in the transaction of a flush, which follows them."""
        if await version(connection) != self._version:
            raise OrdersChanged
        await self._follow(connection)

    async def _follow(self, connection: Connection) -> None:
        await connection.execute(SQL["follow"], *self._settings, connection.is_in_transaction())


def _covers(row: Hold | None, hold: Hold) -> bool:
    """Whether the row of a hold covers what the log records of it."""
    return row is not None and row.selector == hold.selector and row.release is None


def _json(value: Sequence[Mapping[str, object]]) -> str:
    return orjson.dumps(value).decode() if value else ""
