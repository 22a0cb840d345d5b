"""Checkpoints (C2SP tlog-checkpoint) in signed notes (C2SP signed-note), with Ed25519 and cosignatures. Pure: no I/O, no clock.

The forms are those of Go's golang.org/x/mod/sumdb/note and of C2SP tlog-cosignature, which other people's tools read.
"""

import base64
import binascii
import re
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256
from typing import Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from app.tlog.merkle import HASH_BYTES

ED25519 = 1
COSIGNATURE = 4
_KEY_ID_BYTES = 4
_KEY_BYTES = 32
_SIGNATURE_BYTES = 64
_DASH = "\u2014 "
_NUMBER = re.compile(r"0|[1-9][0-9]{0,18}")


class MalformedNote(ValueError):
    """A note, key or proof that is not of its form; the message says where."""


class Unverified(ValueError):
    """A note without a valid signature of the key that was asked for."""


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A key that notes are verified with; its text is the `vkey` of signed-note: name+id+key."""

    name: str
    public: bytes
    algorithm: int = ED25519

    def __post_init__(self) -> None:
        if not is_key_name(self.name):
            raise MalformedNote(f"{self.name!r} is no name of a key: a space or a plus sign is in it, or nothing")

    @property
    def id(self) -> bytes:
        """Four bytes by which a signature names its key."""
        return sha256(self.name.encode() + b"\n" + self._typed).digest()[:_KEY_ID_BYTES]

    @property
    def _typed(self) -> bytes:
        return bytes([self.algorithm]) + self.public

    def __str__(self) -> str:
        return f"{self.name}+{self.id.hex()}+{encoded(self._typed)}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """The key that a vkey says; MalformedNote for anything else."""
        name, _, rest = text.strip().partition("+")
        key_id, _, typed = rest.partition("+")
        raw = decoded_base64(typed, "the key")
        if len(raw) != 1 + _KEY_BYTES or raw[0] not in {ED25519, COSIGNATURE}:
            raise MalformedNote("the key is neither Ed25519 (1) nor an Ed25519 cosignature key (4)")
        key = cls(name, raw[1:], raw[0])
        if key.id.hex() != key_id:
            raise MalformedNote("the key's id is not the hash of its name and key")
        return key

    def verifies(self, text: str, signature: bytes) -> bool:
        """Whether `signature`, as it stands in a note behind the key's id, is this key's over the note's text."""
        message = text.encode()
        if self.algorithm == COSIGNATURE:
            if len(signature) != 8 + _SIGNATURE_BYTES:
                return False
            message = cosigned(text, int.from_bytes(signature[:8]))
            signature = signature[8:]
        try:
            Ed25519PublicKey.from_public_bytes(self.public).verify(signature, message)
        except (InvalidSignature, ValueError):
            return False
        return True


@dataclass(frozen=True, slots=True)
class Note:
    """A text and the lines of its signatures, each as (name, key id with signature)."""

    text: str
    signatures: tuple[tuple[str, bytes], ...]

    @classmethod
    def parse(cls, note: str) -> Self:
        """The parts of a signed note; MalformedNote when it is none."""
        text, separator, lines = note.rpartition("\n\n")
        if not separator or not lines.endswith("\n"):
            raise MalformedNote("a signed note is a text, an empty line and lines of signatures")
        return cls(text + "\n", tuple(_signature(line) for line in lines[:-1].split("\n")))

    def __str__(self) -> str:
        return self.text + "\n" + "".join(signature_line(*signature) for signature in self.signatures)

    def is_signed_by(self, key: PublicKey) -> bool:
        """Whether the note has a signature of `key`; one that names the key and is wrong counts as none."""
        return any(
            name == key.name and signed[:_KEY_ID_BYTES] == key.id and key.verifies(self.text, signed[_KEY_ID_BYTES:])
            for name, signed in self.signatures
        )


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What the log says of itself: its name, how many leaves it has, and their root."""

    origin: str
    size: int
    root: bytes

    def __str__(self) -> str:
        return f"{self.origin}\n{self.size}\n{encoded(self.root)}\n"

    @classmethod
    def parse(cls, text: str) -> Self:
        """The checkpoint in a note's text. Extension lines are allowed, and left out of what is returned."""
        lines = text.split("\n")
        if len(lines) < 4 or lines[-1] or not all(lines[:-1]):
            raise MalformedNote("a checkpoint is a name, a size and a root, each on a line")
        root = decoded_base64(lines[2], "the root")
        if len(root) != HASH_BYTES:
            raise MalformedNote("the root of a checkpoint is a hash of 32 bytes")
        return cls(lines[0], number(lines[1], "the size"), root)


def is_key_name(name: str) -> bool:
    """Whether a key may have this name (signed-note: not empty, no space, no plus sign)."""
    return bool(name) and "+" not in name and not any(c.isspace() for c in name)


def sign(checkpoint: Checkpoint, key: Ed25519PrivateKey) -> str:
    """The checkpoint as a note, signed by the log's own key; its name is the origin."""
    text = str(checkpoint)
    public = PublicKey(checkpoint.origin, key.public_key().public_bytes_raw())
    return str(Note(text, ((public.name, public.id + key.sign(text.encode())),)))


def verified(note: str, keys: Iterable[PublicKey]) -> Checkpoint:
    """The checkpoint of a note that is signed by one of `keys`, which speaks for its own log only.

    MalformedNote when it is no checkpoint, Unverified when none of the keys signed it.
    """
    parsed = Note.parse(note)
    checkpoint = Checkpoint.parse(parsed.text)
    if not any(key.name == checkpoint.origin and parsed.is_signed_by(key) for key in keys):
        raise Unverified(f"no signature of the key of {checkpoint.origin!r} that was asked for, or a wrong one")
    return checkpoint


def cosigned(text: str, seconds: int) -> bytes:
    """What a witness signs of a checkpoint at a time, seconds since 1970 (tlog-cosignature)."""
    return f"cosignature/v1\ntime {seconds}\n{text}".encode()


def signature_line(name: str, signed: bytes) -> str:
    """One line of signatures: key's name, then key id and signature."""
    return f"{_DASH}{name} {encoded(signed)}\n"


def signatures(lines: str) -> tuple[tuple[str, bytes], ...]:
    """The signatures that lines without a text hold, as a witness answers them."""
    return tuple(_signature(line) for line in lines.splitlines())


def number(text: str, what: str) -> int:
    """A decimal number without sign and needless zeros."""
    if _NUMBER.fullmatch(text) is None:
        raise MalformedNote(f"{what} is no decimal number")
    return int(text)


def decoded_hash(text: str) -> bytes:
    """A hash in base64, as the lines of a proof have it."""
    raw = decoded_base64(text, "a hash")
    if len(raw) != HASH_BYTES:
        raise MalformedNote("a hash of the proof has not 32 bytes")
    return raw


def encoded(raw: bytes) -> str:
    """Base64."""
    return base64.b64encode(raw).decode()


def decoded_base64(text: str, what: str) -> bytes:
    """What base64 says; MalformedNote, naming it, when it is none or has another spelling."""
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise MalformedNote(f"{what} is no base64") from None
    if encoded(raw) != text:
        raise MalformedNote(f"{what} is no canonical base64")
    return raw


def _signature(line: str) -> tuple[str, bytes]:
    name, _, signature = line.removeprefix(_DASH).partition(" ")
    signed = decoded_base64(signature, "a signature")
    if not line.startswith(_DASH) or not is_key_name(name) or len(signed) <= _KEY_ID_BYTES:
        raise MalformedNote("a line of signatures is a dash, the key's name and the signature")
    return name, signed
