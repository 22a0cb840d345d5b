"""The log's own tables held against each other: flushes without gap, tiles made of leaves, and the roots that were signed."""

from collections.abc import Collection
from dataclasses import dataclass, field

from app.db import Connection
from app.tlog.merkle import EMPTY_ROOT, Frontier, hashes, root
from app.verify.log import LEAF_BYTES
from app.verify.row import Defect, Defects, Kind
from app.verify.snapshot import FETCH_TIMEOUT_SECONDS, SQL, portions

_WIDTH = 256


@dataclass(slots=True)
class Tree:
    """The tree over the leaves that the flushes hold, as far as none is missing."""

    frontier: Frontier = field(default_factory=Frontier)
    roots: dict[int, bytes] = field(default_factory=dict)
    """Of the sizes that were asked for."""
    end: int | None = None
    """Where the next flush has to begin; None before the first."""
    is_whole: bool = True
    defects: Defects = field(default_factory=Defects)


async def read_tree(connection: Connection, sizes: Collection[int]) -> Tree:
    """Read the whole log, say what is wrong with its flushes and tiles, and give its roots at `sizes`."""
    tree, tiles = Tree(roots={0: EMPTY_ROOT}), _Tiles(connection)
    async for flushes in portions(connection, "flushes", "leaves"):
        for flush in flushes:
            for leaf in _taken(tree, flush["first_index"], flush["count"], flush["leaves"]):
                tree.frontier.append(leaf)
                tiles.append(leaf)
                if tree.frontier.size in sizes:
                    tree.roots[tree.frontier.size] = tree.frontier.root()
        await tiles.compare(tree.defects)
    if tree.end is None:
        tree.defects.add(Defect("removed", "removed: the log has no beginning"))
    await tiles.finish(tree.defects)
    return tree


def _taken(tree: Tree, first: int, count: int, leaves: bytes) -> list[bytes]:
    """The leaves of the next flush that are new; none any more once some are missing, since no root can be had then."""
    end = tree.end
    if end is None and first == -1:  # stands before the first flush and holds no event
        tree.end = 0
        return []
    if end is None or first > end:
        _broken(tree, "removed", f"flushes between positions {end or 0} and {first} of the log are missing")
    elif first < end:
        _broken(tree, "inserted", f"positions {first} to {end - 1} of the log are held by two flushes")
    if len(leaves) != count * LEAF_BYTES:
        _broken(tree, "edited", f"the flush at {first} has {len(leaves)} bytes of leaves for {count} events")
    tree.end = max(end or 0, first + count)
    return hashes(leaves) if tree.is_whole else []


def _broken(tree: Tree, kind: Kind, message: str) -> None:
    tree.is_whole = False
    tree.defects.add(Defect(kind, f"{kind}: {message}"))


class _Tiles:
    """The higher levels of the tree, made anew and held against those that are kept."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._levels: list[list[bytes]] = [[]]
        self._counts = [0]
        self._made: list[tuple[int, int, bytes]] = []

    def append(self, leaf: bytes) -> None:
        self._add(0, leaf)

    def _add(self, level: int, node: bytes) -> None:
        if level == len(self._levels):
            self._levels.append([])
            self._counts.append(0)
        nodes = self._levels[level]
        nodes.append(node)
        if len(nodes) == _WIDTH:
            if level:
                self._made.append((level, self._counts[level], b"".join(nodes)))
            self._counts[level] += 1
            self._levels[level] = []
            self._add(level + 1, root(nodes))

    async def finish(self, defects: Defects) -> None:
        """Compare the tiles that are not full, too."""
        for level, nodes in enumerate(self._levels):
            if level and nodes:
                self._made.append((level, self._counts[level], b"".join(nodes)))
        await self.compare(defects)

    async def compare(self, defects: Defects) -> None:
        """Hold what was made since the last time against what is stored. A tile may be behind: it is made after its leaves."""
        if not self._made:
            return
        made = {(level, index): joined for level, index, joined in self._made}
        self._made = []
        arguments = [level for level, _ in made], [index for _, index in made]
        for row in await self._connection.fetch(SQL["tiles_at"], *arguments, timeout=FETCH_TIMEOUT_SECONDS):
            level, index, kept = row["level"], row["index"], row["hashes"]
            if not made[level, index].startswith(kept):
                message = f"edited: tile {level}/{index} of the log's tree is not made of the log's leaves"
                defects.add(Defect("edited", message))
