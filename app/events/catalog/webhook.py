"""Events of the auth webhook, which records who changed the platform's resources by hand."""

from typing import Literal, NotRequired

from typing_extensions import TypedDict

from app.events.catalog.shared import TimeoutConfig
from app.events.catalog.value_types import DateTime
from app.events.envelope import Category

CATEGORY: Category = "notification"

NotificationType = Literal["Escalation", "Simple", "StatusUpdate", "Approval", "ManualReview", "Completion"]


class NotificationInterventionPayload(TypedDict):
    """A person cancelled a notification by deleting it, or acknowledged it; the webhook saw who it was."""

    event_type: Literal["webhook.notification.cancelled", "webhook.notification.acknowledged"]
    notification_id: NotRequired[str]
    notification_name: NotRequired[str]
    type: NotRequired[NotificationType]
    notification_type: NotRequired[NotificationType]
    priority: NotRequired[Literal["Critical", "High", "Medium", "Low"]]
    final_status: NotRequired[Literal["Pending", "Sending", "Sent", "Failed", "Cancelled"]]
    delivery_channels: NotRequired[list[str]]
    cancelled_by: NotRequired[str]
    user_uid: NotRequired[str]
    user_groups: NotRequired[list[str]]
    action: NotRequired[Literal["notification_cancelled", "notification_acknowledged"]]


class RemediationApprovalPayload(TypedDict):
    """A person approved or rejected a remediation that had waited for it.

    The webhook knows the caller from the API server, so this is the proof of who decided, also when for somebody else.
    """

    event_type: Literal["webhook.remediationapprovalrequest.decided"]
    request_name: str
    decision: Literal["Approved", "Rejected"]
    decided_at: DateTime
    decision_message: str
    ai_analysis_ref: str
    delegated_user: NotRequired[str]
    delegated_via: NotRequired[str]
    policy_hash: NotRequired[str]


class TimeoutModifiedPayload(TypedDict):
    """A person gave a running remediation more time or less; the limits before and after stand side by side."""

    event_type: Literal["webhook.remediationrequest.timeout_modified"]
    rr_name: str
    namespace: str
    modified_by: str
    modified_at: DateTime
    old_timeout_config: NotRequired[TimeoutConfig]
    new_timeout_config: NotRequired[TimeoutConfig]


OTHER_CATEGORIES: dict[object, Category] = {
    RemediationApprovalPayload: "approval",
    TimeoutModifiedPayload: "orchestration",
}
