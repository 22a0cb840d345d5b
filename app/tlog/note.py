"""Checkpoints (C2SP tlog-checkpoint) in signed notes (C2SP signed-note): Ed25519, cosignatures, ML-DSA-44. Pure: no I/O, no clock.

The formats are those of Go's golang.org/x/mod/sumdb/note and of C2SP tlog-cosignature, which other people's tools read.
"""

import base64
import binascii
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey, MLDSA44PublicKey

from app.tlog.merkle import HASH_BYTES

ED25519 = 1
COSIGNATURE = 4
ML_DSA_44 = 6
_KEY_BYTES = {ED25519: 32, COSIGNATURE: 32, ML_DSA_44: 1312}
ALGORITHM_NAMES = {ED25519: "Ed25519", COSIGNATURE: "Ed25519 cosignature", ML_DSA_44: "ML-DSA-44"}
_KEY_ID_BYTES = 4
COSIGNER_NAME_BYTES_MAX = 255
_TIME_BYTES = 8
_TIME_END = 1 << 63
_DASH = "\u2014 "
_NUMBER = re.compile(r"0|[1-9][0-9]{0,18}")


class MalformedNote(ValueError):
    """A note, key or proof that does not have its format; the message names the part."""


class NoValidSignature(ValueError):
    """A note without a valid signature of the key that was asked for."""


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A key that notes are verified with; its text is the `vkey` of signed-note: name+id+key."""

    name: str
    public: bytes
    algorithm: int = ED25519

    def __post_init__(self) -> None:
        if not is_key_name(self.name):
            raise MalformedNote(f"{self.name!r} cannot name a key: it is empty, or has a space or a plus sign")

    @property
    def id(self) -> bytes:
        """Four bytes by which a signature names its key."""
        return sha256(self.name.encode() + b"\n" + self._algorithm_and_key).digest()[:_KEY_ID_BYTES]

    @property
    def _algorithm_and_key(self) -> bytes:
        return bytes([self.algorithm]) + self.public

    @property
    def label(self) -> str:
        """How people tell it from other keys: its algorithm, name and id."""
        return f"{ALGORITHM_NAMES[self.algorithm]} {self.name}+{self.id.hex()}"

    def __str__(self) -> str:
        return f"{self.name}+{self.id.hex()}+{encoded_base64(self._algorithm_and_key)}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """The key of a vkey; MalformedNote for any other text."""
        name, _, rest = text.strip().partition("+")
        key_id, _, algorithm_and_key = rest.partition("+")
        raw = decoded_base64(algorithm_and_key, "the key")
        if not raw or len(raw) - 1 != _KEY_BYTES.get(raw[0]):
            raise MalformedNote("the key is not one of Ed25519 (1), an Ed25519 cosignature (4) or ML-DSA-44 (6)")
        key = cls(name, raw[1:], raw[0])
        if key.id.hex() != key_id:
            raise MalformedNote("the key's id is not the hash of its name and key")
        return key

    def verifies(self, text: str, signature: bytes) -> bool:
        """Whether `signature`, which follows the key's id in a note, is this key's signature over the note's text."""
        public, timed = self.public, signature[_TIME_BYTES:]
        seconds = int.from_bytes(signature[:_TIME_BYTES])
        try:
            if self.algorithm == ML_DSA_44:
                message = cosigned_tree(self.name, seconds, Checkpoint.parse(text))
                MLDSA44PublicKey.from_public_bytes(public).verify(timed, message)
            elif self.algorithm == COSIGNATURE:
                Ed25519PublicKey.from_public_bytes(public).verify(timed, cosigned_message(text, seconds))
            else:
                Ed25519PublicKey.from_public_bytes(public).verify(signature, text.encode())
        except (InvalidSignature, ValueError):
            return False
        return True


