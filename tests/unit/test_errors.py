"""The label of each error in the metrics. Dashboards and alerts depend on its values."""

import pytest

from app.errors import AuditError, BadRequest, Conflict, DatabaseAway, DatabaseFailed, InboxFull, KeyBusy, KeyReused
from app.ingest.spool import SpoolFailed, SpoolFull
from app.ingest.store import MonthDetached, RowRefused

LABELS = {
    BadRequest: "BadRequest",
    Conflict: "Conflict",
    DatabaseAway: "DatabaseAway",
    DatabaseFailed: "DatabaseFailed",
    InboxFull: "InboxFull",
    KeyBusy: "KeyBusy",
    KeyReused: "KeyReused",
    MonthDetached: "MonthAway",
    RowRefused: "Refused",
    SpoolFailed: "SpoolFailed",
    SpoolFull: "SpoolFull",
}


@pytest.mark.parametrize(("kind", "label"), LABELS.items())
def test_label_of_a_refusal(kind: type[AuditError], label: str) -> None:
    """datastorage_events_refused_total has another value of `reason` than before, since a class was renamed."""
    assert kind().label == label
