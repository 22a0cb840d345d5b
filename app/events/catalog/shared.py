"""Objects that payloads of several producers hold."""

from typing import Literal, NotRequired

from typing_extensions import TypedDict


class ErrorDetails(TypedDict):
    """What failed, in which component, and whether trying again may help."""

    message: str
    code: str
    component: Literal[
        "gateway",
        "aianalysis",
        "workflowexecution",
        "remediationorchestrator",
        "signalprocessing",
        "authwebhook",
    ]
    retry_possible: bool
    stack_trace: NotRequired[list[str]]
