"""A client of the stream: records of Server-Sent Events, as a browser reads them."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import httpx

STREAM = "/api/v1/audit/stream"
NO_TIMEOUT = httpx.Timeout(60.0, read=120.0)


class Record(NamedTuple):
    """One record, whole."""

    name: str
    id: str
    """The last id that was seen, of this record or of one before it."""
    data: dict[str, Any]


async def records(answer: httpx.Response) -> AsyncIterator[Record]:
    """The records of an answer, until it ends."""
    name = last = data = ""
    async for line in answer.aiter_lines():
        field, _, value = line.partition(": ")
        match field:
            case "event":
                name = value
            case "id":
                last = value
            case "data":
                data = value
            case "" if name:
                yield Record(name, last, json.loads(data))
                name = data = ""


@asynccontextmanager
async def following(
    url: str, *, last: str | None = None, headers: dict[str, str] | None = None, **parameters: str
) -> AsyncIterator[AsyncIterator[Record]]:
    """The records of a stream, which has begun. `start` stands for the parameter `from`."""
    if "start" in parameters:
        parameters["from"] = parameters.pop("start")
    sent = (headers or {}) | ({} if last is None else {"Last-Event-ID": last})
    async with (
        httpx.AsyncClient(base_url=url, timeout=NO_TIMEOUT) as client,
        client.stream("GET", STREAM, params=parameters, headers=sent) as answer,
    ):
        assert answer.status_code == 200, (await answer.aread()).decode()
        yield records(answer)


async def events_of(stream: AsyncIterator[Record], number: int) -> list[Record]:
    """The next events of a stream."""
    found: list[Record] = []
    while len(found) < number:
        record = await anext(stream)
        if record.name == "audit":
            found.append(record)
    return found
