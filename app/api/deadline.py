"""The time that a query may take."""

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from starlette.requests import Request

from app.errors import DatabaseFailed

_Answer = TypeVar("_Answer")


async def in_time(request: Request, answer: Awaitable[_Answer]) -> _Answer:
    """`answer`, or DatabaseFailed when it takes longer than a query may."""
    limit_ms = request.app.state.settings.query_deadline_ms
    try:
        async with asyncio.timeout(limit_ms / 1000):
            return await answer
    except TimeoutError:
        raise DatabaseFailed(
            f"No answer within {limit_ms} ms: narrow the query by correlation, type or time."
        ) from None
