"""docs/receivers.md has the table of the mapping, and the code does what it has; both encodings read the same."""

import hashlib
import json
import re
from pathlib import Path

import pytest
from google.protobuf.message import Message
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.logs.v1.logs_pb2 import ScopeLogs

from app.events.catalog import Catalog
from app.events.otlp import json_form, protobuf
from app.events.otlp.log_record import LogRecord, number
from app.events.otlp.mapping import CONVENTIONS, MEMBERS, PREFIX, RESOURCE_CONVENTIONS, SEVERITIES, mapped
from tests.log_records import SCOPE, any_value, as_json, pairs, record, request

CATALOG = Catalog(accept_unknown=True)
ROWS = re.findall(
    r"^\| (`[^|]*) \| ([^|]*)\| ([^|]*)\|$",
    (Path(__file__).parents[2] / "docs" / "receivers.md").read_text("utf-8"),
    re.MULTILINE,
)


def names(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def documented(member: str) -> tuple[list[str], list[str]]:
    """The attributes that the table has for a member, and what else."""
    [(attributes, others)] = [(names(row[1]), names(row[2])) for row in ROWS if member in names(row[0])]
    return [name for name in attributes if not name.startswith(PREFIX) or name == PREFIX + member], others


@pytest.mark.parametrize("member", MEMBERS)
def test_the_table_is_what_the_code_does(member: str) -> None:
    """Somebody names an attribute as documented, and it has no effect; or a member is missing in the documentation."""
    attributes, others = documented(member)
    conventional = [*CONVENTIONS.get(member, ())]
    if member == "event_type":  # after the record's own event name
        assert attributes == [PREFIX + member]
        assert others == conventional
        return
    assert attributes == [PREFIX + member, *conventional]
    if member in RESOURCE_CONVENTIONS:
        assert RESOURCE_CONVENTIONS[member] in others


def test_severities() -> None:
    """A severity is documented from another number on."""
    text = next(row[2] for row in ROWS if "severity" in names(row[0]))
    assert re.findall(r"`(\w+)` from (\d+)", text) == [(name, str(low)) for low, name in reversed(SEVERITIES)]
    for severity_number, severity in (
        (1, "debug"),
        (8, "debug"),
        (9, "info"),
        (13, "warning"),
        (20, "error"),
        (24, "critical"),
    ):
        assert mapped(LogRecord(severity_number=severity_number), CATALOG).item["severity"] == severity
    assert "severity" not in mapped(LogRecord(), CATALOG).item


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats()
    | st.text(st.characters(exclude_categories=["Cs"]))
    | st.binary(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=5), inner, max_size=4)
    ),
    max_leaves=12,
)


@settings(deadline=None)
@given(VALUES, st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=8), VALUES, max_size=3))
def test_both_encodings_are_one_record(body: object, attributes: dict[str, object]) -> None:
    """The same record has another id, or another content, in the other encoding: sent again it is stored twice."""
    one = record(attributes=attributes, trace_id=b"\1" * 16, severity_number=9)
    one.body.CopyFrom(any_value(body))
    sent = request(one)
    [(place, read)] = protobuf.records(sent.SerializeToString(), 10)
    [(other_place, other)] = json_form.records(json.dumps(as_json(sent)).encode())
    assert isinstance(read, LogRecord)
    assert (place, read) == (other_place, other)
    assert isinstance(other, LogRecord)
    assert read.digest() == other.digest()


def test_the_digest_never_changes() -> None:
    """A record that a collector sends again after an upgrade is stored twice."""
    made = LogRecord(
        {"service.name": "a"}, {"name": "s"}, {"k": [1, 0.5, None]}, "text", "t", 17, 9, "INFO", "01" * 16, "02" * 8, 1
    )
    text = f'[{{"service.name":"a"}},{{"name":"s"}},{{"k":[1,0.5,null]}},"text","t",17,9,"INFO","{"01" * 16}","{"02" * 8}",1]'
    assert made.digest() == hashlib.sha256(text.encode()).hexdigest()


def test_numbers() -> None:
    """A double becomes a number that is another one, or no JSON."""
    assert [number(value) for value in (5.0, -0.0, 0.1, 1e23, 2.0**53, -1e300)] == [
        5,
        0,
        0.1,
        10**23,
        2**53,
        -(10**300),
    ]
    assert [number(float(text)) for text in ("nan", "inf", "-inf")] == ["NaN", "Infinity", "-Infinity"]


def test_parts_are_joined() -> None:
    """A resource that arrives in two parts, as protobuf allows, loses one of them."""
    whole = request(record(), resource={"a": 1})
    more = request(resource={"b": 2})
    more.resource_logs[0].ClearField("scope_logs")
    joined = whole.resource_logs[0].SerializeToString() + more.resource_logs[0].SerializeToString()
    size = len(joined)
    body = b"\x0a" + bytes([size & 127 | 128, size >> 7]) + joined
    [(_, read)] = protobuf.records(body, 10)
    assert isinstance(read, LogRecord)
    assert read.resource == {"a": 1, "b": 2}
    assert pairs({}) == []


def test_only_what_records_have_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Resources and scopes without a record, of which a body has megabytes, are read in one go, and nobody else is answered meanwhile."""
    sent = request(record(), record())
    sent.resource_logs[0].scope_logs.insert(0, ScopeLogs(scope=SCOPE))
    for _ in range(3):
        sent.resource_logs.add().CopyFrom(request(resource={"a": 1}).resource_logs[0])
    kinds, parsed = list[str](), protobuf._parsed

    def counted(kind: type[Message], message: bytes, bytes_max: int) -> Message:
        kinds.append(kind.DESCRIPTOR.name)
        return parsed(kind, message, bytes_max)

    monkeypatch.setattr(protobuf, "_parsed", counted)
    assert [place for place, _ in protobuf.records(sent.SerializeToString(), 10)] == [
        "/resourceLogs/0/scopeLogs/1/logRecords/0",
        "/resourceLogs/0/scopeLogs/1/logRecords/1",
    ]
    assert kinds == ["Resource", "InstrumentationScope", "LogRecord", "LogRecord"]
