"""Wiring: creates every part once, top to bottom, and runs the workers for as long as the service runs.

create_app      the parts that exist before the database has been seen, the routes, access control and the front
_lifespan       starts in the background, and at the end stops everything in order
_start          creates the writer and stores the Service that requests use from then on: at once where the spool knows the log's
                name, else when the database has been found
_workers        the table of what runs beside the requests
"""

import asyncio
import gc
import logging
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any
from uuid import UUID

from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.types import ASGIApp

from app import db, rollup, schema
from app.answering import wait_for_an_answer
from app.api import (
    bundle,
    effectiveness,
    events,
    eventtypes,
    export,
    findings,
    health,
    histogram,
    history,
    holds,
    imports,
    kubernetes,
    notifications,
    otlp,
    policies,
    post,
    problems,
    proofs,
    reconstruct,
    stream,
    timeline,
    tlog,
    trust,
    verify,
)
from app.api.access import AccessControl, check_routes
from app.api.body import ByteBudget
from app.api.front import Front
from app.api.known import is_strict, refuse_unknown_parameters
from app.api.reading import read_slots
from app.api.service import Application, Foundation, Service, Start
from app.api.streams import Streams
from app.archive.reading import ArchiveReader
from app.auth.authenticator import Authenticator
from app.database_url import reason
from app.db import Engine
from app.errors import AuditError, DatabaseAway, DatabaseBusy, Fatal
from app.events.catalog import Catalog
from app.events.log import Log
from app.export.certificate import ExportKeyStore
from app.findings.finding import Finding
from app.findings.follow import follow_forever, record_forever
from app.findings.recorder import Recorder
from app.findings.register import Register, findings_of
from app.ingest import partitions, self_events
from app.ingest.event_writer import OwnState
from app.ingest.notification_replay import replay_forever
from app.ingest.spool import Spool
from app.ingest.store import Store
from app.ingest.writer import Writer
from app.pages import correlations as correlations_page
from app.pages import event as event_page
from app.pages import event_types, login, openapi, remediation, static
from app.pages import events as events_page
from app.pages import holds as holds_page
from app.pages import trust as trust_page
from app.pages.browsers import Browsers
from app.pod.member import Member
from app.pod.plan import Role
from app.presence import Presence
from app.query import histogram as histograms
from app.query import page, warming
from app.query.sharing import SharedReads
from app.read_standbys import ReadStandbys
from app.retention import adoption, claims
from app.settings import Settings
from app.state_dir import find_state_dir
from app.stream.growth import LogGrowth, announce_forever
from app.stream.worker import deliver_forever
from app.tlog import prove
from app.tlog.authority import Authority
from app.tlog.continued import find_log
from app.tlog.keys import earlier_keys, private_keys, signing_key
from app.tlog.signer import signed_size
from app.tlog.timestamp import read_certificates
from app.tlog.witness import Witness
from app.tlog.worker import CheckpointWorker
from app.verify.worker import no_checkpoints, verify_forever
from app.workers import Reminder, database_is_away

_ROUTE_MODULES = (
    *(post, otlp, proofs, events, histogram, stream, tlog, eventtypes, verify, export, notifications),
    *(reconstruct, effectiveness, history),
    *(
        bundle,
        timeline,
        holds,
        findings,
        policies,
        trust,
        imports,
        kubernetes,
        health,
    ),  # timeline: any path below correlations/
    *(static, login, events_page, event_page, correlations_page, remediation, holds_page),
    *(trust_page, event_types, openapi),
)
_RETRY_SECONDS = 0.25
_WARMING_SECONDS = 0.5
_STOP_SECONDS = 2.0  # for the workers, and again for the connections
# Events are many objects without cycles: a search for cycles after every 700 of them used a twentieth of a batch's time.
_GC_THRESHOLDS = (50_000, 20, 50)

log = logging.getLogger(__name__)


