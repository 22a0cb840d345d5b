"""The manifest after each part of an export: an in-toto statement, signed in a DSSE envelope.

DSSE is implemented here, without a library, for the reasons in docs/decisions/0022-dsse-by-hand.md.
"""

import base64
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from functools import cache
from typing import Any, Literal
from uuid import UUID

import orjson
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from pydantic import TypeAdapter, ValidationError

from app.events.canonical import loads_strict
from app.tlog.keys import SigningKey
from app.tlog.note import ED25519, PublicKey

PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://kubernaut.ai/datastorage/audit-export/v1"
_ENVELOPE = {"payloadType", "payload", "signatures"}


@dataclass(frozen=True, slots=True)
class ExportPosition:
    """An event in the order of exports: sealed ones by log and position, then unsealed ones by id and date."""

    position: int | None = None
    event_id: str | None = None
    event_date: str | None = None
    log: str | None = None
    """The log of the position, in an export of a log that continues others; None in any other export."""


@dataclass(frozen=True, slots=True)
class EarlierLog:
    """A closed log of which events are in an export, with what proves them besides the manifest."""

    log: str
    log_size: int
    """Its size when it was closed."""
    first_position: int | None
    last_position: int | None
    """Of the part's events of this log."""
    checkpoint: str | None
    """The last signed checkpoint of which the log still had all events when it was closed."""
    seam: dict[str, Any] | None
    """The opened proof of the next log's first event, which has size and root of this one. None where there is no checkpoint of that."""


@dataclass(frozen=True, slots=True)
class ArchivedPart:
    """A part of the archive from which events of an export were read."""

    archive_id: UUID
    manifest_sha256: str
    """Of its manifest, in hex, as the log records it."""
    log: str
    events: int
    first_position: int
    last_position: int
    """Of the export part's events that were read from it."""

    def and_next(self, other: "ArchivedPart") -> "ArchivedPart":
        """This, with those of `other`, which come after it."""
        return replace(self, events=self.events + other.events, last_position=other.last_position)


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Events that are in the archive alone, of the time that the export is about, and that were not looked at."""

    events: int
    """All of these months, whether they match the filter or not."""
    months: tuple[str, ...]
    """As 2026-01."""

    @staticmethod
    def member(left_out: "LeftOut | None") -> dict[str, Any]:
        """As answers in JSON have it, `left_out`; nothing if there is nothing."""
        return {} if left_out is None else {"left_out": {"events": left_out.events, "months": list(left_out.months)}}


@dataclass(frozen=True, slots=True)
class Manifest:
    """What is signed about one part. Counts are of the part; `next` is None in the last part only."""

    export_id: UUID
    part: int
    format: Literal["ndjson", "csv"]
    redacted: bool
    filter: dict[str, Any]
    exported_at: str
    exported_by: str
    log: str
    log_size: int
    """Size of the log when the export began: events with this position or a later one are not in it."""
    events: int
    sealed: int
    unsealed: int
    erased: int
    first_position: int | None
    last_position: int | None
    after: ExportPosition | None
    through: ExportPosition | None
    """The last event of the part; equal to `after` if the part has no events."""
    sha256: str
    """Of the part's bytes, in hex."""
    previous: str | None
    """`sha256` of the previous part."""
    next: str | None
    """The resume token of the next part."""
    checkpoint: str | None
    """The newest signed checkpoint when the request began that wrote the part."""
    not_covered: tuple[str, ...] = ()
    """Members of the records that no hash covers; empty in files from before December 2026, although the same ones are not covered."""
    earlier_logs: tuple[EarlierLog, ...] = ()
    """The logs that `log` continues, the first one first. Files of a first log do not have the member."""
    archived: tuple[ArchivedPart, ...] = ()
    """Where those of the part's events are that were read from the archive. Without any the member is not written."""
    left_out: LeftOut | None = None
    """What the export has not of the archive. Without any the member is not written."""

    @property
    def logs(self) -> dict[str, int]:
        """All logs of which events may be in the file, in their order, and their sizes."""
        return {one.log: one.log_size for one in self.earlier_logs} | {self.log: self.log_size}

    @property
    def name(self) -> str:
        """The name of the statement's subject."""
        return f"export-{self.export_id}-part-{self.part}.{self.format}"

    def statement(self) -> bytes:
        """The in-toto statement, as JSON."""
        predicate = asdict(self)
        subject = {"name": self.name, "digest": {"sha256": predicate.pop("sha256")}}
        if not self.earlier_logs:
            del predicate["earlier_logs"]
            for position in filter(None, (predicate["after"], predicate["through"])):
                del position["log"]
        for name in ("archived", "left_out"):
            if not predicate[name]:
                del predicate[name]
        return orjson.dumps(
            {"_type": STATEMENT_TYPE, "subject": [subject], "predicateType": PREDICATE_TYPE, "predicate": predicate}
        )

    @staticmethod
    def parse(statement: bytes) -> "Manifest":
        """The manifest that `statement()` wrote; ValueError for anything else."""
        try:
            document = loads_strict(statement)
            if (document["_type"], document["predicateType"]) != (STATEMENT_TYPE, PREDICATE_TYPE):
                raise ValueError("the manifest is not about an export of this service")
            [subject] = document["subject"]
            manifest = _manifests().validate_python(document["predicate"] | {"sha256": subject["digest"]["sha256"]})
        except (TypeError, LookupError, ValidationError) as error:
            raise ValueError(f"the manifest is not one of an export: {error}") from None
        if subject["name"] != manifest.name:
            raise ValueError(f"the manifest is about {subject['name']!r}, not {manifest.name!r}")
        return manifest


