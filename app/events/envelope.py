"""The ADR-034 envelope: the members of a posted event, checked against the limits of the columns that store them."""

import re
from datetime import UTC, date, datetime, timedelta
from typing import Annotated, Any, Literal, NotRequired
from uuid import UUID

from asyncpg.pgproto import pgproto
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict

from app.errors import BadRequest, InvalidRequest
from app.events.explain import bad_fields, validation_error
from app.events.record import ip_packed

Category = Literal[
    "gateway",
    "notification",
    "analysis",
    "aiagent",
    "signalprocessing",
    "workflow",
    "workflowexecution",
    "orchestration",
    "approval",
    "effectiveness",
    "actiontype",
    "apifrontend",
    "security",
    "agentsession",
]
Outcome = Literal["success", "failure", "pending"]
Int32 = Annotated[int, Field(ge=-(2**31), le=2**31 - 1)]
Name20 = Annotated[str, Field(max_length=20)]
Name50 = Annotated[str, Field(max_length=50)]
Name100 = Annotated[str, Field(max_length=100)]
Name253 = Annotated[str, Field(max_length=253)]
Name255 = Annotated[str, Field(max_length=255)]
DateTime = Annotated[str, Field(json_schema_extra={"format": "date-time"})]
Uuid = Annotated[str, Field(json_schema_extra={"format": "uuid"})]
Filled = Field(min_length=1)
ZERO_TIME = "0001-01-01T00:00:00Z"
"""Go's zero time, which emitters send that never set the event's time. The event gets its time of arrival."""


@with_config(ConfigDict(strict=True, extra="ignore"))
class PostedEvent(TypedDict):
    """One audit event as a controller sends it. Unknown members are accepted and dropped."""

    version: Annotated[str, Filled, Field(max_length=10, description="version of the envelope, such as 1.0")]
    event_type: Annotated[Name100, Filled]
    event_timestamp: Annotated[
        DateTime, Field(description=f"RFC 3339 with zone; at most 7 days old, 60 minutes ahead; {ZERO_TIME}: not given")
    ]
    event_category: Category
    event_action: Annotated[Name50, Filled]
    event_outcome: Outcome
    correlation_id: Annotated[Name255, Filled]
    event_data: Annotated[dict[str, Any], Field(description="payload; its event_type decides its shape")]
    event_id: NotRequired[Annotated[Uuid | None, Field(description="the client's own id: stored once for ever")]]
    actor_type: NotRequired[Name50]
    actor_id: NotRequired[Name255]
    actor_ip: NotRequired[Annotated[str, Field(max_length=45, description="IPv4 or IPv6 address, no mask, no zone")]]
    resource_type: NotRequired[Name100]
    resource_id: NotRequired[Name255]
    parent_event_id: NotRequired[Uuid | None]
    parent_event_date: NotRequired[DateTime | None]
    namespace: NotRequired[Name253 | None]
    cluster_id: NotRequired[Name255 | None]
    cluster_name: NotRequired[Annotated[Name255 | None, Field(description="old name of cluster_id")]]
    severity: NotRequired[Name20 | None]
    duration_ms: NotRequired[Int32 | None]
    error_code: NotRequired[Name50 | None]
    error_message: NotRequired[str | None]
    retention_days: NotRequired[Annotated[int, Field(le=2555)] | None]
    is_sensitive: NotRequired[bool | None]


_VALIDATE = TypeAdapter(PostedEvent).validator.validate_python
_RFC3339 = re.compile(
    r"\d{4}-(?:0[1-9]|1[0-2])-(?:0[1-9]|[12]\d|3[01])T(?:[01]\d|2[0-3]):[0-5]\d:(?:[0-5]\d|(60))(?:\.\d+)?"
    r"(?:Z|[+-](?:[01]\d|2[0-3]):[0-5]\d)",
    re.ASCII,
)
_UUID = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")

AHEAD_MAX = timedelta(minutes=60)
AGE_MAX = timedelta(days=7)


def check_envelope(item: Any, pointer: str) -> PostedEvent:
    """`item` as a PostedEvent; BadRequest names each wrong member. `pointer` is the item's place in the body."""
    try:
        return _VALIDATE(item)  # type: ignore[no-any-return]  # the adapter's validator is untyped
    except ValidationError as error:
        raise validation_error(error, pointer) from None


def _undecodable(pointer: str, message: str) -> InvalidRequest:
    return InvalidRequest(f"{pointer}: {message}", field_errors={pointer: message})


def parse_timestamp(text: str, pointer: str) -> datetime:
    """An RFC 3339 date-time with zone as a UTC time, truncated to microseconds.

    BadRequest, or InvalidRequest for second 60 and for a day that does not exist.
    """
    match = _RFC3339.fullmatch(text)
    if match is None:
        raise bad_fields(
            {pointer: f"expected an RFC 3339 date-time with zone, such as 2026-01-31T12:00:00Z, got {text[:60]!r}"}
        )
    if match[1]:
        raise _undecodable(pointer, f"expected a second of 00 to 59, got {text[:60]!r}")
    try:
        time = datetime.fromisoformat(text)
        return time if text.endswith("Z") else time.astimezone(UTC)
    except (ValueError, OverflowError) as error:
        message = f"expected a date and time that exist, got {text[:60]!r}"
        if isinstance(error, OverflowError) or text.startswith("0000"):  # a time that Go has
            raise bad_fields({pointer: message}) from None
        raise _undecodable(pointer, message) from None


def parse_date(text: str, pointer: str) -> date:
    """The UTC date of an RFC 3339 date-time."""
    day = parse_timestamp(text, pointer).date()
    if day in (date.min, date.max):  # the driver writes these as the infinities, which would be hashed as another date
        raise bad_fields({pointer: f"expected a date within 0001-01-02 and 9999-12-30, got {text[:60]!r}"})
    return day


def time_window_error(time: datetime, now: datetime, pointer: str) -> BadRequest | None:
    """The error for an event that is too old or too far in the future, or None."""
    if time > now + AHEAD_MAX:
        expected = "at most 60 minutes in the future"
    elif time < now - AGE_MAX:
        expected = "at most 7 days in the past"
    else:
        return None
    return bad_fields(
        {
            pointer: f"expected a time {expected} of the service's clock ({now:%Y-%m-%dT%H:%M:%SZ}), got {time.isoformat()}"
        }
    )


def parse_uuid(text: str, pointer: str) -> UUID:
    """`text` as a UUID; InvalidRequest for anything but its hyphenated hexadecimal form."""
    if _UUID.fullmatch(text) is None:
        raise _undecodable(pointer, f"expected a UUID, got {text[:60]!r}")
    return pgproto.UUID(text)


def parse_address(text: str, pointer: str) -> bytes:
    """The packed bytes of an IP address without mask or zone."""
    try:
        return ip_packed(text)
    except ValueError:
        raise bad_fields({pointer: f"expected an IPv4 or IPv6 address without mask or zone, got {text!r}"}) from None
