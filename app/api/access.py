"""Access control: which verb each route requires, who is admitted, and under which name they are recorded.

A request under GUARDED_PREFIX, for LOGS_PATH, or for a page, must carry a token whose owner has the verb `get`. Before that only the front's own checks run:
CORS preflight, size of the head and Content-Length (front.py); whether the path exists is not checked. A route that writes
checks its own verb with `authorize`, once it has found its request valid, and before it reads a large body. Every refusal is one log
record and one count.
"""

import logging
from math import inf
from typing import TYPE_CHECKING, NamedTuple

from fastapi import FastAPI
from starlette.requests import Request
from starlette.routing import Route, compile_path
from starlette.types import Scope

from app import metrics
from app.api.body import is_small
from app.api.otlp_answers import LOGS_PATH
from app.api.parameters import CORRELATION_ID
from app.api.service import foundation_of, service_of
from app.auth.authenticator import Authenticator, Caller
from app.errors import AccessRefused, AuditError, Fatal, RateLimited, ReviewFailed, Unauthorized
from app.ingest.self_events import self_event, write_self_event
from app.settings import Settings

if TYPE_CHECKING:
    from app.api.ratelimit import ReadLimit

GUARDED_PREFIX = "/api/v1/"
PAGES = "/ui"
"""Pages for browsers (app/pages) have this path, and those below it."""
_OPEN_PAGES = (PAGES + "/static/", PAGES + "/login", PAGES + "/logout")
OPEN_PATHS = frozenset(
    {
        *("/healthz", "/livez", "/readyz", "/health", "/health/live", "/health/ready", "/metrics", "/openapi.json"),
        *(
            "/tlog/checkpoint",
            "/tlog/key",
            "/tlog/tile/{tile}",
            "/tlog/timestamp",
        ),  # hashes and sizes only; a setting closes them
        *("/ui/static/{digest}/{name}", "/ui/login", "/ui/login/oidc", "/ui/login/callback", "/ui/logout"),
    }
)


class RouteAccess(NamedTuple):
    """What a route requires of its caller beyond `get`, and how its requests count."""

    verb: str = "get"
    writes: bool = False
    """It stores what it is sent, so it is never rate limited."""
    is_evidence: bool = False
    """Its answer is evidence that leaves the service: every reader is audited."""


_READ, _PROOF = RouteAccess(), RouteAccess(is_evidence=True)
_WRITE, _HOLD, _COMPUTE = RouteAccess("create", writes=True), RouteAccess("update", writes=True), RouteAccess("create")
ROUTE_ACCESS: dict[tuple[str, str], RouteAccess] = {
    ("POST", "/api/v1/audit/events"): _WRITE,
    ("GET", "/api/v1/audit/events"): _READ,
    ("POST", "/api/v1/audit/events/batch"): _WRITE,
    ("POST", LOGS_PATH): _WRITE,
    ("POST", "/api/v1/audit/kubernetes"): _WRITE,
    ("POST", "/api/v1/audit/import"): RouteAccess("import", writes=True),
    ("GET", "/api/v1/audit/events/{event_id}"): _READ,
    ("GET", "/api/v1/audit/stream"): _READ,
    ("GET", "/api/v1/audit/histogram"): _READ,
    ("GET", "/api/v1/audit/event-types"): _READ,
    ("GET", "/api/v1/audit/event-types/{name}"): _READ,
    ("GET", "/api/v1/audit/correlations"): _READ,
    ("GET", "/api/v1/audit/correlations/{correlation_id}"): _READ,
    ("GET", "/api/v1/audit/correlations/{correlation_id}/bundle"): _PROOF,
    ("POST", "/api/v1/audit/notifications"): _WRITE,
    ("GET", "/api/v1/audit/notifications"): _READ,
    ("POST", "/api/v1/audit/verify-chain"): _COMPUTE,
    ("POST", "/api/v1/audit/remediation-requests/{correlation_id}/reconstruct"): _COMPUTE,
    ("GET", "/api/v1/audit/remediation-requests/{correlation_id}/reconstruct"): _READ,
    ("GET", "/api/v1/audit/legal-hold"): _READ,
    ("POST", "/api/v1/audit/legal-hold"): _HOLD,
    ("DELETE", "/api/v1/audit/legal-hold"): _HOLD,
    ("DELETE", "/api/v1/audit/legal-hold/{correlation_id}"): _HOLD,
    ("GET", "/api/v1/audit/findings"): _READ,
    ("POST", "/api/v1/audit/findings/{finding_id}/acknowledgement"): _HOLD,
    ("GET", "/api/v1/audit/retention-policies"): _READ,
    ("PUT", "/api/v1/audit/retention-policies/{event_category}"): _HOLD,
    ("DELETE", "/api/v1/audit/retention-policies/{event_category}"): _HOLD,
    ("GET", "/api/v1/audit/trust"): _READ,
    ("GET", "/api/v1/audit/export"): _READ,  # it can write an event of its own
    ("GET", "/api/v1/audit/export/certificate"): _READ,
    ("GET", "/api/v1/audit/consistency"): _PROOF,
    ("GET", "/api/v1/audit/events/{event_id}/proof"): _PROOF,
    ("GET", "/api/v1/effectiveness/{correlation_id}"): _READ,
    ("GET", "/api/v1/remediation-history/context"): _READ,
    ("GET", "/ui"): _READ,
    ("GET", "/ui/events"): _READ,
    ("GET", "/ui/events/{event_id}"): _READ,
    ("GET", "/ui/correlations"): _READ,
    ("GET", "/ui/correlations/{correlation_id}"): _READ,
    ("GET", "/ui/trust"): _READ,
    ("POST", "/ui/findings/{finding_id}/acknowledgement"): _HOLD,
    ("POST", "/ui/holds"): _HOLD,
    ("POST", "/ui/holds/{hold_id}/release"): _HOLD,
    ("GET", "/ui/event-types"): _READ,
    ("GET", "/ui/event-types/{name}"): _READ,
    ("GET", "/ui/api"): _READ,
}
_WRITE_ROUTES = frozenset(key for key, access in ROUTE_ACCESS.items() if access.writes)
_EVIDENCE_PATHS = [
    compile_path(path.replace("{correlation_id}", CORRELATION_ID))[0]  # an id may have a slash, which is encoded
    for (_, path), access in ROUTE_ACCESS.items()
    if access.is_evidence
]
ANONYMOUS = "anonymous"

