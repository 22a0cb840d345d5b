"""From a posted item to an event that can be written. Two steps, whose results never change afterwards:

check_item() checks what needs neither the database nor the clock; accept() fixes defaults, id, times, salt and commitment.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from functools import lru_cache
from time import time_ns
from types import MappingProxyType
from typing import Any, NamedTuple
from uuid import UUID

from app import metrics
from app.errors import BadRequest
from app.events import ids
from app.events.canonical import canonical, depth_of
from app.events.catalog import Catalog, EventType
from app.events.envelope import (
    ZERO_TIME,
    PostedEvent,
    check_envelope,
    parse_address,
    parse_date,
    parse_timestamp,
    parse_uuid,
)
from app.events.explain import Faults, bad_fields
from app.events.record import commitment, committed_members, ip_packed, ip_text, record_members, time_text

RETENTION_DAYS = 2555
PAYLOAD_BYTES_MAX = 256 * 1024
PAYLOAD_DEPTH_MAX = 10


@dataclass(slots=True)
class Draft:
    """One item of a request, checked as far as that needs neither the database nor the clock."""

    posted: PostedEvent
    pointer: str
    payload: bytes
    """In canonical form."""
    timestamp: datetime | None
    """None: not given, so that it will be the time of arrival."""
    event_id: UUID | None
    parent_id: UUID | None
    parent_date: date | None
    actor_ip: str | None
    digest: bytes | None = None
    """SHA-256 of the item's canonical form, set when its id does not follow from its content: the client sent the id, or no time."""
    trace: tuple[str | None, str | None] | None = None
    """Trace and span id that the item has itself; None: those of its request."""


class Acceptance(NamedTuple):
    """What all events of one request share."""

    now: datetime
    parents: Mapping[UUID, date | None]
    """Dates of the parents that were found; None where the client sent none and Postgres was away."""
    log_name: str
    actor_override: str | None = None
    """The person who posts: the actor of every event, also if the body names another one. None if the body names the actor."""
    trace_id: str | None = None
    span_id: str | None = None
    """Of the caller, from its traceparent header."""
    other_ids: Mapping[UUID, tuple[UUID, ...]] = MappingProxyType({})
    """By id of an event: those under which another send of the same item may be stored."""
    aliases: Mapping[UUID, UUID] = MappingProxyType({})
    """By id of an event: what it can be found by too, when its item is sent again in another body."""
    metadata: bytes | None = None
    """event_metadata of imported events, in canonical form. These keep their own times, however old."""


@dataclass(slots=True)
class Event:
    """One accepted event: `row` has the columns fixed at acceptance (ACCEPTED_COLUMNS), `record` the members that are hashed."""

    id: UUID
    correlation_id: str
    row: tuple[Any, ...]
    record: dict[str, Any]
    digest: bytes | None
    payload_bytes: int
    metadata: bytes | None = None
    """event_metadata in canonical form; like the trace it is written beside `row`."""
    other_ids: tuple[UUID, ...] = ()
    """Ids under which another send of the same item may be stored."""
    alias: UUID | None = None
    """Of an item of a lenient batch that may be corrected: the id of the item alone, claimed for this event."""

    @property
    def is_imported(self) -> bool:
        return self.metadata is not None and self.metadata != TIME_RECEIVED

    @property
    def possible_ids(self) -> tuple[UUID, ...]:
        """The ids under which this event may be stored: its own first."""
        return self.id, *self.other_ids

    @property
    def timestamp(self) -> datetime:
        return self.row[_EVENT_TIMESTAMP]  # type: ignore[no-any-return]  # a row's values are Any

    @property
    def date(self) -> date:
        return self.row[_EVENT_DATE]  # type: ignore[no-any-return]  # a row's values are Any


def check_item(catalog: Catalog, item: Any, pointer: str, *, plain: bool, depth: int) -> Draft:
    """The draft of one item, which is at `pointer` (RFC 6901) of the body. Raises BadRequest, naming every fault of the item.

    `plain` is that of the parsed document, `depth` an upper bound of the item's nesting.
    """
    try:
        return _check_item(catalog, item, pointer, plain=plain, depth=depth)
    except BadRequest:
        raise _faults(catalog, item, pointer, plain=plain, depth=depth) from None


