"""Writes an export of `format=ndjson` or `csv`: events, and after each part of them its signed manifest.

A file that was cut lacks its last manifest; the one before that has the token with which the export is resumed.
"""

from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime
from hashlib import sha256
from typing import Annotated, Any
from uuid import UUID, uuid4

from pydantic import AwareDatetime, BaseModel, Field

from app.db import Connection
from app.events.log import Log
from app.events.record import Row
from app.export.archived import Archive, FromArchive, merged
from app.export.earlier_logs import read_earlier_logs
from app.export.file import NOT_COVERED, Format, event_record, header_record, manifest_record
from app.export.manifest import (
    ArchivedPart,
    EarlierLog,
    ExportPosition,
    LeftOut,
    Manifest,
    rfc3339_microseconds,
    sign_manifest,
)
from app.export.row import export_position, exported_event, mask
from app.export.select import ExportQuery, Portions, sealed_rows, unsealed_rows
from app.sql import load
from app.tlog.keys import SigningKey

PART_BYTES = 64 * 1024**2
POSITION_MAX = 2**63 - 1
LOG_ID_MAX = 2**15 - 1
_LOWEST = -(2**63)
_YEARS = datetime(2000, 1, 1, tzinfo=UTC), datetime(9000, 1, 1, tzinfo=UTC)

SQL = load("export")


class ResumeToken(BaseModel, frozen=True, extra="forbid"):
    """The value of `after`: where the next part begins. Nothing in it is trusted, since every part is signed.

    The filters are not in it, since redaction may have masked them; the client repeats them.
    """

    export_id: UUID
    log_id: Annotated[int, Field(ge=1, le=LOG_ID_MAX)] | None = None
    """The log that the export is of, if that is not the first."""
    log_size: Annotated[int, Field(ge=0, le=POSITION_MAX)]
    part: Annotated[int, Field(ge=2)]
    previous: str
    after: ExportPosition | None = None
    now: Annotated[AwareDatetime, Field(ge=_YEARS[0], lt=_YEARS[1])] | None = None
    """When the export began: what `7d` or `today` in its filters are counted from. Tokens of before December 2026 do not say."""

    def __str__(self) -> str:
        return urlsafe_b64encode(self.model_dump_json(exclude_none=True).encode()).decode().rstrip("=")

    @classmethod
    def parse(cls, text: str) -> "ResumeToken":
        """The token that `str` wrote; ValueError for anything else."""
        try:
            token = cls.model_validate_json(urlsafe_b64decode(text + "=" * (-len(text) % 4)))
            _check_position(token.after)
        except ValueError:
            raise ValueError("expected the `next` of the last manifest of an export") from None
        return token


@dataclass(slots=True)
class ExportPart:
    """Counts and digest of a part while it is written, for its manifest."""

    number: int
    after: ExportPosition | None
    previous: str | None
    digest: Any = field(default_factory=sha256)
    size: int = 0
    sealed: int = 0
    unsealed: int = 0
    erased: int = 0
    positions: dict[str, tuple[int, int]] = field(default_factory=dict)
    """By log, the first and the last position of its events."""
    through: ExportPosition | None = None
    archived: dict[UUID, ArchivedPart] = field(default_factory=dict)

    def count(self, row: Row) -> None:
        position = row["log_index"]
        if position is None:
            self.unsealed += 1
        else:
            self.sealed += 1
            self.erased += row["payload_commitment"] is not None
            first, _ = self.positions.get(row["log"], (position, position))
            self.positions[row["log"]] = first, position
        if isinstance(row, FromArchive):
            known = self.archived.get(row.part.archive_id)
            self.archived[row.part.archive_id] = row.part if known is None else known.and_next(row.part)

    def range_of(self, log: str) -> tuple[int | None, int | None]:
        """First and last position of the part's events of a log; None twice if it has none."""
        return self.positions.get(log, (None, None))

    def add_bytes(self, content: bytes) -> None:
        self.digest.update(content)
        self.size += len(content)


