"""The statement behind each part of an export: what the part is, of whom, and where the next one goes on."""

import base64
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

import orjson
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from pydantic import TypeAdapter, ValidationError

from app.export.file import PAYLOAD_TYPE, PREDICATE_TYPE, STATEMENT_TYPE, Signature, envelope, signed_bytes
from app.tlog.keys import SigningKey
from app.tlog.note import ED25519, PublicKey


@dataclass(frozen=True, slots=True)
class ExportPosition:
    """An event in the order of exports: the sealed ones by position, behind them the unsealed by id and date."""

    position: int | None = None
    event_id: str | None = None
    event_date: str | None = None


@dataclass(frozen=True, slots=True)
class Manifest:
    """All that is signed of one part. Counts are the part's; `next` is None in the last one only."""

    export_id: UUID
    part: int
    format: Literal["ndjson", "csv"]
    redacted: bool
    filter: dict[str, Any]
    exported_at: str
    exported_by: str
    log: str
    log_size: int
    """Events with a position from here on were written after the export began, and are not in it."""
    events: int
    sealed: int
    unsealed: int
    erased: int
    first_position: int | None
    last_position: int | None
    after: ExportPosition | None
    through: ExportPosition | None
    """The last event of the part; that of `after` when there is none."""
    sha256: str
    """Of the part's bytes."""
    previous: str | None
    """That of the part before."""
    next: str | None
    checkpoint: str | None
    """The newest signed one when the part was made."""

    @property
    def name(self) -> str:
        return f"export-{self.export_id}-part-{self.part}.{self.format}"

    def statement(self) -> bytes:
        predicate = asdict(self)
        subject = {"name": self.name, "digest": {"sha256": predicate.pop("sha256")}}
        return orjson.dumps(
            {"_type": STATEMENT_TYPE, "subject": [subject], "predicateType": PREDICATE_TYPE, "predicate": predicate}
        )

    @staticmethod
    def read(statement: bytes) -> "Manifest":
        """What `statement()` gave; ValueError for anything else."""
        try:
            said = orjson.loads(statement)
            if (said["_type"], said["predicateType"]) != (STATEMENT_TYPE, PREDICATE_TYPE):
                raise ValueError("the manifest speaks of something else than an export of this service")
            [subject] = said["subject"]
            found = _READ.validate_python(said["predicate"] | {"sha256": subject["digest"]["sha256"]})
        except (TypeError, LookupError, ValidationError) as error:
            raise ValueError(f"the manifest is none of an export: {error}") from None
        if subject["name"] != found.name:
            raise ValueError(f"the manifest is about {subject['name']!r}, not {found.name!r}")
        return found


_READ = TypeAdapter(Manifest)


def seal(manifest: Manifest, key: SigningKey | None) -> bytes:
    """The manifest in its envelope. Without a key it has no signature: it then shows that nothing is missing, and no more."""
    statement = manifest.statement()
    if key is None:
        return envelope(statement, [])
    return envelope(statement, [Signature(key_id(key.public), key.private.sign(signed_bytes(PAYLOAD_TYPE, statement)))])


def opened(sealed: Any, keys: list[PublicKey]) -> tuple[Manifest, PublicKey | None]:
    """The manifest of an envelope, and which of `keys` signed it; a key speaks for the log of its name. ValueError for what is no envelope."""
    try:
        payload = base64.b64decode(sealed["payload"], validate=True)
        if sealed["payloadType"] != PAYLOAD_TYPE:
            raise ValueError(f"the manifest has the type {sealed['payloadType']!r}")
        signatures = [base64.b64decode(one["sig"], validate=True) for one in sealed["signatures"]]
    except (TypeError, LookupError) as error:
        raise ValueError(f"the manifest is no DSSE envelope: {error!r}") from None
    signed = signed_bytes(PAYLOAD_TYPE, payload)
    manifest = Manifest.read(payload)
    speaking = [key for key in keys if key.name == manifest.log and key.algorithm == ED25519]
    return manifest, next((key for key in speaking for one in signatures if _verifies(key, one, signed)), None)


def key_id(key: PublicKey) -> str:
    """How an envelope names a key: as the first two parts of its text."""
    return f"{key.name}+{key.id.hex()}"


def stamp(moment: datetime) -> str:
    return f"{moment:%Y-%m-%dT%H:%M:%S.%fZ}"


def _verifies(key: PublicKey, signature: bytes, signed: bytes) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(key.public).verify(signature, signed)
    except (InvalidSignature, ValueError):
        return False
    return True
