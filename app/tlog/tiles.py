"""The log's tree in tiles of 256 hashes (C2SP tlog-tiles): level 0 stands in the flushes, one process keeps the higher levels.

A tile of level L holds roots over 256^L leaves each. Tiles only grow, and everything in them can be made again.
"""

import re
from asyncio import sleep
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass
from typing import Self

from app.db import Connection
from app.errors import AuditError
from app.sql import load
from app.tlog import merkle
from app.tlog.merkle import HASH_BYTES, Node, Range

SQL = load("tlog")
WIDTH = 256
_WIDTH_BITS = 8
_LEVEL_MAX = 5
_TILES_AT_ONCE = 64
_TILES_IN_ROUND = 1_024
_PATH = re.compile(r"([0-5])/((?:x[0-9]{3}/)*[0-9]{3})(?:\.p/([1-9][0-9]{0,2}))?")


class Incomplete(AuditError):
    """Hashes of the log are missing in log_flushes or log_tiles: run `datastorage verify`, it says where."""


@dataclass(frozen=True, slots=True)
class Tile:
    """One tile, or its first `width` hashes."""

    level: int
    index: int
    width: int = WIDTH

    @property
    def path(self) -> str:
        """As C2SP tlog-tiles spells it, behind `tile/`: 1/x001/234.p/5."""
        digits = f"{self.index:03}"
        digits = digits.zfill(-(-len(digits) // 3) * 3)
        groups = [digits[place : place + 3] for place in range(0, len(digits), 3)]
        partial = f".p/{self.width}" if self.width < WIDTH else ""
        return f"{self.level}/{'/'.join([f'x{group}' for group in groups[:-1]] + groups[-1:])}{partial}"

    @classmethod
    def parse(cls, path: str) -> Self | None:
        """The tile at a path; None for what is no path of a tile."""
        match = _PATH.fullmatch(path)
        if match is None or len(match[2]) > 25:
            return None
        tile = cls(int(match[1]), int(match[2].replace("x", "").replace("/", "")), int(match[3] or WIDTH))
        return tile if tile.path == path else None


async def log_end(connection: Connection) -> int:
    """How many leaves the log has."""
    row = await connection.fetchrow(SQL["log_end"])
    if row is None:
        raise Incomplete
    size: int = row["size"]
    return size


async def kept_end(connection: Connection) -> int:
    """How many leaves a tree may have for which every tile is kept already; no more than the log has."""
    full_tiles: int = await connection.fetchval(SQL["tile_end"], 1) or 0
    return min(await log_end(connection), (full_tiles + 1) * WIDTH - 1)


async def read_tile(connection: Connection, tile: Tile) -> bytes | None:
    """The hashes of a tile; None when the log has not come so far, or its tiles were not kept."""
    if tile.level == 0:
        first = tile.index * WIDTH
        if first + tile.width > await log_end(connection):
            return None
        return await _leaves(connection, first, first + tile.width)
    hashes = (await _higher(connection, {(tile.level, tile.index)})).get((tile.level, tile.index), b"")
    return hashes[: tile.width * HASH_BYTES] if len(hashes) >= tile.width * HASH_BYTES else None


async def range_roots(connection: Connection, ranges: Sequence[Range]) -> list[bytes]:
    """The roots over ranges that merkle.py plans, whole trees among them. Raises Incomplete when a hash is missing."""
    wanted = {node for leaves in ranges for node in merkle.nodes(leaves)}
    known: dict[Node, bytes] = {}
    low = sorted(node for node in wanted if node[0] < _WIDTH_BITS)
    for tile in sorted({(index << level) // WIDTH for level, index in low}):
        in_tile = [node for node in low if (node[1] << node[0]) // WIDTH == tile]
        first = min(index << level for level, index in in_tile)
        last = max((index + 1) << level for level, index in in_tile)
        hashes = await _leaves(connection, first, last)
        known |= {node: _root_in(hashes, node[0], (node[1] << node[0]) - first) for node in in_tile}
    high = wanted - known.keys()
    tiles = await _higher(connection, {_tile_of(node) for node in high}) if high else {}
    for node in high:
        level, index = node
        within = level % _WIDTH_BITS
        known[node] = _root_in(tiles.get(_tile_of(node), b""), within, (index << within) % WIDTH)
    return [merkle.range_root(leaves, known) for leaves in ranges]


async def extend(connection: Connection) -> bool:
    """Add what the log has grown by to the higher levels; True when there is more to do.

    In the transaction that holds the keeper's lock. Raises Incomplete when leaves are missing or tiles are not as they were left.
    """
    below, more = await log_end(connection), False
    for level in range(1, _LEVEL_MAX + 1):
        have: int = await connection.fetchval(SQL["tile_end"], level) or 0
        end = min(below // WIDTH, have + _TILES_IN_ROUND)
        more |= end < below // WIDTH
        if have < end:
            await _append(connection, level, have, [one async for one in _tile_roots(connection, level - 1, have, end)])
        below = max(have, end)
        if below < WIDTH:
            break
    return more


async def _tile_roots(connection: Connection, level: int, first: int, last: int) -> AsyncIterator[bytes]:
    """The roots of full tiles, read some at a time."""
    for start in range(first, last, _TILES_AT_ONCE):
        end = min(last, start + _TILES_AT_ONCE)
        if level == 0:
            hashes = await _leaves(connection, start * WIDTH, end * WIDTH)
        else:
            tiles = await _higher(connection, [(level, index) for index in range(start, end)])
            hashes = b"".join(tiles.get((level, index), b"") for index in range(start, end))
        for index in range(end - start):
            yield _root_in(hashes, _WIDTH_BITS, index * WIDTH)
            await sleep(0)  # others have their turn between two tiles


async def _append(connection: Connection, level: int, first: int, hashes: list[bytes]) -> None:
    while hashes:
        index, filled = divmod(first, WIDTH)
        part, hashes = hashes[: WIDTH - filled], hashes[WIDTH - filled :]
        if not await connection.fetchval(SQL["append_to_tile"], level, index, filled, b"".join(part)):
            raise Incomplete
        first += len(part)


def _tile_of(node: Node) -> tuple[int, int]:
    level, within = divmod(node[0], _WIDTH_BITS)
    return level, (node[1] << within) // WIDTH


def _root_in(hashes: bytes, level: int, first: int) -> bytes:
    """The root over 2^level hashes of a tile, from the one at `first` on."""
    part = hashes[first * HASH_BYTES : (first + (1 << level)) * HASH_BYTES]
    if len(part) != HASH_BYTES << level:
        raise Incomplete
    return merkle.complete_root(part)


async def _leaves(connection: Connection, first: int, last: int) -> bytes:
    parts, place = [], first
    for row in await connection.fetch(SQL["leaves"], first, last):
        if row["first"] != place or len(row["leaves"]) % HASH_BYTES:
            raise Incomplete
        parts.append(row["leaves"])
        place += len(row["leaves"]) // HASH_BYTES
    if place != last:
        raise Incomplete
    return b"".join(parts)


async def _higher(connection: Connection, tiles: Iterable[tuple[int, int]]) -> dict[tuple[int, int], bytes]:
    wanted = list(tiles)
    rows = await connection.fetch(SQL["tiles"], [level for level, _ in wanted], [index for _, index in wanted])
    return {(row["level"], row["index"]): row["hashes"] for row in rows}