@dataclass(frozen=True, slots=True)
class Note:
    """A text and its signatures, each as (name of the key, key id and signature)."""

    text: str
    signatures: tuple[tuple[str, bytes], ...]

    @classmethod
    def parse(cls, note: str) -> Self:
        """The text and signatures of a signed note; MalformedNote when it is not one."""
        text, separator, lines = note.rpartition("\n\n")
        if not separator or not lines.endswith("\n"):
            raise MalformedNote("a signed note is a text, an empty line and lines of signatures")
        return cls(text + "\n", tuple(_parse_signature_line(line) for line in lines[:-1].split("\n")))

    def __str__(self) -> str:
        return self.text + "\n" + "".join(signature_line(*signature) for signature in self.signatures)

    def names_key(self, key: PublicKey) -> bool:
        """Whether a signature claims to be of `key`, valid or not."""
        return any(name == key.name and signed[:_KEY_ID_BYTES] == key.id for name, signed in self.signatures)

    def is_signed_by(self, key: PublicKey) -> bool:
        """Whether the note has a valid signature of `key`."""
        return any(
            name == key.name and signed[:_KEY_ID_BYTES] == key.id and key.verifies(self.text, signed[_KEY_ID_BYTES:])
            for name, signed in self.signatures
        )


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The state of a log that its operator signs: its name, how many leaves it has, and their root."""

    origin: str
    size: int
    root: bytes

    def __str__(self) -> str:
        return f"{self.origin}\n{self.size}\n{encoded_base64(self.root)}\n"

    @classmethod
    def parse(cls, text: str) -> Self:
        """The checkpoint in a note's text; MalformedNote when it is not one. Extension lines are allowed and ignored."""
        lines = text.split("\n")
        if len(lines) < 4 or lines[-1] or not all(lines[:-1]):
            raise MalformedNote("a checkpoint is a name, a size and a root, each on a line")
        root = decoded_base64(lines[2], "the root")
        if len(root) != HASH_BYTES:
            raise MalformedNote("the root of a checkpoint is a hash of 32 bytes")
        return cls(lines[0], parse_decimal(lines[1], "the size"), root)


def is_key_name(name: str) -> bool:
    """Whether a key may have this name (signed-note: not empty, no space, no plus sign)."""
    return bool(name) and "+" not in name and not any(c.isspace() for c in name)


def sign_checkpoint(
    checkpoint: Checkpoint, key: Ed25519PrivateKey, cosigner: MLDSA44PrivateKey | None = None, seconds: int = 0
) -> str:
    """The checkpoint as a note, signed by the log's own key, whose name is the checkpoint's origin.

    With `cosigner` the log's ML-DSA-44 key has cosigned it too, at a time in seconds since 1970.
    """
    text = str(checkpoint)
    public = PublicKey(checkpoint.origin, key.public_key().public_bytes_raw())
    signatures = [(public.name, public.id + key.sign(text.encode()))]
    if cosigner is not None:
        public = PublicKey(checkpoint.origin, cosigner.public_key().public_bytes_raw(), ML_DSA_44)
        signature = cosigner.sign(cosigned_tree(public.name, seconds, checkpoint))
        signatures.append((public.name, public.id + seconds.to_bytes(_TIME_BYTES) + signature))
    return str(Note(text, tuple(signatures)))


def verified_checkpoint(note: str, keys: Iterable[PublicKey]) -> Checkpoint:
    """The checkpoint of a note that is signed by one of `keys`. A key is trusted for the log of its own name only.

    MalformedNote when it is not a checkpoint, NoValidSignature when none of the keys signed it, or a signature of one is wrong.
    """
    return _verified(note, keys)[0]


def verified_signatures(note: str, keys: Iterable[PublicKey]) -> tuple[Checkpoint, Sequence[PublicKey]]:
    """As verified_checkpoint(), and which of `keys` signed it: of the log's keys one at least of each algorithm.

    Whoever names an Ed25519 key and an ML-DSA key of a log wants to believe neither alone.
    """
    known = tuple(keys)
    checkpoint, signers = _verified(note, known)
    wanted = {key.algorithm for key in known if key.name == checkpoint.origin}
    for algorithm in sorted(wanted - {key.algorithm for key in signers}):
        name = ALGORITHM_NAMES[algorithm]
        raise NoValidSignature(
            f"it is not signed with {name}, although a key of {checkpoint.origin!r} for that was given: "
            f"to believe it without, leave that key out"
        )
    return checkpoint, signers


