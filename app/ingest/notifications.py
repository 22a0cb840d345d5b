"""Notifications: which message was sent to whom about a remediation. Checked, then written in a flush of the log.

They are not events, and in no chain. The log has the digest of each, in a self event. A notification_id is never used twice.
"""

import os
from collections.abc import Sequence
from dataclasses import asdict, astuple, dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal, NamedTuple, NotRequired
from uuid import UUID, uuid4

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict

from app.db import Connection, Engine
from app.errors import AuditError, BadRequest, Conflict
from app.events.envelope import DateTime, Name255, parse_timestamp
from app.events.explain import bad_fields, by_member_name, explain
from app.events.notification import SALT_BYTES, STORED, notification_digest
from app.events.own import CORRELATIONS, RESERVED
from app.ingest.claim import Claim, key_reused
from app.sql import load
from app.standby import fetch

Channel = Literal["email", "slack", "pagerduty", "teams", "webhook", "console", "file", "log"]
Status = Literal["sent", "failed", "pending", "acknowledged", "escalated"]
RESOURCE = "notification_audit"
INSTANCE = f"/audit/{RESOURCE}"

_AHEAD_MAX = timedelta(minutes=5)
_RECIPIENT_MAX = 255
_NOT_BLANK = Field(json_schema_extra={"pattern": r"\S"})
SQL = load("ingest")


@with_config(ConfigDict(strict=True, extra="ignore"))
class PostedNotification(TypedDict):
    """One notification as its sender tells it. Unknown members are accepted and dropped."""

    remediation_id: Annotated[Name255, _NOT_BLANK]
    notification_id: Annotated[Name255, _NOT_BLANK, Field(description="stored once for ever")]
    recipient: Annotated[str, Field(max_length=500, json_schema_extra={"minLength": 1, "maxLength": _RECIPIENT_MAX})]
    channel: Channel
    message_summary: Annotated[str, Field(max_length=1000), _NOT_BLANK]
    status: Status
    sent_at: Annotated[DateTime, Field(description="RFC 3339 with zone; at most 5 minutes ahead")]
    delivery_status: NotRequired[Name255 | None]
    error_message: NotRequired[Annotated[str, Field(max_length=1000)] | None]
    escalation_level: NotRequired[Annotated[int, Field(ge=0, le=5)]]


@dataclass(frozen=True, slots=True)
class Notification:
    """One checked notification. An empty text counts as unknown."""

    remediation_id: str
    notification_id: str
    recipient: str
    channel: str
    message_summary: str
    status: str
    sent_at: datetime
    delivery_status: str | None
    error_message: str | None
    escalation_level: int


_VALIDATE = TypeAdapter(PostedNotification).validator.validate_python


def parse_notification(value: Any) -> tuple[PostedNotification, datetime]:
    """`value` as a notification, and its sent_at, if it has that shape. BadRequest names each bad member by its plain name."""
    try:
        posted: PostedNotification = _VALIDATE(value)
    except ValidationError as error:
        raise bad_fields(by_member_name(explain(error, ""))) from None
    return posted, parse_timestamp(posted["sent_at"], "sent_at")


