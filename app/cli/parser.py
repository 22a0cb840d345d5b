"""The parser of all commands. It imports nothing of what the commands do."""

import argparse
import sys
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

from app.cli.exits import Exit

Commands = Any
"""What add_subparsers() returns: its class is private."""
COMMAND = "COMMAND"
GROUPS: dict[str, tuple[str, ...]] = {
    "show": ("show", "list"),
    "searching": ("search", "event", "notifications", "histogram"),
    "tailing": ("tail",),
    "proofs": ("proof",),
    "exporting": ("export",),
    "holds": ("hold",),
    "trusting": ("trust",),
    "trying": ("try",),
    "verifying": ("verify-proof", "verify-timestamp", "verify-export", "checkpoint-key"),
    "auditing": ("verify", "findings", "log"),
    "retention": ("retention", "erase"),
    "archiving": ("archive", "verify-archive"),
    "delivering": ("sink",),
    "importing": ("import",),
    "simulating": ("simulate",),
    "running": ("serve", "migrate", "health"),
    "spool": ("spool",),
    "describing": ("settings", "event-types", "openapi", "token"),
}
"""The modules with commands, in the order of `--help`, and which ones each adds."""


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


def build(first: str | None = None) -> Parser:
    """The parser. Of what it returns, `run` is the function of the command, and `serves` whether it is the service itself.

    If `first`, the first argument, is a command, the parser has only the commands of its group: all of them take a tenth of a second.
    """
    parser = Parser(
        prog="datastorage",
        description="The audit event store of the Kubernaut platform. @FILE stands for what is in the file: --token @FILE.",
        epilog="Exit codes: 0 as asked, 1 a defect was found, 2 it could not be looked at, 64 called wrongly; see docs/commands.md.",
        fromfile_prefix_chars="@",  # the arguments of a process are visible to other users
    )
    parser.set_defaults(serves=False)
    parser.add_argument("--version", action=_Version)
    commands = parser.add_subparsers(required=True, metavar=COMMAND)
    groups = [group for group, names in GROUPS.items() if first in names] or GROUPS
    for group in groups:
        import_module(f"app.cli.{group}").add(commands)
    return parser


def file(text: str) -> Path:
    """The path of a file to read or to write, as an argument's type. No directory is one."""
    if (path := Path(text)).is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is a directory")
    return path


def add_group(commands: Commands, name: str, text: str) -> Commands:
    """A command that has commands itself."""
    return commands.add_parser(name, help=text).add_subparsers(required=True, metavar=COMMAND)
