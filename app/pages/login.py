"""Signing in and out: a browser hands over a token once, and gets it back as a sealed cookie that no script can read."""

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from app.api.access import PAGES
from app.api.service import foundation_of
from app.auth.authenticator import Caller
from app.errors import AccessRefused
from app.pages import session
from app.pages.form import read_form
from app.pages.rendering import page

router = APIRouter(include_in_schema=False)


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
    authenticator = foundation_of(request).authenticator
    try:
        caller = await authenticator.identify(token)
        await authenticator.authorize(caller, "get")
    except AccessRefused as error:
        return _form(request, target, error.detail, error.status)
    return begin_session(request, caller, token, target)


@router.post("/ui/logout")
async def logout(request: Request) -> Response:
    """End the session: the browser forgets its cookie."""
    await read_form(request)
    response = RedirectResponse(f"{PAGES}/login", 303)
    response.headers["Set-Cookie"] = session.set_cookie(request.scope, session.SESSION, "", seconds=0)
    response.headers["Clear-Site-Data"] = '"cache"'
    return response


def begin_session(request: Request, caller: Caller, token: str, target: str) -> Response:
    """The redirect to `target` that gives the browser a session as long as the token is valid, and no longer than SESSION_SECONDS."""
    cookie = session.seal_session(request, token, caller.identity.expires)
    response = RedirectResponse(target, 303)
    response.headers["Set-Cookie"] = cookie
    return response


def target_of(sent: str) -> str:
    """Where a browser goes after it has signed in: a page of this service, whatever was sent."""
    is_page = sent.startswith(PAGES + "/") and sent.isprintable() and "\\" not in sent
    return sent if is_page and not sent.startswith((f"{PAGES}/login", f"{PAGES}/logout")) else PAGES


def _form(request: Request, target: str, words: str, status: int = 200) -> Response:
    settings = foundation_of(request).settings
    return page(
        request, "login.html", title="Sign in", status=status, target=target, words=words, modes=settings.auth_modes
    )
