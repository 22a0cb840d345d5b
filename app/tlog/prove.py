"""Proofs from the database: that one event is in the log, and that the log has only grown."""

from dataclasses import dataclass
from uuid import UUID

import asyncpg
import orjson

from app.db import Connection, Engine, driver_connection, on_first_connections
from app.errors import Conflict, NotFound, Unavailable
from app.events.log import Log
from app.events.record import Row, commitment, committed_jcs, is_logged, record
from app.tlog import merkle
from app.tlog.continued import Seam, read_seam
from app.tlog.note import Checkpoint
from app.tlog.proof import Proof, document_with_opening
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
    seam: "EventProof | None" = None
    """That of the next log's first event, if no signed checkpoint of the event's own log, which is closed, proves it."""

    def document(self, *, open: bool = True) -> bytes:  # noqa: A002 -- as the route's parameter
        """The JSON document. Not `open`: without what opens the commitment; of the seam that is always needed."""
        seam = None if self.seam is None else self.seam.document()
        return document_with_opening(
            self.proof, (self.salt, self.committed) if open else (None, None), self.token, seam
        )


@dataclass(frozen=True, slots=True)
class Consistency:
    """The proof that the log of `old` leaves is a prefix of the log of `new`, and the published checkpoint."""

    old: int
    new: int
    hashes: list[bytes]
    checkpoint: str


async def prove_event(engine: Engine, event_id: UUID, log: Log, *, timestamped: bool = False) -> EventProof:
    """The proof that the log of the published checkpoint has an event, or of the earliest checkpoint with a timestamp that has it.

    Raises NotFound when there is no such event in the log or no checkpoint, NotSignedYet, and Conflict when the row does not
    match the log: a proof of it would not verify.
    """
    async with driver_connection(engine) as connection:
        await _published_checkpoint(connection, log)
        return await prove(connection, event_id, log, timestamped=timestamped)


async def prove(connection: Connection, event_id: UUID, log: Log, *, timestamped: bool = False) -> EventProof:
    """prove_event() on a connection."""
    row = await _row(connection, event_id, log)
    if row is None:
        raise NotFound(f"There is no event {event_id}.")
    return await _prove(connection, row, log, timestamped=timestamped)


async def stored_row(engine: Engine, event_id: UUID, log: Log) -> Row | None:
    """The row that prove_event() proves; None if there is none. NotFound when there is no checkpoint."""
    async with driver_connection(engine) as connection:
        await _published_checkpoint(connection, log)
        return await _row(connection, event_id, log)


async def prove_row(engine: Engine, row: Row, log: Log, *, timestamped: bool = False) -> EventProof:
    """prove_event() of a row that was read before: one of stored_row(), or the same columns from elsewhere, with JSON that is canonical."""
    async with driver_connection(engine) as connection:
        return await _prove(connection, row, log, timestamped=timestamped)


async def _row(connection: Connection, event_id: UUID, log: Log) -> asyncpg.Record | None:
    rows = await connection.fetch(SQL["rows_with_id"], event_id)
    return next((row for row in rows if is_logged(row, log)), rows[0]) if len(rows) > 1 else next(iter(rows), None)


async def _prove(connection: Connection, row: Row, log: Log, *, timestamped: bool) -> EventProof:
    event_id, index, of_row, seam = row["event_id"], row["log_index"], _log_of(row, log), None
    if of_row.is_open:
        size, note = await _published_checkpoint(connection, log)
    else:
        size, note, seam = await _last_of_closed(connection, of_row, -1 if index is None else index)
    if index is None or index < 0 or (index >= size and row["leaf"] is None):
        raise NotFound(f"Event {event_id} was inserted by SQL and has no position in the log.")
    if index >= size:
        if not of_row.is_open:
            raise Conflict(f"Event {event_id} lies beyond a hole in the log {of_row.name}, so it cannot be proved.")
        raise NotSignedYet
    token = None
    if timestamped:
        stamped = await connection.fetchrow(SQL.of(of_row)["timestamp_covering"], index + 1)
        if stamped is None or stamped["size"] > size or seam is not None:
            raise NotFound(f"There is no timestamp yet of a checkpoint that has event {event_id}.")
        size, note, token = stamped["size"], stamped["note"], stamped["token"]
    content, committed_object = _record_and_committed(row, of_row.name)
    ranges = merkle.inclusion_ranges(index, size)
    leaf, *hashes = await range_roots(connection, of_row, [(index, index + 1), *ranges])
    if leaf != merkle.leaf_hash(content):
        raise Conflict(f"Event {event_id} is not as it was logged, so it cannot be proved: run `datastorage verify`.")
    proof = Proof(content, index, tuple(hashes), note)
    through = None if seam is None else await prove(connection, seam.event_id, log)
    return EventProof(proof, row["payload_salt"], committed_object, token, through)


def _log_of(row: Row, log: Log) -> Log:
    """The log that a row says it is of, if that is one before `log`; else `log`."""
    log_id = row["log_id"]
    is_earlier = log_id is not None and 0 <= log_id < log.id
    return Log(log_id, log.first_name, is_open=False) if is_earlier else log


async def _last_of_closed(connection: Connection, log: Log, index: int) -> tuple[int, str, Seam | None]:
    """Size and note of what proves a position of a closed log: its last checkpoint that still holds, or its tree as the seam has it.

    Then the note is not signed, and the seam proves it.
    """
    seam = await read_seam(connection, Log(log.id + 1, log.first_name))
    if seam is None:
        raise Conflict(f"The first event after the log {log.name} is missing or changed: run `datastorage verify`.")
    row = await connection.fetchrow(SQL.of(log)["published_up_to"], seam.agreed_size)
    if row is not None and index < row["size"]:
        return row["size"], row["note"], None
    return seam.tree_size, str(Checkpoint(log.name, seam.tree_size, seam.root)), seam


async def warm(engine: Engine, log: Log) -> None:
    """Run each statement once on the first connections of the pool: planning it first over many partitions is slow."""

    async def run_each(connection: Connection) -> None:
        await connection.fetchrow(SQL.of(log)["published_checkpoint"])
        await connection.fetchrow(SQL["rows_with_id"], UUID(int=0))
        await connection.fetch(SQL.of(log)["leaves"], 0, 0)
        await connection.fetch(SQL.of(log)["tiles"], [1], [0])

    await on_first_connections(engine, run_each)


async def prove_consistency(engine: Engine, log: Log, old: int, new: int | None) -> Consistency | int:
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


def _record_and_committed(row: Row, log_name: str) -> tuple[bytes, bytes | None]:
    """The record in JCS, and the committed object in JCS unless it was erased."""
    if row["payload_commitment"] is not None:
        return orjson.dumps(record(row, log_name, row["payload_commitment"])), None
    committed_object = committed_jcs(row, stored=True)  # once: a large payload takes long
    return orjson.dumps(
        record(row, log_name, commitment(row["payload_salt"] or b"", committed_object))
    ), committed_object
