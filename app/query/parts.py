"""An export as the bytes of its file: events, and behind every part of them its signed manifest.

A cut file lacks the last manifest, and the one before it says how to go on.
"""

from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any, Literal
from uuid import UUID, uuid4

import asyncpg
import orjson
from pydantic import BaseModel, ValidationError

from app.db import Connection
from app.integrity.exportfile import header, manifest_record, record
from app.integrity.keys import SigningKey
from app.integrity.manifest import Manifest, Place, seal, stamp
from app.query import redact
from app.query.export import ExportQuery, sealed, unsealed
from app.query.exported import exported, place

PART_BYTES = 64 * 1024**2


class Token(BaseModel, frozen=True, extra="forbid"):
    """What `after` says: everything that the next part has to know. Nothing in it is trusted, since every part is signed."""

    query: ExportQuery
    export_id: UUID
    log_size: int
    part: int
    previous: str
    after: Place | None

    def __str__(self) -> str:
        return urlsafe_b64encode(self.model_dump_json(exclude_none=True).encode()).decode().rstrip("=")

    @classmethod
    def parse(cls, text: str) -> "Token":
        """What `str` gave; ValueError for anything else."""
        try:
            return cls.model_validate_json(urlsafe_b64decode(text + "=" * (-len(text) % 4)))
        except ValueError:
            raise ValueError("expected the `next` of the last manifest of an export") from None


@dataclass(slots=True)
class Part:
    """What is counted of a part while it is written."""

    number: int
    after: Place | None
    previous: str | None
    digest: Any = field(default_factory=sha256)
    size: int = 0
    sealed: int = 0
    unsealed: int = 0
    erased: int = 0
    first_position: int | None = None
    last_position: int | None = None
    through: Place | None = None

    def take(self, row: asyncpg.Record) -> None:
        position = row["log_index"]
        if position is None:
            self.unsealed += 1
        else:
            self.sealed += 1
            self.erased += row["payload_commitment"] is not None
            self.last_position = position
            self.first_position = position if self.first_position is None else self.first_position

    def add(self, content: bytes) -> None:
        self.digest.update(content)
        self.size += len(content)


@dataclass(slots=True)
class Export:
    """One request for an export, and how far it has come."""

    query: ExportQuery
    exported_by: str
    log: str
    key: SigningKey | None
    token: Token | None = None
    """Where it goes on, if it is not new."""
    export_id: UUID = field(default_factory=uuid4)
    checkpoint: str | None = None
    log_size: int = 0
    events: int = 0
    """Sent with this request."""
    first_position: int | None = None
    last_position: int | None = None
    started: datetime = field(default_factory=lambda: datetime.now(UTC))