def _check_item(catalog: Catalog, item: Any, pointer: str, *, plain: bool, depth: int) -> Draft:
    posted = check_envelope(item, pointer)
    catalog.check_correlation_id(posted["correlation_id"], pointer + "/correlation_id")
    payload = posted["event_data"]
    # First: it bounds the length of what the check of the payload may have to report.
    text = _canonical_payload(payload, pointer, plain=plain, depth=depth)
    event_type = catalog.check_payload(posted["event_type"], payload, pointer + "/event_data")
    sent_timestamp = posted["event_timestamp"]
    event_timestamp = (
        None if sent_timestamp == ZERO_TIME else parse_timestamp(sent_timestamp, pointer + "/event_timestamp")
    )
    event_id, parent_id = posted.get("event_id"), posted.get("parent_event_id")
    parent_date, actor_ip = posted.get("parent_event_date"), posted.get("actor_ip")
    draft = Draft(
        posted,
        pointer,
        text,
        event_timestamp,
        None if event_id is None else parse_uuid(event_id, pointer + "/event_id"),
        None if parent_id is None else parse_uuid(parent_id, pointer + "/parent_event_id"),
        None if parent_date is None else parse_date(parent_date, pointer + "/parent_event_date"),
        None if actor_ip is None else _address(actor_ip, pointer),
    )
    if event_id is not None or event_timestamp is None:
        draft.digest = hashlib.sha256(canonical(item, plain=plain)).digest()
    if event_timestamp is None:
        metrics.EVENTS_WITHOUT_TIME.inc()
    _count_deviations(event_type, posted)
    return draft


def _address(text: str, pointer: str) -> str:
    try:
        return _canonical_address(text)
    except ValueError:
        return ip_text(parse_address(text, pointer + "/actor_ip"))  # which says what is wrong


@lru_cache(4096)
def _canonical_address(text: str) -> str:
    """The text of an address as records have it. Remembered: the events of a cluster come from few addresses."""
    return ip_text(ip_packed(text))


def _count_deviations(event_type: EventType | None, posted: PostedEvent) -> None:
    """Count valid items of a type that is not in the catalog, or that differ from the catalog."""
    if event_type is None:
        metrics.UNKNOWN_EVENT_TYPES.inc()
        return
    if event_type.category is not None and event_type.category != posted["event_category"]:
        metrics.FOREIGN_CATEGORY.labels(event_type.name).inc()
    if event_type.payload is not None and "event_type" not in posted["event_data"]:
        metrics.FREEFORM_WITH_TYPED_FORM.labels(event_type.name).inc()


def _faults(catalog: Catalog, item: Any, pointer: str, *, plain: bool, depth: int) -> BadRequest:
    """The faults that all checks find, each run whatever the others found. Only for items that one check has refused."""
    faults = Faults()
    with faults:
        check_envelope(item, pointer)
    get = item.get if isinstance(item, dict) else {}.get
    payload, outer_type = get("event_data"), get("event_type")
    if isinstance(payload, dict):
        with faults:
            _canonical_payload(payload, pointer, plain=plain, depth=depth)
            catalog.check_payload(outer_type if isinstance(outer_type, str) else "", payload, pointer + "/event_data")
    for name, decode in {"correlation_id": catalog.check_correlation_id, **_PARSERS}.items():
        if isinstance(text := get(name), str):
            with faults:
                decode(text, f"{pointer}/{name}")
    return faults.error()


_PARSERS: dict[str, Callable[[str, str], object]] = {
    "event_timestamp": parse_timestamp,
    "parent_event_date": parse_date,
    "actor_ip": parse_address,
    "event_id": parse_uuid,
    "parent_event_id": parse_uuid,
}


def _canonical_payload(payload: dict[str, Any], pointer: str, *, plain: bool, depth: int) -> bytes:
    text = canonical(payload, plain=plain)
    if len(text) > PAYLOAD_BYTES_MAX:
        message = f"expected a size of at most {PAYLOAD_BYTES_MAX} bytes, got {len(text)}"
    elif depth > PAYLOAD_DEPTH_MAX + 1 and (levels := depth_of(payload)) > PAYLOAD_DEPTH_MAX:
        message = f"expected a nesting of at most {PAYLOAD_DEPTH_MAX} levels, got {levels}"
    else:
        return text
    raise bad_fields({pointer + "/event_data": message})


