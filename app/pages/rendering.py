"""Templates become pages here: one environment, what every page has, and the headers that confine a page to this host."""

import re
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from markupsafe import Markup, escape
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from app.api.access import caller_name
from app.api.service import foundation_of
from app.pages import session
from app.pages.text import cut, visible

_BREAKS = re.compile(r"[./:@_-]")
if TYPE_CHECKING:
    from jinja2 import Environment

STATIC = Path(__file__).parent / "static"
SECURITY = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "same-origin",  # a form's Origin is null without one
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}
NAVIGATION = (
    ("/ui/events", "Events"),
    ("/ui/correlations", "Remediations"),
    ("/ui/trust", "Trust"),
    ("/ui/event-types", "Event types"),
    ("/ui/api", "API"),
)


def page(
    request: Request, template: str, *, title: str, twin: str | None = None, status: int = 200, **values: Any
) -> Response:
    """The page that `template` makes of `values`. `twin` is the path of the API, with its query, that answers the same as JSON.

    In a template every text that is shown passes `visible`, and is escaped; a value that it does not get is an error.
    """
    form_token, cookie = session.form_token(request)
    html = (
        environment()
        .get_template(template)
        .render(
            values,
            title=title,
            twin=twin,
            path=request.url.path,
            caller=caller_name(request),
            has_session=session.token_of(request.scope) is not None,
            form_token=form_token,
            loss=foundation_of(request).presence.loss(),
        )
    )
    response = HTMLResponse(html, status, SECURITY)
    if cookie is not None:
        response.headers["Set-Cookie"] = cookie
    return response


def static_url(name: str) -> str:
    """The URL of a static file, which changes with its content."""
    return f"/ui/static/{static_digest(name)}/{name}"


@cache
def static_digest(name: str) -> str:
    return sha256(static_content(name)).hexdigest()[:16]


@cache
def static_content(name: str) -> bytes:
    return (STATIC / name).read_bytes()


@cache
def environment() -> "Environment":
    """Made for the first page: a service that nobody looks at does not import what it needs."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined  # noqa: PLC0415 -- see above

    made = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,  # else each template's file is looked at for each page
    )
    made.globals |= {"static": static_url, "navigation": NAVIGATION}
    made.filters |= {"exact": _exact, "cut": cut, "breakable": breakable, "segment": segment}
    return made


def _shown(value: Any) -> Any:
    """What a template puts out for a value: texts without what cannot be seen, and nothing for None."""
    if value is None:
        return ""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _exact(text: str | None) -> Markup:
    """A text as it is, for the value of a field that is sent back."""
    return escape(text or "")


def breakable(text: str) -> Markup:
    """A name that may continue on the next line after each dot, slash, colon, @ and dash of it."""
    return Markup(_BREAKS.sub(r"\g<0><wbr>", str(escape(visible(text)))))  # noqa: S704 -- it is escaped before


def segment(text: str) -> Markup:
    """A text as one segment of a path."""
    return Markup(quote(text, safe=""))  # noqa: S704 -- percent and unreserved characters alone
