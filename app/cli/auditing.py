"""`datastorage verify`, `findings` and `log`: what looks at the whole database, and what is done after a loss."""

import argparse
import os
from pathlib import Path

from app.cli.parser import COMMAND, Commands, add_group, file
from app.cli.proofs import add_log_key
from app.cli.verifying import TSA_HELP
from app.errors import Usage
from app.terminal import visible


def add(commands: Commands) -> None:
    verify = commands.add_parser("verify", help="verify the whole database, or one correlation")
    verify.description = "Exit code 0: nothing is wrong; 1: something is; 2: it could not be looked at."
    verify.add_argument("correlation", nargs="?", help="only this one; the whole database if absent")
    verify.add_argument(
        "--checkpoint", type=Path, metavar="FILE", help="a checkpoint that was kept out of the database's reach"
    )
    verify.add_argument("--tsa", type=Path, metavar="FILE", help=TSA_HELP)
    verify.add_argument("--key", help="that signs the checkpoints, as /tlog/key shows it, or a file that holds it")
    verify.add_argument(
        "--processes", type=int, default=os.cpu_count() or 1, metavar="N", help="as many as there are cores if absent"
    )
    copy_help = "compare a copy of the log with the database instead: lines of a stream or of an export, also in gzip; - for stdin"
    verify.add_argument("--copy", nargs="+", type=_file_or_stdin, metavar="FILE", action="extend", help=copy_help)
    verify.add_argument("--filtered", action="store_true", help="the copy need not have every event of its range")
    verify.add_argument(
        "--archive",
        choices=["all", "sample", "manifests", "none"],
        help="how much of the parts that have what Postgres has no longer; all if absent and DATASTORAGE_ARCHIVE_URL is set",
    )
    verify.add_argument("--json", action="store_true", help="print what --copy finds as one JSON object")
    verify.set_defaults(run=_verify)
    _add_findings(commands)
    _add_log(commands)


def _add_findings(commands: Commands) -> None:
    findings = commands.add_parser("findings", help="list what verification found, and acknowledge it")
    acts = findings.add_subparsers(required=True, metavar=COMMAND, dest="command")
    listing = acts.add_parser("list", help="show those that nobody has acknowledged; exit code 1 if there are any")
    listing.add_argument("--all", action="store_true", help="the others too")
    acknowledge = acts.add_parser("acknowledge", help="say what one was; it stands no longer")
    acknowledge.add_argument("finding", metavar="ID", help="as the list shows it")
    acknowledge.add_argument("--reason", required=True, help="what it was and what was done; it stands in the log")
    acknowledge.add_argument("--by", default="datastorage findings", help="who says so; it stands in the log")
    findings.set_defaults(run=_findings)


def _add_log(commands: Commands) -> None:
    acts = add_group(commands, "log", "the log's keys, and what can be done after a loss")
    add_log_key(acts)
    go_on = acts.add_parser("continue", help="close a log that is not what was signed, and open the next one")
    go_on.add_argument("--reason", required=True, help="why; it stands in the log")
    go_on.add_argument("--by", default="datastorage log continue", help="who decides it; it stands in the log")
    help_text = "a checkpoint from outside, or a file of several, of which the last counts; may be repeated"
    go_on.add_argument("--checkpoint", action="append", type=Path, help=help_text)
    go_on.add_argument("--dry-run", action="store_true", help="only show what was lost and what would be done")
    go_on.set_defaults(run=_continue_log)


def _file_or_stdin(text: str) -> Path:
    return Path(text) if text == "-" else file(text)


def _verify(arguments: argparse.Namespace) -> int:
    if arguments.copy is not None:
        from app.cli import copying

        return copying.run(arguments)
    if arguments.filtered or arguments.json:
        raise Usage("--filtered and --json go with --copy.")
    from app.cli.database import settings_with_database
    from app.verify import command

    if arguments.correlation is not None:
        from app.cli import following

        follow = None if arguments.archive == "none" else following.verify_whole_correlation
        return command.run(arguments, settings_with_database, follow)
    code = command.run(arguments, settings_with_database)
    if arguments.archive == "none" or code == command.EXIT_NOT_VERIFIED:
        return code
    from app.cli import following

    return following.verify_removed(arguments, settings_with_database(), code)


def _findings(arguments: argparse.Namespace) -> int:
    from app.cli.database import settings_with_database
    from app.findings import command

    lines, code = command.run(arguments, settings_with_database)
    for line in lines:
        print(line)
    return code


def _continue_log(arguments: argparse.Namespace) -> None:
    import asyncio

    from app.cli.database import settings_for_removal
    from app.continuing import continue_log
    from app.tlog.copies import read_checkpoint

    if not arguments.reason.strip() or not arguments.by.strip():
        raise Usage("--reason and --by need a text, which stands in the log for ever.")
    notes = [read_checkpoint(path) for path in arguments.checkpoint or ()]
    settings = settings_for_removal()
    done = asyncio.run(continue_log(settings, arguments.by, arguments.reason, notes, dry_run=arguments.dry_run))
    for line in done.loss.lines():
        print(visible(line))
    keys = "\n".join(map(str, done.keys))
    if done.note is None:
        print(f"Nothing was changed. Without --dry-run events go on in the log {done.log.name}, whose keys are\n{keys}")
        return
    print(f"Events go on in the log {done.log.name}. Its keys, for all who verify and for witnesses:\n{keys}")
    print(f"Its first checkpoint:\n{done.note}", end="")
