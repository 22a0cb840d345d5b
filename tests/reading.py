"""The clock by which reads work and rest."""

import pytest

from app.api import reading
from app.ingest.event_writer import OwnState


class Clock:
    """The clock of reads, and a writer that writes for a share of the time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self.writer = OwnState()
        monkeypatch.setattr(reading, "monotonic", lambda: self.now)

    def advance(self, seconds: float, busy: float) -> None:
        self.now += seconds
        self.writer.busy_seconds += seconds * busy
