"""What requests need of the service: one frozen object, created in app/main.py and stored in one typed place.

`Application.service` is a Foundation from the first request on. Once the database has been seen and its schema fits, a
Service replaces it. Handlers reach it by `service_of`; only what is answered before the start too uses `foundation_of`.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, fields
from typing import Self

from fastapi import FastAPI
from sqlalchemy.ext.asyncio import AsyncEngine
from starlette.requests import Request
from starlette.responses import Response

from app.api.body import ByteBudget
from app.api.reading import ReadSlots
from app.auth.authenticator import Authenticator
from app.errors import DatabaseAway
from app.events.catalog import Catalog
from app.export.certificate import ExportKeyStore
from app.ingest.spool import Spool
from app.ingest.writer import Writer
from app.presence import Presence
from app.settings import Settings
from app.tlog.keys import SigningKey

Endpoint = Callable[[Request], Awaitable[Response]]
"""A handler. It reaches the service through its request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Foundation:
    """What exists before the database has been seen: enough for health, event types, access control and validation."""

    settings: Settings
    catalog: Catalog
    presence: Presence
    engine: AsyncEngine
    authenticator: Authenticator
    byte_budget: ByteBudget
    read_slots: ReadSlots
    export_key_store: ExportKeyStore
    spool: Spool | None = None
    """Opened before the database is searched for, so that what waits in it can be read. None without a spool."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Service(Foundation):
    """The started service: everything that a request can need."""

    writer: Writer
    log_name: str
    signing_key: SigningKey | None
    """None where checkpoints are not signed."""

    @classmethod
    def started(cls, foundation: Foundation, *, writer: Writer, log_name: str, signing_key: SigningKey | None) -> Self:
        """The service on this foundation."""
        shared = {field.name: getattr(foundation, field.name) for field in fields(Foundation)}
        return cls(**shared, writer=writer, log_name=log_name, signing_key=signing_key)


class Application(FastAPI):
    """The framework's application, and the one place where the service is stored."""

    service: Foundation


def service_of(request: Request) -> Service:
    """The started service. Raises DatabaseAway before the start: the request is answered 503 and can be sent again."""
    service = request.scope["app"].service
    if not isinstance(service, Service):
        raise DatabaseAway
    return service


def foundation_of(request: Request) -> Foundation:
    """What exists before the start too."""
    foundation: Foundation = request.scope["app"].service
    return foundation
