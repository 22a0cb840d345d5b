"""Asks a timestamp authority (RFC 3161) once an hour to stamp the newest published checkpoint.

A worker of its own: an authority that is slow or away delays neither checkpoints nor anything else.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from time import monotonic
from typing import NoReturn, Self

import asyncpg
from cryptography import x509

from app import metrics
from app.db import Connection, connect
from app.errors import AuditError, Fatal
from app.events.log import Log
from app.settings import Settings
from app.tlog.continued import keys_of
from app.tlog.note import MalformedNote, NoValidSignature, PublicKey, verified_checkpoint
from app.tlog.tiles import SQL
from app.tlog.timestamp import Timestamp, WrongTimestamp, new_request, read_certificates, token_in, verified_timestamp
from app.workers import WorkerConnection, run_forever

INTERVAL_SECONDS = 3600.0
_ROUND_SECONDS = 60.0
_FIRST_SECONDS = 1.0
_TIMEOUT_SECONDS = 10.0
_TRANSACTION_IDLE_MAX = "15s"  # longer than the authority may need
_ANSWER_BYTES_MAX = 100_000

log = logging.getLogger(__name__)


class NotStamped(AuditError):
    """The authority gave no token, or one that is refused."""


@dataclass
class Authority:
    """An authority, whose certificates are believed, and when it stamped last."""

    url: str
    certificates: list[x509.Certificate]
    keys: tuple[PublicKey, ...]
    """Of the log."""
    _stamped_at: float | None = None
    """By this process's monotonic clock, in seconds."""

    @classmethod
    def create(cls, settings: Settings, keys: tuple[PublicKey, ...]) -> Self | None:
        """The authority of the settings; None without one. Fatal when there is no certificate to verify its tokens with."""
        if settings.tsa_url is None:
            return None
        if settings.tsa_certificates_file is None:
            raise Fatal(
                "DATASTORAGE_TSA_URL is set, but nothing to verify the authority's tokens with: let "
                "DATASTORAGE_TSA_CERTIFICATES_FILE name a PEM file of its certificate, or of its issuer's."
            )
        return cls(settings.tsa_url, read_certificates(settings.tsa_certificates_file), keys)

    async def run(self, settings: Settings, of: Callable[[], Log]) -> NoReturn:
        """Look each minute whether a timestamp is due of the log that `of` gives, on a connection of its own."""

        async def open_connection() -> Connection:
            return await connect(settings, lock_timeout="3s", idle_in_transaction_session_timeout=_TRANSACTION_IDLE_MAX)

        connection = WorkerConnection(open_connection)

        async def do_round() -> float | None:
            async with connection.use() as usable:
                return await self.run_round(usable, of())

        await run_forever("timestamp", do_round, pause_seconds=_ROUND_SECONDS, failure="no timestamp of a checkpoint")

    async def run_round(self, connection: Connection, of: Log) -> float | None:
        """Have the newest published checkpoint stamped, unless that is not due. Raises NotStamped.

        Before the first checkpoint it answers how many seconds later to look again.
        One replica asks at a time. What is in the table counts only if its token is valid, so that nobody can end this with a row.
        """
        if self._stamped_at is not None and monotonic() - self._stamped_at < INTERVAL_SECONDS:
            return None
        async with connection.transaction():
            if not await connection.fetchval(SQL.of(of)["try_lock_timestamping"]):
                return None
            checkpoint = await connection.fetchrow(SQL.of(of)["published_checkpoint"])
            if checkpoint is None:
                return _FIRST_SECONDS
            size, note = checkpoint["size"], checkpoint["note"]
            last = await connection.fetchrow(SQL.of(of)["newest_timestamp"], size)
            if last is not None and (shown := self._valid(last, of)) is not None:
                metrics.TIMESTAMP_TIME.set(shown.time.timestamp())
                if last["size"] == size or 0 <= (datetime.now(UTC) - shown.time).total_seconds() < INTERVAL_SECONDS:
                    return None
            token, shown = await self._ask(note)
            await connection.execute(SQL.of(of)["store_timestamp"], size, note, token)
        self._stamped_at = monotonic()
        metrics.TIMESTAMP_TIME.set(shown.time.timestamp())
        log.info("a checkpoint was timestamped", extra={"size": size, "time": shown.time.isoformat()})
        return None

    def _valid(self, row: asyncpg.Record, of: Log) -> Timestamp | None:
        try:
            checkpoint = verified_checkpoint(row["note"], keys_of(of, self.keys))
            shown = verified_timestamp(row["token"], row["note"], self.certificates)
        except (MalformedNote, NoValidSignature, WrongTimestamp) as error:
            log.warning("a stored timestamp is not valid", extra={"size": row["size"], "reason": str(error)})
            return None
        return shown if checkpoint.size == row["size"] else None

    async def _ask(self, note: str) -> tuple[bytes, Timestamp]:
        import httpx  # noqa: PLC0415 -- a service without an authority starts without it

        request = new_request(note)
        headers = {"Content-Type": "application/timestamp-query"}
        try:
            async with asyncio.timeout(_TIMEOUT_SECONDS), httpx.AsyncClient(timeout=_TIMEOUT_SECONDS) as client:
                answer = await client.post(self.url, content=request.as_bytes(), headers=headers)
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError) as error:
            raise NotStamped(f"the timestamp authority cannot be asked: {error!r}") from None
        if answer.status_code != HTTPStatus.OK or len(answer.content) > _ANSWER_BYTES_MAX:
            raise NotStamped(f"the timestamp authority answered {answer.status_code}, {len(answer.content)} bytes")
        try:
            return token_in(answer.content, request, note, self.certificates)
        except WrongTimestamp as error:
            raise NotStamped(f"the timestamp authority's token is refused: {error}") from None
