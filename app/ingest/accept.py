"""From a posted item to an event that can be written: checks, defaults, id, times, salt and commitment, each fixed once."""

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from time import time_ns
from typing import Any, NamedTuple
from uuid import UUID

from app import metrics
from app.errors import BadRequest
from app.events import ids
from app.events.canonical import canonical, depth_of
from app.events.catalog import Catalog, EventType
from app.events.envelope import PostedEvent, check_envelope, parse_address, parse_date, parse_timestamp, parse_uuid
from app.events.explain import Faults, bad_fields
from app.events.record import commitment, committed_jcs, ip_text, record

RETENTION_DAYS = 2555
PAYLOAD_BYTES_MAX = 256 * 1024
PAYLOAD_DEPTH_MAX = 10


@dataclass(slots=True)
class Draft:
    """One item of a request, checked as far as it can be without the database and the clock."""

    posted: PostedEvent
    pointer: str
    payload: bytes
    timestamp: datetime
    event_id: UUID | None
    parent_id: UUID | None
    parent_date: date | None
    actor_ip: str | None
    digest: bytes | None = None
    """SHA-256 of the item's canonical form, set when the client sent an event_id."""


class Acceptance(NamedTuple):
    """What is the same for every event of one request."""

    now: datetime
    parents: Mapping[UUID, date | None]
    """Dates of the parents that are known."""
    log: str
    person: str | None = None
    """The person who posts, who is the actor whatever the body says."""
    trace_id: str | None = None
    span_id: str | None = None
    """Of the caller, as its traceparent header names them."""


@dataclass(slots=True)
class Event:
    """One accepted event: `row` holds the columns fixed at acceptance (store.ACCEPTED_COLUMNS), `record` what is hashed."""

    id: UUID
    correlation_id: str
    row: tuple[Any, ...]
    record: dict[str, Any]
    digest: bytes | None
    size: int

    @property
    def date(self) -> date:
        return self.row[_EVENT_DATE]  # type: ignore[no-any-return]  # a row's values are Any


def draft(catalog: Catalog, item: Any, pointer: str, *, plain: bool, depth: int) -> Draft:
    """Check one item at `pointer` of the body. `plain` is its parse's, `depth` an upper bound of the item's nesting.

    BadRequest names everything that is wrong with the item.
    """
    try:
        return _draft(catalog, item, pointer, plain=plain, depth=depth)
    except BadRequest:
        raise _faults(catalog, item, pointer, plain=plain, depth=depth) from None


def _draft(catalog: Catalog, item: Any, pointer: str, *, plain: bool, depth: int) -> Draft:
    posted = check_envelope(item, pointer)
    payload = posted["event_data"]
    # First: it bounds what the check of the shape may have to tell.
    text = _payload_text(payload, pointer, plain=plain, depth=depth)
    event_type = catalog.check_payload(posted["event_type"], payload, pointer + "/event_data")
    moment = parse_timestamp(posted["event_timestamp"], pointer + "/event_timestamp")
    event_id, parent_id = posted.get("event_id"), posted.get("parent_event_id")
    parent_date, actor_ip = posted.get("parent_event_date"), posted.get("actor_ip")
    checked = Draft(
        posted,
        pointer,
        text,
        moment,
        None if event_id is None else parse_uuid(event_id, pointer + "/event_id"),
        None if parent_id is None else parse_uuid(parent_id, pointer + "/parent_event_id"),
        None if parent_date is None else parse_date(parent_date, pointer + "/parent_event_date"),
        None if actor_ip is None else ip_text(parse_address(actor_ip, pointer + "/actor_ip")),
    )
    if event_id is not None:
        checked.digest = hashlib.sha256(canonical(item, plain=plain)).digest()
    _count(event_type, posted)
    return checked


def _count(event_type: EventType | None, posted: PostedEvent) -> None:
    """What is accepted although it is not as the catalog has it."""
    if event_type is None:
        metrics.UNKNOWN_EVENT_TYPES.inc()
        return
    if event_type.category is not None and event_type.category != posted["event_category"]:
        metrics.FOREIGN_CATEGORY.labels(event_type.name).inc()
    if event_type.payload is not None and "event_type" not in posted["event_data"]:
        metrics.FREEFORM_WITH_TYPED_FORM.labels(event_type.name).inc()


def _faults(catalog: Catalog, item: Any, pointer: str, *, plain: bool, depth: int) -> BadRequest:
    """Every check once more, each whatever the others say, on a path where time does not matter."""
    faults = Faults()
    with faults:
        check_envelope(item, pointer)
    get = item.get if isinstance(item, dict) else {}.get
    payload, outer_type = get("event_data"), get("event_type")
    if isinstance(payload, dict):
        with faults:
            _payload_text(payload, pointer, plain=plain, depth=depth)
            catalog.check_payload(outer_type if isinstance(outer_type, str) else "", payload, pointer + "/event_data")
    for name, decode in _DECODED.items():
        if isinstance(text := get(name), str):
            with faults:
                decode(text, f"{pointer}/{name}")
    return faults.error()


