"""Responses with one page of many: their `pagination`, the Link to the next page, and errors that a cursor causes."""

from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlencode

import orjson
from starlette.requests import Request
from starlette.responses import Response

from app.api.body import JSON, json_response
from app.api.streaming import StreamedResponse
from app.errors import DatabaseFailed
from app.events.explain import bad_fields
from app.query.cursor import AnyCursor


@contextmanager
def cursor_errors(cursor: AnyCursor | None) -> Iterator[None]:
    """Around the reading of the page after `cursor`. BadRequest, instead of DatabaseFailed, for a cursor with a value that
    Postgres does not accept (SQLSTATE class 22, data exception): the client's mistake.
    """
    try:
        yield
    except DatabaseFailed as error:
        if cursor is not None and getattr(error.__cause__, "sqlstate", "").startswith("22"):
            raise bad_fields({"cursor": "expected the next_cursor of an earlier answer"}) from None
        raise


def pagination(limit: int, next_cursor: AnyCursor | None, scanned_until: str | None = None) -> dict[str, Any]:
    """`pagination` of a page that is read by cursor alone."""
    members: dict[str, Any] = {"limit": limit, "has_more": next_cursor is not None}
    if next_cursor is not None:
        members["next_cursor"] = str(next_cursor)
    if scanned_until is not None:
        members["scanned_until"] = scanned_until
    return members


Rows = Sequence[dict[str, Any]]


def page_response(
    request: Request, rows: Rows, members: dict[str, Any], rest: AsyncIterator[Rows] | None = None
) -> Response:
    """The page as JSON; `members` are those of its `pagination`. With a Link to the next page if there is one.

    `rest` yields the rows of the page after `rows` that are read only when the client has received those before them.
    """
    next_cursor = members.get("next_cursor")
    headers = {} if next_cursor is None else {"Link": _next_link(request, next_cursor)}
    if rest is None:
        return json_response({"data": rows, "pagination": members}, headers=headers)
    return StreamedResponse(b'{"data":[' + _listed(rows), _after_first(rest, members), JSON, headers)


async def _after_first(rest: AsyncIterator[Rows], members: dict[str, Any]) -> AsyncGenerator[bytes]:
    async for rows in rest:
        yield b"," + _listed(rows)
    yield b'],"pagination":' + orjson.dumps(members) + b"}\n"


def _listed(rows: Rows) -> bytes:
    """The rows as the inside of a JSON array."""
    return orjson.dumps(rows)[1:-1]


def _next_link(request: Request, next_cursor: str) -> str:
    others = [(k, v) for k, v in request.query_params.multi_items() if k not in {"cursor", "offset"}]
    return f'<{request.url.path}?{urlencode([*others, ("cursor", next_cursor)])}>; rel="next"'
