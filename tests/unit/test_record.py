import hashlib
import ipaddress
import json
import random
import re
import runpy
import socket
import struct
from datetime import UTC, date, datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from uuid import UUID

import orjson
import pytest
import rfc8785

from app.events.catalog import Catalog
from app.events.record import commitment, committed_jcs, ip_packed, ip_text, record, record_leaf_hash
from app.ingest.accept import ACCEPTED_COLUMNS, Acceptance, accept, check_item
from tests.events import make_event

VECTORS = Path(__file__).parents[2] / "docs" / "vectors"
LOG = "example.test/datastorage"
ROW: dict[str, Any] = {
    "event_id": UUID("019ABC00-0000-7000-8000-00000000000A"),
    "event_version": "1.0",
    "event_timestamp": datetime(2026, 11, 23, 2, tzinfo=UTC),
    "recorded_at": datetime(2026, 11, 23, 2, 0, 0, 120045, tzinfo=UTC),
    "event_type": "gateway.signal.received",
    "event_category": "gateway",
    "event_action": "received",
    "event_outcome": "success",
    "actor_type": "service",
    "actor_id": "gateway-service",
    "resource_type": "Signal",
    "resource_id": "fp-1",
    "correlation_id": "rr-1",
    "event_data": b'{"a":1}',
}
RECORDED = (
    *("event_version", "event_type", "event_category", "event_action", "event_outcome", "actor_type", "resource_type"),
    *("correlation_id", "namespace", "cluster_id", "severity", "error_code", "trace_id", "span_id"),
)


@pytest.mark.parametrize(
    ("members", "others"),
    [
        ({}, {}),
        ({"event_timestamp": "0001-01-01T00:00:00Z"}, {"actor_override": "ada", "trace_id": "t", "span_id": "s"}),
        (
            {
                "parent_event_id": "019abc00-0000-7000-8000-000000000001",
                "parent_event_date": "2026-11-01T00:00:00Z",
                "namespace": "n",
                "cluster_id": "c",
                "severity": "high",
                "duration_ms": 7,
                "error_code": "E1",
                "error_message": "failed",
                "is_sensitive": True,
            },
            {"metadata": b'{"imported":true}'},
        ),
    ],
)
def test_accepted_as_verified(members: dict[str, Any], others: dict[str, Any]) -> None:
    """An event is accepted with another record or commitment than verification finds in its row."""
    draft = check_item(Catalog(), make_event(**members), "", plain=False, depth=3)
    [event] = accept([draft], [UUID(int=7)], Acceptance(datetime.now(UTC), {}, LOG, **others))
    row = dict(zip(ACCEPTED_COLUMNS, event.row, strict=True)) | {"event_metadata": event.metadata}
    row |= {name: event.record[name] for name in ("trace_id", "span_id")}
    assert record(row, LOG, commitment(row["payload_salt"], committed_jcs(row))) == event.record
    assert list(event.record) == sorted(event.record)
    assert event.record["trace_id"] == others.get("trace_id")


@pytest.mark.parametrize(
    "path", sorted([*VECTORS.glob("*.json"), *VECTORS.glob("notifications/*.json")]), ids=lambda path: path.stem
)
def test_vector_comes_out(path: Path) -> None:
    """Events that were hashed by an earlier version no longer verify."""
    vector = json.loads(path.read_text())
    assert runpy.run_path(str(VECTORS / "make.py"))["completed"](vector) == vector


def test_vectors_are_unchanged() -> None:
    """A vector that other implementations are compared with was edited."""
    digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest()[:16] for path in VECTORS.glob("*.json")}
    assert digests == {
        "0001-two-events.json": "768628514ec18c1a",
        "0002-nulls.json": "c6229b9d7d6565e3",
        "0003-odd-values.json": "36d0d7597c5f61f4",
        "0004-chain-of-three.json": "2eecf6ea5091e260",
        "0005-seam.json": "fb60707997d3eed1",
        "0006-policies.json": "a98bbaf5cbe685a8",
    }


def test_digests_of_notifications() -> None:
    """A digest in the log is another one than the published rules give, or the vector was edited."""
    path = VECTORS / "notifications" / "0001.json"
    for one in json.loads(path.read_text())["notifications"]:
        times = {name: datetime.fromisoformat(one["row"][name]) for name in ("sent_at", "created_at")}
        row = one["row"] | {name: f"{time:%Y-%m-%dT%H:%M:%S.%fZ}" for name, time in times.items()}
        assert rfc8785.dumps(row).decode() == one["jcs"]
        assert hashlib.sha256(bytes.fromhex(one["salt"]) + one["jcs"].encode()).hexdigest() == one["digest"]
    assert (
        hashlib.sha256(path.read_bytes()).hexdigest()
        == "25e97c640f9301237f5e36cacd548e1a367b26f3b87f35855c52dba09d79bb02"
    )


