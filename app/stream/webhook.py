"""The destination `webhook`: each portion as one HTTP request, signed as Standard Webhooks fixes it.

Only an answer of 2xx confirms it.
"""

import asyncio
import base64
import binascii
import hashlib
import hmac
import logging
import time
from collections.abc import Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Literal

import orjson
from pydantic import Field

from app.errors import Fatal
from app.events.cloudevents import BATCH
from app.stream.destination import Delivery, NotDelivered
from app.stream.formats import cloudevents
from app.stream.formats.lines import Format, format_line
from app.stream.sink import HttpSink
from app.watched_file import WatchedFiles

_SECRET_PREFIX = "whsec_"  # noqa: S105 -- what every secret begins with
_SECRET_BYTES = (16, 128)
"""Standard Webhooks asks for 24 to 64; some senders' generators are beyond that."""

log = logging.getLogger(__name__)


class WebhookSink(HttpSink, frozen=True, extra="forbid"):
    """A webhook in the file of sinks."""

    type: Literal["webhook"]
    format: Format = "events"
    secret_files: tuple[Path, ...] = Field(min_length=1, max_length=10)
    """Each has one secret, `whsec_…`. Several while a secret rotates: each signs."""

    def destination(self) -> "Webhook":
        return Webhook(self)


class Webhook:
    """A receiver of webhooks."""

    def __init__(self, sink: WebhookSink) -> None:
        from app.stream.posting import Poster  # noqa: PLC0415 -- httpx, imported only if it is used

        self._sink = sink
        self._poster = Poster(sink)
        self._secrets: WatchedFiles[Sequence[bytes]] | None = None

    async def deliver(self, delivery: Delivery) -> None:
        """POST the portion. NotDelivered unless the answer is 2xx, and in time."""
        body, headers = await asyncio.to_thread(self._signed, delivery)
        answer = await self._poster.post(body, headers)
        if not answer.is_success:
            raise NotDelivered(
                f"the receiver has answered {answer.phrase}",
                retry_after=answer.retry_after,
                is_too_large=answer.status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            )

    async def close(self) -> None:
        """Close the connection."""
        await self._poster.close()

    def _signed(self, delivery: Delivery) -> tuple[bytes, dict[str, str]]:
        body, media_type = render(delivery, self._sink.format)
        return body, {
            "content-type": media_type,
            **signed_headers(delivery.id, time.time(), body, self._read_secrets()),
        }

    def _read_secrets(self) -> Sequence[bytes]:
        """The secrets as they are now; as long as a changed file cannot be used, those from before."""
        try:
            if self._secrets is None:
                files = self._sink.secret_files
                self._secrets = WatchedFiles(
                    files, lambda: [read_secret(file) for file in files], changed=self._changed, failed=self._failed
                )
            return self._secrets.value()
        except Fatal as error:
            raise NotDelivered(error.detail) from None
        except OSError as error:
            raise NotDelivered(f"secret_files: {error}") from None

    def _changed(self, _: Sequence[bytes]) -> None:
        log.info("the secrets of a webhook have changed", extra={"sink": self._sink.name})

    def _failed(self, error: Exception) -> None:
        log.warning(
            "the changed secrets of a webhook cannot be used; those from before sign",
            extra={"sink": self._sink.name, "error": getattr(error, "detail", str(error))},
        )


def render(delivery: Delivery, form: Format) -> tuple[bytes, str]:
    """The body of a portion, and its media type."""
    if form == "cloudevents":
        return orjson.dumps([cloudevents.render(item, delivery.log) for item in delivery.items]), BATCH
    return b"".join(format_line(item, form, delivery.log) for item in delivery.items), "application/x-ndjson"


def signed_headers(message_id: str, at: float, body: bytes, secrets: Sequence[bytes]) -> dict[str, str]:
    """The headers of Standard Webhooks: one signature by each secret."""
    timestamp = str(int(at))
    message = b".".join((message_id.encode(), timestamp.encode(), body))
    signatures = (base64.b64encode(hmac.digest(secret, message, hashlib.sha256)).decode() for secret in secrets)
    return {
        "webhook-id": message_id,
        "webhook-timestamp": timestamp,
        "webhook-signature": " ".join(f"v1,{signature}" for signature in signatures),
    }


def read_secret(path: Path) -> bytes:
    """The key in a file with a secret. OSError or Fatal, which does not contain it."""
    expected = f"expected {_SECRET_PREFIX} and {_SECRET_BYTES[0]} to {_SECRET_BYTES[1]} bytes as base64"
    try:
        text = path.read_text("ascii").strip()
        secret = base64.b64decode(text.removeprefix(_SECRET_PREFIX), validate=True)
    except (UnicodeDecodeError, binascii.Error):
        raise Fatal(f"secret_files: {path} has no such secret: {expected}") from None
    if not text.startswith(_SECRET_PREFIX) or not _SECRET_BYTES[0] <= len(secret) <= _SECRET_BYTES[1]:
        raise Fatal(f"secret_files: {path} has no such secret: {expected}")
    return secret
