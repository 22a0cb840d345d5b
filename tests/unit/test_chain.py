"""The verification of one chain, with rows that were never in a database."""

from datetime import UTC, date, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from app.events.log import Log
from app.events.record import commitment, committed_jcs, record, record_leaf_hash
from app.verify import row as rows_module
from app.verify.chain import ChainChecker, gap_defect
from app.verify.row import Kind

LOG = "example.test/datastorage"
Row = dict[str, Any]


def sealed(length: int) -> list[Row]:
    """Rows of one correlation as they come from the database; the middle one is late by its client's clock."""
    rows: list[Row] = []
    for index in range(length):
        time = datetime(2026, 11, 23, 2, 0, index, tzinfo=UTC) - timedelta(days=3 if index == 1 else 0)
        row: Row = {
            "event_id": UUID(int=index),
            "event_version": "1.0",
            "event_timestamp": time,
            "event_date": time.date(),
            "recorded_at": time,
            **dict.fromkeys(("event_type", "event_category", "event_action", "event_outcome"), "x"),
            **dict.fromkeys(("actor_type", "actor_id", "resource_type", "resource_id"), "x"),
            "correlation_id": "rr-1",
            "event_data": '{"step": 5.0, "text": "é"}',
            "payload_salt": bytes([index] * 16),
            "log_id": 0,
            "log_index": 40 + index,
            "chain_index": index,
            "previous_event_hash": rows[-1]["event_hash"] if rows else "",
        }
        rows.append(row | {"event_hash": hash_of(row)})
    return rows


def hash_of(row: Row) -> str:
    return record_leaf_hash(record(row, LOG, commitment(row["payload_salt"], committed_jcs(row, stored=True)))).hex()


def check(rows: list[Row], head: tuple[int, str] | None) -> tuple[ChainChecker, list[tuple[Kind, int | None]]]:
    """The chain, and of each defect its kind and the log_index of its row."""
    one = ChainChecker(Log(0, LOG))
    for row in rows:
        one.check(row, row["event_hash"])
    end = one.check_head(head)
    for gap, following in one.gaps:  # nothing was purged
        if following is None:
            end = gap_defect(gap, None)
        else:
            one.defects.add(gap_defect(gap, following))
    places = {row["event_id"]: row["log_index"] for row in rows}
    found: list[tuple[Kind, int | None]] = [(d.kind, places[d.event_id]) for d in one.defects.listed if d.event_id]
    return one, found if end is None else [*found, (end.kind, None)]


def head_of(rows: list[Row]) -> tuple[int, str]:
    return len(rows), rows[-1]["event_hash"]


def test_whole_chain() -> None:
    """An honest chain with a late event is reported as damaged."""
    rows = sealed(4)
    one, found = check(rows, head_of(rows))
    assert found == []
    assert (one.total, one.verified) == (4, 4)


def test_unknown_correlation() -> None:
    """A correlation of which nobody ever heard is reported as damaged."""
    assert check([], None)[1] == []


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("event_data", '{"step": 6, "text": "é"}'),
        ("actor_id", "somebody"),
        ("event_timestamp", datetime(2026, 11, 23, 3, tzinfo=UTC)),
        ("recorded_at", datetime(2026, 11, 23, 3, tzinfo=UTC)),
        ("severity", "low"),
        ("log_index", 99),
        ("event_id", UUID(int=99)),
        ("payload_salt", None),
        ("event_date", date(2026, 11, 22)),
        ("log_id", 1),
        ("log_id", None),
        ("payload_commitment", bytes(32)),
    ],
)
def test_edited_column(column: str, value: object) -> None:
    """Somebody changed a column of one row and nobody notices."""
    rows = sealed(3)
    rows[2][column] = value
    assert check(rows, head_of(rows))[1] == [("edited", rows[2]["log_index"])]


def test_edited_hash() -> None:
    """An overwritten event_hash goes unnoticed, or the row after it is not named as well."""
    rows = sealed(3)
    true_hash, rows[1]["event_hash"] = rows[1]["event_hash"], "tampered-" + "x" * 65
    one, found = check(rows, head_of(rows))
    assert found == [("edited", 41), ("edited", 42)]
    own, link = one.defects.listed
    assert (own.expected_hash, own.actual_hash) == (true_hash, rows[1]["event_hash"])
    assert (link.expected_hash, link.actual_hash, link.previous_hash) == ("", "", true_hash)


def test_rehashed_event() -> None:
    """An event that was changed together with its hash goes unnoticed by the one after it, or by the head."""
    rows = sealed(3)
    for changed, others in ((1, [("edited", 42)]), (2, [("edited", None)])):
        forged = [dict(row) for row in rows]
        forged[changed]["actor_id"] = "somebody"
        forged[changed]["event_hash"] = hash_of(forged[changed])
        assert check(forged, head_of(rows))[1] == others


def test_removed_events() -> None:
    """Events that are missing at the beginning or in the middle go unnoticed."""
    rows = sealed(5)
    assert check(rows[2:], head_of(rows))[1] == [("removed", 42)]
    assert check([rows[0], *rows[3:]], head_of(rows))[1] == [("removed", 43)]


def test_truncated_chain() -> None:
    """A missing tail, or a chain of which nothing is left, goes unnoticed."""
    rows = sealed(4)
    assert check(rows[:3], head_of(rows))[1] == [("truncated", None)]
    assert check([], head_of(rows))[1] == [("truncated", None)]


def test_missing_head() -> None:
    """Without its head a chain could lose its tail unnoticed."""
    assert check(sealed(2), None)[1] == [("removed", None)]


def test_event_after_the_head() -> None:
    """An event that was inserted after the end of the chain goes unnoticed."""
    rows = sealed(3)
    assert check(rows, head_of(rows[:2]))[1] == [("inserted", None)]


def test_duplicate_position() -> None:
    """A second event at one position goes unnoticed, or the honest ones around it are blamed for it."""
    rows = sealed(4)
    second = rows[1] | {"event_id": UUID(int=9), "log_index": 90}
    second["event_hash"] = hash_of(second)
    assert check([*rows[:2], second, *rows[2:]], head_of(rows))[1] == [("inserted", 90)]
    assert check([*rows, rows[3] | {"log_index": 90}], head_of(rows))[1] == [("inserted", 90), ("edited", 90)]


@pytest.mark.parametrize("index", [None, -5])
def test_no_position(index: int | None) -> None:
    """A row whose position was deleted ends the verification, or goes unnoticed."""
    rows = sealed(3)
    last = rows[2] | {"chain_index": index}
    assert ("edited", 42) in check([*rows[:2], last], head_of(rows))[1]


def test_no_hash() -> None:
    """A sealed row whose event_hash was set to NULL counts as one that never had a hash."""
    rows = sealed(2)
    rows[1]["event_hash"] = None
    assert check(rows, head_of(sealed(2)))[1] == [("edited", 41), ("edited", None)]


def test_defects_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A chain of which every event is damaged uses up the memory."""
    monkeypatch.setattr(rows_module, "DEFECTS_MAX", 3)
    one, _ = check([row | {"actor_id": "somebody"} for row in sealed(5)], None)
    assert len(one.defects.listed) == 3
    assert one.defects.count == 5
