"""Signed notes and checkpoints against the vectors of Go's implementation, and against what an adversary would send."""

import json
import runpy
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey

from app.api import trust
from app.tlog import merkle
from app.tlog.note import (
    COSIGNATURE,
    ML_DSA_44,
    Checkpoint,
    MalformedNote,
    Note,
    NoValidSignature,
    PublicKey,
    cosigned_message,
    cosigned_tree,
    sign_checkpoint,
    signature_line,
    verified_checkpoint,
    verified_signatures,
)

# golang.org/x/mod v0.43.0, sumdb/note/example_test.go (BSD-3-Clause).
VKEY = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
NOTE = (
    "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n\n"
    "\u2014 PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n"
)
ORIGIN = "log.example/audit"
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
PUBLIC = PublicKey(ORIGIN, KEY.public_key().public_bytes_raw())
CHECKPOINT = Checkpoint(ORIGIN, 7, merkle.leaf_hash(b"root"))
COSIGNER = MLDSA44PrivateKey.from_seed_bytes(bytes(range(32)))
COSIGNER_PUBLIC = PublicKey(ORIGIN, COSIGNER.public_key().public_bytes_raw(), ML_DSA_44)
SECONDS = 1_796_000_000
VECTORS = Path(__file__).parents[2] / "docs" / "vectors"


def test_a_note_of_go_verifies() -> None:
    """Notes or keys that other people's tools make are refused."""
    key = PublicKey.parse(VKEY)
    assert str(key) == VKEY
    assert Note.parse(NOTE).is_signed_by(key)
    assert str(Note.parse(NOTE)) == NOTE
    assert not Note.parse(NOTE.replace("think", "thunk")).is_signed_by(key)


@pytest.mark.parametrize(
    "vkey",
    [
        *("", "x", "PeterNeumann+c74f20a4+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"),
        "PeterNeumann+cc469956+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TWBADKEY==",
        "PeterNeumann+173116ae+ZRpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW",
        "Peter Neumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW",
    ],
)
def test_a_bad_key_is_refused(vkey: str) -> None:
    """A key with a typing error verifies something else than was meant."""
    with pytest.raises(MalformedNote):
        PublicKey.parse(vkey)


def test_a_checkpoint_is_verified_by_its_own_key_only() -> None:
    """Somebody else's key speaks for this log, or a checkpoint's size or root can be changed under its signature."""
    note = sign_checkpoint(CHECKPOINT, KEY)
    assert verified_checkpoint(note, [PUBLIC]) == CHECKPOINT
    stranger = PublicKey(ORIGIN, Ed25519PrivateKey.generate().public_key().public_bytes_raw())
    other_log = PublicKey("other.example", PUBLIC.public)
    witness = PublicKey(ORIGIN, PUBLIC.public, COSIGNATURE)
    for keys in ([], [stranger], [other_log], [witness]):
        with pytest.raises(NoValidSignature):
            verified_checkpoint(note, keys)
    with pytest.raises(NoValidSignature):
        verified_checkpoint(note.replace("\n7\n", "\n8\n"), [PUBLIC])
    with pytest.raises(NoValidSignature):
        verified_checkpoint(note.replace(ORIGIN, "other.example"), [PUBLIC, other_log])


def test_a_cosignature_is_over_time_and_text() -> None:
    """A witness's signature passes for another time or checkpoint, or is refused."""
    witness = PublicKey("witness.example", PUBLIC.public, COSIGNATURE)
    text, seconds = str(CHECKPOINT), 1_790_000_000
    signature = seconds.to_bytes(8) + KEY.sign(cosigned_message(text, seconds))
    note = Note.parse(sign_checkpoint(CHECKPOINT, KEY) + signature_line(witness.name, witness.id + signature))
    assert note.is_signed_by(witness)
    assert note.is_signed_by(PUBLIC)
    assert not witness.verifies(text, (seconds + 1).to_bytes(8) + signature[8:])
    assert not witness.verifies(text, signature[8:])


def test_the_log_cosigns_with_ml_dsa() -> None:
    """Whoever breaks Ed25519 can sign for the log, or a verifier that knows only the log's Ed25519 key notices the second line."""
    note = sign_checkpoint(CHECKPOINT, KEY, COSIGNER, SECONDS)
    assert note.startswith(sign_checkpoint(CHECKPOINT, KEY))
    assert PublicKey.parse(str(COSIGNER_PUBLIC)) == COSIGNER_PUBLIC
    for keys in ([PUBLIC], [COSIGNER_PUBLIC], [COSIGNER_PUBLIC, PUBLIC]):
        assert verified_signatures(note, keys) == (CHECKPOINT, keys)
    only_ed25519 = sign_checkpoint(CHECKPOINT, KEY)
    with pytest.raises(NoValidSignature, match="not signed with ML-DSA-44, although a key"):
        verified_signatures(only_ed25519, [PUBLIC, COSIGNER_PUBLIC])
    assert (
        verified_checkpoint(only_ed25519, [PUBLIC, COSIGNER_PUBLIC]) == CHECKPOINT
    )  # one that the service stored before
    with pytest.raises(NoValidSignature, match="no signature"):
        verified_checkpoint(only_ed25519, [COSIGNER_PUBLIC])


