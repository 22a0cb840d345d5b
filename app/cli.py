"""The command `datastorage`: each subcommand parses its arguments, calls one function and prints the result.

Modules are imported where they are used, so that a command starts without the ones that it does not need.
"""

import argparse
import gc
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from app.errors import AuditError, Fatal
from app.masking import masked, masked_values

if TYPE_CHECKING:
    from app.embedded import EmbeddedPostgres
    from app.presence import Presence
    from app.settings import Settings
    from app.tlog.orders import Difference

_RETRY_SECONDS = 0.25
_HEALTH_SECONDS = 2.0
_TSA_HELP = "PEM of the timestamp authority's certificate, or of its issuer's and those between"


def main() -> int:
    """Run one command and return its exit code. A Fatal error is printed as one line, without a traceback."""
    signal.signal(signal.SIGTERM, _exit_quietly)  # first of all: a signal during the start must also clean up
    arguments = _parser().parse_args()
    try:
        return int(arguments.run(arguments) or 0)
    except AuditError as error:
        print(f"datastorage: {masked(_with_cause(error))}", file=sys.stderr)
        return 1
    except OSError as error:  # a file, a directory or a port that the system refuses
        print(f"datastorage: {masked(str(error))}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _with_cause(error: AuditError) -> str:
    """The text of an error; for one of the database with what the server has answered."""
    if isinstance(error, Fatal) or error.__cause__ is None:
        return error.detail
    from app.database_url import reason

    return f"{error.detail} ({reason(error.__cause__)})"


def _exit_quietly(sig: int, frame: FrameType | None) -> None:
    """The handler of SIGTERM outside of serving: unwinds the stack, so that an embedded Postgres is stopped."""
    del sig, frame
    raise SystemExit(0)


@contextmanager
def _imports() -> Iterator[None]:
    """Around the imports of a command: nothing of them is garbage, and to look for it takes a tenth of their time."""
    gc.disable()
    yield
    gc.freeze()
    gc.enable()


def _parser() -> argparse.ArgumentParser:
    from app import exporting, importing, show, simulate

    parser = argparse.ArgumentParser(
        prog="datastorage",
        description="The audit event store of the Kubernaut platform. @FILE stands for what is in the file: --token @FILE.",
        fromfile_prefix_chars="@",  # the arguments of a process are visible to other users
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    serve = commands.add_parser("serve", help="serve the API; without DATASTORAGE_DATABASE_URL on an embedded Postgres")
    serve.add_argument("--migrate", action="store_true", help="bring the schema up first")
    serve.set_defaults(run=_serve)
    migrate = commands.add_parser("migrate", help="bring the schema of DATASTORAGE_DATABASE_URL up")
    migrate.add_argument(
        "--wait", type=float, default=0, metavar="SECONDS", help="for a Postgres that is not there yet"
    )
    migrate.set_defaults(run=_migrate)
    health = commands.add_parser("health", help="whether the service of these settings answers on this machine")
    health.set_defaults(run=_health)
    settings = commands.add_parser("settings", help="show every setting, its value and what it means")
    settings.set_defaults(run=_settings)
    types = commands.add_parser("event-types", help="list the event types, or show one with its schema and an example")
    types.add_argument("name", nargs="?", help="of the type to show")
    types.add_argument("--markdown", action="store_true", help="print docs/events.md")
    types.set_defaults(run=_event_types)
    tokens = commands.add_parser("token", help="make tokens for DATASTORAGE_AUTH=tokens").add_subparsers(
        required=True, metavar="COMMAND"
    )
    create = tokens.add_parser("create", help="print a new token, which stands nowhere else, and its line for the file")
    create.add_argument("--name", required=True, help="of who will send it, as it is written down")
    create.add_argument("--role", required=True, help="reader, writer, auditor, importer or admin")
    create.add_argument("--expires", help="moment or day (UTC) from which on it is nobody's, such as 2027-01-31")
    create.add_argument("--file", type=Path, help="file to append the line to, instead of printing it")
    create.set_defaults(run=_token_create)
    key = commands.add_parser("checkpoint-key", help="make a private key that signs checkpoints, and print its path")
    key.add_argument("file", type=Path, metavar="FILE", help="to write the PEM to; it must not exist")
    key.add_argument("--algorithm", choices=["ed25519", "ml-dsa-44"], default="ed25519", help="ed25519 if absent")
    key.set_defaults(run=_checkpoint_key)
    openapi = commands.add_parser("openapi", help="print the OpenAPI document")
    openapi.set_defaults(run=_openapi)
    timeline = commands.add_parser("show", help="show a correlation: events, phases, decisions, notifications, holds")
    show.add_show(timeline)
    timeline.set_defaults(run=show.show)
    correlations = commands.add_parser("list", help="list correlations, the one with the newest event first")
    show.add_list(correlations)
    correlations.set_defaults(run=show.list_)
    _add_proof_and_retention_commands(commands)
    spool = commands.add_parser("spool", help="look into a spool, take it out, or write it to Postgres")
    _add_spool_arguments(spool)
    imports = commands.add_parser("import", help="send the events of files, however old, to a service's import route")
    importing.add_arguments(imports)
    imports.set_defaults(run=importing.run)
    bundle = commands.add_parser(
        "export", help="fetch all of one correlation with its proofs from a service, as one file"
    )
    exporting.add_arguments(bundle)
    bundle.set_defaults(run=exporting.run)
    simulation = commands.add_parser("simulate", help="play remediations and post what the orchestrator would post")
    simulate.add_arguments(simulation)
    simulation.set_defaults(run=simulate.run)
    return parser


def _add_proof_and_retention_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    proof = commands.add_parser("verify-proof", help="verify the proof of one event; needs no service and no database")
    proof.add_argument("file", type=Path, metavar="FILE", help="from GET /api/v1/audit/events/{event_id}/proof")
    proof.add_argument("--key", required=True, help="of the log as /tlog/key shows it, or a file that holds it")
    proof.add_argument("--tsa", type=Path, metavar="FILE", help=_TSA_HELP)
    proof.set_defaults(run=_verify_proof)
    timestamp = commands.add_parser("verify-timestamp", help="verify when a checkpoint existed; needs no service")
    timestamp.add_argument("file", type=Path, metavar="FILE", help="from GET /tlog/timestamp")
    timestamp.add_argument("--key", required=True, help="of the log as /tlog/key shows it, or a file that holds it")
    timestamp.add_argument("--tsa", type=Path, required=True, metavar="FILE", help=_TSA_HELP)
    timestamp.set_defaults(run=_verify_timestamp)
    verify = commands.add_parser("verify", help="verify the whole database, or one correlation")
    _add_verify_arguments(verify)
    found = commands.add_parser("findings", help="list what verification found, and acknowledge it")
    _add_findings_arguments(found)
    logs = commands.add_parser("log", help="what can be done after a loss")
    actions = logs.add_subparsers(required=True, metavar="COMMAND")
    go_on = actions.add_parser("continue", help="close a log that is not what was signed, and open the next one")
    go_on.add_argument("--reason", required=True, help="why; it stands in the log")
    go_on.add_argument("--by", default="datastorage log continue", help="who decides it; it stands in the log")
    go_on.add_argument("--checkpoint", action="append", type=Path, help="a checkpoint from outside; may be repeated")
    go_on.add_argument("--dry-run", action="store_true", help="only show what was lost and what would be done")
    go_on.set_defaults(run=_continue_log)
    _add_retention_commands(commands)
    erase = commands.add_parser("erase", help="erase what events say of people; their hashes and proofs stay")
    selector = erase.add_mutually_exclusive_group(required=True)
    selector.add_argument("--event-id", action="append", help="one event; may be repeated")
    selector.add_argument("--actor", help="every event of this actor_id")
    selector.add_argument("--correlation-id", help="every event of this correlation")
    erase.add_argument("--reason", required=True, help="why; it stands in the log")
    erase.add_argument("--by", default="datastorage erase", help="who wants it; it stands in the log")
    erase.add_argument("--dry-run", action="store_true", help="only say how many events there are")
    erase.set_defaults(run=_erase)
    export = commands.add_parser("verify-export", help="verify an export by itself: no service, database or network")
    export.add_argument("files", nargs="+", type=Path, metavar="FILE", help="the export, or its parts in their order")
    export.add_argument(
        "--key",
        required=True,
        help="the public key as /tlog/key shows it, or a file that holds it; for format=json the certificate's file",
    )
    export.add_argument("--tsa", type=Path, metavar="FILE", help=f"{_TSA_HELP}; for a bundle")
    export.set_defaults(run=_verify_export)


def _add_findings_arguments(findings: argparse.ArgumentParser) -> None:
    commands = findings.add_subparsers(required=True, metavar="COMMAND", dest="command")
    listing = commands.add_parser("list", help="show those that nobody has acknowledged; exit code 1 if there are any")
    listing.add_argument("--all", action="store_true", help="the others too")
    acknowledge = commands.add_parser("acknowledge", help="say what one was; it stands no longer")
    acknowledge.add_argument("finding", metavar="ID", help="as the list shows it")
    acknowledge.add_argument("--reason", required=True, help="what it was and what was done; it stands in the log")
    acknowledge.add_argument("--by", default="datastorage findings", help="who says so; it stands in the log")
    findings.set_defaults(run=_findings)


def _add_retention_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    retention = commands.add_parser("retention", help="purge events whose time is over, or set how long they stay")
    acts = retention.add_subparsers(required=True, metavar="ACT")
    acts.add_parser("plan", help="show what a run would purge; changes nothing").set_defaults(run=_retention_plan)
    run = acts.add_parser("run", help="purge what is due and not held")
    run.description = (
        "Exit code 1: holds or policies of the tables differ from the log, which is followed; the rest is purged."
    )
    run.set_defaults(run=_retention_run)
    policy = acts.add_parser("policy", help="how long the events of a category stay").add_subparsers(
        required=True, metavar="ACT"
    )
    policy.add_parser("list", help="the policies that runs follow, as the log records them").set_defaults(
        run=_policy_list
    )
    setting = policy.add_parser("set", help="set the policy of a category, from the next run on")
    setting.add_argument("--days", type=int, required=True, metavar="N", help="for at least so many days")
    for bound, text in (("floor", "whatever else is set, never for fewer days"), ("ceiling", "never for more days")):
        setting.add_argument(f"--{bound}", type=int, metavar="N", help=f"{text}; the setting's, if absent")
    setting.set_defaults(run=_policy_set)
    removal = policy.add_parser("remove", help="leave the events of a category to their own days and the settings")
    removal.set_defaults(run=_policy_remove)
    for command in (setting, removal):
        command.add_argument("category", help="an event_category")
        command.add_argument("--reason", required=True, help="why; it is in the log")
        command.add_argument("--by", default="datastorage retention", help="who orders it; it is in the log")


def _add_verify_arguments(verify: argparse.ArgumentParser) -> None:
    verify.description = "Exit code 0: nothing is wrong; 1: something is; 2: it could not be looked at."
    verify.add_argument("correlation", nargs="?", help="only this one; the whole database if absent")
    verify.add_argument(
        "--checkpoint", type=Path, metavar="FILE", help="a checkpoint that was kept out of the database's reach"
    )
    verify.add_argument("--tsa", type=Path, metavar="FILE", help=_TSA_HELP)
    verify.add_argument("--key", help="that signs the checkpoints, as /tlog/key shows it, or a file that holds it")
    verify.add_argument(
        "--processes", type=int, default=os.cpu_count() or 1, metavar="N", help="as many as there are cores if absent"
    )
    verify.set_defaults(run=_verify)


def _add_spool_arguments(spool: argparse.ArgumentParser) -> None:
    commands = spool.add_subparsers(required=True, metavar="ACT")
    for name, run, text in (
        ("list", _spool_list, "what waits, and what is in quarantine and why"),
        ("export", _spool_export, "print the events, one JSON object a line"),
        ("replay", _spool_replay, "write a spool that no service uses any more to DATASTORAGE_DATABASE_URL"),
    ):
        command = commands.add_parser(name, help=text)
        command.add_argument("directory", type=Path, metavar="DIR", help="a DATASTORAGE_SPOOL_DIR")
        command.set_defaults(run=run)
        if name != "list":
            command.add_argument("--quarantined", action="store_true", help="only those / those too")
        if name == "replay":
            command.add_argument("--force", action="store_true", help="also if it is older than the smallest retention")


def _spool_list(arguments: argparse.Namespace) -> None:
    from datetime import UTC, datetime

    from app.ingest.spool_admin import entries

    for one in entries(arguments.directory):
        spooled_at = datetime.fromtimestamp(one.spooled_at, UTC).isoformat(timespec="seconds")
        state = f"quarantined: {one.reason}" if one.reason else "waiting"
        print(f"{one.position:>8}  {spooled_at}  {one.content:>14}  {one.size:>9} bytes  {state}")


def _spool_export(arguments: argparse.Namespace) -> None:
    import orjson

    from app.ingest.spool_admin import events

    for event in events(arguments.directory, quarantined=arguments.quarantined):
        sys.stdout.buffer.write(orjson.dumps(event) + b"\n")


def _spool_replay(arguments: argparse.Namespace) -> None:
    import asyncio

    from app import logs
    from app.ingest.spool_admin import replay
    from app.settings import load
    from app.tlog.continued import find_log

    settings = load()
    logs.configure(settings.log_level)
    if settings.database_url is None:
        raise Fatal("There is no database to write to: set DATASTORAGE_DATABASE_URL.")
    how = {"force": arguments.force, "quarantined": arguments.quarantined}
    print(asyncio.run(replay(settings, arguments.directory, find_log(settings), **how)))


def _verify_export(arguments: argparse.Namespace) -> int:
    from app.export import check

    result = check.check_files(arguments.files, arguments.key, arguments.tsa)
    for line in check.result_lines(result):
        print(line)
    return 1 if result.problem_count else 0


def _serve(arguments: argparse.Namespace) -> None:
    with _imports():
        from app import logs, tracing
        from app.presence import Presence
        from app.serve import Server, listening, serve
        from app.settings import load

    settings = load(migrate=True) if arguments.migrate else load()
    settings.refuse_open_port()
    logs.configure(settings.log_level)
    if settings.otel_endpoint is not None:
        tracing.start(settings.otel_endpoint)
    presence = Presence()
    if settings.database_url is not None:
        serve(settings, presence)
        return
    from app.embedded import EmbeddedPostgres

    # Everything that can fail comes before the launch of Postgres, which takes seconds.
    with listening(settings) as sockets, EmbeddedPostgres.reserve(settings.data_dir) as postgres:
        settings = _on_embedded(settings, postgres.url).model_copy(update={"migrate": True})
        server = Server(settings, presence, sockets)
        print("Starting the service's own Postgres ...", file=sys.stderr)
        postgres.launch()
        threading.Thread(target=_stop_when_postgres_ends, args=(postgres, presence), daemon=True).start()
        presence.on_start = lambda: print(_first_steps(settings.local_url), file=sys.stderr)
        server.serve_to_end()


def _on_embedded(settings: "Settings", url: str) -> "Settings":
    """The settings on the embedded Postgres at `url`. Libpq's variables do not count for it."""
    from pydantic import SecretStr

    from app import database_url

    database_url.ignore_variables()
    return settings.model_copy(update={"database_url": SecretStr(url)} | _embedded_checkpoint_key(settings))


def _embedded_checkpoint_key(settings: "Settings") -> dict[str, Path]:
    """The settings for the keys that are generated beside the embedded Postgres at its first start; empty if another key is set."""
    from app.state_dir import state_dir
    from app.tlog import keys, note

    configured = settings.checkpoint_key is not None or settings.checkpoint_key_file is not None
    if configured or not note.is_key_name(settings.log_name or "drawn"):
        return {}
    directory = state_dir(settings.data_dir)
    created = {"checkpoint_key_file": directory / "checkpoint.pem"}
    keys.create_key_file(created["checkpoint_key_file"])
    is_name_short = len((settings.log_name or "").encode()) <= note.COSIGNER_NAME_BYTES_MAX
    if is_name_short and settings.checkpoint_mldsa_key is None and settings.checkpoint_mldsa_key_file is None:
        created["checkpoint_mldsa_key_file"] = directory / "checkpoint-ml-dsa.pem"
        keys.create_key_file(created["checkpoint_mldsa_key_file"], "ml-dsa-44")
    return created


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
  curl '{url}/api/v1/audit/events?event_type=orchestrator.lifecycle.completed&limit=2'
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
    asyncio.run(_upgrade_schema(settings, arguments.wait))
    print(f"The schema is at {schema.HEAD}.")


def _retention_plan(arguments: argparse.Namespace) -> int:
    del arguments
    import asyncio
    from datetime import UTC, datetime

    from app.retention import purge

    plans, differences = asyncio.run(purge.plan(_retention_settings(), datetime.now(UTC)))
    print("MONTH    EVENTS  DUE  HELD  NOT DUE")
    for one in plans:
        rows = one.contents
        note = "  goes as a whole" if one.whole else ""
        print(f"{one.month.first:%Y-%m}  {rows.total}  {rows.due}  {rows.held}  {rows.not_due}{note}")
    return _print_differences(differences)


def _retention_run(arguments: argparse.Namespace) -> int:
    del arguments
    import asyncio
    from datetime import UTC, datetime

    from app.retention import purge

    settings = _retention_settings()
    done = asyncio.run(purge.run(settings, datetime.now(UTC)))
    print(f"Run {done.run_id}: {done.rows_deleted} of {done.rows_scanned} events purged.")
    for state, months in (("dropped", done.dropped), ("put back", done.restored)):
        if months:
            print(f"Months {state}: {', '.join(months)}")
    return _print_differences(done.differences)


def _print_differences(differences: "Sequence[Difference]") -> int:
    """Print where holds and policies differ from the log. The exit code: 1 if any does."""
    for one in differences:
        print(f"{one.message}.", file=sys.stderr)
    return 1 if differences else 0


def _policy_list(arguments: argparse.Namespace) -> int:
    del arguments
    import asyncio

    from app.retention import policies

    recorded, differences = asyncio.run(policies.list_from(_retention_settings()))
    for category, change in recorded.items():
        who = f"  set by {change.by}, {change.at:%Y-%m-%d}: {change.reason}" if change.at is not None else ""
        print(f"{category}  {change.policy}{who}")
    return _print_differences(differences)


def _policy_set(arguments: argparse.Namespace) -> None:
    import asyncio

    from app.retention import policies
    from app.tlog.orders import Policy

    policy = Policy(arguments.days, arguments.floor, arguments.ceiling)
    order = policies.PolicyOrder(arguments.by, arguments.reason)
    asyncio.run(policies.change_from(_retention_settings(), arguments.category, policy, order))
    print(f"{arguments.category}: {policy}, from the next retention run on.")


def _policy_remove(arguments: argparse.Namespace) -> None:
    import asyncio

    from app.retention import policies

    order = policies.PolicyOrder(arguments.by, arguments.reason)
    asyncio.run(policies.change_from(_retention_settings(), arguments.category, None, order))
    print(f"{arguments.category} has no policy any more.")


def _continue_log(arguments: argparse.Namespace) -> None:
    import asyncio

    from app.continuing import continue_log

    if not arguments.reason.strip() or not arguments.by.strip():
        raise Fatal("--reason and --by need a text, which stands in the log for ever.")
    try:
        notes = [path.read_text("utf-8") for path in arguments.checkpoint or ()]
    except UnicodeDecodeError as error:
        raise Fatal(f"A checkpoint cannot be read: {error}.") from None
    settings = _retention_settings()
    done = asyncio.run(continue_log(settings, arguments.by, arguments.reason, notes, dry_run=arguments.dry_run))
    for line in done.loss.lines():
        print(line)
    keys = "\n".join(map(str, done.keys))
    if done.note is None:
        print(f"Nothing was changed. Without --dry-run events go on in the log {done.log.name}, whose keys are\n{keys}")
        return
    print(f"Events go on in the log {done.log.name}. Its keys, for all who verify and for witnesses:\n{keys}")
    print(f"Its first checkpoint:\n{done.note}", end="")


def _erase(arguments: argparse.Namespace) -> None:
    import asyncio
    from uuid import UUID

    from app.main import create_catalog
    from app.retention import erase

    settings = _retention_settings()
    try:
        ids = arguments.event_id and [UUID(text) for text in arguments.event_id]
    except ValueError as error:
        raise Fatal(f"--event-id: {error}") from None
    erasure = erase.Erasure(arguments.reason, arguments.by, ids, arguments.actor, arguments.correlation_id)
    done = asyncio.run(erase.erase(settings, create_catalog(settings), erasure, dry_run=arguments.dry_run))
    _print_differences(done.differences)
    result = "would be erased" if arguments.dry_run else f"erased by erasure {done.erasure_id}"
    print(f"{len(done.events)} event(s) {result}.")
    if done.unsealed:
        print(
            f"{len(done.unsealed)} row(s) that others inserted by SQL are unchanged: they have no proof; change them by SQL."
        )


async def _upgrade_schema(settings: "Settings", wait_seconds: float) -> None:
    """Upgrade the schema as soon as Postgres can be reached. Fatal if that takes longer than `wait_seconds`, or on an error."""
    import asyncio

    from app import database_url, db, schema
    from app.events.log import Log
    from app.retention import adoption

    assert settings.database_url is not None
    end = time.monotonic() + wait_seconds
    while True:
        try:
            await schema.upgrade(settings.database_url.get_secret_value(), settings.log_name)
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
            return


def _retention_settings() -> "Settings":
    """The settings, with a database to purge and erase in."""
    from app.settings import load

    settings = load()
    if settings.database_url is None and settings.retention_url is None:
        raise Fatal("Set DATASTORAGE_RETENTION_URL, or DATASTORAGE_DATABASE_URL if one role does everything.")
    return settings


def _health(arguments: argparse.Namespace) -> None:
    """Ask /healthz. Raises OSError when nobody answers 200."""
    del arguments
    import ssl
    from urllib.request import HTTPSHandler, ProxyHandler, build_opener

    from app.settings import load

    url = load().local_url
    context = ssl.create_default_context()
    # The certificate is for the name by which others call, and nothing secret is sent.
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    opener = build_opener(ProxyHandler({}), HTTPSHandler(context=context))
    with opener.open(f"{url}/healthz", timeout=_HEALTH_SECONDS) as answer:
        print(answer.read().decode())


def _settings(arguments: argparse.Namespace) -> None:
    del arguments
    from app.settings import Settings, load

    settings = load()
    for name, field in Settings.model_fields.items():
        print(f"DATASTORAGE_{name.upper()} = {masked_values(getattr(settings, name))}\n    {field.description}")


def _token_create(arguments: argparse.Namespace) -> None:
    from app.auth.tokens import append_entry, create_token

    token, line = create_token(arguments.name, arguments.role, arguments.expires)
    if arguments.file is None:
        print(f"To the file that DATASTORAGE_TOKENS_FILE names, add:\n{line}\nThe token, shown once:", file=sys.stderr)
    else:
        append_entry(arguments.file, line)
    print(token)


def _checkpoint_key(arguments: argparse.Namespace) -> None:
    from app.tlog.keys import create_key_file

    if arguments.file.exists():
        raise Fatal(f"There is a file {arguments.file} already: a key is never written over.")
    create_key_file(arguments.file, arguments.algorithm)
    print(arguments.file)


def _event_types(arguments: argparse.Namespace) -> None:
    from app.errors import NotFound
    from app.events import describe
    from app.main import create_catalog
    from app.settings import load

    if arguments.markdown:
        print(describe.markdown(), end="")
        return
    catalog = create_catalog(load())
    if arguments.name is None:
        print(describe.table(catalog), end="")
        return
    try:
        print(describe.as_json(describe.details(describe.find(catalog, arguments.name)), indent=2), end="")
    except NotFound as error:
        raise Fatal(error.detail) from None


def _verify(arguments: argparse.Namespace) -> int:
    with _imports():
        from app.verify import command

    return command.run(arguments, _settings_with_running_database)


def _findings(arguments: argparse.Namespace) -> int:
    from app.findings import command

    lines, code = command.run(arguments, _settings_with_running_database)
    for line in lines:
        print(line)
    return code


def _settings_with_running_database() -> "Settings":
    """The settings; without a database of its own, with that of a running service's embedded Postgres and its key."""
    from app import embedded
    from app.settings import load

    settings = load()
    if settings.database_url is not None:
        return settings
    url = embedded.running_url(settings.data_dir)
    if url is None:
        raise Fatal(
            "There is no database: set DATASTORAGE_DATABASE_URL, or start the embedded one with `datastorage serve`."
        )
    return _on_embedded(settings, url)


def _verify_proof(arguments: argparse.Namespace) -> None:
    from app.events.canonical import canonical_exact
    from app.tlog.keys import read_public_keys, signature_lines
    from app.tlog.note import MalformedNote, NoValidSignature
    from app.tlog.proof import verify_proof_file
    from app.tlog.timestamp import WrongTimestamp

    keys = read_public_keys(arguments.key)
    try:
        proved = verify_proof_file(arguments.file.read_bytes(), keys)
        stamped = _timestamp_lines(proved.token, proved.note, arguments.tsa)
    except (OSError, MalformedNote, NoValidSignature, WrongTimestamp) as error:
        raise Fatal(f"Not proved: {error}.") from None
    checkpoint, record = proved.checkpoint, proved.record
    print(
        f"Proved: event {record['event_id']} is at position {record['log_index']} of a log of {checkpoint.size} events."
    )
    print(f"log   {checkpoint.origin}\nroot  {checkpoint.root.hex()}")
    if (seam := proved.seam) is not None:
        print(
            f"That log was closed after a loss. Its root stands in the first event of {seam.record['log']}, which is proved."
        )
    signed = proved
    while signed.seam is not None:
        signed = signed.seam
    lines = signature_lines(signed.signers, [key for key in keys if key.name == signed.checkpoint.origin])
    print("\n".join([*lines, *stamped]))
    shown = {"record": record} | ({} if proved.committed is None else {"committed": proved.committed})
    print(canonical_exact(shown).decode())


def _verify_timestamp(arguments: argparse.Namespace) -> None:
    from app.tlog.keys import read_public_keys, signature_lines
    from app.tlog.note import MalformedNote, NoValidSignature
    from app.tlog.timestamp import WrongTimestamp, read_certificates, verify_timestamp_file

    keys, certificates = read_public_keys(arguments.key), read_certificates(arguments.tsa)
    try:
        checkpoint, signers, shown = verify_timestamp_file(arguments.file.read_bytes(), keys, certificates)
    except (OSError, MalformedNote, NoValidSignature, WrongTimestamp) as error:
        raise Fatal(f"Not proved: {error}.") from None
    print(f"Proved: the checkpoint of {checkpoint.size} events {shown}.")
    print(f"log   {checkpoint.origin}\nroot  {checkpoint.root.hex()}")
    print("\n".join(signature_lines(signers, [key for key in keys if key.name == checkpoint.origin])))


def _timestamp_lines(token: bytes | None, note: str, certificates: Path | None) -> list[str]:
    """What a proof's timestamp shows, in words. WrongTimestamp when it is not valid, or there is none although one is to be verified."""
    from app.tlog.timestamp import WrongTimestamp, read_certificates, verified_timestamp

    if certificates is None:
        return ["NOT verified: its timestamp; name the authority's certificates with --tsa"] if token else []
    if token is None:
        raise WrongTimestamp("it has no timestamp: ask for the proof with timestamped=true")
    return [f"its checkpoint {verified_timestamp(token, note, read_certificates(certificates))}"]


def _openapi(arguments: argparse.Namespace) -> None:
    del arguments
    from app.openapi import document

    sys.stdout.buffer.write(document())
