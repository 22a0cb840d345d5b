"""Answers of one page of many: where it stands, the Link to the next one, and whose fault a cursor is."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlencode

import orjson
from starlette.requests import Request
from starlette.responses import Response

from app.errors import DatabaseFailed
from app.events.explain import bad_fields
from app.query.cursor import Cursor, NumberedCursor


@contextmanager
def behind(cursor: Cursor | NumberedCursor | None) -> Iterator[None]:
    """Reading the page behind `cursor`: a value in it that Postgres cannot take is the client's, not the database's."""
    try:
        yield
    except DatabaseFailed as error:
        if cursor is not None and getattr(error.__cause__, "sqlstate", "").startswith("22"):
            raise bad_fields({"cursor": "expected the next_cursor of an earlier answer"}) from None
        raise


def standing(limit: int, next_cursor: Cursor | NumberedCursor | None) -> dict[str, Any]:
    """`pagination` of a page that is read by cursor alone."""
    stands: dict[str, Any] = {"limit": limit, "has_more": next_cursor is not None}
    return stands if next_cursor is None else stands | {"next_cursor": str(next_cursor)}


def page_answer(request: Request, rows: Any, pagination: dict[str, Any]) -> Response:
    """The page as JSON, with a Link to the one behind it if there is one."""
    next_cursor = pagination.get("next_cursor")
    headers = {} if next_cursor is None else {"Link": _next_link(request, next_cursor)}
    body = orjson.dumps({"data": rows, "pagination": pagination}, option=orjson.OPT_APPEND_NEWLINE)
    return Response(body, headers=headers, media_type="application/json")


def _next_link(request: Request, next_cursor: str) -> str:
    kept = [(k, v) for k, v in request.query_params.multi_items() if k not in {"cursor", "offset"}]
    return f'<{request.url.path}?{urlencode([*kept, ("cursor", next_cursor)])}>; rel="next"'