def create_app(settings: Settings, presence: Presence | None = None, member: Member | None = None) -> ASGIApp:
    """The service as one ASGI application. Its lifespan finds the database and runs the writer and the workers.

    In a pod of several processes, `member` is this one's part: then another one may do some of this. The caller sets `presence.shutting_down` before it stops the service, and reads from `presence.fatal` why the service
    ended itself.
    """
    app = Application(
        title="DataStorage",
        version=version("datastorage"),
        description="Takes the platform's audit events, keeps them in Postgres, and proves that nothing was changed.",
        lifespan=partial(_lifespan, member=member),
        docs_url=None,  # these pages load their scripts from other hosts
        redoc_url=None,
        redirect_slashes=False,
    )
    authenticator = Authenticator(settings)
    writer_state = OwnState() if member is None else member.state
    engine = db.create_engine(settings)
    standbys = ReadStandbys(settings, engine)
    growth, presence = LogGrowth(settings), presence or Presence()
    readers = 1 if member is None else member.alike
    app.service = Foundation(
        settings=settings,
        catalog=create_catalog(settings),
        presence=presence,
        engine=engine,
        standbys=standbys,
        pages=SharedReads(standbys.shared(page.page)),
        histograms=SharedReads(standbys.shared(histograms.histogram)),
        archive=ArchiveReader(settings),
        growth=growth,
        streams=Streams(settings, growth, presence, writer_state, readers=readers),
        authenticator=authenticator,
        byte_budget=ByteBudget(settings.inbox_bytes_max),
        read_slots=read_slots(settings, writer_state, readers=readers),
        writer_state=writer_state,
        export_key_store=ExportKeyStore(settings.signer_cert_dir or _in_state_dir(settings, "export-certificate")),
        metrics_text=health.own_metrics if member is None else member.metrics.text,
    )
    app.start = Start(settings)
    problems.install_handlers(app)
    _add_routes(app)
    check_routes(app)
    front = Front(app, post.DIRECT, AccessControl(authenticator, settings), settings)
    application = _with_extra_ports(Browsers(front, app, settings), settings)
    return application if member is None else member.application(application, settings)


def check_files(settings: Settings) -> None:
    """Read the files that are otherwise read only by the start, when there is a database to wait for. Fatal if one is at fault."""
    if settings.signer_cert_dir is not None:
        _load_key_pair(ExportKeyStore(settings.signer_cert_dir), settings.signer_cert_dir)
    private_keys(settings)
    earlier_keys(settings)
    Authority.create(settings, ())
    for text in settings.witnesses:
        Witness.parse(text)
    if (spool := _open_spool(settings)) is not None:
        spool.close()


def create_catalog(settings: Settings) -> Catalog:
    """The event types of a service with these settings. Fatal if a file of DATASTORAGE_EVENT_TYPES_DIR is not valid."""
    directory = settings.event_types_dir
    files: dict[str, bytes] = {}
    try:
        # A mounted ConfigMap has further entries, whose names begin with a dot.
        for path in () if directory is None else directory.iterdir():
            if path.suffix == ".json" and not path.name.startswith("."):
                files[str(path)] = path.read_bytes()
    except OSError as error:
        raise Fatal(f"Cannot read DATASTORAGE_EVENT_TYPES_DIR: {error}") from None
    if not files:
        return Catalog([], accept_unknown=settings.unknown_event_types == "accept")
    from app.events.custom import custom_types  # noqa: PLC0415 -- its library of JSON Schema is slow to import

    return Catalog(custom_types(files), accept_unknown=settings.unknown_event_types == "accept")


def _add_routes(app: FastAPI) -> None:
    for module in _ROUTE_MODULES:
        for route in module.router.routes:
            assert isinstance(route, APIRoute)
            route.operation_id = route.name
            if is_strict(route):
                refuse_unknown_parameters(route)
            app.router.routes.append(route)  # flat, so that a 405 names every method of its path


