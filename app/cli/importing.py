"""`datastorage import`: sends events of files to a service's import route, in portions. A client: HTTP only."""

import argparse

from app.cli.client import Service, add_service
from app.cli.exits import Exit
from app.cli.parser import Commands, file


def add(commands: Commands) -> None:
    parser = commands.add_parser("import", help="send the events of files, however old, to a service's import route")
    parser.description = (
        "Exit code 0: every event is stored; 1: some were refused; 2: the import has to be called again."
    )
    parser.add_argument("files", nargs="+", type=file, metavar="FILE", help="ndjson, or an export in ndjson or csv")
    parser.add_argument("--portion", type=int, default=500, metavar="N", help="most events in one request (500)")
    add_service(parser, role="importer")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> Exit:
    """Import the files one after another. Raises Fatal when the service does not answer, or refuses the caller."""
    from app.cli.import_file import FileImport

    service = Service.of(arguments)
    refused = sum([FileImport(service.http, one).run(arguments.portion) for one in arguments.files])
    return Exit.DEFECT if refused else Exit.AS_ASKED
