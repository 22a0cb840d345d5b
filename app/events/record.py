"""The hash of an event: its record, version 1, and the commitment to what can be erased (docs/design.md, section 4).

Never changes. A row is a mapping by column name; columns that it does not have are NULL. The write path and verification
use the same functions, and differ only in the origin of the row.
"""

import socket
import struct
from datetime import UTC, date, datetime
from hashlib import sha256
from ipaddress import IPv4Address, IPv6Address
from typing import Any, Protocol
from uuid import UUID

import orjson

from app.events.canonical import canonical, loads
from app.events.log import Log, place_of

_UTC = orjson.OPT_UTC_Z | orjson.OPT_NAIVE_UTC


class Row(Protocol):
    """A dict on the write path, an asyncpg.Record when read from Postgres."""

    def __getitem__(self, name: str, /) -> Any: ...
    def get(self, name: str, /) -> Any: ...


def committed_jcs(row: Row, *, stored: bool = False) -> bytes:
    """The JCS of the committed object. If `stored`, event_data and event_metadata are jsonb's text, else canonical JSON."""
    get = row.get
    event_data, event_metadata = get("event_data"), get("event_metadata")
    if stored:
        event_data, event_metadata = _canonical(event_data), _canonical(event_metadata)
    return committed_members(
        get("actor_id"),
        address_text(get("actor_ip")),
        get("error_message"),
        event_data,
        event_metadata,
        get("resource_id"),
        get("resource_name"),
    )


def committed_members(  # noqa: PLR0917 - an argument that is passed by its name costs as much again
    actor_id: str | None,
    actor_ip: str | None,
    error_message: str | None,
    event_data: bytes | None,
    event_metadata: bytes | None,
    resource_id: str | None,
    resource_name: str | None,
) -> bytes:
    """The JCS of the committed object with these members, of which the two that are JSON are canonical."""
    return orjson.dumps(
        {
            "actor_id": actor_id,
            "actor_ip": actor_ip,
            "error_message": error_message,
            "event_data": None if event_data is None else orjson.Fragment(event_data),
            "event_metadata": None if event_metadata is None else orjson.Fragment(event_metadata),
            "resource_id": resource_id,
            "resource_name": resource_name,
        }
    )


def commitment(salt: bytes, committed: bytes) -> bytes:
    """The salted hash of the committed object, which stays in the record after that object is erased."""
    return sha256(salt + committed).digest()


def commitment_of(row: Row, *, stored: bool = True) -> bytes:
    """The commitment of a row of the log: the stored one if the row is erased, else computed from its salt and content.

    Salt and commitment are bytes, or hex digits as in exports. A row without salt was changed after it was written; its
    commitment is computed with an empty salt. ValueError for text that is not hexadecimal.
    """
    erased = _bytes_or_none(row.get("payload_commitment"))
    if erased is not None:
        return erased
    return commitment(_bytes_or_none(row.get("payload_salt")) or b"", committed_jcs(row, stored=stored))


def stored_hash(row: Row, log_name: str, *, stored: bool = True) -> str:
    """The leaf hash, in hex, of the record that is computed from a row of the log named `log_name`."""
    return record_leaf_hash(record(row, log_name, commitment_of(row, stored=stored))).hex()


def is_logged(row: Row, log: Log) -> bool:
    """Whether a stored row is what its log, which is `log` or one before it, has at its position: it hashes to `leaf`, its leaf there."""
    leaf = row["leaf"]
    return leaf is not None and bool(stored_hash(row, log.name_of(row["log_id"])) == leaf)


def place(row: Row) -> int | None:
    """The place (place_of) that a row says it has; None without a position."""
    index = row.get("log_index")
    return None if index is None else place_of(row.get("log_id"), index)


def record(row: Row, log_name: str, commitment: bytes) -> dict[str, Any]:
    """The record of `row` in the log named `log_name`, members in JCS order.

    The flush sets its log_index, chain_index and previous_event_hash (None for the first of a chain) later.
    """
    get = row.get
    return record_members(
        row["actor_type"],
        get("chain_index"),
        get("cluster_id"),
        commitment,
        row["correlation_id"],
        get("duration_ms"),
        get("error_code"),
        row["event_action"],
        row["event_category"],
        row["event_id"],
        row["event_outcome"],
        time_text(row["event_timestamp"]),
        row["event_type"],
        row["event_version"],
        get("is_sensitive"),
        log_name,
        get("log_index"),
        get("namespace"),
        get("parent_event_date"),
        get("parent_event_id"),
        get("previous_event_hash"),
        time_text(row["recorded_at"]),
        row["resource_type"],
        get("severity"),
        get("span_id"),
        get("trace_id"),
    )


