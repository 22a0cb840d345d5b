"""`datastorage settings`, `event-types`, `openapi` and `token`: what there is to set, to post, to call, and to call with."""

import argparse
import sys
from pathlib import Path

from app.cli.output import add_output
from app.cli.parser import Commands, add_group
from app.errors import Fatal


def add(commands: Commands) -> None:
    settings = commands.add_parser("settings", help="show every setting, its value, what has set it and what it means")
    add_output(settings)
    settings.set_defaults(run=_settings)
    types = commands.add_parser("event-types", help="list the event types, or show one with its schema and an example")
    types.add_argument("name", nargs="?", help="of the type to show")
    types.add_argument("--markdown", action="store_true", help="print docs/events.md")
    types.set_defaults(run=_event_types)
    openapi = commands.add_parser("openapi", help="print the OpenAPI document")
    openapi.set_defaults(run=_openapi)
    create = add_group(commands, "token", "make tokens for DATASTORAGE_AUTH=tokens").add_parser(
        "create", help="print a new token, which stands nowhere else, and its line for the file"
    )
    create.add_argument("--name", required=True, help="of who will send it, as it is written down")
    create.add_argument("--role", required=True, help="reader, writer, auditor, importer or admin")
    create.add_argument("--expires", help="moment or day (UTC) from which on it is nobody's, such as 2027-01-31")
    create.add_argument("--file", type=Path, help="file to append the line to, instead of printing it")
    create.set_defaults(run=_token_create)


def _settings(arguments: argparse.Namespace) -> None:
    from app.cli import describing_settings

    describing_settings.run(arguments)


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


def _openapi(arguments: argparse.Namespace) -> None:
    del arguments
    from app.openapi import document

    sys.stdout.buffer.write(document())


def _token_create(arguments: argparse.Namespace) -> None:
    from app.auth.tokens import append_entry, create_token

    token, line = create_token(arguments.name, arguments.role, arguments.expires)
    if arguments.file is None:
        print(f"To the file that DATASTORAGE_TOKENS_FILE names, add:\n{line}\nThe token, shown once:", file=sys.stderr)
    else:
        append_entry(arguments.file, line)
    print(token)
