"""Events of the admission webhook about AgentSessions, in which people work with the agent."""

from typing import Literal, NotRequired

from typing_extensions import TypedDict

from app.events.envelope import Category

CATEGORY: Category = "agentsession"


class AgentSessionAdmissionPayload(TypedDict):
    """The admission webhook decided whether a new AgentSession may exist.

    Shows who asked to work with the agent on which remediation, and why somebody was turned away.
    """

    event_type: Literal["agentsession.admitted.create", "agentsession.denied.create"]
    crd_name: str
    crd_namespace: str
    action: Literal["create", "denied"]
    remediation_request_ref: NotRequired[str]
    denial_reason: NotRequired[str]