@cache  # built when the first is read: most processes read none
def _manifests() -> TypeAdapter[Manifest]:
    return TypeAdapter(Manifest)


def sign_manifest(manifest: Manifest, key: SigningKey | None) -> bytes:
    """The manifest in a DSSE envelope, as JSON. Without a key it has no signature: it shows that no part is missing, and no more."""
    return sign_statement(manifest.statement(), key)


def sign_statement(statement: bytes, key: SigningKey | None) -> bytes:
    """An in-toto statement in a DSSE envelope, as JSON; without a key it has no signature."""
    signatures = [] if key is None else [(key_id(key.public), key.private.sign(signed_bytes(statement)))]
    return orjson.dumps(
        {
            "payloadType": PAYLOAD_TYPE,
            "payload": base64.b64encode(statement).decode(),
            "signatures": [
                {"keyid": signer, "sig": base64.b64encode(signature).decode()} for signer, signature in signatures
            ],
        }
    )


def open_envelope(envelope: Any, keys: list[PublicKey]) -> tuple[Manifest, PublicKey | None]:
    """The manifest of a DSSE envelope, and which of `keys` signed it: a key counts only for the log of its name.

    ValueError if it is not an envelope, has members that nobody signs, has a wrong signature under the name of one of `keys`, or is
    not of a manifest.
    """
    statement, signatures = open_statement(envelope)
    manifest = Manifest.parse(statement)
    return manifest, signer_of(statement, signatures, manifest.log, keys, f"the manifest of part {manifest.part}")


Signatures = list[tuple[Any, bytes]]
"""Each with the name of its key."""


def open_statement(envelope: Any) -> tuple[bytes, Signatures]:
    """The in-toto statement of a DSSE envelope, and its signatures. ValueError if it is none, or has members that nobody signs."""
    try:
        statement = base64.b64decode(envelope["payload"], validate=True)
        if envelope["payloadType"] != PAYLOAD_TYPE:
            raise ValueError(f"the manifest has the type {envelope['payloadType']!r}")
        signatures = [(one.get("keyid"), base64.b64decode(one["sig"], validate=True)) for one in envelope["signatures"]]
        others = (
            set(envelope).difference(_ENVELOPE).union(*(set(one) - {"keyid", "sig"} for one in envelope["signatures"]))
        )
        if others:
            raise ValueError(f"the manifest has {', '.join(sorted(others))} beside what is signed")
    except (TypeError, LookupError, AttributeError) as error:
        raise ValueError(f"the manifest is not a DSSE envelope: {error!r}") from None
    return statement, signatures


def signer_of(
    statement: bytes, signatures: Signatures, log: str, keys: Sequence[PublicKey], what: str
) -> PublicKey | None:
    """Which of those `keys` that are of this log signed a statement. ValueError for a wrong signature under the name of one of them."""
    signed = signed_bytes(statement)
    keys_of_log = [key for key in keys if key.name == log and key.algorithm == ED25519]
    signer = None
    for name, signature in signatures:
        by = next((key for key in keys_of_log if verifies(key, signature, signed)), None)
        if by is None and any(name == key_id(key) for key in keys_of_log):
            raise ValueError(f"wrong key: {what} has a wrong signature under the name of {name}")
        signer = signer or by
    return signer


def key_id(key: PublicKey) -> str:
    """How an envelope names a key: the first two parts of the key's text."""
    return f"{key.name}+{key.id.hex()}"


def rfc3339_microseconds(time: datetime) -> str:
    """A time in UTC as RFC 3339 with six digits after the second."""
    return f"{time:%Y-%m-%dT%H:%M:%S.%fZ}"


def signed_bytes(statement: bytes) -> bytes:
    """What a DSSE signature is over: its pre-authentication encoding (PAE)."""
    payload_type = PAYLOAD_TYPE.encode()
    return b"DSSEv1 %d %b %d %b" % (len(payload_type), payload_type, len(statement), statement)


def verifies(key: PublicKey, signature: bytes, signed: bytes) -> bool:
    """Whether `signature` is that of an Ed25519 key over these bytes."""
    try:
        Ed25519PublicKey.from_public_bytes(key.public).verify(signature, signed)
    except (InvalidSignature, ValueError):
        return False
    return True
