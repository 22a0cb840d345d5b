"""Forms that a page sends: small, urlencoded, and refused unless a page of this browser's session made them."""

from urllib.parse import parse_qsl

from starlette.requests import Request

from app.api.body import SMALL_BYTES, read_body, wrong_type
from app.errors import BadRequest
from app.pages import session

_TYPE = "application/x-www-form-urlencoded"


async def read_form(request: Request) -> dict[str, str]:
    """The fields of a posted form, the first of repeated ones. session.ForgedForm unless it has the session's token."""
    body, media_type = await read_body(request, SMALL_BYTES)
    if media_type != _TYPE:
        raise wrong_type(media_type, _TYPE)
    try:
        fields = dict(reversed(parse_qsl(body.decode("ascii"), keep_blank_values=True, errors="strict")))
    except ValueError:
        raise BadRequest("The form is not UTF-8.") from None
    if any("\0" in value for value in fields.values()):
        raise BadRequest("The form has a NUL character.")
    if not session.is_form_token(request, fields.get("form_token", "")):
        raise session.ForgedForm
    return fields
