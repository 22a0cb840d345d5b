"""Events of the auth webhook about its own work: entering workflows in the catalog."""

from typing import Literal, NotRequired

from typing_extensions import TypedDict

from app.events.envelope import Category

CATEGORY: Category = "workflow"


class WorkflowRegistrationFailedPayload(TypedDict):
    """A workflow was applied to the cluster, and the auth webhook could not enter it in the catalog.

    It exists for Kubernetes, but no model will find it.
    """

    event_type: Literal["authwebhook.workflow.registration_failed"]
    workflow_name: str
    namespace: NotRequired[str]
    reason: Literal["DependencyMissing", "DataStorageError", "ValidationFailed"]
    message: str
