"""A process of an export's own that reads the archive for it, and what it finds as exports have it.

A page of format=json reads the oldest events in a few steps; a file asks once, and reads on.
"""

import asyncio
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from app.archive.export_row import export_row
from app.archive.question import ArchivedLink, FoundRow, Key, Oldest, PartToRead, Question, Refusal
from app.archive.reading import (
    SQL,
    ArchiveAway,
    ArchivedRow,
    ArchiveReader,
    PartGone,
    receive,
    refuse,
    send,
    start_reader,
    with_leaves,
)
from app.db import Connection
from app.events.log import LOG_POSITIONS, Log
from app.events.positions import NO_POSITIONS, Positions, Range
from app.export.archived import FromArchive, LinkFromArchive
from app.export.manifest import ArchivedPart
from app.tlog.evidence import leaves_at

_ENDED = "The process that reads the archive has ended."
_HELD_BY = ("correlation_id", "actor_id", "resource_type", "resource_id", "event_timestamp")


@asynccontextmanager
async def asked(reader: ArchiveReader, module: str, question: Question) -> AsyncIterator[asyncio.subprocess.Process]:
    """A process that is started for one question. It has ended when this has. ArchiveAway if it cannot be started, or has ended."""
    try:
        process = await start_reader(module)
    except OSError as error:  # of the limit of processes, which would count as one of Postgres
        raise ArchiveAway(f"The process that reads the archive cannot be started: {error}.") from None
    try:
        await ask(process, reader.place)
        await ask(process, question)
        yield process
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def ask(process: asyncio.subprocess.Process, message: object) -> None:
    """Send it a message. ArchiveAway if it has ended."""
    try:
        await send(process, message)
    except OSError:
        raise ArchiveAway(_ENDED) from None


async def answer(process: asyncio.subprocess.Process) -> Any:
    """What it answers next. PartGone, ArchiveAway, ArchiveDamaged or DatabaseBusy if it does not."""
    try:
        received = await receive(process)
    except (OSError, EOFError):
        raise ArchiveAway(_ENDED) from None
    if isinstance(received, Refusal):
        refuse(received)
    return received


async def exported_rows(
    connection: Connection, log: Log, found: Sequence[FoundRow], parts: Sequence[PartToRead]
) -> list[FromArchive]:
    """Events that were found in some parts, as exports have them."""
    rows = [ArchivedRow.of(*one) for one in await with_leaves(connection, log, found)]
    holds = await connection.fetch(SQL["holds_on"], *([one.row[name] for one in rows] for name in _HELD_BY))
    digests = {part.archive_id: part.manifest_sha256 for part in parts}
    exported = []
    for one, hold in zip(rows, holds, strict=True):
        name = log.name_of(one.row["log_id"])
        columns = export_row(one, hold if hold["placed_at"] is not None else None) | {"log": name}
        proof = {"log_id": columns.pop("log_id"), "leaf": one.row["leaf"]}
        archive_id, position = one.row["archive_id"], one.row["log_index"]
        part = ArchivedPart(archive_id, digests[archive_id], name, 1, position, position)
        exported.append(FromArchive(columns, part, proof))
    return exported


@asynccontextmanager
async def oldest_of(reader: ArchiveReader, log: Log, question: Question) -> "AsyncIterator[OldestOfArchive]":
    """As long as their process runs. DatabaseBusy, ArchiveAway or ArchiveDamaged if they cannot be read."""
    async with asked(reader, "app.archive.in_time", question) as process:
        gone = defaultdict[int, list[Range]](list)
        for part in question.parts:
            gone[part.log_id] += part.wanted.ranges
        of_logs = {log_id: Positions(ranges) for log_id, ranges in gone.items()}
        yield OldestOfArchive(process, log, question.parts, of_logs, await _answer(process))


@dataclass(frozen=True, slots=True)
class OldestOfArchive:
    """The oldest events of the archive alone that match, in the order of time."""

    process: asyncio.subprocess.Process
    log: Log
    parts: Sequence[PartToRead]
    gone: Mapping[int, Positions]
    """By log."""
    found: Oldest

    def __len__(self) -> int:
        return len(self.found.times)

    def before(self, key: Key) -> int:
        """How many of them are before a key."""
        time, event_id = key
        first = bisect_left(self.found.times, time)
        same = range(first, bisect_right(self.found.times, time, first))
        return first + bisect_left(same, event_id, key=self.found.event_id)

    def place(self, number: int) -> int:
        """Where the logs have the n-th one."""
        return self.found.places[number]

    def is_gone(self, log_id: int, position: int) -> bool:
        """Whether the log records that the event at a position was removed from Postgres, and is in the archive."""
        return position in self.gone.get(log_id, NO_POSITIONS)

    async def links(self, connection: Connection, chosen: Sequence[int]) -> list[LinkFromArchive]:
        """What links some of them to others. To be asked for once, before the rows."""
        await ask(self.process, chosen)
        links: Sequence[ArchivedLink] = await _answer(self.process)
        places = [self.place(number) for number in chosen]
        before = [one.place_before for one in links if one.place_before is not None]
        leaves: Mapping[int, str] = await leaves_at(connection, self.log, [*places, *before])
        return [
            LinkFromArchive(
                {
                    "event_id": str(UUID(bytes=self.found.event_id(number))),
                    "correlation_id": one.correlation_id,
                    "chain_index": one.chain_index,
                    "log_id": place // LOG_POSITIONS,
                    "log_index": place % LOG_POSITIONS,
                    "event_hash": leaves.get(place),
                    "previous_event_hash": one.previous_event_hash,
                    "erased": one.is_erased,
                },
                self.found.key(number),
                None if one.place_before is None else leaves.get(one.place_before),
            )
            for number, place, one in zip(chosen, places, links, strict=True)
        ]

    async def rows(self, connection: Connection, chosen: Sequence[int]) -> AsyncGenerator[list[FromArchive]]:
        """Some of them, in this order."""
        await ask(self.process, chosen)
        while portion := await _answer(self.process):
            yield await exported_rows(connection, self.log, portion, self.parts)


async def _answer(process: asyncio.subprocess.Process) -> Any:
    try:
        return await answer(process)
    except PartGone:  # as the snapshot has it; the next one may have another
        raise ArchiveAway from None
