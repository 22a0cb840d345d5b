"""Connections to Postgres: the writer's own and the pool for reads; and what an error of the driver means."""

import asyncio
import functools
import logging
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING, Any, TypeAlias

import asyncpg

from app import database_url
from app.errors import AuditError, DatabaseAway, DatabaseBusy, DatabaseFailed, Fatal
from app.events.record import ip_packed, ip_text
from app.settings import Settings
from app.sql import load

if TYPE_CHECKING:  # commands that need no pool do not wait for SQLAlchemy, a quarter of a second of CPU
    import sqlalchemy
    from sqlalchemy.engine.interfaces import DBAPIConnection
    from sqlalchemy.pool import ConnectionPoolEntry, PoolProxiedConnection, PoolResetState

Connection = database_url.Connection

_CLOSE_SECONDS = 2.0
_GRACE_SECONDS = 5.0
_PAUSE_SECONDS_MAX = 30.0
_FIRST_CONNECTIONS = 2
_PORTION_ROWS_FIRST = 2
_PORTION_ROWS_MAX = 64
_PORTION_BYTES_MAX = 1024**2
_SERVER_SETTINGS = {
    "jit": "off",  # compiling a plan over many partitions costs more than it saves
    "timezone": "UTC",
    "datestyle": "ISO",
}

_WRITER_SETTINGS = {
    "plan_cache_mode": "force_generic_plan",
    "enable_seqscan": "off",  # a plan made while tables are small would read them whole when they no longer are
    "idle_in_transaction_session_timeout": "5s",
    "tcp_user_timeout": "15s",
    "tcp_keepalives_idle": "5",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "2",
}

# Raised when the server or the network fails, rather than a statement. The driver raises its internal error on a connection
# that the server has just ended.
CONNECTION_ERRORS = (
    *(OSError, TimeoutError, asyncpg.InterfaceError, asyncpg.InternalClientError),
    asyncpg.PostgresConnectionError,
)
DATABASE_ERRORS = (*CONNECTION_ERRORS, asyncpg.PostgresError)
"""Everything that the driver raises, whether the way to the server or a statement has failed."""
_IN_DOUBT = "in doubt"
"""Set on a connection of the pool whose reader was cancelled: a statement may be prepared but not sent, which the driver does not show."""
LONG_FETCH_SECONDS = 600.0
"""Timeout of one fetch of a verification or an export, which may read much."""


log = logging.getLogger(__name__)


class FailureKind(Enum):
    """What a database error means for the caller, by SQLSTATE (docs/design.md, section 6)."""

    REQUEST = auto()
    RESEND = auto()
    LOST_RACE = auto()
    STALE_HEADS = auto()
    LOG_CLOSED = auto()
    MISSING_PARTITION = auto()
    BUSY = auto()
    AWAY = auto()
    UNKNOWN = auto()


def failure_kind(error: Exception) -> FailureKind:
    """The kind of a database error. For a flush it decides what happens next; others distinguish AWAY, BUSY and the rest."""
    if isinstance(error, CONNECTION_ERRORS):
        return FailureKind.AWAY
    if not isinstance(error, asyncpg.PostgresError):
        return FailureKind.UNKNOWN
    state = error.sqlstate or ""
    if state == "23505":
        return {"log_flushes": FailureKind.LOST_RACE, "chain_heads": FailureKind.STALE_HEADS}.get(
            error.table_name or "", FailureKind.RESEND
        )
    if state == "DS001":
        return FailureKind.STALE_HEADS
    if state == "DS002":
        return FailureKind.LOG_CLOSED
    if state == "23514" and not error.constraint_name:
        return FailureKind.MISSING_PARTITION
    if state in {"40001", "40P01", "55P03", "57014"}:
        return FailureKind.BUSY
    if state.startswith("22") or state in {"23502", "23514"}:
        return FailureKind.REQUEST
    if state[:2] in {"08", "53", "58"} or state.startswith("57P") or state in {"25006", "25P03"}:
        return FailureKind.AWAY
    return FailureKind.UNKNOWN


def server_names(settings: Settings) -> str:
    """Host and port of each server that the database's URL names."""
    if settings.database_url is None:
        return ""
    return ", ".join(
        f"{host}:{port}" for host, port in database_url.parse(settings.database_url.get_secret_value()).hosts
    )


