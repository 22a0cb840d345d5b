"""The tiles of a part: those that lead from its positions to the root of its checkpoint. Pure, but for the file that has them.

The file has, without gaps, the tiles (C2SP tlog-tiles) of the path of each position and of the right edge of the tree, by level and index.
Positions and size say which these are, so there is no index. Nothing is kept in memory of the file: a part has 32 bytes of it for each event.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import IO

from app.events.positions import Positions
from app.tlog import merkle
from app.tlog.merkle import HASH_BYTES
from app.tlog.tiles import LEVEL_MAX, WIDTH, Tile

_WIDTH_BITS = 8
_TILE_BYTES = WIDTH * HASH_BYTES


@dataclass(frozen=True, slots=True)
class TileSet:
    """Which tiles prove some positions in the tree of `size` leaves."""

    positions: Positions
    size: int
    levels: tuple[Positions, ...] = field(init=False)
    """By level, the numbers of its tiles."""
    starts: tuple[int, ...] = field(init=False)
    """Where in the file each level begins; and, last, how long the file is."""

    def __post_init__(self) -> None:
        levels, starts = [], [0]
        for level in range(LEVEL_MAX + 1):
            if not (hashes := self.size >> (_WIDTH_BITS * level)):
                break
            shift, last = _WIDTH_BITS * (level + 1), -(-hashes // WIDTH)
            edge = [(hashes // WIDTH, last)]  # empty if that one is full
            on_paths = ((a >> shift, min(last, ((b - 1) >> shift) + 1)) for a, b in self.positions.ranges)
            tiles = Positions([one for one in on_paths if one[0] < one[1]] + edge)
            levels.append(tiles)
            missing = (last * WIDTH - hashes) if last - 1 in tiles else 0
            starts.append(starts[-1] + tiles.size * _TILE_BYTES - missing * HASH_BYTES)
        object.__setattr__(self, "levels", tuple(levels))
        object.__setattr__(self, "starts", tuple(starts))

    @property
    def file_bytes(self) -> int:
        """How long the file is."""
        return self.starts[-1]

    def tiles(self) -> Iterator[Tile]:
        """The tiles in the order of the file."""
        for level, tiles in enumerate(self.levels):
            for first, end in tiles.ranges:
                for index in range(first, end):
                    yield self.tile(level, index)

    def tile(self, level: int, index: int) -> Tile:
        """A tile of the tree, which the file need not have."""
        return Tile(level, index, min(WIDTH, (self.size >> (_WIDTH_BITS * level)) - index * WIDTH))

    def offset(self, level: int, index: int) -> int:
        """Where in the file a tile begins. KeyError if it does not have it."""
        if level >= len(self.levels) or index not in self.levels[level]:
            raise KeyError((level, index))
        return self.starts[level] + self.levels[level].count(0, index) * _TILE_BYTES


class WrongTile(ValueError):
    """A tile is not what the tree of the checkpoint has there."""


class TileFile:
    """An open file of tiles on this machine."""

    def __init__(self, tiles: TileSet, file: IO[bytes]) -> None:
        self._tiles = tiles
        self._file = file.fileno()

    def leaf(self, position: int) -> bytes:
        """The leaf hash at a position. KeyError if its tile is not in the file."""
        tile, at = divmod(position, WIDTH)
        return os.pread(self._file, HASH_BYTES, self._tiles.offset(0, tile) + at * HASH_BYTES)

    def tile(self, level: int, index: int) -> bytes:
        """The hashes of a tile. KeyError if it is not in the file."""
        width = self._tiles.tile(level, index).width
        return os.pread(self._file, width * HASH_BYTES, self._tiles.offset(level, index))

    def root(self) -> bytes:
        """The root of the tree, from its right edge."""
        roots = {}
        for level, index in merkle.nodes((0, self._tiles.size)):
            tile_level, in_tile = divmod(level, _WIDTH_BITS)
            tile, at = divmod(index << in_tile, WIDTH)
            hashes = self.tile(tile_level, tile)
            roots[level, index] = merkle.complete_root(hashes[at * HASH_BYTES : (at + (1 << in_tile)) * HASH_BYTES])
        return merkle.range_root((0, self._tiles.size), roots)

    def check(self, root: bytes) -> None:
        """WrongTile, which names the first one, unless each tile leads to this root of the tree, and nothing else is in the file."""
        if (size := os.fstat(self._file).st_size) != self._tiles.file_bytes:
            raise WrongTile(f"the tiles have {size} bytes, not {self._tiles.file_bytes}")
        if self.root() != root:
            raise WrongTile("the tiles of the tree's edge do not have the root of the checkpoint")
        for tile in self._tiles.tiles():
            if tile.width == WIDTH:
                above, at = divmod(tile.index, WIDTH)
                expected = self.tile(tile.level + 1, above)[at * HASH_BYTES : (at + 1) * HASH_BYTES]
                if merkle.complete_root(self.tile(tile.level, tile.index)) != expected:
                    raise WrongTile(f"the tile {tile.path} is not what the tile above it has")
