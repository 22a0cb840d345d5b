"""Large responses: sent in small pieces, as fast as the client receives them, and cut when it receives too slowly."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from app.api.body import ClientDisconnected
from app.api.reading import Turn

STALL_SECONDS = 30.0
BYTES_PER_SECOND_MIN = 64 * 1024
_PIECE_BYTES = 64 * 1024

log = logging.getLogger(__name__)


class PacedSend:
    """The `send` of a read. Bodies leave in pieces, each when the server has passed on the last one to the client, and more is
    read after the rest that the read's slot needs.

    A client may let the service wait for STALL_SECONDS, and for a second more for each BYTES_PER_SECOND_MIN that it has received,
    but never for longer than STALL_SECONDS at once; then its response is cut: it must not occupy its slot for ever. Nor must one
    that receives just fast enough: when others have waited for its slot for too long, its response is cut too.
    """

    def __init__(self, send: Send, turn: Turn) -> None:
        self._send = send
        self._turn = turn
        self._seconds_left = STALL_SECONDS

    async def __call__(self, message: Message) -> None:
        """Raises ClientDisconnected for a client that receives too slowly, or whose slot somebody else gets."""
        self._turn.pause()
        await self._send_whole(message)
        if message.get("more_body", False):
            await self._turn.rest()
        elif message["type"] == "http.response.start":
            self._turn.work()

    async def _send_whole(self, message: Message) -> None:
        body = message.get("body", b"")
        if len(body) <= _PIECE_BYTES:
            await self._send_piece(message)
            return
        for start in range(0, len(body), _PIECE_BYTES):
            end = start + _PIECE_BYTES
            has_more = end < len(body) or message.get("more_body", False)
            await self._send_piece({**message, "body": body[start:end], "more_body": has_more})

    async def _send_piece(self, message: Message) -> None:
        if self._turn.is_over:
            log.warning("a response was cut: others wait for its slot")
            raise ClientDisconnected
        now = asyncio.get_running_loop().time
        begin = now()
        try:
            async with asyncio.timeout(self._seconds_left):
                await self._send(message)
        except TimeoutError:
            log.warning("a response was cut: its client receives too slowly")
            raise ClientDisconnected from None
        earned = len(message.get("body", b"")) / BYTES_PER_SECOND_MIN
        self._seconds_left = min(STALL_SECONDS, self._seconds_left - (now() - begin) + earned)


class StreamedResponse(Response):
    """`first`, then what `rest` yields. A failure breaks the response off: no client can think it complete."""

    def __init__(
        self, first: bytes, rest: AsyncGenerator[bytes], media_type: str, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(headers=headers, media_type=media_type)
        del self.headers["content-length"]
        self._first, self._rest = first, rest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        async with aclosing(self._rest):
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            await send({"type": "http.response.body", "body": self._first, "more_body": True})
            async for chunk in self._rest:
                if await request.is_disconnected():
                    raise ClientDisconnected
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
