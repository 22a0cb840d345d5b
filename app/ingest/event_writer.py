"""What requests use of the writer, wherever it runs: in this process, or in another one of the pod."""

from dataclasses import dataclass
from datetime import date
from typing import Protocol
from uuid import UUID

from app.ingest.submission import Submission


class EventWriter(Protocol):
    """The pod's one writer. app/ingest/writer.py says what each of these does."""

    @property
    def away(self) -> bool: ...
    @property
    def has_spool(self) -> bool: ...
    async def submit(self, submission: Submission, deadline: float) -> bool: ...
    async def waiting_event_dates(self, ids: set[UUID]) -> dict[UUID, date]: ...
    async def close(self) -> None: ...


class WriterState(Protocol):
    """What the writer lets others see at once."""

    away: bool
    """Postgres was away at the last flush."""
    busy_seconds: float
    """How long the writer has been writing to Postgres; while it writes, less the monotonic time when it began: so below 0."""
    log_id: int
    """The log that events are written to."""


def busy_seconds_until(now: float, state: WriterState) -> float:
    """How long the writer has been writing to Postgres, also with what it writes at `now`, the monotonic time."""
    seconds = state.busy_seconds
    return seconds + now if seconds < 0 else seconds


@dataclass
class OwnState:
    """The state of a writer that nobody outside of its process sees."""

    away: bool = False
    busy_seconds: float = 0.0
    log_id: int = 0