def test_the_readmes_lines_recompute_the_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    """The documented way for auditors to recompute hashes does not work."""
    monkeypatch.chdir(VECTORS.parents[1])
    code = re.search(r"```python\n(.*?)```", (VECTORS / "README.md").read_text(), re.DOTALL)
    assert code is not None
    exec(code[1], {})


def test_record_is_its_own_jcs() -> None:
    """The members of the record are out of order, or orjson writes one of them otherwise than RFC 8785."""
    texts = {name: f'{name}\b\t\n\f\r\x0b\x00\x1f\x7f\u2028\ufeff"\\/<&>é😀' for name in RECORDED}
    row = ROW | texts | {"duration_ms": -(2**31), "log_index": 2**53 - 1, "chain_index": 0, "is_sensitive": True}
    hashed = record(row, "log\u2029", bytes(32))
    jcs = rfc8785.dumps(hashed)
    assert orjson.dumps(hashed) == jcs
    assert record_leaf_hash(hashed) == hashlib.sha256(b"\0" + jcs).digest()


def test_committed_is_jcs() -> None:
    """The committed object is not its JCS: commitments cannot be checked by others."""
    row = ROW | {
        "actor_id": "\x00\x1f\x7f\u2028é😀",
        "error_message": '\b"\\/',
        "event_metadata": '{"é":[]}',
        "resource_name": "",
    }
    jcs = committed_jcs(row)
    assert jcs == rfc8785.dumps(json.loads(jcs))
    assert commitment(b"s" * 16, jcs) == hashlib.sha256(b"s" * 16 + jcs).digest()


def test_every_column_counts() -> None:
    """A column of the record or of the committed object can be edited without its hash noticing."""
    for name in (*RECORDED, "actor_id", "resource_id", "resource_name", "error_message"):
        assert _leaf(ROW | {name: "edited"}) != _leaf(ROW), name
    others = {
        "event_id": UUID(int=1),
        "event_timestamp": ROW["event_timestamp"] + timedelta(microseconds=1),
        "recorded_at": ROW["recorded_at"] + timedelta(microseconds=1),
        "parent_event_id": UUID(int=1),
        "parent_event_date": date(2026, 11, 23),
        "duration_ms": 0,
        "is_sensitive": False,
        "log_index": 0,
        "chain_index": 0,
        "previous_event_hash": "00" * 32,
        "actor_ip": "10.0.0.1",
        "event_data": b"{}",
        "event_metadata": b"{}",
    }
    for name, value in others.items():
        assert _leaf(ROW | {name: value}) != _leaf(ROW), name


def _leaf(row: dict[str, Any]) -> bytes:
    return record_leaf_hash(record(row, LOG, commitment(bytes(16), committed_jcs(row))))


def test_positions_assigned_later() -> None:
    """An event linked by the flush hashes otherwise than the same row read back."""
    linked = record(ROW, LOG, bytes(32))
    positions = {"log_index": 5, "chain_index": 1, "previous_event_hash": "ab" * 32}
    linked.update(positions)
    assert record_leaf_hash(linked) == record_leaf_hash(record(ROW | positions, LOG, bytes(32)))
    first = record(ROW | positions | {"previous_event_hash": ""}, LOG, bytes(32))
    assert first["previous_event_hash"] is None


@pytest.mark.parametrize(
    ("time", "text"),
    [
        (datetime(2026, 11, 23, 2, tzinfo=UTC), "2026-11-23T02:00:00.000000Z"),
        (datetime(2026, 11, 23, 2, 0, 0, 10, tzinfo=UTC), "2026-11-23T02:00:00.000010Z"),
        (datetime(2026, 1, 1, 1, 30, 0, 500000, tzinfo=timezone(timedelta(hours=2))), "2025-12-31T23:30:00.500000Z"),
        (datetime(1, 1, 1, tzinfo=UTC), "0001-01-01T00:00:00.000000Z"),
        (datetime.max.replace(tzinfo=UTC), "9999-12-31T23:59:59.999999Z"),
    ],
)
def test_times(time: datetime, text: str) -> None:
    """A time enters the record in another form."""
    hashed = record(ROW | {"event_timestamp": time, "recorded_at": time}, LOG, bytes(32))
    assert (hashed["event_timestamp"], hashed["recorded_at"]) == (text, text)