def _with_extra_ports(front: Browsers, settings: Settings) -> ASGIApp:
    """`front`, with the health and metrics ports around it if they are not the port of the API."""
    ports = {settings.health_port: health.HEALTH_PATHS, settings.metrics_port: health.METRICS_PATHS}
    extra_ports = {port: paths for port, paths in ports.items() if port is not None and port != settings.port}
    if not extra_ports:
        return front
    return health.ExtraPorts(front, extra_ports, settings.health_port if settings.profile else None)


@asynccontextmanager
async def _lifespan(app: Application, member: Member | None) -> AsyncIterator[None]:
    """Answer requests at once; posts wait until the log's name is known, and all others until the database has been seen."""
    foundation = app.service
    foundation.presence.on_stop = app.start.end
    workers: list[asyncio.Task[None]] = []
    start = _start(app, workers, member) if member is None or member.writes else _join(app, workers, member)
    workers.append(asyncio.create_task(start, name="start"))
    if member is not None:
        await member.start()
    try:
        yield
    finally:
        foundation.presence.shutting_down = True
        if isinstance(app.service, Service):
            await _bounded(app.service.writer.close(), foundation.settings.shutdown_timeout_ms / 1000)
        if member is not None:
            await _bounded(member.close(), _STOP_SECONDS)
        for worker in workers:
            worker.cancel()
        await _bounded(asyncio.gather(*workers, return_exceptions=True), _STOP_SECONDS)
        await _bounded(foundation.engine.dispose(), _STOP_SECONDS)
        await _bounded(foundation.standbys.close(), _STOP_SECONDS)
        await foundation.archive.close()
        await foundation.authenticator.close()
        if app.service.spool is not None:
            app.service.spool.close()
        app.service = foundation  # a host may run the lifespan again
        app.start = Start(foundation.settings)


async def _bounded(step: Awaitable[object], seconds: float) -> None:
    """Await a step of the shutdown for at most `seconds`: asyncpg waits until the server confirms a cancellation, perhaps never."""
    try:
        async with asyncio.timeout(seconds):
            await step
    except TimeoutError:
        log.warning("a step of the shutdown timed out")


async def _join(app: Application, workers: list[asyncio.Task[None]], member: Member) -> None:
    """In a process that does not write: wait for the pod's writer, then use it; read once the writer has seen the database."""
    foundation = app.service
    freeze_objects()
    writer = await member.find_writer()
    while not foundation.presence.database_seen:
        foundation.presence.database_seen = await member.is_database_seen()
        if not isinstance(app.service, Service) or app.service.log_name != member.log_name:
            log_name = member.log_name
            key = signing_key(foundation.settings, log_name)
            app.service = Service.started(foundation, writer=writer, log_name=log_name, signing_key=key)
            app.start.end()
    if member.slot.role is Role.READER:
        await _warm_soon(foundation.engine, Log(0, member.log_name), workers)
        workers += _follow_standbys(foundation)
    gc.freeze()
    member.report_ready()
    if member.delivers:
        work = deliver_forever(foundation.settings, Log(0, member.log_name), foundation.growth)
        workers.append(asyncio.create_task(work, name="delivery"))


async def _wait_for_others(member: Member, presence: Presence, *, was_ready: bool) -> None:
    """Become ready only when the other processes answer too. Who has been ready, since there is a spool, stays so."""
    can_spool = presence.can_spool
    if not was_ready:
        presence.can_spool = lambda: False
    await member.wait_for_others()
    presence.can_spool = can_spool


def _follow_standbys(foundation: Foundation) -> list[asyncio.Task[None]]:
    """The worker of a process that reads, if there are standbys for that."""
    if not foundation.standbys.standbys:
        return []
    return [asyncio.create_task(foundation.standbys.follow_forever(_warm_queries), name="read-standbys")]