_DECODED: dict[str, Callable[[str, str], object]] = {
    "event_timestamp": parse_timestamp,
    "parent_event_date": parse_date,
    "actor_ip": parse_address,
    "event_id": parse_uuid,
    "parent_event_id": parse_uuid,
}


def _payload_text(payload: dict[str, Any], pointer: str, *, plain: bool, depth: int) -> bytes:
    text = canonical(payload, plain=plain)
    if len(text) > PAYLOAD_BYTES_MAX:
        message = f"expected a size of at most {PAYLOAD_BYTES_MAX} bytes, got {len(text)}"
    elif depth > PAYLOAD_DEPTH_MAX + 1 and (levels := depth_of(payload)) > PAYLOAD_DEPTH_MAX:
        message = f"expected a nesting of at most {PAYLOAD_DEPTH_MAX} levels, got {levels}"
    else:
        return text
    raise bad_fields({pointer + "/event_data": message})


def fix(drafts: Sequence[Draft], event_ids: Sequence[UUID], acceptance: Acceptance) -> list[Event]:
    """The events of `drafts`, which get these ids, now as recorded_at and fresh salts. Nothing is drawn again later."""
    salts = os.urandom(16 * len(drafts))
    return [
        _event(item, event_id, salts[16 * i : 16 * i + 16], acceptance)
        for i, (item, event_id) in enumerate(zip(drafts, event_ids, strict=True))
    ]


def _event(item: Draft, event_id: UUID, salt: bytes, acceptance: Acceptance) -> Event:
    posted = item.posted
    get = posted.get
    category, correlation_id = posted["event_category"], posted["correlation_id"]
    retention_days = posted.get("retention_days") or RETENTION_DAYS
    actor = get("actor_type", "service"), get("actor_id", category + "-service")
    actor_type, actor_id = actor if acceptance.person is None else ("user", acceptance.person)
    row: dict[str, Any] = {
        "event_id": event_id,
        "event_version": posted["version"],
        "event_timestamp": item.timestamp,
        "event_date": item.timestamp.date(),
        "event_type": posted["event_type"],
        "event_category": category,
        "event_action": posted["event_action"],
        "event_outcome": posted["event_outcome"],
        "actor_type": actor_type,
        "actor_id": actor_id,
        "actor_ip": item.actor_ip,
        "resource_type": get("resource_type", category),
        "resource_id": get("resource_id", correlation_id),
        "correlation_id": correlation_id,
        "parent_event_id": item.parent_id,
        "parent_event_date": item.parent_date if item.parent_id is None else acceptance.parents.get(item.parent_id),
        "namespace": get("namespace"),
        "cluster_id": get("cluster_id", get("cluster_name")),
        "severity": get("severity", "info"),
        "duration_ms": get("duration_ms") or None,
        "error_code": get("error_code"),
        "error_message": get("error_message"),
        "event_data": item.payload,
        "retention_days": retention_days if retention_days > 0 else RETENTION_DAYS,
        "is_sensitive": get("is_sensitive") or False,
        "recorded_at": acceptance.now,
        "payload_salt": salt,
    }
    hashed = record(row, acceptance.log, commitment(salt, committed_jcs(row)))
    hashed["trace_id"], hashed["span_id"] = acceptance.trace_id, acceptance.span_id
    return Event(event_id, correlation_id, tuple(row.values()), hashed, item.digest, len(item.payload))


ACCEPTED_COLUMNS = (
    *("event_id", "event_version", "event_timestamp", "event_date", "event_type", "event_category", "event_action"),
    *("event_outcome", "actor_type", "actor_id", "actor_ip", "resource_type", "resource_id", "correlation_id"),
    *("parent_event_id", "parent_event_date", "namespace", "cluster_id", "severity", "duration_ms", "error_code"),
    *("error_message", "event_data", "retention_days", "is_sensitive", "recorded_at", "payload_salt"),
)
"""Columns of Event.row, in its order. trace_id and span_id stand in Event.record only, with which they are written."""
_EVENT_DATE = ACCEPTED_COLUMNS.index("event_date")


def computed_ids(drafts: Sequence[Draft], caller: str, source: tuple[str, str]) -> list[UUID]:
    """The client's own id where it sent one, else the id computed from `source`: the Idempotency-Key or the whole body."""
    return [item.event_id or ids.derived_event_id(item.timestamp, caller, source, i) for i, item in enumerate(drafts)]


def single_id(item: Draft) -> UUID:
    """The client's own id, or a UUIDv7 of now."""
    return item.event_id or ids.random_event_id(time_ns() // 1_000_000, os.urandom(10))
