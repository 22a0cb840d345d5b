"""Signing in and out: a browser hands over a token once, and gets it back as a sealed cookie that no script can read."""

import re
from hmac import compare_digest
from typing import TYPE_CHECKING

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from app.api.access import PAGES, record_denial
from app.api.service import foundation_of
from app.auth.attempt import Attempt
from app.errors import AccessRefused, NotFound, Unauthorized
from app.pages import session
from app.pages.form import read_form
from app.pages.rendering import page

if TYPE_CHECKING:
    from app.auth.code_flow import CodeFlow

router = APIRouter(include_in_schema=False)
_DOTS = re.compile(r"/(?:\.|%2e){1,2}(?:/|$)", re.IGNORECASE)
"""Segments with which a browser leaves /ui, however they are spelled."""


@router.get("/ui/login")
async def login_page(request: Request) -> Response:
    """The form for a token; without authentication there is nothing to sign in to."""
    if foundation_of(request).authenticator.is_disabled:
        return RedirectResponse(PAGES, 303)
    words = "The session has ended: sign in again." if "ended" in request.query_params else ""
    return _form(request, target_of(request.query_params.get("next", "")), words)


@router.post("/ui/login")
async def login(request: Request) -> Response:
    """Begin a session for the owner of a token, who has to be allowed to read."""
    fields = await read_form(request)
    target, token = target_of(fields.get("next", "")), fields.get("token", "").strip()
    try:
        cookie = await _begin(request, token)
    except AccessRefused as error:
        record_denial(request, error, "get")
        return _form(request, target, error.detail, error.status)
    return RedirectResponse(target, 303, {"Set-Cookie": cookie})


@router.get("/ui/login/oidc")
async def begin_at_issuer(request: Request) -> Response:
    """Send the browser to the issuer, with what has to come back sealed in a cookie that survives the way there and back."""
    attempt = Attempt.begin()
    url = await _code_flow(request).authorization_url(attempt)
    response = RedirectResponse(url, 303)
    sealed = attempt._asdict() | {"next": target_of(request.query_params.get("next", ""))}
    response.headers["Set-Cookie"] = session.seal_attempt(request, sealed)
    return response


@router.get("/ui/login/callback")
async def return_from_issuer(request: Request) -> Response:
    """Begin the session of who comes back from the issuer.

    The answer is a page that goes on by itself: a browser does not send the session's cookie with a redirect that began elsewhere.
    """
    flow, sealed, sent = _code_flow(request), session.opened_attempt(request), request.query_params
    if sealed is None or not compare_digest(sealed["state"].encode(), sent.get("state", "").encode()):
        return _form(
            request, PAGES, "This attempt to sign in is over, or was not begun in this browser: begin again.", 400
        )
    target = sealed.pop("next")
    try:
        if "code" not in sent:
            raise Unauthorized(f"The issuer did not sign you in ({sent.get('error', 'without a reason')}).")
        cookie = await _begin(request, await flow.redeem(Attempt(**sealed), sent["code"]))
    except AccessRefused as error:
        record_denial(request, error, "get")
        return _form(request, target, error.detail, error.status)
    response = page(request, "continue.html", title="Signed in", target=target)
    response.headers["Set-Cookie"] = cookie
    response.headers.append("Set-Cookie", session.forget_attempt(request))
    return response


@router.post("/ui/logout")
async def logout(request: Request) -> Response:
    """End the session: the browser forgets its cookie."""
    await read_form(request)
    response = RedirectResponse(f"{PAGES}/login", 303)
    name = session.session_cookie(request.scope)
    response.headers["Set-Cookie"] = session.set_cookie(request.scope, name, "", seconds=0)
    return response


async def _begin(request: Request, token: str) -> str:
    """The header Set-Cookie that begins a session for the owner of a token, who has to be allowed to read."""
    authenticator = foundation_of(request).authenticator
    caller = await authenticator.identify(token)
    request.scope["state"]["username"] = caller.identity.name
    await authenticator.authorize(caller, "get")
    return session.seal_session(request, token, caller.identity.expires)


def target_of(sent: str) -> str:
    """Where a browser goes after it has signed in: a page of this service, whatever was sent."""
    path = sent.partition("?")[0]
    is_page = path.startswith(PAGES + "/") and sent.isprintable() and "\\" not in sent and not _DOTS.search(path)
    return sent if is_page and not sent.startswith((f"{PAGES}/login", f"{PAGES}/logout")) else PAGES


def _code_flow(request: Request) -> "CodeFlow":
    flow = foundation_of(request).authenticator.code_flow
    if flow is None:
        raise NotFound("Nobody signs in at an issuer here: DATASTORAGE_UI_OIDC_CLIENT_ID is not set.")
    return flow


def _form(request: Request, target: str, words: str, status: int = 200) -> Response:
    foundation = foundation_of(request)
    modes, issuer = (
        foundation.settings.auth_modes,
        foundation.authenticator.code_flow and foundation.settings.oidc_issuer,
    )
    return page(
        request, "login.html", title="Sign in", status=status, target=target, words=words, modes=modes, issuer=issuer
    )
