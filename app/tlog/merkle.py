"""The Merkle tree of RFC 6962 and RFC 9162 over leaf hashes. Pure: hashes in, hashes out.

A node is named by (level, index): it is the root over the 2^level leaves from index * 2^level on. A proof is first planned as
ranges of leaves, so that the caller knows which stored nodes to read before anything is computed.
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
    """The 32-byte hashes that are concatenated in `joined`, as in the log's flushes and tiles."""
    return [joined[start : start + HASH_BYTES] for start in range(0, len(joined), HASH_BYTES)]


class Frontier:
    """The right edge of a growing tree: the roots of its complete subtrees, at most one for each level."""

    def __init__(self) -> None:
        self.size = 0
        self._complete: list[bytes] = []  # roots of the complete subtrees, the largest first

    def append(self, leaf: bytes) -> None:
        """Append the hash of the next leaf."""
        complete, size = self._complete, self.size
        while size & 1:
            leaf = node_hash(complete.pop(), leaf)
            size >>= 1
        complete.append(leaf)
        self.size += 1

    def extend(self, leaves: Iterable[bytes]) -> None:
        """Append the hashes of the next leaves."""
        for leaf in leaves:
            self.append(leaf)

    def root(self) -> bytes:
        """The root over all appended leaves."""
        return _root_over_subtrees(self._complete)


def root(leaves: Iterable[bytes]) -> bytes:
    """The root of the tree over these leaf hashes."""
    frontier = Frontier()
    frontier.extend(leaves)
    return frontier.root()


def complete_root(joined: bytes) -> bytes:
    """The root over 1, 2, 4, 8 … concatenated hashes; five times as fast as root()."""
    while len(joined) > HASH_BYTES:
        pairs = range(0, len(joined), 2 * HASH_BYTES)
        joined = b"".join([sha256(b"\1" + joined[start : start + 2 * HASH_BYTES]).digest() for start in pairs])
    return joined


def inclusion_ranges(index: int, size: int) -> list[Range]:
    """The subtrees whose roots are the inclusion proof of leaf `index` in the tree of `size` leaves, lowest first.

    ValueError when the tree has no such leaf.
    """
    if not 0 <= index < size:
        raise ValueError(f"there is no leaf {index} in a tree of {size}")
    first, last, ranges = 0, size, []
    while last - first > 1:
        middle = first + _left_subtree_size(last - first)
        if index < middle:
            ranges.append((middle, last))
            last = middle
        else:
            ranges.append((first, middle))
            first = middle
    return ranges[::-1]


def consistency_ranges(old: int, new: int) -> list[Range]:
    """The subtrees whose roots prove that the tree of `old` leaves is a prefix of the one of `new`, lowest first.

    ValueError when `old` is larger than `new`.
    """
    if not 0 <= old <= new:
        raise ValueError(f"a tree of {old} leaves is no prefix of one of {new}")
    if old == 0:
        return []
    first, last, ranges = 0, new, []
    while last != old:
        middle = first + _left_subtree_size(last - first)
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
    """The complete subtrees that make up a range of a proof, or the whole tree, the largest first."""
    first, last = leaves
    while first < last:
        level = (last - first).bit_length() - 1
        yield level, first >> level
        first += 1 << level


def range_root(leaves: Range, roots: Mapping[Node, bytes]) -> bytes:
    """The root over a range, from the roots of its nodes()."""
    return _root_over_subtrees([roots[node] for node in nodes(leaves)])


def verify_inclusion(index: int, size: int, leaf: bytes, proof: Sequence[bytes], expected_root: bytes) -> bool:
    """Whether `proof` shows that the tree of `size` leaves with this root has `leaf` at `index`.

    The algorithm of RFC 9162, 2.1.3.2, with its names: fn is the node's index on its level, sn the last one there.
    """
    if not 0 <= index < size:
        return False
    fn, sn, computed = index, size - 1, leaf
    for sibling in proof:
        if sn == 0:
            return False
        if fn & 1 or fn == sn:
            computed = node_hash(sibling, computed)
            while not fn & 1 and fn:
                fn, sn = fn >> 1, sn >> 1
        else:
            computed = node_hash(computed, sibling)
        fn, sn = fn >> 1, sn >> 1
    return sn == 0 and computed == expected_root


def verify_consistency(old: int, new: int, old_root: bytes, new_root: bytes, proof: Sequence[bytes]) -> bool:
    """Whether `proof` shows that the tree of `old` leaves is a prefix of the tree of `new`.

    The algorithm of RFC 9162, 2.1.4.2, with its fn and sn as in verify_inclusion().
    """
    if not 0 <= old <= new:
        return False
    if old in (0, new):
        return not proof and (old_root == new_root if old else old_root == EMPTY_ROOT)
    path = [old_root, *proof] if old & (old - 1) == 0 else list(proof)
    if not path:
        return False
    fn, sn = old - 1, new - 1
    while fn & 1:
        fn, sn = fn >> 1, sn >> 1
    old_computed = new_computed = path[0]
    for sibling in path[1:]:
        if sn == 0:
            return False
        if fn & 1 or fn == sn:
            old_computed, new_computed = node_hash(sibling, old_computed), node_hash(sibling, new_computed)
            while not fn & 1 and fn:
                fn, sn = fn >> 1, sn >> 1
        else:
            new_computed = node_hash(new_computed, sibling)
        fn, sn = fn >> 1, sn >> 1
    return sn == 0 and old_computed == old_root and new_computed == new_root


def _left_subtree_size(size: int) -> int:
    """How many of `size` leaves, two or more, are in the left subtree: the largest power of two below `size`."""
    return 1 << ((size - 1).bit_length() - 1)


def _root_over_subtrees(roots: Sequence[bytes]) -> bytes:
    """The root over neighbouring complete subtrees, the largest first."""
    if not roots:
        return EMPTY_ROOT
    root = roots[-1]
    for left in roots[-2::-1]:
        root = node_hash(left, root)
    return root
