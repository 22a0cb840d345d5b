"""A proxy in front of Postgres that can lose a question or an answer, to the byte where it hurts."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from urllib.parse import parse_qs, urlsplit

from tests.waiting import stop_accepting


class Proxy:
    """Forwards bytes both ways; the two switches cut the connection in the middle of the next exchange."""

    def __init__(self, server_url: str) -> None:
        parts = urlsplit(server_url)
        query = parse_qs(parts.query)
        self._socket_dir = query.get("host", [None])[0]
        self._host, self._port = parts.hostname or "127.0.0.1", int(query.get("port", [parts.port or 5432])[0])
        self._login = parts.netloc.rpartition("@")[0]
        self._path = parts.path
        self.url = ""
        self._refusing = False
        self.refused = asyncio.Semaphore(0)
        """Can be acquired once for each connection that was not taken."""
        self._pumps: set[asyncio.Task[None]] = set()
        self._connections: set[asyncio.Task[None]] = set()
        self.lose_question = False
        """The next message to Postgres never arrives."""
        self.lose_answer = False
        """The next message reaches Postgres; its answer never comes back."""
        self.silent = False
        """Nothing more arrives on either side, and no connection is cut."""

    async def refuse(self, refusing: bool) -> None:
        """Cut every connection and take no other, as if the server were gone; or take them again."""
        self._refusing = refusing
        for pump in list(self._pumps):
            pump.cancel()
        await asyncio.gather(*self._pumps, return_exceptions=True)

    def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._connected(reader, writer))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)
        # A task that is cancelled before it begins closes nothing itself, and one that is cancelled at its end leaves open what nobody reads.
        task.add_done_callback(lambda _: writer.transport.abort())

    async def close(self, server: asyncio.Server) -> None:
        """Cut every connection that `server` has taken, and wait until nothing of it is left."""
        await stop_accepting(server)
        while self._connections:
            for task in self._connections:
                task.cancel()
            await asyncio.gather(*self._connections, return_exceptions=True)
        await asyncio.sleep(0)  # a socket is closed one turn of the loop later

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with _closed(writer):
            if self._refusing:
                self.refused.release()
                return
            try:
                up_reader, up_writer = await self._upstream()
            except OSError:
                return
            async with _closed(up_writer):
                await self._pump(reader, up_writer, up_reader, writer)

    async def _pump(
        self,
        reader: asyncio.StreamReader,
        up_writer: asyncio.StreamWriter,
        up_reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        pumps = {
            asyncio.create_task(self._questions(reader, up_writer)),
            asyncio.create_task(self._answers(up_reader, writer)),
        }
        self._pumps |= pumps
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            self._pumps -= pumps

    async def _upstream(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._socket_dir is not None and self._socket_dir.startswith("/"):
            return await asyncio.open_unix_connection(f"{self._socket_dir}/.s.PGSQL.{self._port}")
        return await asyncio.open_connection(self._socket_dir or self._host, self._port)

    async def _questions(self, reader: asyncio.StreamReader, up_writer: asyncio.StreamWriter) -> None:
        while chunk := await reader.read(1 << 16):
            if self.silent:
                continue
            if self.lose_question:
                self.lose_question = False
                return
            up_writer.write(chunk)
            await up_writer.drain()

    async def _answers(self, up_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while chunk := await up_reader.read(1 << 16):
            if self.silent:
                continue
            if self.lose_answer:
                self.lose_answer = False
                return
            writer.write(chunk)
            await writer.drain()


@contextlib.asynccontextmanager
async def _closed(writer: asyncio.StreamWriter) -> AsyncIterator[None]:
    """A socket that is left open is reported in whatever test runs when it is collected."""
    try:
        yield
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


@contextlib.asynccontextmanager
async def proxy(server_url: str) -> AsyncIterator[Proxy]:
    """A proxy on a port of its own; `url` reaches the same database through it."""
    between = Proxy(server_url)
    server = await asyncio.start_server(between.connected, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    login = f"{between._login}@" if between._login else ""
    between.url = f"postgresql://{login}127.0.0.1:{port}{between._path}?sslmode=disable"
    try:
        yield between
    finally:
        await between.close(server)
