"""Events of the WorkflowExecution controller, which runs the chosen workflow in the cluster."""

from typing import Literal, NotRequired

from typing_extensions import TypedDict

from app.events.catalog.shared import ErrorDetails
from app.events.catalog.value_types import DateTime, Integer
from app.events.envelope import Category

CATEGORY: Category = "workflowexecution"


class WorkflowExecutionPayload(TypedDict):
    """The controller took up a chosen workflow, started it, or saw it end: which image ran on which resource.

    The cluster is changed between start and end; the parameters and the failed task are what to look at afterwards.
    """

    event_type: Literal[
        "workflowexecution.workflow.started",
        "workflowexecution.workflow.completed",
        "workflowexecution.workflow.failed",
        "workflowexecution.selection.completed",
        "workflowexecution.execution.started",
    ]
    workflow_id: str
    workflow_version: str
    workflow_name: NotRequired[str]
    action_type: NotRequired[str]
    target_resource: str
    phase: Literal["Pending", "Running", "Completed", "Failed"]
    container_image: str
    execution_name: str
    started_at: NotRequired[DateTime]
    completed_at: NotRequired[DateTime]
    duration: NotRequired[str]
    failure_reason: NotRequired[
        Literal[
            "OOMKilled",
            "DeadlineExceeded",
            "Forbidden",
            "ImagePullBackOff",
            "ConfigurationError",
            "ResourceExhausted",
            "TaskFailed",
            "UnsupportedEngine",
            "Deduplicated",
            "Unknown",
        ]
    ]
    failure_message: NotRequired[str]
    failed_task_name: NotRequired[str]
    error_details: NotRequired[ErrorDetails]
    pipelinerun_name: NotRequired[str]
    parameters: NotRequired[dict[str, str]]
    retry_count: NotRequired[Integer]


class BlockClearedPayload(TypedDict):
    """A person lifted the block that a failed execution had left on a workflow, so that it may run again.

    Sent when the auth webhook has seen who did it and why.
    """

    event_type: Literal["workflowexecution.block.cleared"]
    workflow_name: str
    clear_reason: str
    cleared_at: DateTime
    previous_state: Literal["Blocked"]
    new_state: Literal["Running"]
