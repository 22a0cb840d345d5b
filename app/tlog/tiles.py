"""The log's tree in tiles of 256 hashes (C2SP tlog-tiles): level 0 is the leaves of the flushes; log_tiles has the levels above.

Each hash in a tile of level L is the root over 256^L leaves. Tiles only grow, and can be made again from the leaves.
"""

import logging
import re
from asyncio import sleep
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass
from typing import Self

from app.db import Connection
from app.errors import AuditError
from app.events.log import Log
from app.sql import load
from app.tlog import merkle
from app.tlog.merkle import HASH_BYTES, Node, Range

SQL = load("tlog")
_logger = logging.getLogger(__name__)
WIDTH = 256
_WIDTH_BITS = 8
LEVEL_MAX = 5
_TILES_AT_ONCE = 64
_TILES_PER_TRANSACTION = 1_024
_PATH = re.compile(r"([0-5])/((?:x[0-9]{3}/)*[0-9]{3})(?:\.p/([1-9][0-9]{0,2}))?")


class HashesMissing(AuditError):
    """Hashes of the log are missing in log_flushes or log_tiles: `datastorage verify` shows where."""


@dataclass(frozen=True, slots=True)
class Tile:
    """One tile, or its first `width` hashes."""

    level: int
    index: int
    width: int = WIDTH

    @property
    def path(self) -> str:
        """Its path in C2SP tlog-tiles, after `tile/`: 1/x001/234.p/5."""
        digits = f"{self.index:03}"
        digits = digits.zfill(-(-len(digits) // 3) * 3)
        groups = [digits[start : start + 3] for start in range(0, len(digits), 3)]
        partial = f".p/{self.width}" if self.width < WIDTH else ""
        return f"{self.level}/{'/'.join([f'x{group}' for group in groups[:-1]] + groups[-1:])}{partial}"

    @classmethod
    def parse(cls, path: str) -> Self | None:
        """The tile at a path; None for any other text, also for another spelling of the path."""
        match = _PATH.fullmatch(path)
        if match is None or len(match[2]) > 25:
            return None
        tile = cls(int(match[1]), int(match[2].replace("x", "").replace("/", "")), int(match[3] or WIDTH))
        return tile if tile.path == path else None


async def log_size(connection: Connection, log: Log) -> int:
    """How many leaves the log has. Raises HashesMissing when it has no flush, not even the empty first one."""
    row = await connection.fetchrow(SQL.of(log)["log_end"])
    if row is None:
        raise HashesMissing
    size: int = row["size"]
    return size


async def tiled_size(connection: Connection, log: Log) -> int:
    """The largest size, up to the log's, whose tree can be computed from the stored tiles."""
    full_tiles: int = await connection.fetchval(SQL.of(log)["level_size"], 1) or 0
    return min(await log_size(connection, log), (full_tiles + 1) * WIDTH - 1)


async def read_tile(connection: Connection, log: Log, tile: Tile) -> bytes | None:
    """The hashes of a tile, concatenated; None when the log is not that large yet, or the tile is not stored yet."""
    if tile.level == 0:
        first = tile.index * WIDTH
        if first + tile.width > await log_size(connection, log):
            return None
        return await read_leaves(connection, log, first, first + tile.width)
    hashes = (await _read_tiles(connection, log, {(tile.level, tile.index)})).get((tile.level, tile.index), b"")
    return hashes[: tile.width * HASH_BYTES] if len(hashes) >= tile.width * HASH_BYTES else None


async def range_roots(connection: Connection, log: Log, ranges: Sequence[Range]) -> list[bytes]:
    """The roots over ranges that merkle.py plans, or over whole trees. Raises HashesMissing when a hash is missing."""
    wanted = {node for leaves in ranges for node in merkle.nodes(leaves)}
    roots: dict[Node, bytes] = {}
    # Nodes within a tile of level 0 are computed from the leaves, one query for each tile; all others from stored tiles.
    low = sorted(node for node in wanted if node[0] < _WIDTH_BITS)
    for tile in sorted({(index << level) // WIDTH for level, index in low}):
        in_tile = [node for node in low if (node[1] << node[0]) // WIDTH == tile]
        first = min(index << level for level, index in in_tile)
        end = max((index + 1) << level for level, index in in_tile)
        hashes = await read_leaves(connection, log, first, end)
        roots |= {node: _subtree_root(hashes, node[0], (node[1] << node[0]) - first) for node in in_tile}
    high = wanted - roots.keys()
    tiles = await _read_tiles(connection, log, {_tile_of(node) for node in high}) if high else {}
    for node in high:
        level, index = node
        level_in_tile = level % _WIDTH_BITS
        roots[node] = _subtree_root(tiles.get(_tile_of(node), b""), level_in_tile, (index << level_in_tile) % WIDTH)
    return [merkle.range_root(leaves, roots) for leaves in ranges]


async def extend_tiles(connection: Connection, log: Log) -> bool:
    """Add the log's new leaves to the levels above 0; True when there are more of them than fit into one transaction.

    The caller's transaction holds the lock of try_lock_tiles. Raises HashesMissing when leaves are missing or tiles were changed.
    """
    size_below, more = await log_size(connection, log), False
    for level in range(1, LEVEL_MAX + 1):
        complete = size_below // WIDTH
        size = await _trimmed_size(connection, log, level, complete)
        end = min(complete, size + _TILES_PER_TRANSACTION)
        more |= end < complete
        if size < end:
            roots = [root async for root in _full_tile_roots(connection, log, level - 1, size, end)]
            await _append_hashes(connection, log, level, size, roots)
        if level == 1 and end % WIDTH == 0:
            await connection.execute(
                SQL.of(log)["begin_tile"], end // WIDTH
            )  # the log's end is looked for from the last tile on
        size_below = end
    return more


async def _trimmed_size(connection: Connection, log: Log, level: int, complete: int) -> int:
    """How many hashes a level has, once the tiles are deleted that cannot be of the log, which has `complete` hashes there."""
    size: int = await connection.fetchval(SQL.of(log)["level_size"], level) or 0
    tiles = complete // WIDTH if size > complete else size // WIDTH + 1
    deleted = await connection.fetch(SQL.of(log)["delete_tiles"], level, tiles)
    if deleted:
        _logger.warning("tiles that are not of the log were deleted", extra={"level": level, "tiles": len(deleted)})
    return min(size, tiles * WIDTH)


async def _full_tile_roots(connection: Connection, log: Log, level: int, first: int, last: int) -> AsyncIterator[bytes]:
    """The roots of full tiles of one level, read some at a time."""
    for start in range(first, last, _TILES_AT_ONCE):
        end = min(last, start + _TILES_AT_ONCE)
        if level == 0:
            hashes = await read_leaves(connection, log, start * WIDTH, end * WIDTH)
        else:
            tiles = await _read_tiles(connection, log, [(level, index) for index in range(start, end)])
            hashes = b"".join(tiles.get((level, index), b"") for index in range(start, end))
        for index in range(end - start):
            yield _subtree_root(hashes, _WIDTH_BITS, index * WIDTH)
            await sleep(0)  # other tasks may run between two tiles


async def _append_hashes(connection: Connection, log: Log, level: int, first: int, hashes: list[bytes]) -> None:
    """Append hashes, which begin at index `first` of the level, to its tiles."""
    while hashes:
        index, filled = divmod(first, WIDTH)
        part, hashes = hashes[: WIDTH - filled], hashes[WIDTH - filled :]
        if not await connection.fetchval(SQL.of(log)["append_to_tile"], level, index, filled, b"".join(part)):
            raise HashesMissing
        first += len(part)


def _tile_of(node: Node) -> tuple[int, int]:
    """Level and index of the tile that a node can be computed from."""
    level, level_in_tile = divmod(node[0], _WIDTH_BITS)
    return level, (node[1] << level_in_tile) // WIDTH


def _subtree_root(hashes: bytes, level: int, first: int) -> bytes:
    """The root over 2^level of the concatenated hashes, from the one at `first` on. Raises HashesMissing when one is missing."""
    part = hashes[first * HASH_BYTES : (first + (1 << level)) * HASH_BYTES]
    if len(part) != HASH_BYTES << level:
        raise HashesMissing
    return merkle.complete_root(part)


async def read_leaves(connection: Connection, log: Log, first: int, end: int) -> bytes:
    """The leaf hashes from position `first` up to, not including, `end`, concatenated. Raises HashesMissing when one is missing."""
    parts: list[bytes] = []
    position = first
    for row in await connection.fetch(SQL.of(log)["leaves"], first, end):
        if parts and row["first"] < position:
            continue  # inserted between: of flushes with one position the first counts
        if row["first"] != position or len(row["leaves"]) % HASH_BYTES:
            raise HashesMissing
        parts.append(row["leaves"])
        position += len(row["leaves"]) // HASH_BYTES
    if position != end:
        raise HashesMissing
    return b"".join(parts)


async def _read_tiles(
    connection: Connection, log: Log, tiles: Iterable[tuple[int, int]]
) -> dict[tuple[int, int], bytes]:
    """Stored tiles, as hashes by level and index; without those that are not stored."""
    wanted = list(tiles)
    rows = await connection.fetch(SQL.of(log)["tiles"], [level for level, _ in wanted], [index for _, index in wanted])
    return {(row["level"], row["index"]): row["hashes"] for row in rows}