def _verified(note: str, keys: Iterable[PublicKey]) -> tuple[Checkpoint, Sequence[PublicKey]]:
    parsed = Note.parse(note)
    checkpoint = Checkpoint.parse(parsed.text)
    named = [key for key in keys if key.name == checkpoint.origin and parsed.names_key(key)]
    if not named:
        raise NoValidSignature(f"it has no signature of the key of {checkpoint.origin!r} that was asked for")
    for key in named:
        if not parsed.is_signed_by(key):
            raise NoValidSignature(f"its signature with {key.label} is not valid")
    return checkpoint, named


def cosigned_message(text: str, seconds: int) -> bytes:
    """What a witness signs with Ed25519 for a checkpoint's text at a time, in seconds since 1970 (tlog-cosignature)."""
    return f"cosignature/v1\ntime {seconds}\n{text}".encode()


def cosigned_tree(cosigner: str, seconds: int, checkpoint: Checkpoint) -> bytes:
    """What the key named `cosigner` signs with ML-DSA-44 for a checkpoint at a time (tlog-cosignature, cosigned_message).

    ValueError when a name is longer than 255 bytes, or the time is not in [0, 2^63).
    """
    if seconds >= _TIME_END:
        raise ValueError("the time is too late")
    return b"".join(
        (
            b"subtree/v1\n\0",
            _with_length(cosigner),
            seconds.to_bytes(8),
            _with_length(checkpoint.origin),
            (0).to_bytes(8),
            checkpoint.size.to_bytes(8),
            checkpoint.root,
        )
    )


def _with_length(name: str) -> bytes:
    raw = name.encode()
    return bytes([len(raw)]) + raw


def signature_line(name: str, signed: bytes) -> str:
    """One line of signatures: a dash, the key's name, then key id and signature in base64."""
    return f"{_DASH}{name} {encoded_base64(signed)}\n"


def parse_signatures(lines: str) -> tuple[tuple[str, bytes], ...]:
    """The signatures in lines without a note's text, as a witness sends them; MalformedNote when a line is not one."""
    return tuple(_parse_signature_line(line) for line in lines.splitlines())


def parse_decimal(text: str, what: str) -> int:
    """A decimal number without sign or leading zeros; MalformedNote, naming `what` it is, for any other text."""
    if _NUMBER.fullmatch(text) is None:
        raise MalformedNote(f"{what} is not a decimal number")
    return int(text)


def decoded_hash(text: str) -> bytes:
    """The hash in a line of a proof; MalformedNote when it is not 32 bytes in base64."""
    raw = decoded_base64(text, "a hash")
    if len(raw) != HASH_BYTES:
        raise MalformedNote("a hash of the proof does not have 32 bytes")
    return raw


def encoded_base64(raw: bytes) -> str:
    """RFC 4648 base64, with padding."""
    return base64.b64encode(raw).decode()


def decoded_base64(text: str, what: str) -> bytes:
    """The bytes; MalformedNote, naming `what` they are, when the text is not the base64 that encoded_base64() gives."""
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise MalformedNote(f"{what} is not base64") from None
    if encoded_base64(raw) != text:
        raise MalformedNote(f"{what} is not canonical base64")
    return raw


def _parse_signature_line(line: str) -> tuple[str, bytes]:
    name, _, signature = line.removeprefix(_DASH).partition(" ")
    signed = decoded_base64(signature, "a signature")
    if not line.startswith(_DASH) or not is_key_name(name) or len(signed) <= _KEY_ID_BYTES:
        raise MalformedNote("a line of signatures is a dash, the key's name and the signature")
    return name, signed
