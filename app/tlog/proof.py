"""One event's proof as a file (C2SP tlog-proof): record, position, inclusion proof, signed checkpoint. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any, Self

import orjson

from app.events.canonical import canonical, loads_strict
from app.events.own import agree
from app.events.record import Row
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
CONTINUED = "datastorage.log.continued"
_SEAMS_MAX = 100
_HEX_DIGITS = 64


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
    seam: "VerifiedProof | None" = None
    """The first event of the next log, which says what the tree of the closed log was, if no checkpoint of that log proves the event."""


def verify_proof_file(content: bytes, keys: Sequence[PublicKey]) -> VerifiedProof:
    """Verify a file: a tlog-proof, or the JSON document with the opened commitment. MalformedNote or NoValidSignature if it is wrong."""
    if not content.lstrip().startswith(b"{"):
        return verify_proof(_decoded_text(content), keys)
    return _verify_document(parse_object(content, "the document"), tuple(keys), _SEAMS_MAX)


def _verify_document(document: dict[str, Any], keys: tuple[PublicKey, ...], seams_left: int) -> VerifiedProof:
    if not isinstance(document.get("proof"), str):
        raise MalformedNote("the document has no member proof")
    if (seam := document.get("seam")) is None:
        proved = verify_proof(document["proof"], keys)
    elif not isinstance(seam, dict) or not seams_left:
        raise MalformedNote("its seam is not an object, or has too many others in it")
    else:
        proved = _verify_through(document["proof"], _verify_document(seam, keys, seams_left - 1))
    if (token := document.get("timestamp")) is not None:
        proved = replace(proved, token=decoded_base64(str(token), "the timestamp"))
    return _with_opened_commitment(proved, document.get("salt"), document.get("committed"))


def verify_proof(text: str, keys: Sequence[PublicKey]) -> VerifiedProof:
    """Verify that the log that one of `keys` signs has the proof's record at the position that the proof names.

    MalformedNote or NoValidSignature if not.
    """
    proof = Proof.parse(text)
    return _verify_inclusion(proof, *verified_signatures(proof.checkpoint, keys))


def _verify_through(text: str, seam: VerifiedProof) -> VerifiedProof:
    """Verify a proof whose checkpoint nobody signed: the proved first event of the next log has that size and root of the closed log."""
    proof = Proof.parse(text)
    checkpoint = Checkpoint.parse(proof.checkpoint)
    if (tree := closed_tree(seam)) != checkpoint:
        raise MalformedNote(
            f"the checkpoint is not what the seam says of the closed log, {tree.size} events of {tree.origin!r}"
        )
    return replace(_verify_inclusion(proof, checkpoint, ()), seam=seam)


def verify_seam(document: dict[str, Any], keys: Sequence[PublicKey]) -> VerifiedProof:
    """Verify the opened proof of the first event of a log that continues another one. MalformedNote or NoValidSignature if it is none."""
    seam = _verify_document(document, tuple(keys), _SEAMS_MAX)
    closed_tree(seam)
    return seam


def closed_tree(seam: VerifiedProof) -> Checkpoint:
    """The tree of a closed log, as the proved first event of the next log has it. MalformedNote if the event is no such one."""
    payload = (seam.committed or {}).get("event_data")
    if not isinstance(payload, dict) or not is_continuation(seam.record, payload) or seam.record.get("log_index") != 0:
        raise MalformedNote("its seam is not the first event of a log that continues another one")
    origin, size, root = (payload.get(name) for name in ("closed_log", "tree_size", "root_hash"))
    if not (isinstance(origin, str) and isinstance(size, int) and isinstance(root, str)) or len(root) != _HEX_DIGITS:
        raise MalformedNote("its seam does not name the tree of the closed log")
    if seam.record.get("log") != _name_after(origin, payload.get("log_id")):
        raise MalformedNote("the seam is of a log that is not the next one")
    try:
        return Checkpoint(origin, size, bytes.fromhex(root))
    except ValueError:
        raise MalformedNote("its seam does not name the tree of the closed log") from None


def is_continuation(row: Row | dict[str, Any], payload: dict[str, Any]) -> bool:
    """Whether the columns of an event agree with its payload, as in all events with which the service continues a log."""
    columns = (row["event_type"], row["event_category"], row["correlation_id"])
    return columns[0] == CONTINUED and agree(*columns, payload)


def _name_after(name: str, log_id: object) -> str:
    """The name of the log that continues the one with this name and id."""
    if not isinstance(log_id, int) or log_id < 0 or (log_id and not name.endswith(f"/{log_id}")):
        return ""
    first = name.removesuffix(f"/{log_id}") if log_id else name
    return f"{first}/{log_id + 1}"


def _verify_inclusion(proof: Proof, checkpoint: Checkpoint, signed_by: Sequence[PublicKey]) -> VerifiedProof:
    leaf = merkle.leaf_hash(proof.record)
    if not merkle.verify_inclusion(proof.index, checkpoint.size, leaf, proof.hashes, checkpoint.root):
        raise MalformedNote(f"the record is not the leaf {proof.index} of the log that was signed")
    record = parse_object(proof.record, "the record")
    # The leaf is proved. These two show that the record was made for this log and this position.
    if record.get("log") != checkpoint.origin or record.get("log_index") != proof.index:
        raise MalformedNote("the record is of another log or of another position")
    return VerifiedProof(checkpoint, signed_by, proof.checkpoint, record, None)


def document_with_opening(
    proof: Proof, opening: tuple[bytes | None, bytes | None], token: bytes | None = None, seam: bytes | None = None
) -> bytes:
    """The JSON document of a proof and what opens the record's commitment: salt and committed object, nulls once erased.

    With `token` it has the timestamp of the proof's checkpoint too. `seam` is such a document of the next log's first event, if the
    proof's checkpoint is not signed.
    """
    salt, committed = opening
    document: dict[str, object] = {
        "proof": str(proof),
        "salt": None if salt is None else salt.hex(),
        "committed": None if committed is None else orjson.Fragment(committed),
    }
    if token is not None:
        document["timestamp"] = encoded_base64(token)
    if seam is not None:
        document["seam"] = orjson.Fragment(seam)
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
