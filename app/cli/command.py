"""main(): one command from its arguments to its exit code."""

import os
import signal
import sys
from pathlib import Path
from types import FrameType

from app.cli.exits import Exit
from app.cli.parser import build
from app.errors import AuditError, BadRequest, DatabaseAway, DatabaseBusy, DatabaseFailed, Fatal, Usage
from app.masking import masked
from app.terminal import visible

_AWAY = "The database cannot be reached"
_IN_WORDS: dict[type[AuditError], str] = {
    DatabaseAway: _AWAY,
    DatabaseBusy: "The database did not answer in time",
    DatabaseFailed: "The database could not answer",
}
"""Errors whose own words are meant for a request to the service."""


def main() -> int:
    """Run one command and return its exit code. An error is printed as one line, without a traceback."""
    signal.signal(signal.SIGTERM, _terminate)  # first of all: a signal during the start must also clean up
    _show_every_character()
    arguments = build(*sys.argv[1:2]).parse_args()
    if arguments.serves:
        signal.signal(signal.SIGTERM, _exit_quietly)
    try:
        code = int(arguments.run(arguments) or Exit.AS_ASKED)
        sys.stdout.flush()
    except BrokenPipeError:
        _drop_output()
        return Exit.NO_READER
    except KeyboardInterrupt:
        return Exit.INTERRUPTED
    except Exception as error:
        if (text := _in_words(error)) is None:
            raise
        sys.stderr.write(f"datastorage: {_shown(text)}\n")
        return Exit.DEFECT if arguments.serves else _code_of(error)
    return code


def _shown(text: str) -> str:
    """Without passwords, and without what a terminal would obey. Some errors have several lines."""
    return "\n".join(map(visible, masked(text).split("\n")))


def _code_of(error: Exception) -> Exit:
    return Exit.USAGE if isinstance(error, Usage | BadRequest) else Exit.NOT_DONE


def _in_words(error: Exception) -> str | None:
    """What to print about an error; None for one that is a mistake of the program."""
    if isinstance(error, AuditError):
        text = _IN_WORDS.get(type(error), error.detail)
        return text if isinstance(error, Fatal) or error.__cause__ is None else f"{text} ({_reason(error.__cause__)})"
    if isinstance(error, OSError):  # a file, a directory or a port that the system refuses
        return str(error)
    module = type(error).__module__.partition(".")[0]
    if module in {"asyncpg", "sqlalchemy"}:  # only a command that has imported them can raise one
        return f"The database could not answer ({_reason(error)})"
    return None


def _reason(error: BaseException) -> str:
    from app.database_url import reason

    return reason(error)


def _show_every_character() -> None:
    """What the encoding of the terminal does not have is written as an escape; LC_ALL=C and POSIX are plain ASCII."""
    if sys.stdout is None:  # closed by the caller
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 -- until the end
    if sys.stderr is None:
        sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115 -- as well
    plain = {"encoding": "ascii"} if os.environ.get("LC_ALL") in {"C", "POSIX"} else {}
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace", **plain)  # type: ignore[union-attr]  # they are text of files


def _drop_output() -> None:
    """What is still in the buffer goes nowhere, so that the interpreter's end does not complain about it."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def _exit_quietly(sig: int, frame: FrameType | None) -> None:
    """The handler of SIGTERM while the service starts: unwinds the stack, so that an embedded Postgres is stopped."""
    del sig, frame
    raise SystemExit(Exit.AS_ASKED)


def _terminate(sig: int, frame: FrameType | None) -> None:
    """The handler of SIGTERM of all other commands: what has not been done must not look as if it had been."""
    del sig, frame
    raise SystemExit(Exit.TERMINATED)