log = logging.getLogger(__name__)


def is_page(path: str) -> bool:
    """Whether a path is that of a page, or of something that belongs to pages."""
    return path == PAGES or path.startswith(PAGES + "/")


def is_guarded(path: str) -> bool:
    """Whether access control has to admit a request for this path."""
    return path.startswith(GUARDED_PREFIX) or path == LOGS_PATH or (is_page(path) and not path.startswith(_OPEN_PAGES))


def check_routes(app: FastAPI) -> None:
    """Fatal if a route is neither in OPEN_PATHS nor in ROUTE_ACCESS: nobody has decided who may call it."""
    for route in app.router.routes:
        assert isinstance(route, Route)
        for method in route.methods or ():
            is_listed = (method, route.path_format) in ROUTE_ACCESS and is_guarded(route.path)
            if route.path_format not in OPEN_PATHS and not is_listed:
                raise Fatal(
                    f"{method} {route.path_format} is not in ROUTE_ACCESS of app/api/access.py: add it with its verb."
                )


class AccessControl:
    """Admits requests, or raises the error that they are answered with."""

    def __init__(self, authenticator: Authenticator, settings: Settings) -> None:
        self._authenticator = authenticator
        self._read_limit = None if settings.read_rate is None else _read_limit(settings.read_rate)
        self._audits_reads = settings.audit_reads

    async def admit(self, request: Request, authorization: bytes | None) -> dict[str, str]:
        """Identify the caller and check that they may read. Returns headers for the response.

        Raises AccessRefused or RateLimited, and for a read that has to be audited also what Writer.submit() raises.
        """
        scope, caller = request.scope, None
        try:
            if not self._authenticator.is_disabled:
                caller = scope["state"]["caller"] = await self._authenticator.identify(_bearer_token(authorization))
                scope["state"]["username"] = caller.identity.name
                await self._authenticator.authorize(caller, "get")
            if (self._read_limit is None and not self._audits_reads) or (
                scope["method"],
                scope["path"],
            ) in _WRITE_ROUTES:
                return {}
            return await self._admit_read(request, caller)
        except (AccessRefused, RateLimited) as error:
            record_denial(request, error, "get")
            raise

    async def _admit_read(self, request: Request, caller: Caller | None) -> dict[str, str]:
        scope, headers = request.scope, dict[str, str]()
        if self._read_limit is not None and scope["method"] != "DELETE":
            headers = await self._read_limit.count(caller.identity.name if caller else client_address(scope))
        if self._audits_reads and (
            (caller and caller.identity.audited) or any(path.match(scope["path"]) for path in _EVIDENCE_PATHS)
        ):
            await _write_read_event(request, caller)
        return headers


