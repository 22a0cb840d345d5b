"""Signed notes and checkpoints against the vectors of Go's implementation, and against what an adversary would send."""

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from app.tlog import merkle
from app.tlog.note import (
    COSIGNATURE,
    Checkpoint,
    MalformedNote,
    Note,
    NoValidSignature,
    PublicKey,
    cosigned_message,
    sign_checkpoint,
    signature_line,
    verified_checkpoint,
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
