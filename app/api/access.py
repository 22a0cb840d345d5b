"""Which right each route needs, who is let in, and who it was. Every refusal is one log record and one count.

A request under GUARDED has to show a token, and its caller the verb `get`, before anything else is looked at, its path
included. A route that writes asks for its own verb with `permit`, once its request has been found to be valid.
"""

import logging
from typing import TYPE_CHECKING, NamedTuple

from fastapi import FastAPI
from starlette.requests import Request
from starlette.routing import Route, compile_path
from starlette.types import Scope

from app import metrics
from app.auth.authenticator import Authenticator, Caller
from app.errors import AccessRefused, AuditError, DatabaseAway, Fatal, RateLimited, Unauthorized
from app.ingest.self_events import self_event, write_self_event
from app.settings import Settings

if TYPE_CHECKING:
    from app.api.ratelimit import ReadLimit

GUARDED = "/api/v1/"
OPEN = frozenset(
    {
        *("/healthz", "/livez", "/readyz", "/health", "/health/live", "/health/ready", "/metrics", "/openapi.json"),
        *("/tlog/checkpoint", "/tlog/key", "/tlog/tile/{tile}"),  # hashes and sizes only; a setting closes them
    }
)


class Need(NamedTuple):
    """What a route asks of its caller beyond `get`."""

    verb: str = "get"
    writes: bool = False
    """It takes something in, so it is never rate limited."""
    matters: bool = False
    """Its answer leaves with evidence: it is audited, whoever reads."""


_READ, _PROOF = Need(), Need(matters=True)
_WRITE, _HOLD, _COMPUTE = Need("create", writes=True), Need("update", writes=True), Need("create")
NEEDS: dict[tuple[str, str], Need] = {
    ("POST", "/api/v1/audit/events"): _WRITE,
    ("GET", "/api/v1/audit/events"): _READ,
    ("POST", "/api/v1/audit/events/batch"): _WRITE,
    ("GET", "/api/v1/audit/events/{event_id}"): _READ,
    ("GET", "/api/v1/audit/event-types"): _READ,
    ("GET", "/api/v1/audit/event-types/{name}"): _READ,
    ("GET", "/api/v1/audit/correlations"): _READ,
    ("GET", "/api/v1/audit/correlations/{correlation_id}"): _READ,
    ("POST", "/api/v1/audit/notifications"): _WRITE,
    ("GET", "/api/v1/audit/notifications"): _READ,
    ("POST", "/api/v1/audit/verify-chain"): _COMPUTE,
    ("POST", "/api/v1/audit/remediation-requests/{correlation_id}/reconstruct"): _COMPUTE,
    ("GET", "/api/v1/audit/remediation-requests/{correlation_id}/reconstruct"): _READ,
    ("GET", "/api/v1/audit/legal-hold"): _READ,
    ("POST", "/api/v1/audit/legal-hold"): _HOLD,
    ("DELETE", "/api/v1/audit/legal-hold"): _HOLD,
    ("DELETE", "/api/v1/audit/legal-hold/{correlation_id}"): _HOLD,
    ("GET", "/api/v1/audit/export"): _READ,  # it can write an event of its own
    ("GET", "/api/v1/audit/export/certificate"): _READ,
    ("GET", "/api/v1/audit/consistency"): _PROOF,
    ("GET", "/api/v1/audit/events/{event_id}/proof"): _PROOF,
    ("GET", "/api/v1/effectiveness/{correlation_id}"): _READ,
    ("GET", "/api/v1/remediation-history/context"): _READ,
}
_WRITES = frozenset(key for key, need in NEEDS.items() if need.writes)
_MATTERS = [compile_path(path)[0] for (_, path), need in NEEDS.items() if need.matters]
ANONYMOUS = "anonymous"

log = logging.getLogger(__name__)


def check(app: FastAPI) -> None:
    """Fatal if a route is neither open nor in the table: nobody has thought about who may call it."""
    for route in app.router.routes:
        assert isinstance(route, Route)
        for method in route.methods or ():
            known = (method, route.path_format) in NEEDS and route.path.startswith(GUARDED)
            if route.path_format not in OPEN and not known:
                raise Fatal(
                    f"{method} {route.path_format} is not in NEEDS of app/api/access.py: say which verb it needs."
                )


