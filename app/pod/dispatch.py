"""Decides which process of the pod answers a request that this one has received.

Posts of events are answered here. What shows or needs the writer's own state goes to the writer, everything else to a reader.
"""

from starlette.types import ASGIApp, Receive, Scope, Send

from app.api.health import OWN_PATHS
from app.api.post import DIRECT
from app.api.reading import is_endless
from app.errors import AuditError, Unavailable
from app.pod.relay import NobodyAnswers
from app.pod.state import PodState
from app.settings import Settings

_EVENTS = ("/api/v1/audit/events/", "/ui/events/")
_NOTIFICATIONS = "POST", "/api/v1/audit/notifications"


class ReaderAway(Unavailable):
    """The process that answers this starts again; send the request again shortly."""


class Dispatch:
    """The outermost ASGI application of a process that takes connections."""

    def __init__(
        self, here: ASGIApp, readers: ASGIApp, writer: ASGIApp | None, state: PodState, settings: Settings
    ) -> None:
        """`writer` is None where this process is the writer."""
        self._here = here
        self._readers = readers
        self._writer = writer
        self._state = state
        self._extra_ports = {settings.health_port, settings.metrics_port} - {None, settings.port}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        other = self._other(scope) if scope["type"] == "http" else None
        if other is not None:
            try:
                await other(scope, receive, send)
            except NobodyAnswers:
                scope.setdefault("state", {})["refusal"] = ReaderAway()
            except AuditError as error:
                scope.setdefault("state", {})["refusal"] = error
            else:
                return
        await self._here(scope, receive, send)

    def _other(self, scope: Scope) -> ASGIApp | None:
        """The application that has another process answer this request; None if this process does."""
        if "refusal" in scope.get("state", {}):
            return None
        method, path = request = scope["method"], scope["path"]
        is_extra = bool(self._extra_ports) and (scope.get("server") or ("", None))[1] in self._extra_ports
        if request in DIRECT and not is_extra:
            return None
        if is_extra or path in OWN_PATHS or request == _NOTIFICATIONS:
            return self._writer
        # An event that waits in the spool can be read too; only the writer has the spool.
        if self._state.has_spooled and method == "GET" and path.startswith(_EVENTS):
            return self._writer
        scope.setdefault("state", {})["is_endless"] = is_endless(path)
        return self._readers
