"""The Idempotency-Key header of a POST, as in the IETF httpapi draft."""

import re
from datetime import UTC, datetime, timedelta
from typing import Any

from starlette.requests import Request

from app.api.service import foundation_of
from app.errors import BadRequest
from app.ingest.claim import Claim

PARAMETER: dict[str, Any] = {
    "name": "Idempotency-Key",
    "in": "header",
    "description": "the same key and body again get the same answer, and nothing is stored twice",
    "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[ -~]+$"},
}
_KEY = re.compile(r"[\x20-\x7e]{1,255}")


def key_of(request: Request) -> str:
    """The key, sent in quotes as the draft has it or without; empty if none was sent."""
    sent = request.headers.get("idempotency-key")
    if sent is None:
        return ""
    key = sent[1:-1] if len(sent) > 2 and sent[0] == sent[-1] == '"' else sent
    if not _KEY.fullmatch(key):
        raise BadRequest(f"Idempotency-Key: expected 1 to 255 printable ASCII characters, got {sent[:60]!r}")
    return key


def claim_of(request: Request, caller: str, key: str, digest: bytes) -> Claim:
    """The claim of `caller` on this key, from now on, for the body with this digest."""
    lifetime = timedelta(days=foundation_of(request).settings.idempotency_key_days)
    return Claim(f"POST {request.url.path} {caller}", key, digest, datetime.now(UTC) + lifetime)


def id_source(request: Request, key: str) -> tuple[str, str]:
    """What the ids of events are computed from.

    The path is part of it: one key may be used for a single event and for a batch, which must not get the same ids.
    """
    return "key", f"{request.url.path} {key}"
