"""One event's proof as a file (C2SP tlog-proof): record, place in the log, way to the root, signed checkpoint. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Self

import orjson

from app.events.canonical import canonical, loads
from app.tlog import merkle
from app.tlog.note import Checkpoint, MalformedNote, PublicKey, decoded_base64, decoded_hash, encoded, number, verified

_HEADER = "c2sp.org/tlog-proof@v1\n"


@dataclass(frozen=True, slots=True)
class Proof:
    """What a proof file holds; its text is the file."""

    record: bytes
    """The event's record, JCS: the content of the leaf. It stands in the file's `extra` line."""
    index: int
    hashes: tuple[bytes, ...]
    checkpoint: str

    def __str__(self) -> str:
        hashes = "".join(f"{encoded(one)}\n" for one in self.hashes)
        return f"{_HEADER}extra {encoded(self.record)}\nindex {self.index}\n{hashes}\n{self.checkpoint}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """The proof in a file; MalformedNote when it is none, or has no record."""
        head, _, checkpoint = text.partition("\n\n")
        lines = head.removeprefix(_HEADER).split("\n")
        if not text.startswith(_HEADER) or len(lines) < 2:
            raise MalformedNote("this is no tlog-proof: its first line is c2sp.org/tlog-proof@v1")
        if not lines[0].startswith("extra ") or not lines[1].startswith("index "):
            raise MalformedNote("the proof has no extra line with the record, or no index line")
        record = decoded_base64(lines[0].removeprefix("extra "), "the record")
        index = number(lines[1].removeprefix("index "), "the index")
        return cls(record, index, tuple(map(decoded_hash, lines[2:])), checkpoint)


@dataclass(frozen=True, slots=True)
class VerifiedProof:
    """What a proof shows."""

    checkpoint: Checkpoint
    record: dict[str, Any]
    committed: dict[str, Any] | None
    """What can be erased of the event, when it was in the file."""


def verify_file(content: bytes, keys: Iterable[PublicKey]) -> VerifiedProof:
    """What the file shows, either a tlog-proof or the JSON document that opens one. MalformedNote or Unverified otherwise."""
    if not content.lstrip().startswith(b"{"):
        return verify(_text(content), keys)
    document = _object(content, "the document")
    if not isinstance(document.get("proof"), str):
        raise MalformedNote("the document has no member proof")
    proved = verify(document["proof"], keys)
    return _opened(proved, document.get("salt"), document.get("committed"))


def verify(text: str, keys: Iterable[PublicKey]) -> VerifiedProof:
    """What a tlog-proof shows: that the log signed by one of `keys` has this record at the position that it names."""
    proof = Proof.parse(text)
    checkpoint = verified(proof.checkpoint, keys)
    leaf = merkle.leaf_hash(proof.record)
    if not merkle.verify_inclusion(proof.index, checkpoint.size, leaf, proof.hashes, checkpoint.root):
        raise MalformedNote(f"the record is not the leaf {proof.index} of the log that was signed")
    record = _object(proof.record, "the record")
    # The leaf is proved; these two say that whoever made it meant this log and this place.
    if record.get("log") != checkpoint.origin or record.get("log_index") != proof.index:
        raise MalformedNote("the record is of another log or of another position")
    return VerifiedProof(checkpoint, record, None)


def open_document(proof: Proof, salt: bytes | None, committed: bytes | None) -> bytes:
    """The JSON document that also shows what the commitment hides; nulls when that was erased."""
    document = {
        "proof": str(proof),
        "salt": None if salt is None else salt.hex(),
        "committed": None if committed is None else orjson.Fragment(committed),
    }
    return orjson.dumps(document, option=orjson.OPT_APPEND_NEWLINE)


def _opened(proved: VerifiedProof, salt: object, committed: object) -> VerifiedProof:
    if salt is None and committed is None:
        return proved
    if not isinstance(salt, str) or not isinstance(committed, dict):
        raise MalformedNote("salt and committed belong together: a text of hex digits and an object")
    try:
        commitment = sha256(bytes.fromhex(salt) + canonical(committed)).hexdigest()
    except ValueError:
        raise MalformedNote("the salt is no text of hex digits") from None
    if commitment != proved.record.get("commitment"):
        raise MalformedNote("the committed object is not the one that the record commits to")
    return VerifiedProof(proved.checkpoint, proved.record, committed)


def _text(content: bytes) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise MalformedNote("this is no text") from None


def _object(content: bytes, what: str) -> dict[str, Any]:
    try:
        value = loads(content)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise MalformedNote(f"{what} is no JSON object")
    return value
