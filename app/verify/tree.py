"""The log's own tables: flushes follow each other, tiles are made of the leaves; and the roots at the sizes of checkpoints."""

from collections.abc import Collection
from dataclasses import dataclass, field

from app.db import LONG_FETCH_SECONDS, Connection, portions
from app.events.log import Log
from app.tlog.merkle import EMPTY_ROOT, HASH_BYTES, Frontier, hashes, root
from app.tlog.tiles import LEVEL_MAX, WIDTH
from app.tlog.tiles import SQL as TLOG_SQL
from app.verify.row import Defect, Defects, Kind
from app.verify.snapshot import SQL


@dataclass(slots=True)
class Tree:
    """The tree over the leaves of the flushes, up to the first damage."""

    frontier: Frontier = field(default_factory=Frontier)
    roots: dict[int, bytes] = field(default_factory=dict)
    """By size, of the requested sizes."""
    end: int | None = None
    """Where the next flush has to begin; None before the first."""
    is_whole: bool = True
    """Whether no flush so far is damaged."""
    defects: Defects = field(default_factory=Defects)


async def read_tree(connection: Connection, log: Log, sizes: Collection[int], end: int) -> Tree:
    """Read the log up to its end, check its flushes and tiles, and compute its roots at `sizes`. `connection` is in a snapshot."""
    tree, tiles = Tree(roots={0: EMPTY_ROOT}), _RecomputedTiles(connection, log)
    async for flushes in portions(connection, SQL.of(log)["all_flushes"], end, widest="leaves"):
        for flush in flushes:
            for leaf in _check_flush(tree, flush["first_index"], flush["count"], flush["leaves"]):
                tree.frontier.append(leaf)
                tiles.append(leaf)
                if tree.frontier.size in sizes:
                    tree.roots[tree.frontier.size] = tree.frontier.root()
        await tiles.compare(tree.defects)
    if tree.end is None:
        tree.defects.add(Defect("removed", "removed: the log has no first flush"))
    await tiles.finish(tree.defects, is_whole=tree.is_whole)
    return tree


async def verify_last_signed(connection: Connection, log: Log) -> Defects:
    """A defect if the checkpoint that was signed last is not the newest stored one. `connection` is in a snapshot."""
    defects = Defects()
    if await connection.fetchval(SQL.of(log)["last_signed_differs"], timeout=LONG_FETCH_SECONDS):
        message = "removed: the checkpoint that was signed last is missing in log_signers or in log_checkpoints"
        defects.add(Defect("removed", message))
    return defects


def _check_flush(tree: Tree, first: int, count: int, leaves: bytes) -> list[bytes]:
    """Check the next flush and return its leaves; none from the first damaged flush on, since no root can be computed then."""
    end = tree.end
    if end is None and first == -1:
        tree.end = 0
        if (count, leaves) != (1, b""):
            tree.defects.add(Defect("edited", "edited: the flush before the first one has events"))
        return []
    if end is None or first > end:
        _add_damage(tree, "removed", f"flushes between positions {end or 0} and {first} of the log are missing")
    elif first < end:  # the first flush counts
        until = min(end, first + max(count, 1)) - 1
        tree.defects.add(Defect("inserted", f"inserted: positions {first} to {until} of the log are in two flushes"))
        return []
    if not leaves:
        _add_damage(
            tree, "removed", f"the flush at {first} stands for {count} events whose flushes were lost: it has no leaves"
        )
    elif len(leaves) != count * HASH_BYTES:
        _add_damage(tree, "edited", f"the flush at {first} has {len(leaves)} bytes of leaves for {count} events")
    tree.end = max(end or 0, first + count)
    return hashes(leaves) if tree.is_whole else []


def _add_damage(tree: Tree, kind: Kind, message: str) -> None:
    tree.is_whole = False
    tree.defects.add(Defect(kind, f"{kind}: {message}"))


class _RecomputedTiles:
    """The tiles of the levels above 0, computed from the leaves and compared with the stored ones."""

    def __init__(self, connection: Connection, log: Log) -> None:
        self._connection = connection
        self._log = log
        self._levels: list[list[bytes]] = [[]]
        """The hashes of the last tile of each level, which is not full."""
        self._counts = [0]
        """How many full tiles each level has."""
        self._not_compared: list[tuple[int, int, bytes]] = []
        """Level, index and hashes of tiles."""

    def append(self, leaf: bytes) -> None:
        self._add(0, leaf)

    def _add(self, level: int, node: bytes) -> None:
        if level == len(self._levels):
            self._levels.append([])
            self._counts.append(0)
        nodes = self._levels[level]
        nodes.append(node)
        if len(nodes) == WIDTH:
            if level:
                self._not_compared.append((level, self._counts[level], b"".join(nodes)))
            self._counts[level] += 1
            self._levels[level] = []
            self._add(level + 1, root(nodes))

    async def finish(self, defects: Defects, *, is_whole: bool) -> None:
        """Compare the last tile of each level too, which may be there before it has a hash; that is known of a whole log only."""
        self._levels += [[] for _ in range(len(self._levels), LEVEL_MAX + 1)]
        self._counts += [0] * (len(self._levels) - len(self._counts))
        for level, nodes in enumerate(self._levels):
            if level and (nodes or is_whole):
                self._not_compared.append((level, self._counts[level], b"".join(nodes)))
        await self.compare(defects)

    async def compare(self, defects: Defects) -> None:
        """Compare the tiles that are complete since the last call. A stored one may be shorter: it is extended after its leaves."""
        if not self._not_compared:
            return
        computed = {(level, index): joined for level, index, joined in self._not_compared}
        self._not_compared = []
        arguments = [level for level, _ in computed], [index for _, index in computed]
        for row in await self._connection.fetch(
            TLOG_SQL.of(self._log)["tiles"], *arguments, timeout=LONG_FETCH_SECONDS
        ):
            level, index, stored = row["level"], row["index"], row["hashes"]
            if not computed[level, index].startswith(stored):
                message = f"edited: tile {level}/{index} of the log's tree is not made of the log's leaves"
                defects.add(Defect("edited", message))
