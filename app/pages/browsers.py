"""What browsers need around the front: a session cookie is read as the token that it holds, and problems below /ui become pages.

Everything else passes through untouched, so that access control, audited reads, metrics and limits are the same for a page as for
the API. A session counts for every page, and for the API where it only reads: a page's script and its JSON twin get what the page
shows. Nothing that writes accepts a cookie but a form below /ui, and that only from a page of this service.
"""

from collections.abc import Container
from contextlib import suppress
from http import HTTPStatus
from typing import Any, Literal
from urllib.parse import quote, urlsplit

import orjson
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.access import GUARDED_PREFIX, PAGES, is_page
from app.api.problems import CONTENT_TYPE
from app.api.service import Application
from app.errors import AuditError, BadRequest
from app.pages import session
from app.pages.rendering import page
from app.settings import Settings, is_loopback

_READS = frozenset({"GET", "HEAD"})
_OF_BROWSERS = frozenset({b"accept-language", b"origin", b"sec-fetch-site"})
"""Headers that browsers send, one of them at least with every request of a script, and that clients of the API do not, but for `*` of Node."""
_NOT_FOUND = "There is no such page here: the navigation has all there are."


class Browsers:
    """Wraps the front. `app` is the framework's application, which error pages are rendered with."""

    def __init__(self, front: ASGIApp, app: Application, settings: Settings) -> None:
        self.front = front
        self.app = app
        self._sealer = session.sealer(settings.ui_session_key)
        self._own_host = _host(settings.ui_url or "")
        """What browsers call it, where a proxy calls it otherwise."""
        self._is_local = settings.auth == "none" and not settings.allow_unauthenticated

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.front(scope, receive, send)
            return
        path, method = scope["path"], scope["method"]
        if path == "/" and method in _READS and _accepts_html(scope):
            await RedirectResponse(PAGES, 303)(scope, receive, send)
        elif is_page(path):
            await self._answer_page(scope, receive, send)
        else:
            if path.startswith(GUARDED_PREFIX):
                self._admit_browser(scope)
            await self.front(scope, receive, send)

    def _admit_browser(self, scope: Scope) -> None:
        """Let a browser that asks the API have its session where it reads, and nothing under another name than this machine's."""
        if scope["method"] in _READS and _has_header(scope, b"cookie"):
            self._open_session(scope)
        if self._is_local and _is_of_browser(scope) and not _is_to_loopback(scope):
            scope.setdefault("state", {})["refusal"] = _rebound()  # the front answers with it

    async def _answer_page(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._open_session(scope)
        scope["app"] = self.app
        if (refusal := self._refusal(scope)) is not None:
            scope["state"]["refusal"] = refusal  # the front answers with it
        answer = _Answer(send)
        await self.front(scope, receive, answer.send if _accepts_html(scope) else send)
        if answer.is_problem:
            await self._problem_page(Request(scope), answer)(scope, receive, send)

    def _open_session(self, scope: Scope) -> None:
        """Give the request the token of its session, unless it shows one itself."""
        state = scope.setdefault("state", {})
        state["sealer"] = self._sealer
        state["is_plain_loopback"] = _is_plain_loopback(scope)
        if _has_header(scope, b"authorization"):
            return
        cookie = session.cookies(scope).get(session.session_cookie(scope))
        opened = cookie and self._sealer.unseal(session.SESSION, cookie)
        if cookie and opened:
            state["session"] = session.Opened(cookie, opened["token"])
            scope["headers"] = [*scope["headers"], (b"authorization", b"Bearer " + opened["token"].encode("latin-1"))]

    def _refusal(self, scope: Scope) -> AuditError | None:
        """Why this request for a page is refused before anybody looks at it."""
        headers = Request(scope).headers
        if self._is_local and not _is_to_loopback(scope):
            return _rebound()
        hosts = {headers.get("host"), self._own_host} - {None, ""}
        if scope["method"] in _READS or _is_same_origin(headers.get("sec-fetch-site"), headers.get("origin"), hosts):
            return None
        return session.ForgedForm()

    def _problem_page(self, request: Request, answer: "_Answer") -> Response:
        status, problem = answer.status, answer.problem
        if status == 401 and request.method in _READS:
            query = request.scope["query_string"]
            target = request.scope["raw_path"] + (b"?" + query if query else b"")
            return RedirectResponse(
                f"{PAGES}/login?{'ended&' if session.token_of(request.scope) else ''}next={quote(target, safe='')}", 303
            )
        title = problem.get("title") or HTTPStatus(status).phrase
        return self._error_page(request, status, title, problem.get("detail") or _NOT_FOUND, answer.kept_headers)

    def _error_page(
        self, request: Request, status: int, title: str, detail: str, headers: dict[str, str] | None = None
    ) -> Response:
        response = page(request, "error.html", title=title, status=status, detail=detail)
        response.headers.update(headers or {})
        return response


class _Answer:
    """An answer on its way to a browser. A problem does not go there: it is remembered, to be shown as a page."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._body = b""
        self._headers: dict[str, str] = {}
        self.is_problem = False
        self.status = 0

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._headers = {name.decode(): value.decode("latin-1") for name, value in message["headers"]}
            self.status = message["status"]
            self.is_problem = self.status >= 400 and not self._headers.get("content-type", "").startswith("text/html")
        if not self.is_problem:
            await self._send(message)
        elif message["type"] == "http.response.body":
            self._body += message.get("body", b"")

    @property
    def problem(self) -> dict[str, Any]:
        """The members of the problem document; none of an answer that has none, as a path that does not exist."""
        is_document = self._headers.get("content-type") == CONTENT_TYPE
        problem: dict[str, Any] = orjson.loads(self._body) if is_document else {}
        return problem

    @property
    def kept_headers(self) -> dict[str, str]:
        """Those that belong to the refusal and not to its form."""
        names = (
            "retry-after",
            "x-request-id",
            "cache-control",
            "x-content-type-options",
            "strict-transport-security",
            "allow",
        )
        return {name: self._headers[name] for name in names if name in self._headers}


def _has_header(scope: Scope, name: bytes) -> bool:
    return any(sent == name for sent, _ in scope["headers"])


def _is_of_browser(scope: Scope) -> bool:
    return any(name in _OF_BROWSERS and value != b"*" for name, value in scope["headers"])


def _accepts_html(scope: Scope) -> bool:
    return any(name == b"accept" and b"text/html" in value for name, value in scope["headers"])


def _host(url: str, part: Literal["netloc", "hostname"] = "netloc") -> str:
    """The host of a URL, with or without its port; empty for what is no URL."""
    with suppress(ValueError):
        return str(getattr(urlsplit(url), part) or "")
    return ""


def _is_plain_loopback(scope: Scope) -> bool:
    """Whether the browser speaks plain HTTP with this process, on one machine, without a proxy between them."""
    headers = Request(scope).headers
    is_proxied = any(name in headers for name in ("x-forwarded-for", "x-forwarded-proto", "forwarded"))
    return scope.get("scheme") == "http" and _is_to_loopback(scope) and not is_proxied


def _is_to_loopback(scope: Scope) -> bool:
    """Whether the request names a host that every machine is to itself."""
    return is_loopback(_host(f"//{Request(scope).headers.get('host', '')}", "hostname"))


def _rebound() -> AuditError:
    """The refusal of a name that a foreign page has made its own: it would read what this service answers."""
    return BadRequest(
        "Without authentication browsers are answered on this machine alone, under localhost or its address."
    )


def _is_same_origin(site: str | None, origin: str | None, hosts: Container[str | None]) -> bool:
    """Whether a form comes from a page of one of these hosts, as far as the browser says where from."""
    if site is not None and site != "same-origin":
        return False
    return origin is None or _host(origin) in hosts