@pytest.mark.parametrize("byte", [4, 11, 12, 500, 2431])
def test_a_wrong_cosignature_makes_a_note_invalid(byte: int) -> None:
    """Time or signature of the second line can be changed under the eyes of somebody who has its key."""
    parsed = Note.parse(sign_checkpoint(CHECKPOINT, KEY, COSIGNER, SECONDS))
    name, signed = parsed.signatures[1]
    assert len(signed) == 4 + 8 + 2420
    changed = signed[:byte] + bytes([signed[byte] ^ 1]) + signed[byte + 1 :]
    note = str(Note(parsed.text, (parsed.signatures[0], (name, changed))))
    with pytest.raises(NoValidSignature, match="ML-DSA-44"):
        verified_checkpoint(note, [PUBLIC, COSIGNER_PUBLIC])
    assert verified_checkpoint(note, [PUBLIC]) == CHECKPOINT


def test_what_ml_dsa_signs_is_the_tree() -> None:
    """A cosignature holds for another name, time, log, size or root, or a name too long for the structure is cut."""
    signature = SECONDS.to_bytes(8) + COSIGNER.sign(cosigned_tree(ORIGIN, SECONDS, CHECKPOINT))
    assert COSIGNER_PUBLIC.verifies(f"{CHECKPOINT}an extension\n", signature)  # says nothing of extension lines
    other = PublicKey("witness.example", COSIGNER_PUBLIC.public, ML_DSA_44)
    assert not other.verifies(str(CHECKPOINT), signature)
    for changed in (
        Checkpoint("other.example", 7, CHECKPOINT.root),
        Checkpoint(ORIGIN, 8, CHECKPOINT.root),
        Checkpoint(ORIGIN, 7, merkle.EMPTY_ROOT),
        Checkpoint("x" * 256, 7, CHECKPOINT.root),
    ):
        assert not COSIGNER_PUBLIC.verifies(str(changed), signature)
    for wrong in (b"", signature[:8], signature[:-1], b"\xff" + signature[1:]):
        assert not COSIGNER_PUBLIC.verifies(str(CHECKPOINT), wrong)
    assert not COSIGNER_PUBLIC.verifies("no checkpoint\n", signature)
    with pytest.raises(ValueError):
        cosigned_tree("x" * 256, SECONDS, CHECKPOINT)
    with pytest.raises(ValueError):
        cosigned_tree(ORIGIN, 1 << 63, CHECKPOINT)


@pytest.mark.parametrize("path", sorted((VECTORS / "checkpoints").glob("*.json")), ids=lambda path: path.stem)
def test_vectors_of_checkpoints(path: Path) -> None:
    """A checkpoint has other bytes than those that were published, so that other implementations refuse it."""
    vector = json.loads(path.read_text())
    assert runpy.run_path(str(VECTORS / "make.py"))["completed_checkpoint"](vector) == vector
    name, origin = (len(vector["origin"]).to_bytes() + vector["origin"].encode() for _ in range(2))
    time, size = vector["time"].to_bytes(8), vector["size"].to_bytes(8)
    tree = b"subtree/v1\n\0" + name + time + origin + bytes(8) + size + bytes.fromhex(vector["root"])
    assert bytes.fromhex(vector["ml_dsa_44_message"]) == tree
    keys = [PublicKey.parse(vector[f"{algorithm}_vkey"]) for algorithm in ("ed25519", "ml_dsa_44")]
    assert verified_signatures(vector["note"], keys)[1] == keys
    first, second = vector["note"].splitlines(keepends=True)[-2:]
    for line, others, missing in ((second, keys[:1], "ML-DSA-44"), (first, keys[1:], "Ed25519")):
        alone = vector["note"].replace(line, "")
        assert verified_signatures(alone, others)[1] == others
        with pytest.raises(NoValidSignature, match=f"not signed with {missing}, although a key"):
            verified_signatures(alone, keys)
        wrong = line[:-20] + ("A" if line[-20] != "A" else "B") + line[-19:]
        with pytest.raises(NoValidSignature, match=f"signature with {missing} .* is not valid"):
            verified_signatures(vector["note"].replace(line, wrong), keys)
    stranger = PublicKey("example.test/witness", keys[1].public, keys[1].algorithm)
    assert verified_signatures(vector["note"].replace(second, ""), [keys[0], stranger])[1] == keys[:1]


@pytest.mark.parametrize(
    "note",
    [
        *("", "text\n", "text\n\n", "a\n7\n\n", NOTE + "x", NOTE[:-1], NOTE.replace("\u2014", "-")),
        NOTE.replace("x08go", "!08go"),
        NOTE.replace("\u2014 PeterNeumann ", "\u2014 "),
        f"a\n07\n{'A' * 43}=\n\n{NOTE.splitlines()[-1]}\n",
        f"a\n7\n{'A' * 42}==\n\n{NOTE.splitlines()[-1]}\n",
        f"a\n7\n\n{'A' * 43}=\n\n{NOTE.splitlines()[-1]}\n",
    ],
)
def test_what_is_no_checkpoint_is_malformed(note: str) -> None:
    """Something that other tools read differently, or not at all, passes for a checkpoint."""
    with pytest.raises(MalformedNote):
        verified_checkpoint(note, [PUBLIC])


@pytest.mark.parametrize(("seconds", "is_told"), [(SECONDS, True), (SECONDS * 1000, False), (2**64 - 1, False)])
def test_cosigned_at(seconds: int, is_told: bool) -> None:
    """A witness that signs milliseconds makes an error of all that the log rests on, or is no witness any more."""
    key = PublicKey("witness.example/w1", KEY.public_key().public_bytes_raw(), COSIGNATURE)
    text = str(CHECKPOINT)
    line = signature_line(key.name, key.id + seconds.to_bytes(8) + KEY.sign(cosigned_message(text, seconds)))
    about = trust._witness(key, [(7, Note.parse(f"{text}\n{line}"))])
    assert (about["size"], "cosigned_at" in about) == (7, is_told)
