"""Events of the admission webhook about RemediationWorkflows, the recipes that the platform may run."""

from typing import Any, Literal, NotRequired

from typing_extensions import TypedDict

from app.events.envelope import Category

CATEGORY: Category = "workflow"


class WorkflowDescription(TypedDict):
    """What the workflow does and when it fits: the text by which models choose it."""

    what: str
    whenToUse: str
    whenNotToUse: NotRequired[str]
    preconditions: NotRequired[str]


class WorkflowLabels(TypedDict):
    """The situations that the workflow is meant for; a search matches against them."""

    severity: list[str]
    environment: list[str]
    component: list[str]
    priority: str
    cluster: NotRequired[list[str]]


class WorkflowEngine(TypedDict):
    """The engine that runs the workflow, the image it runs from, and the account it runs as."""

    engine: NotRequired[str]
    bundle: NotRequired[str]
    bundleDigest: NotRequired[str]
    engineConfig: NotRequired[Any]
    serviceAccountName: NotRequired[str]


class WorkflowDependency(TypedDict):
    """One Secret or ConfigMap by name."""

    name: str


class WorkflowDependencies(TypedDict):
    """What has to exist in the cluster before the workflow can run."""

    secrets: NotRequired[list[WorkflowDependency]]
    configMaps: NotRequired[list[WorkflowDependency]]


class WorkflowMaintainer(TypedDict):
    """A person who answers for the workflow."""

    name: str
    email: str


class WorkflowParameter(TypedDict):
    """A value that the workflow is started with, and what it may be."""

    name: str
    type: str
    required: bool
    description: str
    enum: NotRequired[list[str]]
    pattern: NotRequired[str]
    minimum: NotRequired[float]
    maximum: NotRequired[float]
    default: NotRequired[Any]
    dependsOn: NotRequired[list[str]]


class WorkflowContent(TypedDict):
    """The specification of a workflow, whole, as it was applied."""

    version: str
    description: WorkflowDescription
    actionType: str
    labels: WorkflowLabels
    customLabels: NotRequired[dict[str, str]]
    detectedLabels: NotRequired[Any]
    execution: WorkflowEngine
    dependencies: NotRequired[WorkflowDependencies]
    maintainers: NotRequired[list[WorkflowMaintainer]]
    parameters: list[WorkflowParameter]
    rollbackParameters: NotRequired[list[WorkflowParameter]]


class RemediationWorkflowAdmissionPayload(TypedDict):
    """The admission webhook let a RemediationWorkflow be created, changed or deleted, or denied it.

    The content and its hash are kept, so that what ran can be compared with what was admitted.
    """

    event_type: Literal[
        "remediationworkflow.admitted.create",
        "remediationworkflow.admitted.update",
        "remediationworkflow.admitted.delete",
        "remediationworkflow.admitted.denied",
    ]
    workflow_name: str
    action: Literal["create", "update", "delete", "denied"]
    workflow_id: NotRequired[str]
    catalog_status: NotRequired[str]
    denial_reason: NotRequired[str]
    workflow_content: NotRequired[WorkflowContent]
    content_hash: NotRequired[str]