def next_pause(last: float, failure: BaseException | None, least: float) -> float:
    """Seconds until the database is asked again: `least`, but twice the `last` ones if it refuses the role, password or database."""
    refused = isinstance(failure, asyncpg.PostgresError) and (
        (failure.sqlstate or "").startswith("28") or failure.sqlstate in {"3D000", "42501"}
    )
    return min(2 * last, _PAUSE_SECONDS_MAX) if refused else least


async def connect(settings: Settings, *, cancels: bool = True, **server_settings: str) -> Connection:
    """One connection. Raises DatabaseAway when none can be opened, and Fatal for a URL that is not valid.

    Without `cancels` it is closed where the driver would ask the server to cancel a statement.
    """
    assert settings.database_url is not None
    try:
        return await database_url.connect(
            settings.database_url.get_secret_value(),
            seconds=settings.connect_timeout_ms / 1000,
            command_seconds=settings.statement_timeout_ms / 1000 + _GRACE_SECONDS,  # for a server that does not answer
            session=_SERVER_SETTINGS | {"statement_timeout": str(settings.statement_timeout_ms)} | server_settings,
            cancels=cancels,
        )
    except DATABASE_ERRORS as error:
        raise DatabaseAway from error


async def connect_writer(settings: Settings) -> Connection:
    """The writer's connection. Its timeouts end it when this process freezes in a flush; its statements need one generic plan.

    It never cancels a statement: a COMMIT that waits for a standby would return, and show what no standby has. Raises DatabaseAway: what was valid at the start can be so again, and events are spooled until then.
    """
    try:
        lock_timeout = {"lock_timeout": str(settings.lock_timeout_ms)}
        connection = await connect(settings, cancels=False, **_WRITER_SETTINGS | lock_timeout)
    except Fatal as error:
        raise DatabaseAway from error
    await connection.set_type_codec(
        "jsonb", schema="pg_catalog", format="binary", encoder=_jsonb, decoder=lambda raw: raw[1:]
    )
    await connection.set_type_codec("inet", schema="pg_catalog", format="binary", encoder=_inet, decoder=_inet_text)
    return connection


def _jsonb(text: bytes) -> bytes:
    return b"\x01" + text


@functools.lru_cache(4096)
def _inet(text: str) -> bytes:
    """The binary form of an inet. asyncpg's own encoder uses ipaddress, which took an eighth of a batch's time."""
    packed = ip_packed(text)
    family = socket.AF_INET if len(packed) == 4 else socket.AF_INET + 1  # PGSQL_AF_INET6 is AF_INET + 1 everywhere
    return bytes((family, len(packed) * 8, 0, len(packed))) + packed


def _inet_text(raw: bytes) -> str:
    """An inet as the record has it, from its binary form; one with a mask, which the service never writes, with its mask."""
    text = ip_text(raw[4:])
    return text if raw[1] == 8 * raw[3] else f"{text}/{raw[1]}"


class Engine:
    """The pool of SQLAlchemy's engine, for asyncio. Its own AsyncEngine imports the ORM too, 0.1 s of CPU of each start."""

    def __init__(self, engine: "sqlalchemy.Engine", size: int) -> None:
        self._engine = engine
        self.size = size
        """How many connections there are at most."""

    @asynccontextmanager
    async def connect(self) -> AsyncIterator["PoolProxiedConnection"]:
        """A connection of the pool, which has it back however often the reader is cancelled."""
        from sqlalchemy.util import greenlet_spawn  # noqa: PLC0415 -- see above

        connection = await greenlet_spawn(self._engine.raw_connection)
        try:
            yield connection
        finally:
            await _to_its_end(greenlet_spawn(connection.close))

    async def dispose(self) -> None:
        """Close the connections that nobody uses."""
        from sqlalchemy.util import greenlet_spawn  # noqa: PLC0415 -- see above

        await greenlet_spawn(self._engine.dispose)


async def _to_its_end(step: Coroutine[Any, Any, None]) -> None:
    """Await `step`; who is cancelled meanwhile is so when it has ended."""
    task, cancelled = asyncio.create_task(step), None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as error:
            cancelled = error
    task.result()
    if cancelled is not None:
        raise cancelled


