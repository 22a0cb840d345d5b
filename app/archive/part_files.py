"""The files of a part, as its manifest names them. Needs nothing that takes long to import: the process that reads the archive is started for a question."""

from base64 import b64decode
from dataclasses import dataclass
from typing import Any

from app.events.canonical import loads_strict

MANIFEST_NAME = "manifest.json"
TILES_NAME = "tiles"


@dataclass(frozen=True, slots=True)
class ArchivedFile:
    """One file of a part's folder."""

    name: str
    sha256: str
    """In hex."""
    bytes: int
    events: int
    """0 for the file of tiles."""


def described_files(statement: dict[str, Any]) -> list[dict[str, Any]]:
    """The members of each ArchivedFile that a manifest's statement names. LookupError, TypeError or ValueError if it has another form."""
    return [
        file | {"name": subject["name"], "sha256": subject["digest"]["sha256"]}
        for file, subject in zip(statement["predicate"]["files"], statement["subject"], strict=True)
    ]


def event_files(envelope: bytes) -> list[ArchivedFile]:
    """The files with events, in their order, that a manifest names which is known to be the one that was signed."""
    statement = loads_strict(b64decode(loads_strict(envelope)["payload"]))
    return [ArchivedFile(**file) for file in described_files(statement) if file["name"] != TILES_NAME]
