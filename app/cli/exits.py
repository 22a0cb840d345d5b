"""The exit codes of every command; docs/commands.md has the same table, and a test over all commands holds both to it."""

from enum import IntEnum
from typing import Self


class Exit(IntEnum):
    """What a command ended with. Its text is the row of the table in docs/commands.md."""

    AS_ASKED = 0, "what was asked for was done, or shown; nothing that was looked at has a defect"
    DEFECT = 1, "a defect was found, or a part of what was sent was refused"
    NOT_DONE = (
        2,
        "it could not be looked at, or done: no such file, correlation, event or key, not permitted, service or database away",
    )
    USAGE = 64, "the command was called wrongly: an option, a value or a setting that it cannot read"
    INTERRUPTED = 130, "Ctrl-C"
    NO_READER = 141, "whoever read the output has closed it, as `| head` does; nothing is printed about it"
    TERMINATED = 143, "SIGTERM, but for `serve`, which then ends with 0"

    text: str

    def __new__(cls, code: int, text: str) -> Self:
        """An int that has its text beside it."""
        member = int.__new__(cls, code)
        member._value_ = code
        member.text = text
        return member
