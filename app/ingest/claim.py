"""What was promised under an Idempotency-Key."""

from datetime import datetime
from typing import NamedTuple

from app.errors import KeyReused


class Claim(NamedTuple):
    """One use of an Idempotency-Key: the digest of the first body, until it expires."""

    scope: str
    """Method, path and caller."""
    key: str
    digest: bytes
    """SHA-256 of the canonical form of the body."""
    expires_at: datetime


def key_reused() -> KeyReused:
    """The refusal of a key under which another body was sent."""
    return KeyReused(resource="request", field="Idempotency-Key")