def record_members(  # noqa: PLR0917 - as above
    actor_type: str,
    chain_index: int | None,
    cluster_id: str | None,
    commitment: bytes,
    correlation_id: str,
    duration_ms: int | None,
    error_code: str | None,
    event_action: str,
    event_category: str,
    event_id: UUID,
    event_outcome: str,
    event_timestamp: str,
    event_type: str,
    event_version: str,
    is_sensitive: bool | None,
    log: str,
    log_index: int | None,
    namespace: str | None,
    parent_event_date: date | None,
    parent_event_id: UUID | None,
    previous_event_hash: str | None,
    recorded_at: str,
    resource_type: str,
    severity: str | None,
    span_id: str | None,
    trace_id: str | None,
) -> dict[str, Any]:
    """The record with these members, in their order, times as time_text() writes them. A row that is written has them at hand: to look
    each up by its name costs as much as all the rest.
    """
    return {
        "actor_type": actor_type,
        "chain_index": chain_index,
        "cluster_id": cluster_id,
        "commitment": commitment.hex(),
        "correlation_id": correlation_id,
        "duration_ms": duration_ms,
        "error_code": error_code,
        "event_action": event_action,
        "event_category": event_category,
        "event_id": str(event_id),
        "event_outcome": event_outcome,
        "event_timestamp": event_timestamp,
        "event_type": event_type,
        "event_version": event_version,
        "is_sensitive": is_sensitive,
        "log": log,
        "log_index": log_index,
        "namespace": namespace,
        "parent_event_date": None if parent_event_date is None else parent_event_date.isoformat(),
        "parent_event_id": None if parent_event_id is None else str(parent_event_id),
        "previous_event_hash": previous_event_hash or None,
        "recorded_at": recorded_at,
        "resource_type": resource_type,
        "severity": severity,
        "span_id": span_id,
        "trace_id": trace_id,
        "v": 1,
    }


def record_leaf_hash(record: dict[str, Any]) -> bytes:
    """The RFC 6962 leaf hash: it is the event's leaf in the log and the link of the next event in its chain."""
    return sha256(b"\0" + orjson.dumps(record)).digest()


def ip_packed(text: str) -> bytes:
    """The 4 or 16 bytes of a plain address; ValueError for masks, zones, leading zeros and anything else."""
    try:
        return socket.inet_pton(socket.AF_INET6 if ":" in text else socket.AF_INET, text)
    except OSError:
        raise ValueError(f"{text!r} is not an IP address") from None


def ip_text(packed: bytes) -> str:
    """The canonical text of an address: dotted for IPv4; RFC 5952 with hex groups only for IPv6, also for mapped IPv4."""
    if len(packed) == 4:
        return "{}.{}.{}.{}".format(*packed)
    groups = [f"{group:x}" for group in struct.unpack(">8H", packed)]
    for length in range(groups.count("0"), 1, -1):
        for start in range(9 - length):
            if groups[start : start + length] == ["0"] * length:
                return f"{':'.join(groups[:start])}::{':'.join(groups[start + length :])}"
    return ":".join(groups)


def address_text(address: Any) -> str | None:
    """An address as it is in the record, from the canonical text or from asyncpg's value."""
    # Text is canonical already. For an address with a mask, which we never write, asyncpg returns a subclass whose packed
    # bytes do not contain the mask.
    if address is None or type(address) is str:
        return address
    return ip_text(address.packed) if type(address) in (IPv4Address, IPv6Address) else str(address)


def _bytes_or_none(value: bytes | str | None) -> bytes | None:
    return bytes.fromhex(value) if isinstance(value, str) else value


def _canonical(text: str | bytes | None) -> bytes | None:
    return None if text is None else canonical(loads(text))


def time_text(time: datetime) -> str:
    """A time as it is in the record: RFC 3339 in UTC with six digits of fraction."""
    # asyncpg returns `infinity`, which only SQL can write, without a zone.
    if time.tzinfo is not UTC and time.tzinfo is not None:
        time = time.astimezone(UTC)
    # Takes a quarter of isoformat's time. orjson omits microseconds that are zero.
    text = orjson.dumps(time, option=_UTC).decode()
    return text[1:-1] if time.microsecond else text[1:-2] + ".000000Z"
