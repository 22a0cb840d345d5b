"""Named SQL statements, one file for each station; asyncpg's `$1` parameters. fragments.sql has what several statements share."""

import re
from functools import cache
from importlib.resources import files
from typing import Protocol

_NAME = re.compile(r"^-- name: (\w+)\n", re.MULTILINE)
_FRAGMENT_NAME = re.compile(r"^-- fragment: (\w+)\n", re.MULTILINE)
_PLACEHOLDER = re.compile(r"\{([a-z]\w*)\}")
_OF_A_LOG = ("{log}", "{in_log}")


class LogLike(Protocol):
    """A log of the database: app.events.log.Log."""

    @property
    def id(self) -> int: ...
    @property
    def is_open(self) -> bool: ...


class Statements(dict[str, str]):
    """The statements of one file by name. Those that read or write one log are had by `of`."""

    def __init__(self, texts: dict[str, str]) -> None:
        super().__init__({name: text for name, text in texts.items() if not any(one in text for one in _OF_A_LOG)})
        self._texts = texts
        self._by_log: dict[tuple[int, bool], dict[str, str]] = {}

    def of(self, log: LogLike) -> dict[str, str]:
        """All statements as they are for one log, whose id is part of their text: it costs no statement a parameter."""
        key = log.id, log.is_open
        if key not in self._by_log:
            self._by_log[key] = {name: in_log(text, log) for name, text in self._texts.items()}
        return self._by_log[key]


def in_log(text: str, log: LogLike) -> str:
    """The text of a statement for one log: `{log}` is its id, `{in_log}` the condition that a row of audit_events is of it.

    A row with the id of no log counts as of the open one, so that verification sees it.
    """
    if not log.is_open:
        condition = f"log_id = {int(log.id)}"
    else:
        condition = f"(log_id >= 0 AND log_id < {int(log.id)}) IS NOT TRUE" if log.id else "true"
    return text.replace("{log}", str(int(log.id))).replace("{in_log}", condition)


def load(station: str) -> Statements:
    """Statements of `station`.sql by name. Each begins with `-- name: x` and a comment that says its purpose.

    `{x}` in a statement stands for the fragment x of fragments.sql; KeyError if there is none.
    """
    fragments = _sections("fragments", _FRAGMENT_NAME) | {"log": "{log}", "in_log": "{in_log}"}
    statements = _sections(station, _NAME)
    return Statements(
        {name: _PLACEHOLDER.sub(lambda use: fragments[use[1]], text) for name, text in statements.items()}
    )


def fragment(name: str) -> str:
    """The text of a fragment, for statements that are made elsewhere."""
    return _sections("fragments", _FRAGMENT_NAME)[name]


@cache  # every module of a station loads the station's file, and each load the fragments
def _sections(file: str, heading: re.Pattern[str]) -> dict[str, str]:
    """The texts of a file by the names in the headings before them."""
    parts = heading.split(files(__package__).joinpath(f"{file}.sql").read_text("utf-8"))
    return {name: text.strip() for name, text in zip(parts[1::2], parts[2::2], strict=True)}
