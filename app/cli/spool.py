"""`datastorage spool`: looks into a spool, takes it out, or writes it to Postgres."""

import argparse
import sys
from pathlib import Path

from app.cli.parser import Commands, add_group
from app.errors import Fatal
from app.terminal import visible


def add(commands: Commands) -> None:
    acts = add_group(commands, "spool", "look into a spool, take it out, or write it to Postgres")
    for name, run, text in (
        ("list", _list, "what waits, and what is in quarantine and why"),
        ("export", _export, "print the events, one JSON object a line"),
        ("replay", _replay, "write a spool that no service uses any more to DATASTORAGE_DATABASE_URL"),
    ):
        command = acts.add_parser(name, help=text)
        command.add_argument("directory", type=Path, metavar="DIR", help="a DATASTORAGE_SPOOL_DIR")
        command.set_defaults(run=run)
        if name != "list":
            command.add_argument("--quarantined", action="store_true", help="only those / those too")
        if name == "replay":
            command.add_argument("--force", action="store_true", help="also if it is older than the smallest retention")


def _list(arguments: argparse.Namespace) -> None:
    from datetime import UTC, datetime

    from app.ingest.spool_admin import entries

    for one in entries(arguments.directory):
        spooled_at = datetime.fromtimestamp(one.spooled_at, UTC).isoformat(timespec="seconds")
        state = f"quarantined: {one.reason}" if one.reason else "waiting"
        print(visible(f"{one.position:>8}  {spooled_at}  {one.content:>14}  {one.size:>9} bytes  {state}"))


def _export(arguments: argparse.Namespace) -> None:
    import orjson

    from app.ingest.spool_admin import events

    for event in events(arguments.directory, quarantined=arguments.quarantined):
        sys.stdout.buffer.write(orjson.dumps(event) + b"\n")


def _replay(arguments: argparse.Namespace) -> None:
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
