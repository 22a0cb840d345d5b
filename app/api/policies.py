"""GET, PUT and DELETE of retention policies: how long the events of a category stay."""

from datetime import datetime
from typing import Annotated, NotRequired

from fastapi import Path
from pydantic import ConfigDict, Field, with_config
from starlette.requests import Request
from starlette.responses import Response
from typing_extensions import TypedDict

from app.api.access import ANONYMOUS, authorize, caller_name
from app.api.body import json_response
from app.api.checked_body import read_checked_body, request_body_of
from app.api.deadline import within_deadline
from app.api.routes import Router
from app.api.service import service_of
from app.events.catalog.value_types import Int32
from app.retention import policies
from app.retention.policies import CATEGORY_LENGTH_MAX, DAYS_MAX, PolicyOrder
from app.tlog.orders import Policy

router = Router(tags=["retention policies"])
_PATH = "/api/v1/audit/retention-policies"
# For readers of the document; app/retention checks it, for commands too.
Days = Annotated[Int32, Field(json_schema_extra={"minimum": 1, "maximum": DAYS_MAX})]
Reason = Annotated[str, Field(json_schema_extra={"minLength": 1, "pattern": r"\S"})]
Category = Annotated[str, Path(json_schema_extra={"minLength": 1, "maxLength": CATEGORY_LENGTH_MAX, "pattern": r"\S"})]


@with_config(ConfigDict(strict=True, extra="ignore"))
class PolicyToSet(TypedDict):
    """For how many days the events of a category stay at least, the category's own bounds if it has any, and why."""

    retention_days: Days
    floor_days: NotRequired[Days]
    ceiling_days: NotRequired[Days]
    reason: Reason


@with_config(ConfigDict(strict=True, extra="ignore"))
class PolicyToRemove(TypedDict):
    """Why the policy is removed."""

    reason: Reason


class ListedPolicy(TypedDict):
    """A policy as the log records it. What nobody has set since the first migration has neither set_by, set_at nor reason."""

    event_category: str
    retention_days: int
    floor_days: NotRequired[int]
    ceiling_days: NotRequired[int]
    set_by: NotRequired[str]
    set_at: NotRequired[datetime]
    reason: NotRequired[str]


class Policies(TypedDict):
    """By category."""

    policies: list[ListedPolicy]
    total: int


class ChangedPolicy(TypedDict):
    """The policy from the next retention run on: without its members if it was removed."""

    event_category: str
    retention_days: NotRequired[int]
    floor_days: NotRequired[int]
    ceiling_days: NotRequired[int]
    reason: str
    set_by: NotRequired[str]
    removed_by: NotRequired[str]


@router.get(_PATH, response_class=Response, responses={200: {"model": Policies}})
async def list_policies(request: Request) -> Response:
    """Every policy that retention runs follow, as the log records it."""
    service = service_of(request)
    found = await within_deadline(request, policies.policies(service.engine, service.log))
    return json_response({"policies": [policies.listed(*one) for one in found.items()], "total": len(found)})


@router.put(
    _PATH + "/{event_category}",
    response_class=Response,
    responses={200: {"model": ChangedPolicy}},
    openapi_extra=request_body_of(PolicyToSet),
)
async def set_policy(request: Request, event_category: Category) -> Response:
    """Set how long the events of a category stay, from the next retention run on. The log records it."""
    service = service_of(request)
    body: PolicyToSet = await read_checked_body(request, PolicyToSet)
    await authorize(request)
    policy = Policy(*(body.get(name) for name in Policy._fields))  # type: ignore[arg-type]  # retention_days is required
    order = PolicyOrder(caller_name(request) or ANONYMOUS, body["reason"])
    await policies.set_policy(service.settings, service.log, event_category, policy, order)
    return json_response(
        {"event_category": event_category} | policies.days_of(policy) | {"reason": order.reason, "set_by": order.by}
    )


@router.delete(
    _PATH + "/{event_category}",
    response_class=Response,
    responses={200: {"model": ChangedPolicy}},
    openapi_extra=request_body_of(PolicyToRemove),
)
async def remove_policy(request: Request, event_category: Category) -> Response:
    """Leave the events of a category to their own days, within the bounds of the settings. The log records it."""
    service = service_of(request)
    body: PolicyToRemove = await read_checked_body(request, PolicyToRemove)
    await authorize(request)
    order = PolicyOrder(caller_name(request) or ANONYMOUS, body["reason"])
    await policies.remove_policy(service.settings, service.log, event_category, order)
    return json_response({"event_category": event_category, "reason": order.reason, "removed_by": order.by})
