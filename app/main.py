"""Wiring: builds every part once, top to bottom, and runs the workers while the service lives."""

import asyncio
import gc
import logging
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Coroutine
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import asyncpg
from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.types import ASGIApp

from app import db, schema
from app.api import (
    access,
    effectiveness,
    events,
    eventtypes,
    export,
    health,
    history,
    holds,
    notifications,
    post,
    problems,
    proofs,
    reconstruct,
    timeline,
    tlog,
    verify,
)
from app.api.body import ByteBudget
from app.api.front import Front
from app.auth.authenticator import Authenticator
from app.errors import DatabaseAway, Fatal
from app.events.catalog import Catalog
from app.events.custom import custom_types
from app.export.certificate import ExportSigner
from app.ingest import partitions, self_events
from app.ingest.notification_spool import NotificationSpool, replay_forever
from app.ingest.spool import Spool
from app.ingest.store import Store
from app.ingest.writer import Writer
from app.presence import Presence
from app.query import page, warming
from app.retention import claims
from app.settings import Settings
from app.state_dir import state_dir
from app.tlog import prove
from app.tlog import worker as checkpoint_worker
from app.tlog.keys import signing_key
from app.verify.worker import verify_forever

_RETRY_SECONDS = 0.25
_LETTING_GO_SECONDS = 2.0  # for workers and connections, at the end
# Events are many objects without cycles: looking for cycles after every 700 of them took a twentieth of a batch's time.
_GC_THRESHOLDS = (50_000, 20, 50)

log = logging.getLogger(__name__)