def _read_limit(rate: str) -> "ReadLimit":
    from app.api.ratelimit import ReadLimit  # noqa: PLC0415 -- a tenth of the start's time

    return ReadLimit(rate)


async def _write_read_event(request: Request, caller: Caller | None) -> None:
    """Record that somebody reads, before they do: no audited read is answered without its event."""
    service, scope = service_of(request), request.scope
    name = caller.identity.name if caller else ANONYMOUS
    payload = {
        "event_type": "datastorage.read.audited",
        "read_by": name,
        "http_method": scope["method"],
        "http_path": scope["raw_path"].decode("latin-1"),
        "query_string": scope["query_string"].decode("latin-1"),
    }
    event = self_event(service.log_name, payload, actor_id=name)
    await write_self_event(service.writer, event, service.settings.single_deadline_ms)


def _bearer_token(authorization: bytes | None) -> str:
    """The bearer token of an Authorization header. Raises Unauthorized with the texts of the contract."""
    if not authorization:
        raise Unauthorized("Missing Authorization header")
    if not authorization.startswith(b"Bearer "):
        raise Unauthorized("Invalid Authorization header format")
    if not (token := authorization[7:].rstrip().decode("latin-1")):
        raise Unauthorized("Empty Bearer token")
    if token[0].isspace():
        raise Unauthorized  # to the reference it is part of the token, which nobody knows then
    return token


async def authorize(request: Request) -> None:
    """AccessRefused unless the caller has the verb of this route. Called once the request has been found valid."""
    caller: Caller | None = request.scope["state"].get("caller")
    if caller is None:
        return  # only with auth=none; otherwise the front admits nobody without a caller
    verb = _required_verb(request.scope)
    try:
        await foundation_of(request).authenticator.authorize(caller, verb)
    except AccessRefused as error:
        record_denial(request, error, verb)
        raise


async def may(request: Request, verb: str) -> bool:
    """Whether the caller has a verb, for a page that offers only what they may do; nothing is recorded, since nothing was tried."""
    caller: Caller | None = request.scope["state"].get("caller")
    try:
        if caller is not None:
            await foundation_of(request).authenticator.authorize(caller, verb)
    except AccessRefused:
        return False
    return True


def expiry(request: Request) -> float:
    """Unix time at which the caller's token ends; infinity if it does not."""
    caller: Caller | None = request.scope["state"].get("caller")
    return inf if caller is None else caller.identity.expires


async def is_still_admitted(request: Request) -> bool:
    """Whether the caller of a request that lasts would be admitted now; yes while the identity provider cannot be asked."""
    authenticator = foundation_of(request).authenticator
    if authenticator.is_disabled:
        return True
    try:
        caller = await authenticator.identify(_bearer_token(request.headers.get("authorization", "").encode("latin-1")))
        await authenticator.authorize(caller, "get")
    except ReviewFailed:
        return True
    except AccessRefused:
        return False
    return True


async def authorize_large_body(request: Request) -> None:
    """Before a body is read that is not small: AccessRefused unless the caller has the verb. Nobody else may fill the memory."""
    if not is_small(request):
        await authorize(request)


def _required_verb(scope: Scope) -> str:
    path = getattr(scope.get("route"), "path_format", scope["path"])
    return ROUTE_ACCESS[scope["method"], str(path)].verb


def caller_name(request: Request) -> str:
    """The name under which the caller is recorded; empty with auth=none."""
    caller: Caller | None = request.scope["state"].get("caller")
    return "" if caller is None else caller.identity.name


def actor_override(request: Request) -> str | None:
    """The actor of what this request posts, also if its body names another one; None where the body names the actor."""
    caller: Caller | None = request.scope["state"].get("caller")
    return caller.identity.name if caller is not None and caller.identity.person else None


def client_address(scope: Scope) -> str:
    """The address that the request comes from: that of the client of trusted proxies, where there are any."""
    client = scope.get("client")
    return client[0] if client else ""


def record_denial(request: Request, error: AuditError, verb: str) -> None:
    """One log record and one count of a refusal."""
    scope = request.scope
    kind = {401: "authentication_failed", 403: "authorization_denied", 429: "rate_limited"}.get(
        error.status, "review_failed"
    )
    metrics.DENIALS.labels(kind).inc()
    log.warning(
        "security_event",
        extra={
            "event_type": kind,
            "reason": error.detail,
            "user": scope["state"].get("username", ""),
            "status_code": error.status,
            "method": scope["method"],
            "path": scope["path"],
            "remote_addr": client_address(scope),
            "resource": "services",
            "resource_name": foundation_of(request).settings.kubernetes_service,
            "verb": verb,
            "request_id": scope["state"]["request_id"],
        },
    )
