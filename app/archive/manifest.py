"""The manifest of a part: an in-toto statement in a DSSE envelope, signed with the key of the log."""

from dataclasses import asdict, dataclass
from functools import cache
from typing import Any
from uuid import UUID

import orjson
from pydantic import TypeAdapter, ValidationError

from app.archive.part_files import TILES_NAME, ArchivedFile, described_files
from app.events.canonical import loads_strict
from app.events.positions import Positions
from app.export.manifest import STATEMENT_TYPE, open_statement, sign_statement, signer_of
from app.tlog.keys import SigningKey
from app.tlog.note import PublicKey

PREDICATE_TYPE = "https://kubernaut.ai/datastorage/audit-archive/v1"


@dataclass(frozen=True, slots=True)
class PreviousPart:
    """The part of the same log that was archived before, and the tree of its checkpoint."""

    archive_id: UUID
    manifest_sha256: str
    tree_size: int
    root_hash: str


@dataclass(frozen=True, slots=True)
class RecordedErasures:
    """Events of a part that an event of the log says are erased."""

    erasure_id: UUID
    log_id: int
    log_index: int
    """Of the event that says so."""
    positions: str
    """Of the part's events, as text of an int8multirange."""


@dataclass(frozen=True, slots=True)
class ReplacedPart:
    """The part that was there before this one, and why it was replaced."""

    archive_id: UUID
    manifest_sha256: str
    erased: tuple[RecordedErasures, ...]

    @property
    def erased_count(self) -> int:
        """How many events were erased."""
        return Positions(one for erased in self.erased for one in Positions.parse(erased.positions).ranges).size


@dataclass(frozen=True, slots=True)
class PartManifest:
    """What is signed about a part."""

    archive_id: UUID
    log: str
    log_id: int
    month: str
    """Of event_date, as 2026-01."""
    archived_at: str
    events: int
    erased: int
    """Of the events, those whose content was erased before."""
    first_position: int
    last_position: int
    positions: str
    """All of them, as text of an int8multirange."""
    not_covered: tuple[str, ...]
    """Columns that no hash of an event covers."""
    checkpoint: str
    """A signed note whose tree has all positions."""
    previous: PreviousPart | None
    consistency: tuple[str, ...]
    """The proof, hashes in hex, that the tree of `previous` is a prefix of the checkpoint's."""
    files: tuple[ArchivedFile, ...]
    replaces: tuple[ReplacedPart, ...] = ()
    """The parts of the same positions that were there before this one, the first one first."""

    @property
    def event_files(self) -> list[ArchivedFile]:
        """Those with events, in their order."""
        return [file for file in self.files if file.name != TILES_NAME]

    def position_set(self) -> Positions:
        """The positions."""
        return Positions.parse(self.positions)

    def signed(self, key: SigningKey) -> bytes:
        """The envelope, as JSON."""
        predicate = asdict(self)
        subjects = [{"name": file.pop("name"), "digest": {"sha256": file.pop("sha256")}} for file in predicate["files"]]
        return sign_statement(
            orjson.dumps(
                {
                    "_type": STATEMENT_TYPE,
                    "subject": subjects,
                    "predicateType": PREDICATE_TYPE,
                    "predicate": predicate,
                }
            ),
            key,
        )


@cache  # built when the first is read: most processes read none
def _manifests() -> TypeAdapter[PartManifest]:
    return TypeAdapter(PartManifest)


def open_manifest(envelope: bytes, keys: list[PublicKey]) -> tuple[PartManifest, PublicKey | None]:
    """The manifest that `signed()` wrote, and which of `keys` signed it. ValueError for anything else, and for a wrong signature."""
    statement, signatures = open_statement(loads_strict(envelope))
    try:
        document: dict[str, Any] = loads_strict(statement)
        if (document["_type"], document["predicateType"]) != (STATEMENT_TYPE, PREDICATE_TYPE):
            raise ValueError("the manifest is not one of an archive")
        manifest = _manifests().validate_python(document["predicate"] | {"files": described_files(document)})
    except (TypeError, LookupError, ValidationError) as error:
        raise ValueError(f"the manifest is not one of an archive: {error}") from None
    return manifest, signer_of(statement, signatures, manifest.log, keys, "the manifest")
