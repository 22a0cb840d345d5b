"""Proofs from the database: that one event is in the log, and that the log has only grown."""

from dataclasses import dataclass
from uuid import UUID

import asyncpg
import orjson
from sqlalchemy.ext.asyncio import AsyncEngine

from app.db import Connection, driver_connection, on_first_connections
from app.errors import Conflict, NotFound, Unavailable
from app.events.log import Log
from app.events.record import commitment, committed_jcs, is_logged, record
from app.tlog import merkle
from app.tlog.proof import Proof
from app.tlog.tiles import SQL, range_roots


class NotSignedYet(Unavailable):
    """No checkpoint has this event yet; ask again in a second."""


@dataclass(frozen=True, slots=True)
class EventProof:
    """The proof of an event, and what opens its record's commitment; both None once they were erased."""

    proof: Proof
    salt: bytes | None
    committed: bytes | None
    token: bytes | None = None
    """The timestamp of the proof's checkpoint, if one was asked for."""


@dataclass(frozen=True, slots=True)
class Consistency:
    """The proof that the log of `old` leaves is a prefix of the log of `new`, and the published checkpoint."""

    old: int
    new: int
    hashes: list[bytes]
    checkpoint: str


async def prove_event(engine: AsyncEngine, event_id: UUID, log: Log, *, timestamped: bool = False) -> EventProof:
    """The proof that the log of the published checkpoint has an event, or of the earliest checkpoint with a timestamp that has it.

    Raises NotFound when there is no such event in the log or no checkpoint, NotSignedYet, and Conflict when the row does not
    match the log: a proof of it would not verify.
    """
    async with driver_connection(engine) as connection:
        size, note = await _published_checkpoint(connection, log)
        rows = await connection.fetch(SQL["rows_with_id"], event_id)
        if not rows:
            raise NotFound(f"There is no event {event_id}.")
        row = next((row for row in rows if is_logged(row, log)), rows[0]) if len(rows) > 1 else rows[0]
        index = row["log_index"]
        if index is None or index < 0 or (index >= size and row["leaf"] is None):
            raise NotFound(f"Event {event_id} was inserted by SQL and has no position in the log.")
        if index >= size:
            raise NotSignedYet
        token = None
        if timestamped:
            stamped = await connection.fetchrow(SQL.of(log)["timestamp_covering"], index + 1)
            if stamped is None or stamped["size"] > size:
                raise NotFound(f"There is no timestamp yet of a checkpoint that has event {event_id}.")
            size, note, token = stamped["size"], stamped["note"], stamped["token"]
        content, committed_object = _record_and_committed(row, log.name)
        ranges = merkle.inclusion_ranges(index, size) if index >= 0 else []
        leaf, *hashes = await range_roots(connection, log, [(index, index + 1), *ranges])
    if leaf != merkle.leaf_hash(content):
        raise Conflict(f"Event {event_id} is not as it was logged, so it cannot be proved: run `datastorage verify`.")
    return EventProof(Proof(content, index, tuple(hashes), note), row["payload_salt"], committed_object, token)


async def warm(engine: AsyncEngine, log: Log) -> None:
    """Run each statement once on the first connections of the pool: planning it first over many partitions is slow."""

    async def run_each(connection: Connection) -> None:
        await connection.fetchrow(SQL.of(log)["published_checkpoint"])
        await connection.fetchrow(SQL["rows_with_id"], UUID(int=0))
        await connection.fetch(SQL.of(log)["leaves"], 0, 0)
        await connection.fetch(SQL.of(log)["tiles"], [1], [0])

    await on_first_connections(engine, run_each)


async def prove_consistency(engine: AsyncEngine, log: Log, old: int, new: int | None) -> Consistency | int:
    """The proof that the log of `old` leaves is a prefix of the log of `new`, by default of the published checkpoint's.

    If a size is larger than the published checkpoint's, that size is returned instead. NotFound when there is no checkpoint.
    """
    async with driver_connection(engine) as connection:
        size, note = await _published_checkpoint(connection, log)
        new = size if new is None else new
        if not old <= new <= size:
            return size
        return Consistency(old, new, await range_roots(connection, log, merkle.consistency_ranges(old, new)), note)


async def _published_checkpoint(connection: Connection, log: Log) -> tuple[int, str]:
    row = await connection.fetchrow(SQL.of(log)["published_checkpoint"])
    if row is None:
        raise NotFound(
            "No checkpoint was signed yet, so nothing can be proved: /tlog/key shows whether there is a key."
        )
    return row["size"], row["note"]


def _record_and_committed(row: asyncpg.Record, log_name: str) -> tuple[bytes, bytes | None]:
    """The record in JCS, and the committed object in JCS unless it was erased."""
    if row["payload_commitment"] is not None:
        return orjson.dumps(record(row, log_name, row["payload_commitment"])), None
    committed_object = committed_jcs(row, stored=True)  # once: a large payload takes long
    return orjson.dumps(
        record(row, log_name, commitment(row["payload_salt"] or b"", committed_object))
    ), committed_object