def test_stored_payload_is_read_again() -> None:
    """A row read back, whose jsonb has its own order and spacing, verifies no more."""
    row = ROW | {"event_data": b'{"e":1e+21,"\xf0\x9f\x98\x80":1,"\xef\xac\xb3":2.5}', "event_metadata": b"[1]"}
    back = row | {"event_data": '{"e": 1000000000000000000000, "דּ": 2.50, "😀": 1}', "event_metadata": "[1.0]"}
    assert committed_jcs(back, stored=True) == committed_jcs(row)


@pytest.mark.parametrize("text", ["10.0.0.1", "2001:db8::1", "::ffff:a00:1"])
def test_address_of_a_row(text: str) -> None:
    """An address verifies no more when asyncpg has read it, or a mask that was added to it goes unnoticed."""
    row = ROW | {"actor_ip": text}
    assert committed_jcs(row | {"actor_ip": ipaddress.ip_address(text)}) == committed_jcs(row)
    assert committed_jcs(row | {"actor_ip": ipaddress.ip_interface(text + "/24")}) != committed_jcs(row)


@pytest.mark.parametrize(
    ("text", "ours"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("0.0.0.0", "0.0.0.0"),
        ("::", "::"),
        ("::1", "::1"),
        ("1::", "1::"),
        ("2001:DB8:0:0:1:0:0:1", "2001:db8::1:0:0:1"),
        ("2001:0:0:1:0:0:0:1", "2001:0:0:1::1"),
        ("2001:db8:0:1:1:1:1:1", "2001:db8:0:1:1:1:1:1"),
        ("::ffff:1.2.3.4", "::ffff:102:304"),
        ("::1.2.3.4", "::102:304"),
        ("64:ff9b::192.0.2.33", "64:ff9b::c000:221"),
        ("1:2:3:4:5:6:7::", "1:2:3:4:5:6:7:0"),
    ],
)
def test_ip_text(text: str, ours: str) -> None:
    """An address is stored, hashed and shown in another form than RFC 5952 with hexadecimal groups."""
    assert ip_text(ip_packed(text)) == ours


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "1.2.3", "1.2.3.4.5", "1.2.3.256", "01.2.3.4", "1.2.3.04", "0x1.2.3.4", "1.2.3.4/32", "10.0.0.0/8"),
        *(
            "1.2.3.4 ",
            " 1.2.3.4",
            "1.2.3.4\n",
            "1.2.3.4\0",
            "\u0661.2.3.4",
            "-1.2.3.4",
            "16909060",
            "localhost",
            "1.2.3.4:80",
        ),
        *(
            ":",
            ":::",
            "::1/128",
            "fe80::1%eth0",
            "fe80::1%1",
            "1::2::3",
            "12345::",
            "g::",
            "[::1]",
            "::1.2.3",
            "::01.2.3.4",
        ),
        *("1:2:3:4:5:6:7:8:9", "1:2:3:4:5:6:7", "::1\0", "::é"),
    ],
)
def test_no_address(text: str) -> None:
    """What is no plain address reaches the database, or fails otherwise than with a 400."""
    with pytest.raises(ValueError):
        ip_packed(text)


def test_addresses_agree_with_the_standard_library() -> None:
    """Our forms of addresses are not those of everybody else."""
    rng = random.Random(5952)
    for _ in range(5000):
        packed = b"".join(rng.choice((b"\0\0", b"\0\0", b"\0\1", rng.randbytes(2))) for _ in range(8))
        text = ip_text(packed)
        assert ip_packed(text) == packed == ipaddress.IPv6Address(text).packed
        if packed[:10] != bytes(10):  # those that inet_ntop may write with a dotted end
            assert text == socket.inet_ntop(socket.AF_INET6, packed)
        assert ip_text(packed[:4]) == str(ipaddress.IPv4Address(packed[:4]))
        mangled = "".join(rng.choices("0123456789abf:.", k=rng.randrange(2, 16)))
        assert _packed(mangled) == _reference_packed(mangled), mangled


def _packed(text: str) -> bytes | None:
    try:
        return ip_packed(text)
    except ValueError:
        return None


def _reference_packed(text: str) -> bytes | None:
    try:
        return ipaddress.ip_address(text).packed
    except ValueError:
        return None


def test_ip_text_takes_addresses_only() -> None:
    """Bytes that are no address get a text."""
    with pytest.raises(struct.error, match="16 bytes"):
        ip_text(bytes(5))
