"""The proofs of a bundle: the tree of each log under which its entries are proved, and their inclusion proofs."""

from asyncio import sleep
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from app.db import Connection
from app.errors import Conflict
from app.events.log import Log
from app.export.bundle import BundledEvent, BundledGap, BundledLog, Place, Timestamp
from app.tlog import merkle
from app.tlog.continued import read_seam
from app.tlog.note import Checkpoint, Note, encoded_base64
from app.tlog.prove import NotSignedYet
from app.tlog.tiles import SQL, range_roots

_ENTRIES_AT_ONCE = 64


@dataclass(frozen=True, slots=True)
class Tree:
    """A tree of a log: that of a signed checkpoint, or of a closed log as the first event of the next one names it."""

    log: Log
    size: int
    root: bytes
    note: str | None
    """The signed checkpoint; None if the seam vouches for the tree."""

    def bundled(self, timestamps: list[Timestamp]) -> BundledLog:
        """The log's entry in the file."""
        seam = Place(self.log.next.name, 0) if self.note is None else None
        return BundledLog(self.log.id, self.log.name, self.size, encoded_base64(self.root), self.note, seam, timestamps)


async def read_tree(connection: Connection, log: Log, highest: int) -> Tree:
    """The tree that proves positions of a log up to `highest`.

    Raises NotSignedYet until a checkpoint of the open log covers that, Conflict if it lies beyond a hole of a closed one.
    """
    if log.is_open:
        row = await connection.fetchrow(SQL.of(log)["published_checkpoint"])
        if row is None or highest >= row["size"]:
            raise NotSignedYet
        return _of_checkpoint(log, row["note"])
    seam = await read_seam(connection, log.next)
    if seam is None:
        raise Conflict(f"The first event after the log {log.name} is missing or changed: run `datastorage verify`.")
    row = await connection.fetchrow(SQL.of(log)["published_up_to"], seam.agreed_size)
    if row is not None and highest < row["size"]:
        return _of_checkpoint(log, row["note"])
    if highest >= seam.tree_size:
        raise Conflict(f"Position {highest} lies beyond a hole in the log {log.name}, so it cannot be proved.")
    return Tree(log, seam.tree_size, seam.root, None)


def _of_checkpoint(log: Log, note: str) -> Tree:
    checkpoint = Checkpoint.parse(Note.parse(note).text)
    return Tree(log, checkpoint.size, checkpoint.root, note)


async def with_proofs(
    connection: Connection, events: Sequence[BundledEvent], trees: Mapping[str, Tree]
) -> list[BundledEvent]:
    """The entries with their inclusion proofs, under the trees of the logs that they name."""
    proved = []
    for start in range(0, len(events), _ENTRIES_AT_ONCE):
        some = events[start : start + _ENTRIES_AT_ONCE]
        for name in dict.fromkeys(event.log for event in some):
            of_log = [event for event in some if event.log == name]
            proofs = await _proofs(connection, trees[name], [(event.position, event.leaf) for event in of_log])
            proved += [replace(event, proof=proof) for event, proof in zip(of_log, proofs, strict=True)]
        await sleep(0)
    return proved


async def with_proof(connection: Connection, gap: BundledGap, trees: Mapping[str, Tree]) -> BundledGap:
    """The gap with the inclusion proof of its last event, if it has a place."""
    if gap.log is None or gap.position is None:
        return gap
    [proof] = await _proofs(connection, trees[gap.log], [(gap.position, gap.last_hash)])
    return replace(gap, proof=proof)


async def _proofs(connection: Connection, tree: Tree, leaves: Sequence[tuple[int, str]]) -> list[list[str]]:
    """The inclusion proofs of leaves, by position and hash. Raises Conflict if one is not valid."""
    ranges = [merkle.inclusion_ranges(position, tree.size) for position, _ in leaves]
    roots = iter(await range_roots(connection, tree.log, [one for some in ranges for one in some]))
    proofs = [[next(roots) for _ in some] for some in ranges]
    for (position, leaf), proof in zip(leaves, proofs, strict=True):
        if not merkle.verify_inclusion(position, tree.size, bytes.fromhex(leaf), proof, tree.root):
            where = f"Position {position} of the log {tree.log.name}"
            raise Conflict(f"{where} is not as it was signed, so it cannot be proved: run `datastorage verify`.")
    return [[encoded_base64(one) for one in proof] for proof in proofs]