def create_engine(settings: Settings) -> Engine:
    """The pool of connections for reads."""
    import sqlalchemy  # noqa: PLC0415 -- see above

    def connect_one() -> Any:
        return engine.dialect.loaded_dbapi.connect(async_creator_fn=lambda: connect(settings))

    engine = sqlalchemy.create_engine(
        "postgresql+asyncpg://",
        creator=connect_one,
        pool_size=settings.pool_connections_max,
        max_overflow=0,
        pool_timeout=settings.query_deadline_ms / 1000,
    )
    sqlalchemy.event.listen(engine, "checkout", _refuse_closed)
    sqlalchemy.event.listen(engine, "reset", _close_unless_idle)
    return Engine(engine, settings.pool_connections_max)


def _refuse_closed(connection: "DBAPIConnection", *_: object) -> None:
    """Makes the pool replace a connection that was lost while it was idle."""
    assert connection.driver_connection is not None
    if connection.driver_connection.is_closed():
        from sqlalchemy.exc import DisconnectionError  # noqa: PLC0415 -- see above

        raise DisconnectionError


def _close_unless_idle(connection: "DBAPIConnection", record: "ConnectionPoolEntry", state: "PoolResetState") -> None:
    """Closes what a reader gives back in the middle of something. SQLAlchemy ends this, however often the reader is cancelled."""
    driver: Connection | None = connection.driver_connection
    if driver is not None and state.asyncio_safe and (_IN_DOUBT in record.info or not is_idle(driver)):
        with suppress(*DATABASE_ERRORS):  # then it is closed without having waited for the server
            connection.run_async(
                lambda _: driver.close(timeout=_CLOSE_SECONDS)
            )  # ends its statement on the server first


def is_idle(connection: Connection) -> bool:
    """Whether nothing runs on `connection`, no cancellation of a statement is under way, and it is in no transaction.

    A cancelled BEGIN leaves the driver's notion of a transaction behind, in which the next one would be a savepoint.
    """
    driver: Any = connection  # asyncpg's own pool asks these two private names, and there is no public way
    return connection.is_closed() or not (
        connection.is_in_transaction() or driver._top_xact is not None or driver._protocol._is_cancelling()  # noqa: SLF001
    )


_READ_ERRORS: dict[FailureKind, type[AuditError]] = {FailureKind.AWAY: DatabaseAway, FailureKind.BUSY: DatabaseBusy}


@contextmanager
def read_errors() -> Iterator[None]:
    """Around what a request reads on a connection that is not of the pool: raises DatabaseAway, DatabaseBusy or DatabaseFailed."""
    try:
        yield
    except (*CONNECTION_ERRORS, Fatal) as error:
        raise DatabaseAway from error
    except asyncpg.PostgresError as error:
        raise _READ_ERRORS.get(failure_kind(error), DatabaseFailed) from error


@dataclass(frozen=True, slots=True)
class CheckedPool:
    """A pool of connections of which each is asked something before it is used, and when what was read on it is complete."""

    engine: Engine
    before: Callable[[Connection], Awaitable[None]]
    after: Callable[[Connection], Awaitable[None]]


Pool: TypeAlias = Engine | CheckedPool
"""Where connections for reads come from."""


@asynccontextmanager
async def driver_connection(pool: Pool) -> AsyncIterator[Connection]:
    """The driver's connection under one of the pool: a read costs a third of what it costs through the engine.

    What goes wrong on it is raised as DatabaseAway, DatabaseBusy or DatabaseFailed.
    """
    if not isinstance(pool, CheckedPool):
        async with _borrowed(pool) as connection:
            yield connection
        return
    async with _borrowed(pool.engine) as connection:
        await pool.before(connection)
        yield connection
        await pool.after(connection)