def freeze_objects() -> None:
    """What lives as long as the process is not searched for garbage again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_GC_THRESHOLDS)


async def _start(app: Application, workers: list[asyncio.Task[None]], member: Member | None) -> None:
    """Wait for Postgres and its schema, however long it takes, then start the workers. A schema that is too new is Fatal.

    A Fatal error is stored in `presence.fatal`, and the process sends itself SIGTERM.
    """
    foundation = app.service
    settings, presence = foundation.settings, foundation.presence
    database_is_away.set(lambda: bool(presence.database_failure))  # for the tasks that are created from here on
    freeze_objects()  # now, while there is nothing to do but to wait
    try:
        if settings.signer_cert_dir is not None:
            _load_key_pair(foundation.export_key_store, settings.signer_cert_dir)
        app.service = foundation = replace(foundation, spool=_open_spool(settings))
        if settings.spool and foundation.spool is None:
            log.warning(
                "there is no spool, since its directory cannot be written: posts are answered 503 while Postgres is away"
            )
        if member is not None and foundation.spool is not None:
            foundation.spool.on_depth = member.on_depth
            member.on_depth(foundation.spool.depth)
        log_name = await _find_log(app, foundation, member)
        was_ready = isinstance(app.service, Service)
        if member is None:
            await _warm_soon(foundation.engine, Log(0, log_name), workers)
        service = await _settle_log(app, foundation, log_name, member)
        directory = None if service.spool is None else service.spool.directory
        checkpoints = (
            CheckpointWorker.create(settings, service.log, service.signing_key, directory) if settings.tlog else None
        )
    except Exception as error:  # a service that cannot start logs the cause and ends, whatever failed
        presence.fatal = error if isinstance(error, Fatal) else Fatal(repr(error))
        log.critical(
            "the service cannot start", extra={"reason": presence.fatal.detail}, exc_info=presence.fatal is not error
        )
        app.start.end()
        os.kill(os.getpid(), signal.SIGTERM)
        return
    if member is None:
        delivery = deliver_forever(settings, service.log, service.growth)
        workers.append(asyncio.create_task(delivery, name="delivery"))
        workers += _follow_standbys(service)
    for name, work in _workers(service, checkpoints).items():
        workers.append(asyncio.create_task(work, name=name))
    gc.freeze()
    if member is not None:
        workers.append(asyncio.create_task(member.metrics.gather_forever(), name="metrics"))
        await _wait_for_others(member, presence, was_ready=was_ready)
    presence.database_seen = True
    presence.waiting_for = ""
    await _writer_of(service).on_presence("")
    log.info("ready", extra={"log": log_name, "port": settings.port})
    presence.on_start()


async def _find_log(app: Application, foundation: Foundation, member: Member | None) -> str:
    """The name of the database's log. Until there is one, events of the log that the spool knows go to the spool."""
    settings, spool = foundation.settings, foundation.spool
    if spool is None or spool.log_name is None or settings.log_name not in {None, spool.log_name}:
        return await _find_database(foundation, lambda: None)
    service = _new_service(foundation, spool.log_name, away=True)

    def on_away() -> None:
        if app.service is foundation and not foundation.presence.lacks_schema:
            _accept_events(app, service, member)

    timer = asyncio.get_running_loop().call_later(settings.away_patience_ms / 1000, on_away)
    try:
        return await _find_database(foundation, on_away)
    finally:
        timer.cancel()


async def _settle_log(app: Application, foundation: Foundation, log_name: str, member: Member | None) -> Service:
    """Accept events of the database's log. Fatal, with the spool unchanged, when events of another log are in the spool."""
    service, spool = app.service, foundation.spool
    if isinstance(service, Service) and service.log_name != log_name:
        await service.writer.close()  # what it has accepted is in the spool then
    if spool is not None:
        await spool.belong_to(log_name)
    if not (isinstance(service, Service) and service.log_name == log_name):
        service = _new_service(foundation, log_name, away=False)
        _accept_events(app, service, member)
    return service


def _new_service(foundation: Foundation, log_name: str, *, away: bool) -> Service:
    """The service on this foundation, with a writer that is not started. Fatal if the log's key cannot be used."""
    key = signing_key(foundation.settings, log_name)
    keys = () if key is None else key.all_public
    store = Store(
        foundation.settings,
        Log(0, log_name),
        partial(signed_size, keys=keys) if keys else None,
        find_log(foundation.settings, keys),
    )
    writer = Writer(store, foundation.settings, foundation.spool, foundation.writer_state, away=away)
    return Service.started(foundation, writer=writer, log_name=log_name, signing_key=key)


