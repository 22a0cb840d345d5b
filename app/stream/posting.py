"""Posts bodies to one URL over a connection that stays open; what goes wrong is NotDelivered, in words without URL and credentials."""

import asyncio
import ssl
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import NamedTuple

import httpx

from app.stream.destination import NotDelivered
from app.stream.sink import HttpSink

ANSWER_BYTES_MAX = 64 * 1024
"""Of an answer that are read."""


class Answer(NamedTuple):
    """What a receiver has answered."""

    status: int
    body: bytes
    retry_after: float | None
    """Seconds that it asks to wait."""

    @property
    def is_success(self) -> bool:
        return 200 <= self.status < 300

    @property
    def phrase(self) -> str:
        """Its status in words."""
        phrase = str(self.status)
        with suppress(ValueError):
            phrase += f" {HTTPStatus(self.status).phrase}"
        return f"{phrase}, which is not followed" if 300 <= self.status < 400 else phrase


class Poster:
    """Posts to the URL of a sink. Redirects are not followed: they could lead anywhere."""

    def __init__(self, sink: HttpSink) -> None:
        self._sink = sink
        self._client: httpx.AsyncClient | None = None

    async def post(self, body: bytes, headers: Mapping[str, str]) -> Answer:
        """The answer. NotDelivered if there is none in time."""
        try:
            # httpx's own timeout is of single steps.
            async with asyncio.timeout(self._sink.timeout_ms / 1000):
                return await self._post(body, headers)
        except TimeoutError:
            await self.close()
            raise NotDelivered("no answer in time", is_late=True) from None
        except httpx.HTTPError as error:
            await self.close()  # the next try begins with a new connection, and with the CA file as it is then
            raise NotDelivered(str(error) or type(error).__name__) from None
        except httpx.InvalidURL:
            raise NotDelivered("the URL cannot be used") from None

    async def close(self) -> None:
        """Close the connection; the next body opens another one."""
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    async def _post(self, body: bytes, headers: Mapping[str, str]) -> Answer:
        client = await self._open()
        # Not compressed: a few bytes could become gigabytes.
        headers = {"accept-encoding": "identity", **headers}
        async with client.stream("POST", self._sink.url, content=body, headers=headers) as answer:
            read = bytearray()
            async for chunk in answer.aiter_raw():
                read += chunk
                if len(read) > ANSWER_BYTES_MAX:
                    break
            return Answer(answer.status_code, bytes(read), retry_seconds(answer.headers.get("retry-after", "")))

    async def _open(self) -> httpx.AsyncClient:
        if self._client is None:
            try:
                context = await asyncio.to_thread(ssl.create_default_context, cafile=self._sink.ca_file)
            except OSError as error:  # ssl.SSLError is one
                raise NotDelivered(f"ca_file {self._sink.ca_file} cannot be used: {error}") from None
            self._client = httpx.AsyncClient(verify=context, timeout=self._sink.timeout_ms / 1000)
        return self._client


def retry_seconds(retry_after: str) -> float | None:
    """What the header Retry-After asks for: seconds, or a date."""
    if retry_after.isascii() and retry_after.isdecimal():
        return float(retry_after[:9])
    try:
        return max(0.0, (parsedate_to_datetime(retry_after) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return None
