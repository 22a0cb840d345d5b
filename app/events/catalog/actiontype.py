"""Events of the admission webhook about ActionTypes, the vocabulary of what workflows may do."""

from typing import Literal, NotRequired

from typing_extensions import TypedDict

from app.events.envelope import Category

CATEGORY: Category = "actiontype"


class ActionTypeAdmissionPayload(TypedDict):
    """The admission webhook let a change of an ActionType through or refused it, before the cluster kept it.

    Which kinds of action exist at all is decided here: the trail of who widened or narrowed them starts with it.
    """

    event_type: Literal[
        "actiontype.admitted.create",
        "actiontype.admitted.update",
        "actiontype.admitted.delete",
        "actiontype.denied.create",
        "actiontype.denied.update",
        "actiontype.denied.delete",
    ]
    action_type_name: str
    crd_name: str
    crd_namespace: str
    action: Literal["create", "update", "delete", "denied"]
    previously_existed: NotRequired[bool]
    catalog_status: NotRequired[str]
    denial_reason: NotRequired[str]
    denial_operation: NotRequired[str]
