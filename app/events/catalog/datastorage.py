"""Events of the data storage service itself: its catalog of workflows and action types, its access control, and its trials.

The platform's present release sends none of the catalog events; clients may, and older data contains them.
"""

from typing import Any, Literal, NotRequired

from typing_extensions import TypedDict

from app.events.catalog.value_types import DateTime, Integer, Uuid
from app.events.envelope import Category

CATEGORY = None


class WorkflowCatalogCreatedPayload(TypedDict):
    """A workflow, or a new version of one, was entered in the catalog and can be chosen from this moment."""

    event_type: Literal["datastorage.workflow.created"]
    workflow_id: Uuid
    workflow_name: str
    version: str
    schema_version: NotRequired[str]
    status: Literal["Active", "Disabled", "Archived"]
    is_latest_version: bool
    execution_engine: str
    name: str
    description: NotRequired[str]
    labels: NotRequired[dict[str, Any]]


class WorkflowCatalogUpdatedFields(TypedDict):
    """The members of a catalog entry that were changed, with their new values."""

    status: NotRequired[str]
    disabled_by: NotRequired[str]
    disabled_reason: NotRequired[str]
    version: NotRequired[str]
    description: NotRequired[str]


class WorkflowCatalogUpdatedPayload(TypedDict):
    """A workflow's catalog entry was changed, most often because somebody disabled it and gave a reason."""

    event_type: Literal["datastorage.workflow.updated"]
    workflow_id: Uuid
    updated_fields: WorkflowCatalogUpdatedFields


class ActionTypeDescription(TypedDict):
    """What an action does and when to use it, in the words that the model reads."""

    what: str
    when_to_use: str
    when_not_to_use: NotRequired[str]
    preconditions: NotRequired[str]


class ActionTypeCreatedPayload(TypedDict):
    """A kind of action joined the catalog, or an earlier one of the same name was brought back instead."""

    event_type: Literal["datastorage.actiontype.created"]
    action_type: str
    description: ActionTypeDescription
    registered_by: str
    was_reenabled: bool


class ActionTypeUpdatedPayload(TypedDict):
    """An action's description was rewritten: both texts, since models choose by these words."""

    event_type: Literal["datastorage.actiontype.updated"]
    action_type: str
    old_description: ActionTypeDescription
    new_description: ActionTypeDescription
    updated_by: str
    updated_fields: list[str]


class ActionTypeDisabledPayload(TypedDict):
    """A kind of action was taken out of use; no new workflow may name it."""

    event_type: Literal["datastorage.actiontype.disabled"]
    action_type: str
    disabled_by: str
    disabled_at: DateTime


class ActionTypeReenabledPayload(TypedDict):
    """A disabled kind of action was put back to use; who had disabled it, and when, is repeated."""

    event_type: Literal["datastorage.actiontype.reenabled"]
    action_type: str
    reenabled_by: str
    previous_state: Literal["Disabled"]
    disabled_at: DateTime
    disabled_by: str


class ActionTypeDisableDeniedPayload(TypedDict):
    """Somebody wanted to disable a kind of action on which workflows still depend, and was refused."""

    event_type: Literal["datastorage.actiontype.disable_denied"]
    action_type: str
    denied_reason: str
    dependent_workflow_count: Integer
    dependent_workflows: list[str]
    requested_by: str


class DatastorageRatelimitDeniedPayload(TypedDict):
    """The data storage service answered a caller with 429; events of that caller may be missing around this time."""

    event_type: Literal["datastorage.ratelimit.denied"]
    event_id: str
    source_ip: NotRequired[str]
    path: NotRequired[str]
    method: NotRequired[str]


class ServiceTriedPayload(TypedDict):
    """`datastorage try`, which `helm test` runs, has tried the service: it posts this event to see whether it is stored, found and proved.

    Nothing else has happened.
    """

    event_type: Literal["datastorage.service.tried"]
    purpose: str


OTHER_CATEGORIES: dict[object, Category] = {
    WorkflowCatalogCreatedPayload: "workflow",
    WorkflowCatalogUpdatedPayload: "workflow",
    DatastorageRatelimitDeniedPayload: "security",
    ServiceTriedPayload: "security",
}
