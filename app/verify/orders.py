"""Holds and retention policies, and purges, against what the log records of the orders that were given."""

from collections.abc import Iterable, Sequence

from app.db import LONG_FETCH_SECONDS, Connection
from app.events.log import Log
from app.tlog.orders import SELECTOR, Difference, Orders, differences, early_purges, read_orders, without_unadopted
from app.tlog.tiles import SQL
from app.verify.row import Defect, Defects

Selectors = tuple[Sequence[str | None], ...]
"""Of active holds: one list of values for each column of a selector."""


async def verify_orders(connection: Connection, log: Log, orders: Orders | None = None) -> Defects:
    """A defect for each row of holds or policies that differs from the log, and for each purge that was too early.

    `connection` is in a snapshot, in which `orders` was read if it is given.
    """
    defects = Defects()
    orders = orders or await read_orders(connection, log)
    _add(defects, log, await differences(connection, orders))
    async for early in early_purges(connection, log, orders):
        _add(defects, log, [early])
    return defects


async def held_selectors(connection: Connection, orders: Orders) -> Selectors:
    """What active holds cover, as verify_marks() needs it; empty without holds. `connection` is in the snapshot of `orders`."""
    holds = (await without_unadopted(connection, orders)).active_holds()
    return tuple(zip(*(hold.selector for hold in holds), strict=True))


async def verify_marks(connection: Connection, log: Log, first: int, end: int, selectors: Selectors) -> Defects:
    """A defect for each event from position `first` up to, not including, `end` that a hold covers and whose row does not show it."""
    defects, columns = Defects(), dict(zip(SELECTOR, selectors, strict=True))
    arguments = [
        *_pairs(columns["correlation_id"]),
        *_pairs(columns["actor_id"]),
        *_pairs(columns["resource_type"], columns["resource_id"]),
        *_pairs(columns["time_from"], columns["time_to"]),
    ]
    for row in await connection.fetch(SQL.of(log)["unmarked_rows"], first, end, *arguments, timeout=LONG_FETCH_SECONDS):
        message = f"hold removed: a hold covers the event at position {row['log_index']}, but its row does not show it"
        event = {"event_id": row["event_id"], "correlation_id": row["correlation_id"], "position": row["log_index"]}
        defects.add(Defect("hold removed", message, **event))
    return defects


def _pairs(*columns: Sequence[str | None]) -> tuple[list[str], ...]:
    """The values of the holds that have them."""
    rows = [row for row in zip(*columns, strict=True) if row[0] is not None]
    return tuple([value for value in column if value is not None] for column in zip(*rows, strict=True)) or ([],) * len(
        columns
    )


def _add(defects: Defects, log: Log, found: Iterable[Difference]) -> None:
    """Add differences; one from an event of a closed log has no position in `log`."""
    for one in found:
        position = None if one.place is None or not log.has(one.place) else one.place - log.place(0)
        subject = "" if position is not None else one.message
        defects.add(
            Defect(one.kind, one.message, correlation_id=one.correlation_id, position=position, subject=subject)
        )
