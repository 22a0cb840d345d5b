"""Serving: uvicorn on every port, and a shutdown that still answers the requests that arrive during it."""

import asyncio
import signal
import socket
from types import FrameType
from typing import Any

import uvicorn

from app.connection import HttpConnection
from app.errors import Fatal
from app.main import create_app
from app.presence import Presence
from app.settings import Settings
from app.tls import Certificate

_IDLE_SECONDS = 120
_BACKLOG = 2048


class Server(uvicorn.Server):
    """After a stop signal the server reports that it is not ready, but accepts requests until routers have had time to notice."""

    def __init__(self, settings: Settings, presence: Presence, tls: Certificate | None) -> None:
        self._presence = presence
        self._tls = tls
        self._port = settings.port
        self._delay_seconds = settings.propagation_delay_ms / 1000
        self._loop: asyncio.AbstractEventLoop | None = None
        super().__init__(
            uvicorn.Config(
                create_app(settings, presence),
                loop="uvloop",
                http=type("HttpConnection", (HttpConnection,), {"head_bytes_max": settings.head_bytes_max}),
                ws="none",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                lifespan="on",
                timeout_keep_alive=_IDLE_SECONDS,
                timeout_graceful_shutdown=settings.shutdown_timeout_ms // 1000,
            )
        )

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().serve(sockets)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start listening. TLS is on the port of the API only: probes and Prometheus are inside the cluster."""
        assert sockets is not None
        secured = [sock for sock in sockets if self._tls is not None and sock.getsockname()[1] == self._port]
        await super().startup([sock for sock in sockets if sock not in secured])
        for sock in secured:
            assert self._tls is not None
            context = self._tls.context()
            server = await asyncio.get_running_loop().create_server(
                self._create_protocol, sock=sock, ssl=context, backlog=_BACKLOG
            )
            self.servers.append(server)

    def _create_protocol(self) -> asyncio.Protocol:
        protocol_class: Any = self.config.http_protocol_class
        protocol: asyncio.Protocol = protocol_class(
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
        return protocol

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        is_second_signal, self._presence.shutting_down = self._presence.shutting_down, True
        if is_second_signal or self._presence.fatal or not self._delay_seconds or self._loop is None:
            super().handle_exit(sig, frame)
        else:
            self._loop.call_soon_threadsafe(self._loop.call_later, self._delay_seconds, super().handle_exit, sig, frame)


def serve(settings: Settings, presence: Presence) -> None:
    """Serve until a stop signal. Raises Fatal when the service cannot start, or cannot continue."""
    sockets = [
        _listen(settings.host, port)
        for port in dict.fromkeys((settings.port, settings.health_port, settings.metrics_port))
        if port is not None
    ]
    try:
        tls = Certificate(settings.tls_dir, settings.tls_min_version) if settings.tls_dir else None
        Server(settings, presence, tls).run(sockets)
    finally:
        # Also when run() is left by the signal that uvicorn raises again after its shutdown.
        if presence.fatal is not None:
            raise presence.fatal


def _listen(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server(
            (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=_BACKLOG
        )
    except OSError as error:
        raise Fatal(
            f"Cannot listen on {host}:{port} ({error.strerror}): stop what uses it, or set DATASTORAGE_PORT."
        ) from None


def exit_quietly(sig: int, frame: FrameType | None) -> None:
    """The handler of signals outside of serving: unwinds the stack, so that an embedded Postgres is stopped."""
    del frame
    raise SystemExit(0 if sig == signal.SIGTERM else 130)
