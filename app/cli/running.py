"""`datastorage serve`, `migrate` and `health`: the service itself."""

import argparse
import gc
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from app.cli.exits import Exit
from app.cli.parser import Commands
from app.errors import Fatal
from app.masking import masked

if TYPE_CHECKING:
    from app.embedded import EmbeddedPostgres
    from app.presence import Presence
    from app.settings import Settings

log = logging.getLogger(__name__)

_RETRY_SECONDS = 0.25
_HEALTH_SECONDS = 2.0


def add(commands: Commands) -> None:
    serve = commands.add_parser("serve", help="serve the API; without DATASTORAGE_DATABASE_URL on an embedded Postgres")
    serve.description = "Exit code 0: it was stopped; 1: it could not start, or go on."
    serve.add_argument("--migrate", action="store_true", help="bring the schema up first")
    serve.set_defaults(run=_serve, serves=True)
    migrate = commands.add_parser("migrate", help="bring the schema of DATASTORAGE_DATABASE_URL up")
    migrate.add_argument(
        "--wait", type=float, default=0, metavar="SECONDS", help="for a Postgres that is not there yet"
    )
    migrate.set_defaults(run=_migrate)
    health = commands.add_parser("health", help="whether the service of these settings answers on this machine")
    health.description = "Exit code 0: it answers; 1: it does not."
    health.set_defaults(run=_health)


@contextmanager
def _imports() -> Iterator[None]:
    """Around the imports of a command: nothing of them is garbage, and to look for it takes a tenth of their time."""
    gc.disable()
    yield
    gc.freeze()
    gc.enable()


def _serve(arguments: argparse.Namespace) -> None:
    with _imports():
        from app import logs, tracing
        from app.cli.database import on_embedded
        from app.presence import Presence
        from app.serve import Server, listening, serve
        from app.settings import load, unknown_variables

    settings = load(migrate=True) if arguments.migrate else load()
    settings.refuse_open_port()
    logs.configure(settings.log_level)
    for told in unknown_variables():
        log.warning(told)
    if settings.otel_endpoint is not None:
        tracing.start(settings.otel_endpoint)
    presence = Presence()
    if settings.database_url is not None:
        serve(settings, presence)
        return
    from app.embedded import EmbeddedPostgres

    # Everything that can fail comes before the launch of Postgres, which takes seconds.
    with listening(settings) as sockets, EmbeddedPostgres.reserve(settings.data_dir) as postgres:
        settings = on_embedded(settings, postgres.url).model_copy(update={"migrate": True})
        server = Server(settings, presence, sockets)
        print("Starting the service's own Postgres ...", file=sys.stderr)
        postgres.launch()
        threading.Thread(target=_stop_when_postgres_ends, args=(postgres, presence), daemon=True).start()
        presence.on_start = lambda: print(_first_steps(settings.local_url), file=sys.stderr)
        server.serve_to_end()


def _stop_when_postgres_ends(postgres: "EmbeddedPostgres", presence: "Presence") -> None:
    """Stop the service with an error when its embedded Postgres ends first."""
    if postgres.wait() and not presence.shutting_down:
        presence.fatal = Fatal(
            f"The embedded Postgres has ended; {postgres.log} shows why. A new start recovers its data."
        )
        os.kill(os.getpid(), signal.SIGTERM)


def _first_steps(url: str) -> str:
    return f"""
DataStorage serves on {url} with its own Postgres. Try, in another terminal:
  curl {url}/readyz
  .venv/bin/datastorage simulate --remediations 20 --seed 1 --url {url}
  .venv/bin/datastorage list --url {url}
Or open {url}/ui in a browser.
Stop it with Ctrl-C. README.md goes on from here.
"""


def _migrate(arguments: argparse.Namespace) -> None:
    import asyncio

    from app import schema
    from app.settings import load

    settings = load()
    if settings.database_url is None:
        raise Fatal(
            "There is no database to migrate: set DATASTORAGE_DATABASE_URL (the embedded one migrates by itself)."
        )
    found = asyncio.run(_upgrade_schema(settings, arguments.wait))
    later = "" if found == schema.HEAD else f", later than this release knows ({schema.HEAD}); it may write to it"
    print(f"The schema is at {found}{later}.")


async def _upgrade_schema(settings: "Settings", wait_seconds: float) -> str:
    """Upgrade the schema as soon as Postgres can be reached, and return its revision. Fatal if that takes longer than `wait_seconds`, or on an error."""
    import asyncio

    from app import database_url, db, schema
    from app.events.log import Log
    from app.retention import adoption

    assert settings.database_url is not None
    end = time.monotonic() + wait_seconds
    while True:
        try:
            found = await schema.upgrade(settings.database_url.get_secret_value(), settings.log_name)
            connection = await db.connect(settings)
            try:
                log_name = await schema.check_and_read_log_name(connection, settings.log_name)
                await adoption.adopt(connection, settings, Log(0, log_name))
            finally:
                await connection.close()
        except db.DATABASE_ERRORS as error:
            if db.failure_kind(error) is not db.FailureKind.AWAY or time.monotonic() >= end:
                raise Fatal(f"The database cannot be migrated: {database_url.reason(error)}") from error
            await asyncio.sleep(_RETRY_SECONDS)
        else:
            return found


def _health(arguments: argparse.Namespace) -> Exit:
    """Ask /healthz. A container's engine knows the codes 0 and 1 only."""
    del arguments
    import ssl
    from urllib.request import HTTPSHandler, ProxyHandler, build_opener

    from app.settings import load

    url = load().local_url
    context = ssl.create_default_context()
    # The certificate is for the name by which others call, and nothing secret is sent.
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    opener = build_opener(ProxyHandler({}), HTTPSHandler(context=context))
    try:
        with opener.open(f"{url}/healthz", timeout=_HEALTH_SECONDS) as answer:
            print(answer.read().decode())
    except OSError as error:
        sys.stderr.write(f"datastorage: {masked(str(error))}\n")
        return Exit.DEFECT
    return Exit.AS_ASKED
