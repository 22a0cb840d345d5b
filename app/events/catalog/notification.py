"""Events of the notification controller, which tells people what the platform did or needs from them."""

from typing import Literal, NotRequired

from typing_extensions import TypedDict

from app.events.envelope import Category

CATEGORY: Category = "notification"


class MessageSentPayload(TypedDict):
    """A message left the platform through one channel: somebody could know from here on."""

    event_type: Literal["notification.message.sent"]
    notification_id: str
    channel: str
    subject: str
    body: str
    priority: str
    type: str
    metadata: NotRequired[dict[str, str]]


class MessageFailedPayload(TypedDict):
    """A channel did not take a message: nobody was told by this way."""

    event_type: Literal["notification.message.failed"]
    notification_id: str
    channel: str
    subject: str
    body: str
    priority: str
    error_type: str
    error: NotRequired[str]
    metadata: NotRequired[dict[str, str]]


class MessageAcknowledgedPayload(TypedDict):
    """A person confirmed that the message was read."""

    event_type: Literal["notification.message.acknowledged"]
    notification_id: str
    subject: str
    priority: str
    metadata: NotRequired[dict[str, str]]


class MessageEscalatedPayload(TypedDict):
    """Nobody reacted in time, and the message went to the next in line."""

    event_type: Literal["notification.message.escalated"]
    notification_id: str
    subject: str
    priority: str
    reason: str
    metadata: NotRequired[dict[str, str]]
