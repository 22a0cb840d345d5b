"""The Merkle tree against other people's test vectors, and against the definitions of RFC 6962 written down plainly."""

from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.tlog import merkle
from app.tlog.merkle import Node, Range

# Leaves, roots and proofs of github.com/transparency-dev/merkle v0.0.2: testonly/constants.go and proof/verify_test.go (Apache-2.0).
CONTENTS = [
    bytes.fromhex(text)
    for text in ("", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f")
]
ROOTS = [
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
# (leaf, counted from 1, size, proof)
INCLUSION = [
    (1, 1, []),
    (
        *(1, 8),
        [
            "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
            "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
            "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
        ],
    ),
    (
        *(6, 8),
        [
            "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
            "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
            "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
        ],
    ),
    (3, 3, ["fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125"]),
    (
        *(2, 5),
        [
            "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
            "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
            "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
        ],
    ),
]
CONSISTENCY = [
    (1, 1, []),
    (
        *(1, 8),
        [
            "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
            "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
            "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
        ],
    ),
    (
        *(6, 8),
        [
            "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
            "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
            "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
        ],
    ),
    (
        *(2, 5),
        [
            "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
            "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
        ],
    ),
    (
        *(6, 7),
        [
            "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
            "b08693ec2e721597130641e8211e7eedccb4c26413963eee6c1e2ed16ffb1a5f",
            "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
        ],
    ),
]


def leaves(size: int) -> list[bytes]:
    return [merkle.leaf_hash(str(place).encode()) for place in range(size)]


def plain_root(hashes: list[bytes]) -> bytes:
    """MTH of RFC 6962, section 2.1."""
    if len(hashes) < 2:
        return hashes[0] if hashes else sha256().digest()
    half = 1
    while half * 2 < len(hashes):
        half *= 2
    return sha256(b"\1" + plain_root(hashes[:half]) + plain_root(hashes[half:])).digest()


def roots_of(ranges: list[Range], hashes: list[bytes]) -> list[bytes]:
    """What the planned ranges hash to, node by node as a store of tiles would."""
    known: dict[Node, bytes] = {
        (level, place): plain_root(hashes[place << level : (place + 1) << level])
        for one in ranges
        for level, place in merkle.nodes(one)
    }
    return [merkle.range_root(one, known) for one in ranges]


def hexed(hashes: list[bytes]) -> list[str]:
    return [one.hex() for one in hashes]


def test_roots_are_those_of_transparency_dev() -> None:
    """Nobody else's tools come to the roots that are signed here."""
    hashes = [merkle.leaf_hash(content) for content in CONTENTS]
    assert hexed([merkle.root(hashes[:size]) for size in range(9)]) == ROOTS


@pytest.mark.parametrize(("leaf", "size", "proof"), INCLUSION)
def test_inclusion_proofs_are_those_of_transparency_dev(leaf: int, size: int, proof: list[str]) -> None:
    """Nobody else's tools accept the inclusion proofs that are made here, or theirs are refused."""
    hashes = [merkle.leaf_hash(content) for content in CONTENTS[:size]]
    made = roots_of(merkle.inclusion_ranges(leaf - 1, size), hashes)
    assert hexed(made) == proof
    assert merkle.verify_inclusion(leaf - 1, size, hashes[leaf - 1], made, bytes.fromhex(ROOTS[size]))


@pytest.mark.parametrize(("old", "new", "proof"), CONSISTENCY)
def test_consistency_proofs_are_those_of_transparency_dev(old: int, new: int, proof: list[str]) -> None:
    """Witnesses refuse the consistency proofs that are made here, or theirs are refused."""
    hashes = [merkle.leaf_hash(content) for content in CONTENTS[:new]]
    made = roots_of(merkle.consistency_ranges(old, new), hashes)
    assert hexed(made) == proof
    assert merkle.verify_consistency(old, new, bytes.fromhex(ROOTS[old]), bytes.fromhex(ROOTS[new]), made)


@given(st.integers(1, 200), st.data())
def test_every_leaf_is_proved_and_no_other(size: int, data: st.DataObject) -> None:
    """A right inclusion proof is refused, or one of another leaf, index, size, root or length is accepted."""
    hashes = leaves(size)
    index = data.draw(st.integers(0, size - 1))
    proof, root = roots_of(merkle.inclusion_ranges(index, size), hashes), merkle.root(hashes)
    assert root == plain_root(hashes)
    assert merkle.verify_inclusion(index, size, hashes[index], proof, root)
    other = merkle.leaf_hash(b"other")
    assert not merkle.verify_inclusion(index, size, other, proof, root)
    assert not merkle.verify_inclusion(index, size, hashes[index], [*proof, other], root)
    assert not merkle.verify_inclusion(index, size, hashes[index], proof, other)
    assert not merkle.verify_inclusion(size, size, hashes[index], proof, root)
    assert not merkle.verify_inclusion(-1, size, hashes[index], proof, root)
    if proof:
        assert not merkle.verify_inclusion(index, size, hashes[index], proof[:-1], root)
        assert not merkle.verify_inclusion(index ^ 1, size, hashes[index], proof, root)


@given(st.integers(0, 200), st.integers(0, 200), st.data())
def test_a_prefix_is_proved_and_nothing_else(one: int, another: int, data: st.DataObject) -> None:
    """A right consistency proof is refused, or a rewritten log passes for the one that was signed."""
    old, new = sorted((one, another))
    hashes = leaves(new)
    proof = roots_of(merkle.consistency_ranges(old, new), hashes)
    old_root, new_root = merkle.root(hashes[:old]), merkle.root(hashes)
    assert merkle.verify_consistency(old, new, old_root, new_root, proof)
    assert not merkle.verify_consistency(old, new, old_root, new_root, [*proof, new_root])
    assert not merkle.verify_consistency(new + 1, new, old_root, new_root, proof)
    if old:
        changed = data.draw(st.integers(0, old - 1))
        rewritten = [*hashes[:changed], merkle.leaf_hash(b"x"), *hashes[changed + 1 :]]
        forged = roots_of(merkle.consistency_ranges(old, new), rewritten)
        assert not merkle.verify_consistency(old, new, old_root, merkle.root(rewritten), forged)
        assert not merkle.verify_consistency(old, new, merkle.leaf_hash(b"x"), new_root, proof)


def test_what_cannot_be_proved_is_an_error() -> None:
    """A proof of a leaf that is not there, or of a prefix longer than the log, is made up."""
    with pytest.raises(ValueError, match="no leaf 5"):
        merkle.inclusion_ranges(5, 5)
    with pytest.raises(ValueError, match="no prefix"):
        merkle.consistency_ranges(6, 5)
