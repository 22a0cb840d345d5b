"""One event's proof as a file (C2SP tlog-proof): record, position, inclusion proof, signed checkpoint. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any, Self

import orjson

from app.events.canonical import canonical, loads_strict
from app.tlog import merkle
from app.tlog.note import (
    Checkpoint,
    MalformedNote,
    PublicKey,
    decoded_base64,
    decoded_hash,
    encoded_base64,
    parse_decimal,
    verified_signatures,
)

_HEADER = "c2sp.org/tlog-proof@v1\n"


@dataclass(frozen=True, slots=True)
class Proof:
    """The content of a proof file; str() gives the file's text."""

    record: bytes
    """The event's record in JCS: the content of the leaf. It is the file's `extra` line."""
    index: int
    """The event's position in the log."""
    hashes: tuple[bytes, ...]
    """The inclusion proof, lowest hash first."""
    checkpoint: str
    """The signed note."""

    def __str__(self) -> str:
        hashes = "".join(f"{encoded_base64(one)}\n" for one in self.hashes)
        return f"{_HEADER}extra {encoded_base64(self.record)}\nindex {self.index}\n{hashes}\n{self.checkpoint}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """The proof in a file's text; MalformedNote when it is not one, or has no record."""
        head, _, checkpoint = text.partition("\n\n")
        lines = head.removeprefix(_HEADER).split("\n")
        if not text.startswith(_HEADER) or len(lines) < 2:
            raise MalformedNote("this is not a tlog-proof, whose first line is c2sp.org/tlog-proof@v1")
        if not lines[0].startswith("extra ") or not lines[1].startswith("index "):
            raise MalformedNote("the proof has no extra line with the record, or no index line")
        record = decoded_base64(lines[0].removeprefix("extra "), "the record")
        index = parse_decimal(lines[1].removeprefix("index "), "the index")
        return cls(record, index, tuple(map(decoded_hash, lines[2:])), checkpoint)


@dataclass(frozen=True, slots=True)
class VerifiedProof:
    """What a valid proof shows."""

    checkpoint: Checkpoint
    signers: Sequence[PublicKey]
    """Those of the trusted keys that signed the checkpoint."""
    note: str
    """The checkpoint with its signatures, as it stands in the file."""
    record: dict[str, Any]
    committed: dict[str, Any] | None
    """The committed object, if the file has it."""
    token: bytes | None = None
    """The timestamp of the note, if the file has one. It is not verified here."""


def verify_proof_file(content: bytes, keys: Sequence[PublicKey]) -> VerifiedProof:
    """Verify a file: a tlog-proof, or the JSON document with the opened commitment. MalformedNote or NoValidSignature if it is wrong."""
    if not content.lstrip().startswith(b"{"):
        return verify_proof(_decoded_text(content), keys)
    document = parse_object(content, "the document")
    if not isinstance(document.get("proof"), str):
        raise MalformedNote("the document has no member proof")
    proved = verify_proof(document["proof"], keys)
    if (token := document.get("timestamp")) is not None:
        proved = replace(proved, token=decoded_base64(str(token), "the timestamp"))
    return _with_opened_commitment(proved, document.get("salt"), document.get("committed"))


def verify_proof(text: str, keys: Sequence[PublicKey]) -> VerifiedProof:
    """Verify that the log that one of `keys` signs has the proof's record at the position that the proof names.

    MalformedNote or NoValidSignature if not.
    """
    proof = Proof.parse(text)
    checkpoint, signed_by = verified_signatures(proof.checkpoint, keys)
    leaf = merkle.leaf_hash(proof.record)
    if not merkle.verify_inclusion(proof.index, checkpoint.size, leaf, proof.hashes, checkpoint.root):
        raise MalformedNote(f"the record is not the leaf {proof.index} of the log that was signed")
    record = parse_object(proof.record, "the record")
    # The leaf is proved. These two show that the record was made for this log and this position.
    if record.get("log") != checkpoint.origin or record.get("log_index") != proof.index:
        raise MalformedNote("the record is of another log or of another position")
    return VerifiedProof(checkpoint, signed_by, proof.checkpoint, record, None)


def document_with_opening(
    proof: Proof, salt: bytes | None, committed: bytes | None, token: bytes | None = None
) -> bytes:
    """The JSON document of a proof and what opens the record's commitment: salt and committed object, nulls once erased.

    With `token` it has the timestamp of the proof's checkpoint too.
    """
    document: dict[str, object] = {
        "proof": str(proof),
        "salt": None if salt is None else salt.hex(),
        "committed": None if committed is None else orjson.Fragment(committed),
    }
    if token is not None:
        document["timestamp"] = encoded_base64(token)
    return orjson.dumps(document, option=orjson.OPT_APPEND_NEWLINE)


def _with_opened_commitment(proved: VerifiedProof, salt: object, committed: object) -> VerifiedProof:
    if salt is None and committed is None:
        return proved
    if not isinstance(salt, str) or not isinstance(committed, dict):
        raise MalformedNote("salt and committed belong together: a text of hex digits and an object")
    try:
        commitment = sha256(bytes.fromhex(salt) + canonical(committed)).hexdigest()
    except ValueError:
        raise MalformedNote("the salt is not a text of hex digits") from None
    if commitment != proved.record.get("commitment"):
        raise MalformedNote("the committed object is not the one that the record commits to")
    return replace(proved, committed=committed)


def _decoded_text(content: bytes) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise MalformedNote("this is not a text") from None


def parse_object(content: bytes, what: str) -> dict[str, Any]:
    try:
        value = loads_strict(content)
    except ValueError as error:
        raise MalformedNote(f"{what} is not a JSON object: {error}") from None
    if not isinstance(value, dict):
        raise MalformedNote(f"{what} is not a JSON object")
    return value
