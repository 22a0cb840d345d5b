"""The reference's hash, by the two events of its own database that the contract prints."""

import json
from datetime import UTC, date, datetime
from typing import Any
from uuid import UUID

import pytest

from app.events.reference import reference_hash, reference_json, trimmed_rfc3339

FIRST_HASH = "f2491b2514760326fd21557167ea69edbf89da6277582ec6cb4452cc4fc14f1d"
FIRST_TEXT = (
    '{"event_id":"82eb5642-b148-4ceb-a167-aac7e7dba9c4","event_timestamp":"2026-11-22T17:59:33.227096Z",'
    '"event_date":null,"event_type":"gateway.signal.received","version":"1.0","event_category":"gateway",'
    '"event_action":"received","event_outcome":"success","correlation_id":"hv-819550","parent_event_id":null,'
    '"parent_event_date":null,"resource_type":"gateway","resource_id":"hv-819550","severity":"info",'
    '"actor_id":"gateway-service","actor_type":"service","retention_days":2555,"is_sensitive":false,"event_hash":"",'
    '"previous_event_hash":"","legal_hold":false,"legal_hold_reason":"","legal_hold_placed_by":"",'
    '"legal_hold_placed_at":null,"event_data":{"event_type":"gateway.signal.received","fingerprint":"fp-1",'
    '"namespace":"default","signal_name":"HighCPU","signal_type":"alert"}}'
)
PAYLOAD = {
    "signal_type": "alert",
    "event_type": "gateway.signal.received",
    "fingerprint": "fp-1",
    "namespace": "default",
    "signal_name": "HighCPU",
}
FIRST: dict[str, Any] = {
    "event_id": UUID("82eb5642-b148-4ceb-a167-aac7e7dba9c4"),
    "event_timestamp": datetime(2026, 11, 22, 17, 59, 33, 227096, tzinfo=UTC),
    "event_type": "gateway.signal.received",
    "event_version": "1.0",
    "event_category": "gateway",
    "event_action": "received",
    "event_outcome": "success",
    "correlation_id": "hv-819550",
    "resource_type": "gateway",
    "resource_id": "hv-819550",
    "severity": "info",
    "actor_id": "gateway-service",
    "actor_type": "service",
    "retention_days": 2555,
    "is_sensitive": False,
    "event_data": json.dumps(PAYLOAD),
}
# As jsonb gives it back: large numbers in plain digits.
ORIGINAL_PAYLOAD = (
    '{"z":null,"x":12345678901234567890,"t":true,"r":-3,"q":0.1,"n":1000000000000000000000,"m":0.0000001,"k":1.0,'
    f'"e9":0.000000001,"big":15{"0" * 299},"a":[1.5,{{"b":2}}],'
    '"<b>":"<&>\u2028\\u0001\x7f\U0001f600\u00e9"}'
)
SECOND = FIRST | {
    "event_id": UUID("a95b8bf8-e2ab-4fdb-9541-f32ccc5c9d7e"),
    "event_timestamp": datetime(2026, 11, 22, 17, 59, 33, 287750, tzinfo=UTC),
    "parent_event_id": FIRST["event_id"],
    "parent_event_date": date(2026, 11, 22),
    "namespace": "n",
    "cluster_id": "c",
    "severity": "critical",
    "duration_ms": 7,
    "error_code": "E",
    "error_message": "m<",
    "actor_ip": "10.0.0.1",
    "retention_days": 30,
    "is_sensitive": True,
    "event_data": json.dumps(PAYLOAD)[:-1] + f',"original_payload":{ORIGINAL_PAYLOAD}}}',
}


def test_text_of_the_first_vector() -> None:
    """The text that is hashed is not the reference's, byte for byte."""
    assert reference_json(FIRST) == FIRST_TEXT


def test_first_vector() -> None:
    """Every row that the reference wrote looks edited."""
    assert reference_hash(FIRST, "") == FIRST_HASH


def test_first_vector_with_key() -> None:
    """Rows that were hashed with a key look edited."""
    keyed = reference_hash(FIRST, "", b"k" * 32)
    assert keyed == "8fb1b532a3a20677107fdf562f0bc0f7ff3a9986c1b4da9ab976ff67d51dd276"


def test_second_vector() -> None:
    """Optional columns, escapes or numbers are not written as the reference writes them, or the link is left out."""
    assert reference_hash(SECOND, FIRST_HASH) == "b968baccedbd7e6afc060286d15763c73c63e852c98de212516409c093219d40"


@pytest.mark.parametrize(
    ("number", "written"),
    [
        ("12345678901234567890", "12345678901234567000"),
        ("5.0", "5"),
        ("0", "0"),
        ("0.1", "0.1"),
        ("0.000001", "0.000001"),
        ("0.0000001", "1e-7"),
        ("0.00000000012", "1.2e-10"),
        ("999999999999999999999", "1e+21"),
        ("100000000000000000000", "100000000000000000000"),
        ("-1" + "0" * 22, "-1e+22"),
        ("0.1000000000000000055", "0.1"),
    ],
)
def test_numbers_are_doubles_in_go_form(number: str, written: str) -> None:
    """A payload with such a number looks edited."""
    assert reference_json(FIRST | {"event_data": f'{{"n":{number}}}'}).endswith(f'"event_data":{{"n":{written}}}}}')


@pytest.mark.parametrize(
    "event_data", ['{"n":1' + "0" * 400 + "}", '{"n":1' + "0" * 5000 + "}", "[" * 3000 + "]" * 3000]
)
def test_what_the_reference_cannot_have_written(event_data: str) -> None:
    """A row that somebody else wrote ends the verification of all others."""
    with pytest.raises(ValueError, match="event_data"):
        reference_hash(FIRST | {"event_data": event_data}, "")


@pytest.mark.parametrize(
    ("microsecond", "written"),
    [(0, "2026-01-02T03:04:00Z"), (287750, "2026-01-02T03:04:00.28775Z"), (1, "2026-01-02T03:04:00.000001Z")],
)
def test_times_have_no_needless_digits(microsecond: int, written: str) -> None:
    """Times on the wire and in the reference's hash end in zeros."""
    assert trimmed_rfc3339(datetime(2026, 1, 2, 3, 4, 0, microsecond, tzinfo=UTC)) == written
