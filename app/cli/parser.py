"""The parser of all commands. It imports nothing of what the commands do."""

import argparse
import sys
from pathlib import Path
from typing import Any, NoReturn

from app.cli.exits import Exit

Commands = Any
"""What add_subparsers() returns: its class is private."""
COMMAND = "COMMAND"


class Parser(argparse.ArgumentParser):
    """Ends with Exit.USAGE when the arguments cannot be read."""

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        if message.endswith(f"required: {COMMAND}"):
            message += f", one of {', '.join(self._commands())}; {self.prog} --help says what each does"
        self.exit(Exit.USAGE, f"{self.prog}: {message}\n")

    def _commands(self) -> list[str]:
        nested = (action for action in self._actions if action.metavar == COMMAND)
        return [name for action in nested for name in action.choices or ()]


class _Version(argparse.Action):
    def __init__(self, option_strings: list[str], dest: str, **_: object) -> None:
        super().__init__(option_strings, dest, nargs=0, help="show the version and end")

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import version

        sys.stdout.write(f"datastorage {version('datastorage')}\n")
        parser.exit()


def build() -> Parser:
    """The parser. Of what it returns, `run` is the function of the command, and `serves` whether it is the service itself."""
    from app.cli import (
        archiving,
        auditing,
        delivering,
        describing,
        exporting,
        holds,
        importing,
        proofs,
        retention,
        running,
        searching,
        show,
        simulating,
        spool,
        tailing,
        trusting,
        trying,
        verifying,
    )

    parser = Parser(
        prog="datastorage",
        description="The audit event store of the Kubernaut platform. @FILE stands for what is in the file: --token @FILE.",
        epilog="Exit codes: 0 as asked, 1 a defect was found, 2 it could not be looked at, 64 called wrongly; see docs/commands.md.",
        fromfile_prefix_chars="@",  # the arguments of a process are visible to other users
    )
    parser.set_defaults(serves=False)
    parser.add_argument("--version", action=_Version)
    commands = parser.add_subparsers(required=True, metavar=COMMAND)
    asking = (show, searching, tailing, proofs, exporting, holds, trusting, trying)
    for group in (
        *asking,
        verifying,
        auditing,
        retention,
        archiving,
        delivering,
        importing,
        simulating,
        running,
        spool,
        describing,
    ):
        group.add(commands)
    return parser


def file(text: str) -> Path:
    """The path of a file to read or to write, as an argument's type. No directory is one."""
    if (path := Path(text)).is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is a directory")
    return path


def add_group(commands: Commands, name: str, text: str) -> Commands:
    """A command that has commands itself."""
    return commands.add_parser(name, help=text).add_subparsers(required=True, metavar=COMMAND)
