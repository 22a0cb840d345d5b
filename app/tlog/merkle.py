"""The Merkle tree of RFC 6962 and RFC 9162 over leaf hashes. Pure: hashes in, hashes out.

A node is named by (level, index): it stands over the leaves from index * 2^level on, 2^level of them. Proofs are planned as
ranges of leaves first, so that whoever stores nodes knows what to read before anything is computed.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from hashlib import sha256

HASH_BYTES = 32
EMPTY_ROOT = sha256().digest()

Range = tuple[int, int]
"""Leaves from the first number up to, not including, the second."""
Node = tuple[int, int]


def leaf_hash(content: bytes) -> bytes:
    """The hash of one leaf's content; for an event, of its record's JCS."""
    return sha256(b"\0" + content).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """The hash of an inner node."""
    return sha256(b"\1" + left + right).digest()


def hashes(joined: bytes) -> list[bytes]:
    """The hashes that `joined` holds one after another, as the log's flushes and tiles do."""
    return [joined[start : start + HASH_BYTES] for start in range(0, len(joined), HASH_BYTES)]


class Frontier:
    """The tree so far, as leaves come in their order: memory for one node of each level, whatever its size."""

    def __init__(self) -> None:
        self.size = 0
        self._complete: list[bytes] = []  # roots of the complete subtrees, the largest first

    def append(self, leaf: bytes) -> None:
        """Take the next leaf's hash."""
        complete, size = self._complete, self.size
        while size & 1:
            leaf = node_hash(complete.pop(), leaf)
            size >>= 1
        complete.append(leaf)
        self.size += 1

    def extend(self, leaves: Iterable[bytes]) -> None:
        """Take the hashes of the next leaves."""
        for leaf in leaves:
            self.append(leaf)

    def root(self) -> bytes:
        """The root of the tree of all leaves taken."""
        return _folded(self._complete)


def root(leaves: Iterable[bytes]) -> bytes:
    """The root of the tree over these leaf hashes."""
    frontier = Frontier()
    frontier.extend(leaves)
    return frontier.root()


def complete_root(joined: bytes) -> bytes:
    """The root over 1, 2, 4, 8 … hashes that stand one after another; five times as fast as root()."""
    while len(joined) > HASH_BYTES:
        pairs = range(0, len(joined), 2 * HASH_BYTES)
        joined = b"".join([sha256(b"\1" + joined[place : place + 2 * HASH_BYTES]).digest() for place in pairs])
    return joined


def inclusion_ranges(index: int, size: int) -> list[Range]:
    """The subtrees whose roots are the inclusion proof of leaf `index` in the tree of `size` leaves, lowest first."""
    if not 0 <= index < size:
        raise ValueError(f"there is no leaf {index} in a tree of {size}")
    first, last, ranges = 0, size, []
    while last - first > 1:
        middle = first + _left(last - first)
        if index < middle:
            ranges.append((middle, last))
            last = middle
        else:
            ranges.append((first, middle))
            first = middle
    return ranges[::-1]


def consistency_ranges(old: int, new: int) -> list[Range]:
    """The subtrees whose roots prove that the tree of `old` leaves is a prefix of the one of `new`, lowest first."""
    if not 0 <= old <= new:
        raise ValueError(f"a tree of {old} leaves is no prefix of one of {new}")
    if old == 0:
        return []
    first, last, ranges = 0, new, []
    while last != old:
        middle = first + _left(last - first)
        if old <= middle:
            ranges.append((middle, last))
            last = middle
        else:
            ranges.append((first, middle))
            first = middle
    if first:
        ranges.append((first, last))
    return ranges[::-1]


def nodes(leaves: Range) -> Iterator[Node]:
    """The complete subtrees that a range of a proof, or the whole tree, consists of, the largest first."""
    first, last = leaves
    while first < last:
        level = (last - first).bit_length() - 1
        yield level, first >> level
        first += 1 << level


def range_root(leaves: Range, known: Mapping[Node, bytes]) -> bytes:
    """The root over a range, from the hashes of its nodes()."""
    return _folded([known[node] for node in nodes(leaves)])


def verify_inclusion(index: int, size: int, leaf: bytes, proof: Sequence[bytes], expected_root: bytes) -> bool:
    """Whether `proof` shows that the tree of `size` leaves with this root has `leaf` at `index` (RFC 9162, 2.1.3.2)."""
    if not 0 <= index < size:
        return False
    place, last, found = index, size - 1, leaf
    for sibling in proof:
        if last == 0:
            return False
        if place & 1 or place == last:
            found = node_hash(sibling, found)
            while not place & 1 and place:
                place, last = place >> 1, last >> 1
        else:
            found = node_hash(found, sibling)
        place, last = place >> 1, last >> 1
    return last == 0 and found == expected_root


def verify_consistency(old: int, new: int, old_root: bytes, new_root: bytes, proof: Sequence[bytes]) -> bool:
    """Whether `proof` shows that the tree of `old` leaves is a prefix of the tree of `new` (RFC 9162, 2.1.4.2)."""
    if not 0 <= old <= new:
        return False
    if old in (0, new):
        return not proof and (old_root == new_root if old else old_root == EMPTY_ROOT)
    path = [old_root, *proof] if old & (old - 1) == 0 else list(proof)
    if not path:
        return False
    place, last = old - 1, new - 1
    while place & 1:
        place, last = place >> 1, last >> 1
    was = now = path[0]
    for sibling in path[1:]:
        if last == 0:
            return False
        if place & 1 or place == last:
            was, now = node_hash(sibling, was), node_hash(sibling, now)
            while not place & 1 and place:
                place, last = place >> 1, last >> 1
        else:
            now = node_hash(now, sibling)
        place, last = place >> 1, last >> 1
    return last == 0 and was == old_root and now == new_root


def _left(size: int) -> int:
    """How many of `size` leaves, two or more, stand in the left subtree: the largest power of two below."""
    return 1 << ((size - 1).bit_length() - 1)


def _folded(complete: Sequence[bytes]) -> bytes:
    """The root over neighbouring subtrees, the largest first."""
    if not complete:
        return EMPTY_ROOT
    found = complete[-1]
    for left in complete[-2::-1]:
        found = node_hash(left, found)
    return found
