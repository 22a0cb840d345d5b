"""The timestamps of a bundle: the earliest that show since when each of its events has existed."""

from collections.abc import Iterable, Sequence
from contextlib import suppress

from app.db import Connection
from app.events.log import Log
from app.export.bundle import Timestamp
from app.tlog import merkle
from app.tlog.note import MalformedNote, NoValidSignature, PublicKey, encoded_base64, verified_checkpoint
from app.tlog.tiles import SQL, range_roots


async def read_timestamps(
    connection: Connection, log: Log, size: int, positions: Iterable[int], keys: Sequence[PublicKey]
) -> list[Timestamp]:
    """For each position the earliest timestamp of a checkpoint that covers it, as far as there is one that the log of `size` events continues."""
    found: list[Timestamp] = []
    covered = 0
    for position in sorted(positions):
        if position < covered:
            continue
        row = await connection.fetchrow(SQL.of(log)["timestamp_covering"], position + 1)
        if row is None or row["size"] > size:
            break
        covered = row["size"]
        ranges = merkle.consistency_ranges(covered, size)
        root, *hashes = await range_roots(connection, log, [(0, covered), *ranges])
        with suppress(MalformedNote, NoValidSignature):  # somebody has put the row there
            checkpoint = verified_checkpoint(row["note"], keys)
            if (checkpoint.size, checkpoint.root) == (covered, root):
                found.append(Timestamp(row["note"], [*map(encoded_base64, hashes)], encoded_base64(row["token"])))
    return found
