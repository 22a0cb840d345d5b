"""The deadline of a query."""

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from starlette.requests import Request

from app.api.service import foundation_of
from app.errors import DatabaseBusy

_Answer = TypeVar("_Answer")


async def within_deadline(request: Request, answer: Awaitable[_Answer]) -> _Answer:
    """Await `answer`. DatabaseBusy when it takes longer than the setting query_deadline_ms."""
    limit_ms = foundation_of(request).settings.query_deadline_ms
    try:
        async with asyncio.timeout(limit_ms / 1000):
            return await answer
    except TimeoutError:
        raise DatabaseBusy(f"No answer within {limit_ms} ms: narrow the query by correlation, type or time.") from None
