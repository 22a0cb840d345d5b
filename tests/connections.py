"""The service's protocol class in this process, without the rest of it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from starlette.types import ASGIApp
from uvicorn import Config
from uvicorn.server import ServerState

from app.connection import HttpConnection
from tests.waiting import eventually, stop_accepting


class Connection(HttpConnection):
    head_bytes_max = 65536


@dataclass
class Serving:
    """A server, and the connections that it has taken so far, those that are over too."""

    state: ServerState = field(default_factory=ServerState)
    port: int = 0
    taken: list[HttpConnection] = field(default_factory=list)


@asynccontextmanager
async def serving(app: ASGIApp, kind: type[HttpConnection] = Connection) -> AsyncIterator[Serving]:
    """`app` behind connections of `kind` on a port of its own; none is left after it."""
    config, self = Config(app, lifespan="off"), Serving()
    config.load()

    def take() -> HttpConnection:
        self.taken.append(kind(config, self.state, {}))
        return self.taken[-1]

    server = await asyncio.get_running_loop().create_server(take, "127.0.0.1", 0)
    self.port = server.sockets[0].getsockname()[1]
    try:
        yield self
    finally:
        await stop_accepting(server)
        await eventually(lambda: _aborted(self.state))


async def _aborted(state: ServerState) -> bool | None:
    for connection in [*state.connections]:
        connection._transport.abort()  # type: ignore[union-attr]
    return None if state.connections else True
