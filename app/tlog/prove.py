"""Proof of one event, and of the log's growth, from what is stored."""

from dataclasses import dataclass
from uuid import UUID

import asyncpg
import orjson
from sqlalchemy.ext.asyncio import AsyncEngine

from app.db import Connection, driver_connection, on_every_connection
from app.errors import Conflict, NotFound, Unavailable
from app.events.record import commitment_of, committed_jcs, record
from app.tlog import merkle
from app.tlog.proof import Proof
from app.tlog.tiles import SQL, range_roots


class NotSignedYet(Unavailable):
    """No checkpoint has this event yet; ask again in a second."""


@dataclass(frozen=True, slots=True)
class OpenedProof:
    """A proof with what the record's commitment hides; both None once that was erased."""

    proof: Proof
    salt: bytes | None
    committed: bytes | None


@dataclass(frozen=True, slots=True)
class Consistency:
    """How the log grew from one size to another, and the checkpoint that is served."""

    old: int
    new: int
    hashes: list[bytes]
    checkpoint: str


async def prove(engine: AsyncEngine, event_id: UUID, log_name: str) -> OpenedProof:
    """The proof of an event against the published checkpoint.

    Raises NotFound when there is no such event in the log or no checkpoint, NotSignedYet, and Conflict when the row is not
    the one that was logged: a proof of it would convince nobody.
    """
    async with driver_connection(engine) as connection:
        size, note = await _published(connection)
        row = await connection.fetchrow(SQL["sealed_row"], event_id)
        if row is None:
            raise NotFound(f"There is no event {event_id}.")
        index = row["log_index"]
        if index is None:
            raise NotFound(f"Event {event_id} was inserted by SQL and has no place in the log.")
        if index >= size:
            raise NotSignedYet
        content, hidden = _record(row, log_name)
        ranges = merkle.inclusion_ranges(index, size) if index >= 0 else []
        leaf, *hashes = await range_roots(connection, [(index, index + 1), *ranges])
    if leaf != merkle.leaf_hash(content):
        raise Conflict(f"Event {event_id} is not as it was logged, so it cannot be proved: run `datastorage verify`.")
    return OpenedProof(Proof(content, index, tuple(hashes), note), row["payload_salt"], hidden)


async def warm(engine: AsyncEngine) -> None:
    """Run each statement once on every connection of the pool: the first plan over many partitions is slow."""

    async def run_each(connection: Connection) -> None:
        await connection.fetchrow(SQL["published"])
        await connection.fetchrow(SQL["sealed_row"], UUID(int=0))
        await connection.fetch(SQL["leaves"], 0, 0)
        await connection.fetch(SQL["tiles"], [1], [0])

    await on_every_connection(engine, run_each)


async def consistency(engine: AsyncEngine, old: int, new: int | None) -> Consistency | int:
    """The proof that the log of `old` leaves is a prefix of that of `new`, by default of the published checkpoint's.

    Only sizes within that checkpoint can be asked for; else its size is returned.
    """
    async with driver_connection(engine) as connection:
        size, note = await _published(connection)
        new = size if new is None else new
        if not old <= new <= size:
            return size
        return Consistency(old, new, await range_roots(connection, merkle.consistency_ranges(old, new)), note)


async def _published(connection: Connection) -> tuple[int, str]:
    row = await connection.fetchrow(SQL["published"])
    if row is None:
        raise NotFound("No checkpoint was signed yet, so nothing can be proved: /tlog/key says whether there is a key.")
    return row["size"], row["note"]


def _record(row: asyncpg.Record, log_name: str) -> tuple[bytes, bytes | None]:
    """The record's JCS, and the committed object's unless it was erased."""
    hidden = committed_jcs(row, stored=True) if row["payload_commitment"] is None else None
    return orjson.dumps(record(row, log_name, commitment_of(row))), hidden