def _accept_events(app: Application, service: Service, member: Member | None) -> None:
    """Have requests use this service from now on."""
    if (spool := service.spool) is not None:
        service.presence.can_spool = lambda: spool.can_append
    writer = _writer_of(service)
    service.presence.writer_failure = lambda: writer.failure
    writer.start()
    if member is not None:
        member.share(writer)
    app.service = service
    app.start.end()


def _writer_of(service: Service) -> Writer:
    """The writer, in the process that writes."""
    assert isinstance(service.writer, Writer)
    return service.writer


def _workers(service: Service, checkpoints: CheckpointWorker | None) -> dict[str, Coroutine[Any, Any, None]]:
    """The table of workers: what runs beside the requests until the process ends, by name."""
    settings, writer, key = service.settings, _writer_of(service), service.signing_key
    url = settings.database_url.get_secret_value() if settings.database_url else ""

    async def write_heartbeat(size: int, since: datetime | None) -> None:
        payload: dict[str, Any] = {
            "event_type": "datastorage.log.heartbeat",
            "tree_size": size,
            "log_id": service.log.id,
        }
        payload |= {} if since is None else {"silent_since": since.isoformat()}
        event = self_events.self_event(service.log_name, payload)
        await self_events.write_self_event(writer, event, settings.single_deadline_ms)

    async def write_finding(finding: Finding, event_id: UUID | None) -> None:
        event = self_events.self_event(service.log.first_name, finding.payload(), about=finding.id, event_id=event_id)
        await self_events.write_self_event(writer, event, settings.single_deadline_ms)

    register = Register(service.log, partial(findings_of, service.engine))
    recorder = Recorder(register, write_finding)
    service.presence.open_findings = lambda: len(register.open)
    workers = {
        "presence": service.presence.watch(settings, writer.on_presence),
        "claims": claims.delete_expired_forever(service.engine),
        "partitions": partitions.create_ahead_forever(url, lambda: datetime.now(UTC)),
        "rollup": rollup.follow_forever(settings),
        "growth": announce_forever(settings, writer.committed),
        "findings": follow_forever(register),
        "alarms": record_forever(recorder, writer.store.alarms),
    }
    if checkpoints is not None:

        def on_log(found: Log) -> None:
            service.writer_state.log_id, register.log = found.id, found

        checkpoints.on_log = on_log
        service.presence.loss = lambda: checkpoints.alarms.loss
        service.presence.signing_waits = lambda: checkpoints.signing_waits
        workers["checkpoints"] = checkpoints.run(settings, write_heartbeat, recorder.record_alarms)
        if key is not None and (authority := Authority.create(settings, key.all_public)) is not None:
            workers["timestamps"] = authority.run(settings, lambda: service.log)
    if settings.verifier_events_per_second:
        known = no_checkpoints if checkpoints is None else checkpoints.known_checkpoints
        keys = key.all_public if key else ()
        file = settings.tsa_certificates_file
        certificates = () if file is None else read_certificates(file)
        workers["verifier"] = verify_forever(settings, service.log, keys, recorder, known, certificates=certificates)
    if service.spool is not None:
        workers["notifications"] = replay_forever(service.engine, writer, service.spool)
    return workers


def _open_spool(settings: Settings) -> Spool | None:
    """The spool in the configured directory, else in that of this port; None if that is not writable or the spool is off."""
    if not settings.spool:
        return None
    if settings.spool_dir is not None:
        return Spool(settings.spool_dir, settings.spool_bytes_max)
    directory = _in_state_dir(settings, f"spool-{settings.port}")
    if directory is None:
        return None
    try:
        return Spool(directory, settings.spool_bytes_max)
    except Fatal:
        if os.access(directory, os.W_OK):
            raise
        return None


def _in_state_dir(settings: Settings, name: str) -> Path | None:
    directory = find_state_dir(settings.data_dir)
    return None if directory is None else directory / name