@asynccontextmanager
async def _borrowed(engine: Engine) -> AsyncIterator[Connection]:
    try:
        async with engine.connect() as pooled:
            connection = pooled.driver_connection
            assert connection is not None
            try:
                yield connection
            except CONNECTION_ERRORS:
                connection.terminate()  # the network may be broken without either end knowing
                raise
            except (AuditError, asyncpg.PostgresError):
                raise
            except BaseException:
                pooled.info[_IN_DOUBT] = True
                raise
    except (*CONNECTION_ERRORS, Fatal) as error:
        raise DatabaseAway from error
    except asyncpg.PostgresError as error:
        raise _READ_ERRORS.get(failure_kind(error), DatabaseFailed) from error
    except Exception as error:
        from sqlalchemy.exc import DBAPIError  # noqa: PLC0415 -- see above
        from sqlalchemy.exc import TimeoutError as PoolTimeout  # noqa: PLC0415

        if isinstance(error, PoolTimeout):
            raise DatabaseAway from error
        if isinstance(error, DBAPIError):
            raise _READ_ERRORS.get(failure_kind(error), DatabaseFailed) from error
        raise


@asynccontextmanager
async def limited(connection: Connection, seconds: float | None) -> AsyncIterator[None]:
    """As asyncio.timeout(), and `connection` can go on after it.

    A driver that is interrupted between preparing a statement and executing it leaves a transaction open that it knows nothing of,
    and a BEGIN would find that it has begun already. Any statement ends it. One that is interrupted in a BEGIN takes the next
    transaction for a part of that one.
    """
    driver: Any = connection
    begun = driver._top_xact  # noqa: SLF001 -- as in is_idle()
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        if not connection.is_closed():
            with suppress(asyncpg.InFailedSQLTransactionError):  # whoever has begun that one ends it
                await connection.execute("SELECT")
            if driver._top_xact is not begun:  # noqa: SLF001 -- its BEGIN was interrupted, and nobody will end it
                driver._top_xact = begun  # noqa: SLF001
                if connection.is_in_transaction():
                    await connection.execute("ROLLBACK")
        raise


async def fetch(pool: Pool, statement: str, *arguments: object) -> list[asyncpg.Record]:
    """The rows of a fixed statement, run on a connection of the pool. Raises DatabaseAway or DatabaseFailed."""
    async with driver_connection(pool) as connection:
        return await connection.fetch(statement, *arguments)


async def portions(
    connection: Connection, statement: str, *arguments: object, widest: str, rows_max: int = _PORTION_ROWS_MAX
) -> AsyncGenerator[list[asyncpg.Record]]:
    """The rows of a statement (its text) in portions of at most `rows_max` rows and about 1 MiB.

    They come through a cursor of the server, which is closed at the end: else each one would stay, with its plan and its sorted rows,
    until the snapshot ends, which may be after thousands. `widest` names the column that makes a row large: each portion has as many rows as
    the widest one of the last portion allows, and at most twice as many as the last one.
    """
    cursor = await connection.cursor(statement, *arguments)
    count = _PORTION_ROWS_FIRST  # as long as it is not known how wide they are
    try:
        while rows := await cursor.fetch(count, timeout=LONG_FETCH_SECONDS):
            yield rows
            width = max(len(row[widest] or "") for row in rows)
            count = max(1, min(rows_max, 2 * count, _PORTION_BYTES_MAX // (width + 1)))
    finally:
        with suppress(
            asyncpg.PostgresError, asyncpg.InterfaceError, OSError
        ):  # it ends with a transaction that is broken
            # The driver closes only those that it iterates over itself, in portions of one size.
            await cursor._close_portal(None)  # type: ignore[attr-defined]  # noqa: SLF001


async def on_first_connections(engine: Engine, work: Callable[[Connection], Awaitable[None]]) -> None:
    """Run `work` once on each of the connections that a few readers need; all are checked out at the same time, so that none is
    used twice. Crowds open further ones. What one of them raises is raised when all have ended.
    """

    async def on_one() -> None:
        async with driver_connection(engine) as connection:
            await work(connection)

    ended = await asyncio.gather(
        *(on_one() for _ in range(min(_FIRST_CONNECTIONS, engine.size))), return_exceptions=True
    )
    for failure in ended:
        if failure is not None:
            raise failure


async def refuse_unsafe(connection: Connection) -> None:
    """Raise Fatal when the server's settings let it lose a commit that it has acknowledged."""
    off: Sequence[asyncpg.Record] = await connection.fetch(load("ingest")["durability"])
    if off:
        raise Fatal(
            f"Postgres runs with {', '.join(sorted(row['name'] for row in off))} off and may lose what it has acknowledged: "
            "switch it on, or set DATASTORAGE_UNSAFE_DATABASE=true if losing events is acceptable"
        )
