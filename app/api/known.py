"""Parameters that a route does not know are refused, with the nearest name, on every route that the reference does not have.

On the reference's routes they are ignored, as there: docs/contract.md, section 8. A misspelled filter answers another question.
"""

from collections.abc import Collection
from functools import cached_property
from typing import Any

from fastapi.routing import APIRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from app.api.access import GUARDED_PREFIX
from app.api.parameters import refuse_unknown
from app.api.routes import Route

_AUDIT = "/api/v1/audit/"
_LENIENT = {
    *(("POST", _AUDIT + "events"), ("GET", _AUDIT + "events"), ("POST", _AUDIT + "events/batch")),
    *(("POST", _AUDIT + "notifications"), ("POST", _AUDIT + "verify-chain")),
    ("POST", _AUDIT + "remediation-requests/{correlation_id}/reconstruct"),
    *(
        ("GET", _AUDIT + "legal-hold"),
        ("POST", _AUDIT + "legal-hold"),
        ("DELETE", _AUDIT + "legal-hold/{correlation_id}"),
    ),
    *(("GET", "/api/v1/effectiveness/{correlation_id}"), ("GET", "/api/v1/remediation-history/context")),
    ("GET", _AUDIT + "export"),  # the reference's as json; of its other formats app/api/export.py refuses them
    ("GET", _AUDIT + "stream"),  # refuses them itself: those of pages with a word of their own
    ("GET", _AUDIT + "correlations/{correlation_id}/bundle"),  # refuses them itself: a timeline may have this path too
}
"""Docs/contract.md, section 1, has the routes of the reference."""


def is_strict(route: APIRoute) -> bool:
    """Whether a route refuses parameters that it does not know."""
    methods = ((method, route.path_format) for method in route.methods or ())
    return route.path.startswith(GUARDED_PREFIX) and _LENIENT.isdisjoint(methods)


def refuse_unknown_parameters(route: APIRoute) -> None:
    """Put the refusal before what `route` does."""
    route.app = _KnownOnly(route.app, route)


def parameter_names(route: APIRoute) -> Collection[str]:
    """Names of the parameters in the query string that `route` has in the OpenAPI document."""
    if isinstance(route, Route):
        route.describe()
    parameters: list[dict[str, Any]] = (route.openapi_extra or {}).get("parameters", [])
    documented = [one["name"] for one in parameters if one["in"] == "query"]
    return [*documented, *(str(field.alias) for field in route.dependant.query_params)]


class _KnownOnly:
    def __init__(self, app: ASGIApp, route: APIRoute) -> None:
        self._app, self._route = app, route

    @cached_property
    def _names(self) -> Collection[str]:
        return parameter_names(self._route)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refuse_unknown(scope["query_string"], self._names)
        await self._app(scope, receive, send)
