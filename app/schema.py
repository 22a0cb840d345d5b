"""The schema's revision: migrate the schema, and refuse to serve on one that this service does not support.

The role that migrates owns the tables. The service may use another role, which migrations/sql/roles.sql creates.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import asyncpg

from app.database_url import connect
from app.errors import Fatal
from app.sql import load

if TYPE_CHECKING:
    from sqlalchemy import Connection

HEAD = "0019_pre_marginals"  # the last file of migrations/versions; a constant, so that start-up does not load Alembic
SEVERAL_LOGS = "0010_pre_logs"  # since when releases write to a log that continues another one
MIGRATIONS = Path(__file__).parent.parent / "migrations"

SQL = load("schema")
_CONNECT_SECONDS = 10.0
_LOCK = int.from_bytes(b"ds:schem")
_MIGRATE = "run `datastorage migrate`, or start with `datastorage serve --migrate`"


class SchemaMissing(Fatal):
    """The database has no schema, or an earlier one. Somebody may migrate it while the service waits."""


async def upgrade(database_url: str, log_name: str | None = None) -> str:
    """Migrate the schema to HEAD, unless it is there already, or further. Replicas that start together take turns. Returns where it is.

    `log_name` is used by the first migration only; None draws a name. Raises Fatal when the schema is newer than HEAD and does not
    take what this release writes, or when Postgres refuses a migration; that migration is rolled back.
    """
    connection = await connect(database_url, seconds=_CONNECT_SECONDS)
    try:
        if found := await _at_head_or_later(connection):
            return found
        await connection.execute(SQL["lock"], _LOCK)
        if found := await _at_head_or_later(connection):
            return found
        await _migrate(connection, log_name)
        return HEAD
    finally:
        await connection.close()


async def check_and_read_log_name(connection: asyncpg.Connection, log_name: str | None) -> str:
    """Check the schema's revision and the log's name, and return that name.

    Raises, with what to do, SchemaMissing when the schema has to be migrated first, and Fatal when something else is not as expected.
    """
    stored = await _revision(connection)
    if stored is None:
        raise SchemaMissing(f"The database has no schema yet: {_MIGRATE}.")
    if stored < HEAD:
        raise SchemaMissing(f"This service is newer than the schema (it needs {HEAD}, found {stored}): {_MIGRATE}.")
    if stored > HEAD:
        await _refuse_unless_writable(connection, stored)
    name: str | None = await connection.fetchval(SQL["log_name"])
    if name is None:
        raise Fatal(
            "The table logs has no row for log 0: put back its row, with the name that the events were hashed under."
        )
    if log_name not in {None, name}:
        raise Fatal(
            f"DATASTORAGE_LOG_NAME is {log_name!r}, but the events of this database were hashed under {name!r}: "
            "unset it or set it to that name, or use another database."
        )
    return name


def import_migrations() -> None:
    """Import what a migration needs, which takes longer than most migrations, while there is nothing to migrate yet."""
    from alembic import command, config  # noqa: F401, PLC0415
    from sqlalchemy.ext.asyncio import create_async_engine  # noqa: F401, PLC0415


async def role_warning(connection: asyncpg.Connection) -> str | None:
    """What the connection's role can do to the events, as text for the log; None if it does not own them."""
    role = await connection.fetchrow(SQL["role_owns_events"])
    if role is None or not role["owns"]:
        return None
    return (
        f"the role {role['role']} owns the tables or is a superuser: anyone who has its password can drop them, disable their "
        "triggers, and delete or erase events without a trace in the log. Verification finds it; migrations/sql/roles.sql makes "
        "a role that cannot."
    )


async def _at_head_or_later(connection: asyncpg.Connection) -> str | None:
    """The schema's revision if nothing has to be migrated."""
    stored = await _revision(connection)
    if stored is None or stored < HEAD:
        return None
    if stored > HEAD:
        await _refuse_unless_writable(connection, stored)
    return stored


async def _revision(connection: asyncpg.Connection) -> str | None:
    exists = await connection.fetchval(SQL["exists"])
    stored: str | None = await connection.fetchval(SQL["revision"]) if exists else None
    return stored


async def _refuse_unless_writable(connection: asyncpg.Connection, stored: str) -> None:
    """Fatal when the newer schema does not take what this release writes."""
    if await connection.fetchval(SQL["min_writer"]) > HEAD:
        raise Fatal(f"This service is older than the schema (it knows {HEAD}, found {stored}): upgrade the service.")


async def _migrate(connection: asyncpg.Connection, log_name: str | None) -> None:
    # Alembic takes half a second to load, and most starts do not need it.
    from alembic import command  # noqa: PLC0415
    from alembic.config import Config  # noqa: PLC0415
    from sqlalchemy.exc import DBAPIError  # noqa: PLC0415
    from sqlalchemy.ext.asyncio import create_async_engine  # noqa: PLC0415
    from sqlalchemy.pool import NullPool  # noqa: PLC0415

    config = Config(attributes={"log_name": log_name})
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))

    def run(sync_connection: "Connection") -> None:
        config.attributes["connection"] = sync_connection
        command.upgrade(config, HEAD)

    async def locked(*_: object, **__: object) -> asyncpg.Connection:
        return connection

    engine = create_async_engine("postgresql+asyncpg://", async_creator=locked, poolclass=NullPool)
    try:
        async with engine.connect() as alembic_connection:
            await alembic_connection.run_sync(run)
    except (asyncpg.PostgresError, DBAPIError) as error:
        raise Fatal(
            f"The schema could not be migrated to {HEAD}, and is unchanged: {getattr(error, 'orig', error)}"
        ) from error