class AccessControl:
    """Lets requests in, or raises what they are answered with."""

    def __init__(self, gate: Authenticator, settings: Settings) -> None:
        self.gate = gate
        self._limit = None if settings.read_rate is None else _read_limit(settings.read_rate)
        self._audits = settings.audit_reads

    async def admit(self, scope: Scope, authorization: bytes | None) -> dict[str, str]:
        """Find out whose request this is, and whether it may read. Raises AccessRefused or RateLimited; returns headers to add."""
        caller = None
        try:
            if not self.gate.is_open:
                caller = scope["state"]["caller"] = await self.gate.identify(_token(authorization))
                scope["state"]["username"] = caller.identity.name
                await self.gate.permit(caller, "get")
            if (self._limit is None and not self._audits) or (scope["method"], scope["path"]) in _WRITES:
                return {}
            return await self._admit_reading(scope, caller)
        except (AccessRefused, RateLimited) as error:
            _denied(scope, error, "get")
            raise

    async def _admit_reading(self, scope: Scope, caller: Caller | None) -> dict[str, str]:
        added: dict[str, str] = {}
        if self._limit is not None and scope["method"] != "DELETE":
            added = await self._limit.take(caller.identity.name if caller else address_of(scope))
        if self._audits and ((caller and caller.identity.audited) or any(m.match(scope["path"]) for m in _MATTERS)):
            await _audit(scope, caller)
        return added


def _read_limit(rate: str) -> "ReadLimit":
    from app.api.ratelimit import ReadLimit  # noqa: PLC0415 -- a tenth of the start's time

    return ReadLimit(rate)


async def _audit(scope: Scope, caller: Caller | None) -> None:
    """Write down that somebody reads, before they do: no such read is without its event."""
    state = scope["app"].state
    if state.writer is None:
        raise DatabaseAway
    name = caller.identity.name if caller else ANONYMOUS
    payload = {
        "event_type": "datastorage.read.audited",
        "read_by": name,
        "http_method": scope["method"],
        "http_path": scope["raw_path"].decode("latin-1"),
        "query_string": scope["query_string"].decode("latin-1"),
    }
    event = self_event(state.writer.store.log_name, payload, actor_id=name)
    await write_self_event(state.writer, event, state.settings.single_deadline_ms)


def _token(authorization: bytes | None) -> str:
    """The bearer token of an Authorization header. Unauthorized in the words of the contract."""
    if not authorization:
        raise Unauthorized("Missing Authorization header")
    if not authorization.startswith(b"Bearer "):
        raise Unauthorized("Invalid Authorization header format")
    if not (token := authorization[7:].strip().decode("latin-1")):
        raise Unauthorized("Empty Bearer token")
    return token


async def permit(request: Request) -> None:
    """AccessRefused unless the caller may do what this route writes. Called once the request has been found valid."""
    caller: Caller | None = request.scope["state"].get("caller")
    if caller is None:
        return  # mode none; the front has let in nobody else
    verb = need(request.scope).verb
    try:
        await request.app.state.door.gate.permit(caller, verb)
    except AccessRefused as error:
        _denied(request.scope, error, verb)
        raise


def need(scope: Scope) -> Need:
    """What the route of this request asks for."""
    path = getattr(scope.get("route"), "path_format", scope["path"])
    return NEEDS[scope["method"], str(path)]


def caller_of(request: Request) -> str:
    """Who sent this request, as it is written down; empty where nobody is asked who they are."""
    caller: Caller | None = request.scope["state"].get("caller")
    return "" if caller is None else caller.identity.name


def person_of(request: Request) -> str | None:
    """Who is the actor of what this request posts, whatever its body says; None where the body decides."""
    caller: Caller | None = request.scope["state"].get("caller")
    return caller.identity.name if caller is not None and caller.identity.person else None


def address_of(scope: Scope) -> str:
    """The address that the request comes from, behind the proxies that are trusted."""
    client = scope.get("client")
    return client[0] if client else ""


def _denied(scope: Scope, error: AuditError, verb: str) -> None:
    caller: Caller | None = scope["state"].get("caller")
    kind = {401: "authentication_failed", 403: "authorization_denied", 429: "rate_limited"}.get(
        error.status, "review_failed"
    )
    metrics.DENIALS.labels(kind).inc()
    settings = scope["app"].state.settings
    log.warning(
        "security_event",
        extra={
            "event_type": kind,
            "reason": error.detail,
            "user": "" if caller is None else caller.identity.name,
            "status_code": error.status,
            "method": scope["method"],
            "path": scope["path"],
            "remote_addr": address_of(scope),
            "resource": "services",
            "resource_name": settings.kubernetes_service,
            "verb": verb,
            "request_id": scope["state"]["request_id"],
        },
    )
