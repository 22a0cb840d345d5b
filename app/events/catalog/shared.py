"""Objects and words that occur in payloads of several producers."""

from typing import Literal, NotRequired

from typing_extensions import TypedDict

Severity = Literal["critical", "high", "warning", "info", "unknown"]
"""How bad it is, in the words that SignalProcessing and the agent have agreed on."""


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


TimeoutConfig = TypedDict(  # written as a call, since `global` is a word of the language
    "TimeoutConfig",
    {
        "global": NotRequired[str],
        "processing": NotRequired[str],
        "analyzing": NotRequired[str],
        "executing": NotRequired[str],
    },
)
TimeoutConfig.__doc__ = "How long a remediation and each of its phases may take, as durations such as `1h0m0s`."
