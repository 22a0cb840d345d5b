"""What requests need of the service: one frozen object, created in app/main.py and stored in one typed place.

`Application.service` is a Foundation from the first request on. A Service replaces it once the log's name is known: from the
spool, or else when the database has been seen and its schema fits. Handlers that need the database reach it by `service_of`,
those that record by `recording_service`; only what is answered before the start too uses `foundation_of`.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from app.api import document
from app.api.body import ByteBudget
from app.api.reading import ReadSlots
from app.api.routes import Route
from app.api.streams import Streams
from app.archive.reading import ArchiveReader
from app.auth.authenticator import Authenticator
from app.bookmark import Wanted
from app.db import Engine
from app.errors import DatabaseAway, InboxFull
from app.events.catalog import Catalog
from app.events.log import Log
from app.export.certificate import ExportKeyStore
from app.ingest.accept import Draft
from app.ingest.event_writer import EventWriter, WriterState
from app.ingest.spool import Spool
from app.presence import Presence
from app.query.filter import EventQuery
from app.query.histogram import Histogram, HistogramQuery
from app.query.page import Page
from app.query.sharing import SharedReads
from app.read_standbys import Answer, ReadStandbys
from app.settings import Settings
from app.stream.growth import LogGrowth
from app.tlog.keys import SigningKey

Endpoint = Callable[[Request], Awaitable[Response]]
"""A handler. It reaches the service through its request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Foundation:
    """What exists before the database has been seen: enough for health, event types, access control and validation."""

    settings: Settings
    catalog: Catalog
    presence: Presence
    engine: Engine
    standbys: ReadStandbys
    pages: SharedReads[tuple[EventQuery, Wanted], Answer[Page]]
    histograms: SharedReads[tuple[HistogramQuery, Wanted], Answer[Histogram]]
    archive: ArchiveReader
    growth: LogGrowth
    streams: Streams
    authenticator: Authenticator
    byte_budget: ByteBudget
    read_slots: ReadSlots
    writer_state: WriterState
    """Of the pod's writer, which may be in another process."""
    export_key_store: ExportKeyStore
    metrics_text: Callable[[], Awaitable[bytes]]
    """Every metric, as Prometheus reads it."""
    spool: Spool | None = None
    """Opened before the database is searched for, so that what waits in it can be read. None without a spool."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Service(Foundation):
    """Everything that a request can need. Until `presence.database_seen` its writer only spools, and nothing reads."""

    writer: EventWriter
    log_name: str
    """Of the first log."""
    signing_key: SigningKey | None
    """Of the first log; None where checkpoints are not signed."""

    @classmethod
    def started(
        cls, foundation: Foundation, *, writer: EventWriter, log_name: str, signing_key: SigningKey | None
    ) -> Self:
        """The service on this foundation."""
        shared = {field.name: getattr(foundation, field.name) for field in fields(Foundation)}
        return cls(**shared, writer=writer, log_name=log_name, signing_key=signing_key)

    @property
    def log(self) -> Log:
        """The log that events are written to now."""
        return Log(self.writer_state.log_id, self.log_name)

    @property
    def log_key(self) -> SigningKey | None:
        """The key of that log; None where checkpoints are not signed."""
        return self.signing_key and self.signing_key.of(self.log)


class Start:
    """What requests wait for that arrive before there is a Service. No more of them wait than fit into the inbox."""

    def __init__(self, settings: Settings) -> None:
        self._events_max, self._bytes_max = settings.inbox_events_max, settings.inbox_bytes_max
        self._events = self._bytes = 0
        self._ended = asyncio.Event()

    async def wait(self, drafts: Sequence[Draft], deadline: float) -> None:
        """Return when the start has ended, well or not, or at `deadline` (the event loop's clock). Raises InboxFull."""
        events, size = max(1, len(drafts)), sum(len(draft.payload) for draft in drafts)
        if self._events and (self._events + events > self._events_max or self._bytes + size > self._bytes_max):
            raise InboxFull
        self._events += events
        self._bytes += size
        try:
            await asyncio.wait_for(self._ended.wait(), deadline - asyncio.get_running_loop().time())
        except TimeoutError:
            return
        finally:
            self._events -= events
            self._bytes -= size

    def end(self) -> None:
        """Let all go on that wait, and those that come."""
        self._ended.set()


class Application(FastAPI):
    """The framework's application, and the one place where the service is stored."""

    service: Foundation
    start: Start

    def openapi(self) -> dict[str, Any]:
        """The OpenAPI document, with the bodies that the framework does not parse."""
        if self.openapi_schema is None:
            for route in self.routes:
                if isinstance(route, Route):
                    route.describe()
            self.openapi_schema = document.complete(super().openapi())
        return self.openapi_schema


def service_of(request: Request) -> Service:
    """The started service. Raises DatabaseAway before the database has been seen: the request is 503 and can be sent again."""
    service = request.scope["app"].service
    if not (isinstance(service, Service) and service.presence.database_seen):
        raise DatabaseAway
    return service


async def recording_service(request: Request, deadline: float, drafts: Sequence[Draft] = ()) -> Service:
    """The service that can record, if only into the spool. Waits for it until `deadline`; then raises DatabaseAway, or InboxFull."""
    app: Application = request.scope["app"]
    service = app.service
    if not isinstance(service, Service):
        await app.start.wait(drafts, deadline)
        service = app.service
    if not isinstance(service, Service):
        raise DatabaseAway
    return service


def foundation_of(request: Request) -> Foundation:
    """What exists before the start too."""
    foundation: Foundation = request.scope["app"].service
    return foundation