def _load_key_pair(key_store: ExportKeyStore, directory: Path) -> None:
    """Fatal when the tls.crt and tls.key of `directory`, which the settings name, are not a pair."""
    try:
        key_store.load()
    except (OSError, ValueError) as error:
        raise Fatal(f"The key pair that signs exports cannot be read from {directory}: {error}") from None


async def _find_database(foundation: Foundation, on_away: Callable[[], None]) -> str:
    """Wait for a server whose schema and safety settings this service accepts. Returns the log's name.

    `on_away` is called whenever Postgres is away. While the schema is missing the service is not ready, whatever its spool could take:
    else a rolling upgrade would replace the replicas that can still commit.
    """
    presence = foundation.presence
    reminder, pause = Reminder(), _RETRY_SECONDS
    while True:
        try:
            log_name = await _check_database(foundation.settings)
        except schema.SchemaMissing as missing:
            said, presence.waiting_for = presence.waiting_for, missing.detail
            presence.lacks_schema = True
            if reminder.is_due() or said != missing.detail:
                log.warning("waiting for the schema", extra={"error": missing.detail})
            await asyncio.sleep(_RETRY_SECONDS)
        except (DatabaseAway, *db.DATABASE_ERRORS) as error:
            cause = error.__cause__ or error
            pause = db.next_pause(pause, cause, _RETRY_SECONDS)
            refused = pause > _RETRY_SECONDS
            if not (isinstance(error, DatabaseAway) or refused) and db.failure_kind(error) is not db.FailureKind.AWAY:
                raise
            said, presence.waiting_for = presence.waiting_for, reason(cause)
            if reminder.is_due() or said != presence.waiting_for:
                log.warning("waiting for Postgres", extra={"error": presence.waiting_for})
            on_away()
            if foundation.settings.migrate:
                await asyncio.to_thread(schema.import_migrations)
            await asyncio.sleep(pause)
        else:
            presence.lacks_schema = False
            return log_name


async def _check_database(settings: Settings) -> str:
    """The log's name. Migrates first, if the settings ask for it. Fatal when the schema does not fit or the database is unsafe."""
    assert settings.database_url is not None
    url = settings.database_url.get_secret_value()
    await wait_for_an_answer(url, seconds=settings.connect_timeout_ms / 1000)
    if settings.migrate:
        await schema.upgrade(url, settings.log_name)
    connection = await db.connect(settings)
    try:
        if not settings.unsafe_database:
            await db.refuse_unsafe(connection)
        log_name = await schema.check_and_read_log_name(connection, settings.log_name)
        if warning := await schema.role_warning(connection):
            log.warning("the service's role can delete or alter events", extra={"reason": warning})
        await adoption.adopt(connection, settings, Log(0, log_name))
        return log_name
    finally:
        await connection.close()


async def _warm_queries(engine: Engine) -> None:
    """Compile and prepare the statements of queries."""
    await page.warm(engine)
    await warming.warm(engine)
    await histograms.warm(engine)


async def _warm_soon(engine: Engine, of_log: Log, workers: list[asyncio.Task[None]]) -> None:
    """Warm the connections of reads, but wait no longer for it than the first requests are allowed to: it goes on beside them."""
    warming_up = asyncio.create_task(_warm(engine, of_log), name="warming")
    workers.append(warming_up)
    await asyncio.wait({warming_up}, timeout=_WARMING_SECONDS)


async def _warm(engine: Engine, of_log: Log) -> None:
    """Compile and prepare all statements of reads, so that the first request does not wait for it. If that fails, it waits."""
    try:
        await _warm_queries(engine)
        await prove.warm(engine, of_log)
    except DatabaseBusy:
        log.warning("Postgres is too busy to prepare queries before they are asked: the first ones take longer")
    except (AuditError, *db.DATABASE_ERRORS) as error:
        log.warning(
            "queries could not be prepared before they are asked", extra={"error": reason(error.__cause__ or error)}
        )