def accept(drafts: Sequence[Draft], event_ids: Sequence[UUID], acceptance: Acceptance) -> list[Event]:
    """The events of `drafts`, with these ids, `acceptance.now` as recorded_at, and new salts. None of this changes later."""
    salts, recorded_at = os.urandom(16 * len(drafts)), time_text(acceptance.now)
    return [
        _event(draft, event_id, salts[16 * i : 16 * i + 16], acceptance, recorded_at)
        for i, (draft, event_id) in enumerate(zip(drafts, event_ids, strict=True))
    ]


def _event(draft: Draft, event_id: UUID, salt: bytes, acceptance: Acceptance, recorded_at: str) -> Event:
    """The event of one draft; `recorded_at` is the text of `acceptance.now`."""
    posted = draft.posted
    get: Callable[..., Any] = posted.get
    version, event_type, category = posted["version"], posted["event_type"], posted["event_category"]
    action, outcome, correlation_id = posted["event_action"], posted["event_outcome"], posted["correlation_id"]
    actor_type, actor_id = "user", acceptance.actor_override
    if actor_id is None:
        actor_type, actor_id = get("actor_type", "service"), get("actor_id", category + "-service")
    resource_type, resource_id = get("resource_type", category), get("resource_id", correlation_id)
    timestamp, parent_id, parent_date = draft.timestamp or acceptance.now, draft.parent_id, draft.parent_date
    if parent_id is not None:
        parent_date = acceptance.parents.get(parent_id)
    namespace, cluster_id = get("namespace"), get("cluster_id", get("cluster_name"))
    severity, duration_ms = get("severity", "info"), get("duration_ms") or None
    error_code, error_message = get("error_code"), get("error_message")
    retention_days, is_sensitive = get("retention_days") or RETENTION_DAYS, get("is_sensitive") or False
    columns = (
        event_id,
        version,
        timestamp,
        timestamp.date(),
        event_type,
        category,
        action,
        outcome,
        actor_type,
        actor_id,
        draft.actor_ip,
        resource_type,
        resource_id,
        correlation_id,
        parent_id,
        parent_date,
        namespace,
        cluster_id,
        severity,
        duration_ms,
        error_code,
        error_message,
        draft.payload,
        retention_days if retention_days > 0 else RETENTION_DAYS,
        is_sensitive,
        acceptance.now,
        salt,
    )
    metadata = TIME_RECEIVED if draft.timestamp is None else acceptance.metadata
    committed = committed_members(
        actor_id,
        draft.actor_ip,
        error_message,
        draft.payload,
        metadata,
        resource_id,
        None,
    )
    trace_id, span_id = draft.trace or (acceptance.trace_id, acceptance.span_id)
    hashed = record_members(
        actor_type,
        None,
        cluster_id,
        commitment(salt, committed),
        correlation_id,
        duration_ms,
        error_code,
        action,
        category,
        event_id,
        outcome,
        time_text(timestamp),
        event_type,
        version,
        is_sensitive,
        acceptance.log_name,
        None,
        namespace,
        parent_date,
        parent_id,
        None,
        recorded_at,
        resource_type,
        severity,
        span_id,
        trace_id,
    )
    other_ids, alias = acceptance.other_ids.get(event_id, ()), acceptance.aliases.get(event_id)
    return Event(
        event_id, correlation_id, columns, hashed, draft.digest, len(draft.payload), metadata, other_ids, alias
    )


ACCEPTED_COLUMNS = (
    *("event_id", "event_version", "event_timestamp", "event_date", "event_type", "event_category", "event_action"),
    *("event_outcome", "actor_type", "actor_id", "actor_ip", "resource_type", "resource_id", "correlation_id"),
    *("parent_event_id", "parent_event_date", "namespace", "cluster_id", "severity", "duration_ms", "error_code"),
    *("error_message", "event_data", "retention_days", "is_sensitive", "recorded_at", "payload_salt"),
)
"""Columns of Event.row, in its order. trace_id and span_id are in Event.record only, event_metadata in Event.metadata."""
_EVENT_DATE = ACCEPTED_COLUMNS.index("event_date")
_EVENT_TIMESTAMP = ACCEPTED_COLUMNS.index("event_timestamp")
TIME_RECEIVED = b'{"event_timestamp":"received"}'