def check_notification(posted: PostedNotification, sent_at: datetime, now: datetime) -> Notification:
    """The notification to store. Raises BadRequest with the members of the reference's validation error."""
    faults = {
        name: "expected a text that is not blank"
        for name in ("remediation_id", "notification_id", "message_summary")
        if not posted[name].strip()
    }
    if posted["remediation_id"].startswith(CORRELATIONS):
        faults["remediation_id"] = RESERVED
    if not posted["recipient"]:
        faults["recipient"] = "expected a text that is not empty"
    if len(posted["recipient"]) > _RECIPIENT_MAX:
        faults["recipient"] = f"expected at most {_RECIPIENT_MAX} characters, got {len(posted['recipient'])}"
    if sent_at.year == 1:
        faults["sent_at"] = f"required, but its sender has not set it, got {posted['sent_at']}"
    if sent_at > now + _AHEAD_MAX:
        faults["sent_at"] = (
            f"expected a time at most 5 minutes in the future of the service's clock ({now:%Y-%m-%dT%H:%M:%SZ}), "
            f"got {posted['sent_at']}"
        )
    if faults:
        detail = "; ".join(f"{name}: {message}" for name, message in faults.items())
        raise BadRequest(detail, resource=RESOURCE, field_errors=faults, instance=INSTANCE)
    return Notification(
        posted["remediation_id"],
        posted["notification_id"],
        posted["recipient"],
        posted["channel"],
        posted["message_summary"],
        posted["status"],
        sent_at,
        posted.get("delivery_status") or None,
        posted.get("error_message") or None,
        posted.get("escalation_level", 0),
    )


class GeneratedColumns(NamedTuple):
    """What Postgres adds to a notification when it is written."""

    id: int
    created_at: datetime


@dataclass(slots=True, eq=False)
class PendingNotification:
    """A notification on its way to the log: what is written beside it, in the flush of the event that has its digest."""

    notification: Notification
    claim: Claim | None
    storing_id: UUID = field(default_factory=uuid4)
    created_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    salt: bytes = field(default_factory=lambda: os.urandom(SALT_BYTES))
    number: int = 0
    """Its `id`, once it is written."""

    def payload(self) -> dict[str, str]:
        """The payload of the event."""
        row = asdict(self.notification) | {"created_at": self.created_at}
        return {
            "event_type": STORED,
            "storing_id": str(self.storing_id),
            "notification_id": self.notification.notification_id,
            "remediation_id": self.notification.remediation_id,
            "digest": notification_digest(self.salt, row),
        }

    async def write(self, connection: Connection, log_id: int, position: int) -> bool:
        """Write the row in the transaction of the flush that has the event at `position`. False if its id or key is stored already."""
        number = await connection.fetchval(
            SQL["notification"],
            *(*astuple(self.notification), self.created_at, self.salt, log_id, position),
            *(self.claim or (None,) * 4),
        )
        self.number = number or 0
        return number is not None


class NotificationStored(AuditError):
    """Notifications of a flush cannot be written, since their ids or their Idempotency-Keys are stored already."""

    label = "Conflict"

    def __init__(self, pending: Sequence[PendingNotification]) -> None:
        super().__init__()
        self.pending = pending


class NotificationsLocked(AuditError):
    """Somebody else has locked what the notifications of a flush need."""

    label = "Busy"


async def is_stored(engine: Engine, notification: Notification, *, standbys: bool) -> bool:
    """Whether the notification stored under its id equals this one in every member. With `standbys` they have it; else StandbyMissing."""
    rows = await fetch(engine, SQL["stored_notification"], notification.notification_id, required=standbys)
    return bool(rows) and tuple(rows[0]) == astuple(notification)


def id_conflict(notification: Notification) -> Conflict:
    """The refusal of a notification_id that is stored already."""
    return Conflict(
        f"notification_id: there is a notification {notification.notification_id!r} already, and each is stored once",
        resource=RESOURCE,
        field="notification_id",
        value=notification.notification_id,
        instance=INSTANCE,
    )


async def stored_under(engine: Engine, claim: Claim, *, standbys: bool) -> GeneratedColumns | None:
    """What was stored the first time under an Idempotency-Key, if that was. KeyReused when it was sent with another body.

    With `standbys` they have it; else StandbyMissing.
    """
    rows = await fetch(engine, SQL["notification_claim"], claim.scope, claim.key, required=standbys)
    if not rows:
        return None
    if rows[0]["body_digest"] != claim.digest:
        raise key_reused()
    return _generated_columns(rows[0])


def _generated_columns(row: Any) -> GeneratedColumns:
    return GeneratedColumns(row["id"], row["created_at"].astimezone(UTC))