@dataclass(slots=True)
class Export:
    """One request for an export, and what of it was sent. It has the events of `log` and of those that it continues."""

    query: ExportQuery
    exported_by: str
    log: Log
    key: SigningKey | None
    token: ResumeToken | None = None
    """Where it is resumed; None for a new export."""
    archive: Archive | None = None
    now: datetime = field(default_factory=lambda: datetime.now(UTC))
    """What relative times in `query` were counted from."""
    export_id: UUID = field(default_factory=uuid4)
    log_size: int = 0
    checkpoint: str | None = None
    earlier_logs: tuple[EarlierLog, ...] = ()
    left_out: LeftOut | None = None
    part: ExportPart = field(default_factory=lambda: ExportPart(1, None, None))
    event_count: int = 0
    first_position: int | None = None
    last_position: int | None = None
    """Of the events of `log`."""

    @property
    def form(self) -> Format:
        assert self.query.format != "json"
        return self.query.format

    async def stream(self, connection: Connection, finished: Callable[[], Awaitable[None]]) -> AsyncGenerator[bytes]:
        """The file, in pieces. `finished` is awaited before the last manifest: if it raises, the file is cut there."""
        await self._begin(connection)
        pending = b"" if self.token else header_record(self.form)
        async for rows in self._rows(connection):
            content = pending + b"".join(self._record(row) for row in rows)
            pending = b""
            self.part.add_bytes(content)
            self.part.through = export_position(rows[-1], with_log=bool(self.log.id))
            yield content
            if self.part.size >= PART_BYTES:
                yield self._manifest(last=False)
                self.part = ExportPart(self.part.number + 1, self.part.through, self.part.digest.hexdigest())
        self.part.add_bytes(pending)
        await finished()
        yield pending + self._manifest(last=True)

    async def _begin(self, connection: Connection) -> None:
        self.checkpoint = await connection.fetchval(SQL.of(self.log)["checkpoint"])
        self.earlier_logs = await read_earlier_logs(connection, self.log)
        if self.token is None:
            self.log_size = await connection.fetchval(SQL.of(self.log)["log_size"])
        else:
            self.export_id, self.log_size = self.token.export_id, self.token.log_size
            self.part = ExportPart(self.token.part, self.token.after, self.token.previous)
        if self.archive is not None:
            sizes = {log.id: self._sizes[log.name] for log in self.log.and_earlier()}
            self.left_out = await self.archive.begin(connection, sizes)

    @property
    def _sizes(self) -> dict[str, int]:
        return {one.log: one.log_size for one in self.earlier_logs} | {self.log.name: self.log_size}

    async def _rows(self, connection: Connection) -> AsyncIterator[Sequence[Row]]:
        after = self.part.after
        if after is None or after.position is not None:
            for log, first in self._logs_after(after):
                end = self._sizes[log.name]
                stored = sealed_rows(connection, self.query, log, first, end)
                async for rows in self._with_archived(connection, stored, log, first, end):
                    yield rows
        async for rows in unsealed_rows(connection, self.query, self.log, after):
            yield rows

    def _with_archived(
        self, connection: Connection, stored: Portions, log: Log, first: int, end: int
    ) -> AsyncIterator[Sequence[Row]]:
        return stored if self.archive is None else merged(stored, self.archive.rows(connection, log, first, end))

    def _logs_after(self, after: ExportPosition | None) -> Iterator[tuple[Log, int]]:
        """The logs with events after a sealed one, or all of them, each with the first position that may be one of these."""
        first = _LOWEST if after is None or after.position is None else after.position + 1
        last_read = None if after is None else after.log or self.log.name
        for log in self.log.and_earlier():
            if last_read in {None, log.name}:
                yield log, first
                last_read, first = None, _LOWEST

    def _record(self, row: Row) -> bytes:
        self.part.count(row)
        self.event_count += 1
        position = row["log_index"]
        if position is not None and row["log"] == self.log.name:
            self.last_position = position
            self.first_position = position if self.first_position is None else self.first_position
        return event_record(self.form, exported_event(row, redacted=self.query.redact_pii))

    def _manifest(self, *, last: bool) -> bytes:
        part, query = self.part, self.query
        digest, through = part.digest.hexdigest(), part.through or part.after
        first, last_position = part.range_of(self.log.name)
        next_token = ResumeToken(
            export_id=self.export_id,
            log_id=self.log.id or None,
            log_size=self.log_size,
            part=part.number + 1,
            previous=digest,
            after=through,
            now=self.now,
        )
        manifest = Manifest(
            export_id=self.export_id,
            part=part.number,
            format=self.form,
            redacted=query.redact_pii,
            filter=mask(query, query.filters()),
            exported_at=rfc3339_microseconds(datetime.now(UTC)),
            exported_by=mask(query, self.exported_by),
            log=self.log.name,
            log_size=self.log_size,
            events=part.sealed + part.unsealed,
            sealed=part.sealed,
            unsealed=part.unsealed,
            erased=part.erased,
            not_covered=NOT_COVERED,
            first_position=first,
            last_position=last_position,
            after=part.after,
            through=through,
            sha256=digest,
            previous=part.previous,
            next=None if last else str(next_token),
            checkpoint=self.checkpoint,
            earlier_logs=tuple(self._of_part(one) for one in self.earlier_logs),
            archived=tuple(part.archived.values()),
            left_out=self.left_out,
        )
        return manifest_record(self.form, sign_manifest(manifest, self.key))

    def _of_part(self, earlier: EarlierLog) -> EarlierLog:
        first, last = self.part.range_of(earlier.log)
        return replace(earlier, first_position=first, last_position=last)


def _check_position(after: ExportPosition | None) -> None:
    """ValueError for a position that no event can have."""
    if after is None:
        return
    if after.position is None:
        UUID(after.event_id)
        date.fromisoformat(after.event_date or "")
    elif not _LOWEST <= after.position < POSITION_MAX:
        raise ValueError(after)