def computed_ids(drafts: Sequence[Draft], caller: str, source: tuple[str, str], now: datetime) -> list[UUID]:
    """For each draft the client's own id, or the id computed from `source`: the Idempotency-Key or the digest of the body."""
    arrival = ids.arrival_times(source, now)[0]
    return [
        draft.event_id or ids.derived_event_id(draft.timestamp or arrival, caller, source, i)
        for i, draft in enumerate(drafts)
    ]


def other_ids(
    drafts: Sequence[Draft], caller: str, source: tuple[str, str], now: datetime
) -> dict[UUID, tuple[UUID, ...]]:
    """By computed id: the ids of other sends of the same item, where these differ because it has no time."""
    own, *others = ids.arrival_times(source, now)
    return {
        ids.derived_event_id(own, caller, source, i): tuple(
            ids.derived_event_id(time, caller, source, i) for time in others
        )
        for i, draft in enumerate(drafts)
        if draft.timestamp is None and draft.event_id is None and others
    }


class ItemIds(NamedTuple):
    """The ids of one item of a lenient batch."""

    own: UUID
    """As in any batch with this body."""
    others: tuple[UUID, ...] = ()
    """Those of other sends of the item, in this body or in another one."""
    alias: UUID | None = None
    """The one of the item alone, if the batch may be sent again with other items."""


def lenient_ids(
    items: Iterable[tuple[int, Draft, str]], caller: str, source: tuple[str, str], now: datetime, *, is_whole: bool
) -> list[ItemIds]:
    """The ids of each item (index in the body, draft, hex digest) of a lenient batch.

    They are those of the same body sent strictly. Unless it is sure that the whole batch is good, or it has an Idempotency-Key, an item is
    also found by its content and its index, so that it is recognised when the others have been corrected.
    """

    def of_item(index: int, draft: Draft, digest: str) -> ItemIds:
        if draft.event_id is not None:
            return ItemIds(draft.event_id)
        sources = [source] if source[0] == "key" else [source, ("item", digest)]
        own, *by_item = (
            [
                ids.derived_event_id(time, caller, one, index)
                for time in ([draft.timestamp] if draft.timestamp else ids.arrival_times(one, now))
            ]
            for one in sources
        )
        others = (*own[1:], *(one for some in by_item for one in some))
        return ItemIds(own[0], others, by_item[0][0] if by_item and not is_whole else None)

    return [of_item(*item) for item in items]


def imported_ids(items: Iterable[tuple[int, Draft, str]]) -> list[UUID]:
    """For each imported item its own id, or one that is computed from it alone: whoever imports it again, and in which portion."""
    return [
        draft.event_id or ids.derived_event_id(draft.timestamp or ids.EPOCH, "", ("import", digest), 0)
        for _, draft, digest in items
    ]


def log_record_ids(
    items: Iterable[tuple[Draft, str]], caller: str, now: datetime
) -> tuple[list[UUID], dict[UUID, tuple[UUID, ...]]]:
    """For each log record (draft, hex digest) its own id, or one that is computed from it alone; by id those of other sends without a time.

    So a record is recognised in whichever request a collector sends it again. Equal records of one request are numbered: each is an event.
    """
    numbers = Counter[str]()
    own_ids, others = list[UUID](), dict[UUID, tuple[UUID, ...]]()
    for draft, digest in items:
        source, number = ("otlp", digest), numbers[digest]
        numbers[digest] += 1
        if draft.event_id is not None:
            own_ids.append(draft.event_id)
            continue
        times = (draft.timestamp,) if draft.timestamp else ids.arrival_times(source, now)
        own, *rest = (ids.derived_event_id(time, caller, source, number) for time in times)
        own_ids.append(own)
        if rest:
            others[own] = tuple(rest)
    return own_ids, others


def single_id(draft: Draft) -> UUID:
    """The client's own id, or a random UUIDv7 of the current time."""
    return draft.event_id or ids.random_event_id(time_ns() // 1_000_000, os.urandom(10))