def create_app(settings: Settings, presence: Presence | None = None) -> ASGIApp:
    """The service as one ASGI application; its lifespan finds the database and runs the writer.

    Whoever runs it sets `presence.shutting_down` before it stops, and finds in `presence.fatal` why it ended itself.
    """
    app = FastAPI(
        title="DataStorage",
        version=version("datastorage"),
        description="Takes the platform's audit events, keeps them in Postgres, and proves that nothing was changed.",
        lifespan=_lifespan,
        docs_url=None,  # these pages load their scripts from other hosts
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.settings = settings
    app.state.catalog = create_catalog(settings)
    app.state.presence = presence or Presence()
    app.state.engine = db.create_engine(settings)
    app.state.room = ByteBudget(settings.inbox_bytes_max)
    app.state.writer = None
    app.state.spool = None
    app.state.signing_key = None
    app.state.export_signer = ExportSigner(
        settings.signer_cert_dir or state_dir(settings.data_dir) / "export-certificate"
    )
    app.state.log_name = ""
    problems.install(app)
    for module in (
        post,
        proofs,
        events,
        tlog,
        eventtypes,
        verify,
        export,
        notifications,
        reconstruct,
        effectiveness,
        history,
        timeline,
        holds,
        health,
    ):
        for route in module.router.routes:
            assert isinstance(route, APIRoute)
            route.operation_id = route.name
            app.router.routes.append(route)  # flat, so that a 405 names every method of its path
    ports = {settings.health_port: health.HEALTH_PATHS, settings.metrics_port: health.METRICS_PATHS}
    extra_ports = {port: paths for port, paths in ports.items() if port is not None and port != settings.port}
    access.check(app)
    app.state.door = access.AccessControl(Authenticator(settings), settings)
    front = Front(app, post.DIRECT, app.state.door, settings)
    return (
        health.ExtraPorts(front, extra_ports, settings.health_port if settings.profile else None)
        if extra_ports
        else front
    )


def create_catalog(settings: Settings) -> Catalog:
    """The event types that a service with these settings knows. Fatal if a file that should register one is no good."""
    directory = settings.event_types_dir
    files: dict[str, bytes] = {}
    try:
        # A mounted ConfigMap has further entries, whose names begin with a dot.
        for path in () if directory is None else directory.iterdir():
            if path.suffix == ".json" and not path.name.startswith("."):
                files[str(path)] = path.read_bytes()
    except OSError as error:
        raise Fatal(f"Cannot read DATASTORAGE_EVENT_TYPES_DIR: {error}") from None
    return Catalog(custom_types(files), accept_unknown=settings.unknown_event_types == "accept")


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Answer from the first moment; take events once the database was seen and fits."""
    workers: list[asyncio.Task[None]] = []
    workers.append(asyncio.create_task(_start(app, workers), name="start"))
    try:
        yield
    finally:
        app.state.presence.shutting_down = True
        if app.state.writer is not None:
            await _bounded(app.state.writer.close(), app.state.settings.shutdown_timeout_ms / 1000)
        for worker in workers:
            worker.cancel()
        await _bounded(asyncio.gather(*workers, return_exceptions=True), _LETTING_GO_SECONDS)
        await _bounded(app.state.engine.dispose(), _LETTING_GO_SECONDS)
        await app.state.door.gate.close()
        if app.state.spool is not None:
            app.state.spool.close()


async def _bounded(ending: Awaitable[object], seconds: float) -> None:
    """A server that says nothing must not keep the process from ending, as when asyncpg waits for its cancelled query."""
    try:
        async with asyncio.timeout(seconds):
            await ending
    except TimeoutError:
        log.warning("the database did not answer while the service ended")


async def _start(app: FastAPI, workers: list[asyncio.Task[None]]) -> None:
    """Wait for Postgres as long as it takes, then start the workers. A schema that does not fit ends the process."""
    settings: Settings = app.state.settings
    presence: Presence = app.state.presence
    try:
        if settings.signer_cert_dir is not None:
            _load_key_pair(app.state.export_signer, settings.signer_cert_dir)
        app.state.spool = _open_spool(settings)
        log_name = await _find_database(app)
        app.state.signing_key = signing_key(settings, log_name)
        checkpoints = checkpoint_worker.parts(settings, app.state.signing_key) if settings.tlog else None
    except Exception as error:  # whatever it is, a service that cannot start says so and ends
        presence.fatal = error if isinstance(error, Fatal) else Fatal(repr(error))
        log.critical(
            "the service cannot start", extra={"reason": presence.fatal.detail}, exc_info=presence.fatal is not error
        )
        os.kill(os.getpid(), signal.SIGTERM)
        return
    writer = Writer(Store(settings, log_name), settings, app.state.spool)
    writer.start()
    app.state.log_name = log_name
    if app.state.spool is not None:
        presence.can_spool = lambda: app.state.spool.has_room
    for name, work in _workers(app, writer, checkpoints).items():
        workers.append(asyncio.create_task(work, name=name))
    gc.collect()
    gc.freeze()  # what lives as long as the process need not be looked at again
    gc.set_threshold(*_GC_THRESHOLDS)
    app.state.writer = writer
    presence.database_up = presence.started = True
    presence.waiting_for = ""
    log.info("ready", extra={"log": log_name, "port": settings.port})


def _workers(
    app: FastAPI, writer: Writer, checkpoints: checkpoint_worker.Parts | None
) -> dict[str, Coroutine[Any, Any, None]]:
    """What goes on beside the requests, for as long as the process runs."""
    settings: Settings = app.state.settings
    log_name, spool, key = writer.store.log_name, writer.spool, app.state.signing_key
    url = settings.database_url.get_secret_value() if settings.database_url else ""

    async def heartbeat(size: int, since: datetime) -> None:
        payload = {"event_type": "datastorage.log.heartbeat", "tree_size": size, "silent_since": since.isoformat()}
        await self_events.write_self_event(
            writer, self_events.self_event(log_name, payload), settings.single_deadline_ms
        )

    work = {
        "presence": app.state.presence.watch(settings, writer.on_presence),
        "claims": claims.forget_expired(app.state.engine),
        "partitions": partitions.keep_ahead(url, lambda: datetime.now(UTC)),
    }
    if checkpoints is not None:
        work["checkpoints"] = checkpoint_worker.keep(settings, checkpoints, heartbeat)
    if settings.verifier_events_per_second:
        work["verifier"] = verify_forever(settings, log_name, key.all_public if key else ())
    if spool is not None:
        work["notifications"] = replay_forever(app.state.engine, NotificationSpool(spool))
    return work


def _open_spool(settings: Settings) -> Spool | None:
    """The spool that was asked for, else the one of this port, else none."""
    if not settings.spool:
        return None
    if settings.spool_dir is not None:
        return Spool(settings.spool_dir, settings.spool_bytes_max)
    directory = state_dir(settings.data_dir) / f"spool-{settings.port}"
    try:
        return Spool(directory, settings.spool_bytes_max)
    except Fatal as error:
        if os.access(directory, os.W_OK):
            raise
        log.warning("there is no spool: posts are answered 503 while Postgres is away", extra={"reason": error.detail})
        return None


def _load_key_pair(signer: ExportSigner, directory: Path) -> None:
    """Fatal when the tls.crt and tls.key of `directory`, which the settings name, are not a pair."""
    try:
        signer.load()
    except (OSError, ValueError) as error:
        raise Fatal(f"The key pair that signs exports cannot be read from {directory}: {error}") from None


async def _find_database(app: FastAPI) -> str:
    """The log's name, once a server answers whose schema and settings this service can live with."""
    said = ""
    while True:
        try:
            log_name = await _check_database(app.state.settings)
            await page.warm(app.state.engine)
            await warming.warm(app.state.engine)
            await prove.warm(app.state.engine)
        except (DatabaseAway, *db.CONNECTION_ERRORS, asyncpg.PostgresError) as error:
            if not isinstance(error, DatabaseAway) and db.failure_kind(error) is not db.FailureKind.AWAY:
                raise
            app.state.presence.waiting_for = str(error.__cause__ or error)
            if said != (said := repr(error.__cause__ or error)):
                log.warning("waiting for Postgres", extra={"error": said})
            await asyncio.sleep(_RETRY_SECONDS)
        else:
            return log_name


async def _check_database(settings: Settings) -> str:
    assert settings.database_url is not None
    if settings.migrate:
        await schema.upgrade(settings.database_url.get_secret_value(), settings.log_name)
    connection = await db.connect(settings)
    try:
        if not settings.unsafe_database:
            await db.refuse_unsafe(connection)
        log_name = await schema.check(connection, settings.log_name)
        if said := await schema.unguarded(connection):
            log.warning("not guarded against the service's own role", extra={"reason": said})
        return log_name
    finally:
        await connection.close()
