"""Serving: uvicorn on every port, and a shutdown that still answers the requests that arrive during it."""

import asyncio
import ctypes
import errno
import logging
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from secrets import token_hex
from types import FrameType
from typing import Any, NoReturn

import uvicorn

from app.connection import HttpConnection
from app.errors import Fatal
from app.main import check_files, create_app
from app.pod.acceptor import Acceptor
from app.pod.member import Member
from app.pod.plan import Role, Slot, process_count, settings_of
from app.pod.state import shared_state
from app.pod.supervisor import SHOW_SIGNAL, STOP_SIGNAL, Supervisor
from app.presence import Presence
from app.settings import Settings, host_and_port
from app.tls import Certificate

_IDLE_SECONDS = 120
_BACKLOG = 2048
_M_MMAP_THRESHOLD = -3  # of malloc.h
_LARGE_BLOCK_BYTES = 1024 * 1024
_NO_IPV6 = {errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL}
_REMEDIES = {
    errno.EADDRINUSE: "stop what uses it, or set {setting}",
    errno.EADDRNOTAVAIL: "set DATASTORAGE_HOST to an address of this machine",
}

log = logging.getLogger(__name__)


class Server(uvicorn.Server):
    """After a stop signal the server reports that it is not ready, but accepts requests until routers have had time to notice."""

    def __init__(
        self, settings: Settings, presence: Presence, sockets: list[socket.socket], member: Member | None = None
    ) -> None:
        """Reads every file that the settings name, so that only the database can still prevent a start. Raises Fatal."""
        if member is None:
            check_files(settings)
        self._settings = settings
        self._presence = presence
        self._sockets = sockets
        self._tls = Certificate(settings.tls_dir, settings.tls_min_version) if settings.tls_dir else None
        self._port = settings.port
        self._delay_seconds = settings.propagation_delay_ms / 1000
        self._loop: asyncio.AbstractEventLoop | None = None
        super().__init__(
            uvicorn.Config(
                create_app(settings, presence, member),
                loop="uvloop",
                http=_connection_class(settings, presence),
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

    def serve_to_end(self) -> None:
        """Serve until a stop signal, in several processes if the settings say so.

        Raises Fatal when the service cannot start, or cannot continue.
        """
        if (processes := process_count(self._settings)) > 1:
            _serve_in_processes(self._settings, processes, self._presence, self._sockets)
        else:
            self.serve_here()

    def serve_here(self) -> None:
        """As serve_to_end(), in this process."""
        _return_large_blocks()
        try:
            self.run(self._sockets)
        finally:
            # Also when run() is left by the signal that uvicorn raises again after its shutdown.
            if self._presence.fatal is not None:
                raise self._presence.fatal

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

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._presence.on_stop()
        await super().shutdown(sockets)

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


class MemberServer(Server):
    """The server of one process among several: the supervisor stops it, and fronts share their sockets."""

    def __init__(self, settings: Settings, presence: Presence, sockets: list[socket.socket], member: Member) -> None:
        self._member = member
        super().__init__(settings, presence, sockets, member)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        assert sockets is not None
        if self._member.slot.role is not Role.FRONT:
            await super().startup(sockets)
            return
        await super().startup([])
        acceptors: list[Any] = self.servers
        for sock in sockets:
            tls = self._tls if sock.getsockname()[1] == self._port else None
            context = None if tls is None else tls.context()
            acceptors.append(Acceptor(sock, self._accepted, context, lambda: self._member.has_most_connections))

    def _accepted(self) -> asyncio.Protocol:
        self._member.connections = len(self.server_state.connections) + 1
        return self._create_protocol()

    async def on_tick(self, counter: int) -> bool:
        self._member.connections = len(self.server_state.connections)
        return await super().on_tick(counter)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Only the supervisor's signal stops this process, or its own when it cannot continue."""
        signal.signal(STOP_SIGNAL, self.handle_exit)
        signal.signal(SHOW_SIGNAL, self._show_stop)
        signal.signal(signal.SIGTERM, self._on_term)
        yield

    def _on_term(self, sig: int, frame: FrameType | None) -> None:
        if self._presence.fatal is not None:
            self.handle_exit(sig, frame)

    def _show_stop(self, *_: object) -> None:
        self._presence.shutting_down = True

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if not self._member.slot.accepts:
            self._presence.shutting_down = True  # no router sends anything here
        super().handle_exit(sig, frame)


def _serve_in_processes(
    settings: Settings, processes: int, presence: Presence, sockets: list[socket.socket]
) -> NoReturn:
    state, token = shared_state(), token_hex(16)

    def serve_slot(slot: Slot) -> None:
        if not slot.accepts:
            for sock in sockets:
                sock.close()
        own_settings, own_sockets = settings_of(slot, settings, processes), sockets if slot.accepts else []
        MemberServer(own_settings, presence, own_sockets, Member(slot, processes, state, token)).serve_here()

    Supervisor(settings, processes, state, presence, sockets).run(serve_slot)


def _connection_class(settings: Settings, presence: Presence) -> type[asyncio.Protocol]:
    """What a connection is of a server with these settings. Once it stops, clients are told so by their next answer, while routers still
    send them here: a connection that is simply closed could meet a request on its way.
    """
    is_stopping = staticmethod(lambda: presence.shutting_down)
    return type(
        "HttpConnection", (HttpConnection,), {"head_bytes_max": settings.head_bytes_max, "is_stopping": is_stopping}
    )


def _return_large_blocks() -> None:
    """Have glibc give large blocks, bodies above all, back to the system as soon as they are freed.

    By itself it keeps more and more of them, up to 32 MiB each, in a heap that small objects then hold open.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGE_BLOCK_BYTES)


def serve(settings: Settings, presence: Presence) -> None:
    """Serve on the database of the settings until a stop signal. Raises Fatal as Server does."""
    with listening(settings) as sockets:
        Server(settings, presence, sockets).serve_to_end()


@contextmanager
def listening(settings: Settings) -> Iterator[list[socket.socket]]:
    """Sockets that listen on every port at every host of the settings until the block ends. Raises Fatal."""
    ports = {
        settings.metrics_port: "DATASTORAGE_METRICS_PORT",
        settings.health_port: "DATASTORAGE_HEALTH_PORT",
        settings.port: "DATASTORAGE_PORT",
    }
    with ExitStack() as resources:
        sockets = [
            resources.enter_context(one)
            for port, setting in ports.items()
            if port is not None
            for one in _listen(settings.hosts, port, setting)
        ]
        yield sockets


def _listen(hosts: tuple[str, ...], port: int, setting: str) -> list[socket.socket]:
    sockets: list[socket.socket] = []
    addresses = list(dict.fromkeys(address for host in hosts for address in _addresses(host, port)))
    for family, address in addresses:
        try:
            # IPv6 sockets take IPv6 only, whatever the system's default is, so that 0.0.0.0 and :: can be used together.
            sockets.append(socket.create_server((address, port), family=family, backlog=_BACKLOG))
        except OSError as error:
            where, reason = host_and_port(address, port), os.strerror(error.errno or 0)
            if address in {"::", "::1"} and error.errno in _NO_IPV6 and (sockets or (family, address) != addresses[-1]):
                log.warning("an address is left out: this machine has no IPv6", extra={"address": where})
                continue
            for one in sockets:
                one.close()
            remedy = _REMEDIES.get(error.errno or 0, "set {setting}").format(setting=setting)
            raise Fatal(f"Cannot listen on {where} ({reason}): {remedy}.") from None
    return sockets


def _addresses(host: str, port: int) -> Iterator[tuple[socket.AddressFamily, str]]:
    """Family and address of everything that `host`, a name or an address, stands for. Fatal if that is nothing."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise Fatal(f"Cannot listen on {host_and_port(host, port)} ({error.strerror}): set DATASTORAGE_HOST.") from None
    for family, _, _, _, address in found:
        yield family, str(address[0])
