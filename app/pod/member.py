"""What one process of a pod has besides the service: its slot, the shared state, and its connections to the other processes."""

import asyncio
import logging
import os
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NoReturn

from starlette.types import ASGIApp

from app.ingest.spool_file import Depth
from app.ingest.writer import Writer
from app.pod.dispatch import Dispatch
from app.pod.plan import Role, Slot, alike, slots
from app.pod.pod_metrics import PodMetrics
from app.pod.relay import Relay, RelayServer
from app.pod.remote_writer import RemoteWriter
from app.pod.state import PodState
from app.pod.writer_link import WriterLink
from app.settings import Settings

log = logging.getLogger(__name__)

_POLL_SECONDS = 0.01
_READY_SECONDS = 10.0
_NICENESS_OF_READERS = 7


@dataclass
class Member:
    """One process of the pod."""

    slot: Slot
    processes: int
    state: PodState
    token: str
    """In the names of the pod's sockets, so that two pods on one machine do not meet."""
    metrics: PodMetrics = field(default_factory=PodMetrics)
    _app: ASGIApp | None = None
    _relay_server: RelayServer | None = None
    _link: WriterLink | None = None
    _writer: Writer | None = None
    _relays: list[Relay] = field(default_factory=list)

    @property
    def writes(self) -> bool:
        """Whether this is the pod's writer."""
        return self.slot.role is Role.WRITER

    @property
    def delivers(self) -> bool:
        """Whether this process delivers to sinks: of several readers the first one."""
        return self.slot == next(slot for slot in slots(self.processes) if slot.role is Role.READER)

    @property
    def alike(self) -> int:
        """How many processes of the pod have the role of this one."""
        return alike(self.slot, self.processes)

    @property
    def connections(self) -> int:
        """How many connections from outside this process has, as the others see it."""
        return int(self.state.connections[self.slot.index])

    @connections.setter
    def connections(self, number: int) -> None:
        if self.slot.accepts:  # else it would count as the one with the fewest
            self.state.connections[self.slot.index] = number

    @property
    def has_most_connections(self) -> bool:
        """Whether another process has fewer connections from outside than this one."""
        return self.connections > min(self.state.connections[: self.processes])

    def application(self, app: ASGIApp, settings: Settings) -> ASGIApp:
        """`app` as this process answers requests: what comes from outside goes to the process that answers it."""
        self._app = app
        if not self.slot.accepts:
            return app
        readers, writer = (self._relay(role, settings) for role in (Role.READER, Role.WRITER))
        self._relays = [readers, writer]
        return Dispatch(app, readers, None if self.writes else writer, self.state, settings)

    async def start(self) -> None:
        """Answer what other processes relay to this one, and take events from them."""
        if self.writes:
            self._link = WriterLink(lambda: self._writer, self.metrics, self._writer_name)
            await self._link.start()
        if not self.slot.accepts:
            assert self._app is not None
            self._relay_server = RelayServer(self._app, self._relay_name(self.slot))
            await self._relay_server.start()

    async def close(self) -> None:
        """Take no more from other processes."""
        if self._relay_server is not None:
            await self._relay_server.close()
        for relay in self._relays:
            relay.close()
        if self._link is not None:
            await self._link.close()

    def share(self, writer: Writer) -> None:
        """Let the other processes use the writer of this one."""
        self._writer = writer
        self.state.has_spool = writer.has_spool
        self.state.log_name = writer.store.log.first_name.encode()
        self.state.started = True

    async def wait_for_others(self) -> None:
        """The database has been seen: let the other processes use it, and wait a little until they do."""
        self.state.database_seen = self.state.ready[self.slot.index] = True
        with suppress(TimeoutError):
            async with asyncio.timeout(_READY_SECONDS):
                while not all(self.state.ready[: self.processes]):  # noqa: ASYNC110 -- another process sets it
                    await asyncio.sleep(_POLL_SECONDS)

    async def find_writer(self) -> RemoteWriter:
        """Wait until the pod's writer can be used, however long it takes."""
        while not self.state.started:  # noqa: ASYNC110 -- another process sets it
            await asyncio.sleep(_POLL_SECONDS)
        writer = RemoteWriter(self.state, _end if self.slot.role is Role.FRONT else lambda: None)
        await writer.connect(self._writer_name)
        return writer

    async def is_database_seen(self) -> bool:
        """Whether the writer has seen the database; not sooner than after a short time while it has not."""
        if not self.state.database_seen:
            await asyncio.sleep(_POLL_SECONDS)
        return self.state.database_seen

    @property
    def log_name(self) -> str:
        """Of the log that the writer writes to. Before the database has been seen it can still change."""
        return self.state.log_name.decode()

    def on_depth(self, depth: Depth) -> None:
        """Show the other processes whether events wait in the spool."""
        self.state.has_spooled = depth.requests > 0

    def report_ready(self) -> None:
        """This process answers now. If it reads, it yields to others from now on."""
        if self.slot.role is Role.READER:
            os.nice(_NICENESS_OF_READERS)
        self.state.ready[self.slot.index] = True

    @property
    def _writer_name(self) -> str:
        return f"datastorage-{self.token}-link"

    def _relay(self, role: Role, settings: Settings) -> Relay:
        """The application that has a process of this role answer."""
        names = [self._relay_name(slot) for slot in slots(self.processes) if slot.role is role]
        return Relay(names, by_caller=settings.read_rate is not None)

    def _relay_name(self, slot: Slot) -> str:
        return f"datastorage-{self.token}-{slot.name}"


def _end() -> NoReturn:
    """A front that cannot reach the writer answers 503 to every event: the supervisor starts it again."""
    log.error("the connection to the process that writes was lost")
    os._exit(1)
