"""One event with all that is stored about it: row, record, place in chain and log, its neighbours there."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import asyncpg
import orjson

from app.db import Connection, Engine, driver_connection
from app.events.canonical import loads
from app.events.log import Log
from app.events.record import Row, commitment_of, committed_jcs, is_logged, record, record_leaf_hash
from app.sql import load

SQL = load("reports")
_NOT_ARCHIVED = ("hash_algorithm", "legal_hold", "legal_hold_reason", "legal_hold_placed_by", "held_at")


@dataclass(frozen=True, slots=True)
class Neighbours:
    """The events next to one; None where there is none, or where it was purged."""

    before: Row | None
    after: Row | None


@dataclass(frozen=True, slots=True)
class WholeEvent:
    """One row, and what is computed from it as it stands in the database now."""

    row: Row
    log_name: str
    """Of the log that the row says it is of."""
    is_sealed: bool
    """Whether the row says that it is at a position of a log."""
    is_logged: bool
    """Whether the log has this row's hash at that position: else it was changed, or inserted by somebody else."""
    record: bytes
    """The record in JCS, computed from the row."""
    committed: bytes | None
    """The committed object in JCS; None once it is erased."""
    computed_hash: str
    """The leaf hash of the record, in hex."""
    rows: int
    """How many rows have this id: more than one shadow each other."""
    in_chain: Neighbours
    in_log: Neighbours

    @property
    def salt(self) -> str | None:
        """The salt in hex; None once the event is erased, and in a row that has none."""
        salt = self.row["payload_salt"]
        return None if salt is None else bytes(salt).hex()

    @property
    def leaf(self) -> str | None:
        """The leaf, in hex, that the log has at the position that the row names."""
        leaf: str | None = self.row["leaf"]
        return leaf

    @property
    def notes(self) -> dict[str, object]:
        """What the service noted when it accepted the event, as event_metadata has it."""
        noted = loads(self.row["event_metadata"] or "{}")
        return noted if isinstance(noted, dict) else {}


async def whole_event(engine: Engine, event_id: UUID, log: Log) -> WholeEvent | None:
    """The stored event with this id, the logged one if several rows have it; None if there is none.

    `log` is the one that events are written to now. DatabaseAway or DatabaseFailed when Postgres does not answer.
    """
    async with (
        driver_connection(engine) as connection,
        connection.transaction(isolation="repeatable_read", readonly=True),
    ):
        rows = await connection.fetch(SQL["whole_event"], event_id)
        if not rows:
            return None
        row = next((row for row in rows if is_logged(row, log)), rows[0])
        return _whole(row, log, len(rows), *await _neighbours(connection, row))


async def whole_archived(engine: Engine, row: Mapping[str, Any], log: Log) -> WholeEvent:
    """The same of an event that is in the archive alone: `row` has the columns, with JSON that is canonical, `event_hash`, `leaf` and
    `archive_id`. Its neighbours are those that Postgres has.
    """
    async with driver_connection(engine) as connection:
        whole = dict.fromkeys(_NOT_ARCHIVED) | dict(row)
        return _whole(whole, log, 1, *await _neighbours(connection, whole))


async def _neighbours(connection: Connection, row: Row) -> tuple[Neighbours, Neighbours]:
    in_chain, in_log = list[asyncpg.Record](), list[asyncpg.Record]()
    chain_index, log_index = row["chain_index"], row["log_index"]
    if _has_neighbours(chain_index):
        in_chain = await connection.fetch(SQL["neighbours_in_chain"], row["correlation_id"], chain_index)
    if _has_neighbours(log_index) and row["log_id"] is not None:
        in_log = await connection.fetch(SQL["neighbours_in_log"], log_index, row["log_id"])
    return _beside(in_chain, chain_index), _beside(in_log, log_index)


def _has_neighbours(position: int | None) -> bool:
    """Whether a number in a row can be a position: others may have put anything there."""
    return position is not None and 0 <= position < 2**62


def _beside(rows: Sequence[asyncpg.Record], position: int | None) -> Neighbours:
    found = {row["position"]: row for row in reversed(rows)}
    return Neighbours(None, None) if position is None else Neighbours(found.get(position - 1), found.get(position + 1))


def _whole(row: Row, log: Log, rows: int, in_chain: Neighbours, in_log: Neighbours) -> WholeEvent:
    log_name = log.name_of(row["log_id"])
    content = record(row, log_name, commitment_of(row))
    committed = None if row["payload_commitment"] is not None else committed_jcs(row, stored=True)
    return WholeEvent(
        row=row,
        log_name=log_name,
        is_sealed=row["leaf"] is not None,
        is_logged=is_logged(row, log),
        record=orjson.dumps(content),
        committed=committed,
        computed_hash=record_leaf_hash(content).hex(),
        rows=rows,
        in_chain=in_chain,
        in_log=in_log,
    )
