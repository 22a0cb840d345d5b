"""Named SQL statements, one file for each station; asyncpg's `$1` parameters. fragments.sql has what several statements share."""

import re
from functools import cache
from importlib.resources import files

_NAME = re.compile(r"^-- name: (\w+)\n", re.MULTILINE)
_FRAGMENT_NAME = re.compile(r"^-- fragment: (\w+)\n", re.MULTILINE)
_PLACEHOLDER = re.compile(r"\{([a-z]\w*)\}")


def load(station: str) -> dict[str, str]:
    """Statements of `station`.sql by name. Each begins with `-- name: x` and a comment that says its purpose.

    `{x}` in a statement stands for the fragment x of fragments.sql; KeyError if there is none.
    """
    fragments = _sections("fragments", _FRAGMENT_NAME)
    statements = _sections(station, _NAME)
    return {name: _PLACEHOLDER.sub(lambda use: fragments[use[1]], text) for name, text in statements.items()}


def fragment(name: str) -> str:
    """The text of a fragment, for statements that are made elsewhere."""
    return _sections("fragments", _FRAGMENT_NAME)[name]


@cache  # every module of a station loads the station's file, and each load the fragments
def _sections(file: str, heading: re.Pattern[str]) -> dict[str, str]:
    """The texts of a file by the names in the headings before them."""
    parts = heading.split(files(__package__).joinpath(f"{file}.sql").read_text("utf-8"))
    return {name: text.strip() for name, text in zip(parts[1::2], parts[2::2], strict=True)}
