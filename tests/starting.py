"""Starts of the command `datastorage` that are to fail, each in a process of its own, without importing everything each time."""

import json
import os
import pwd
import subprocess
import sys
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.services import OTHER_SETTINGS, ROOT


@dataclass(frozen=True)
class Start:
    """One call of the command in an empty directory, with these variables besides those of the tests' own environment."""

    directory: str
    environment: Mapping[str, str]
    arguments: Sequence[str] = ("serve",)
    nameless: bool = False
    """As a user who has neither a home nor an entry in passwd."""


@dataclass(frozen=True)
class Outcome:
    """What a start ended with."""

    code: int
    output: str
    errors: str


def run(starts: Mapping[str, Start]) -> dict[str, Outcome]:
    """The outcome of each start, one after the other."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(OTHER_SETTINGS)}
    done = subprocess.run(
        [sys.executable, "-m", "tests.starting"],
        cwd=ROOT,
        env=environment,
        input=json.dumps([asdict(start) for start in starts.values()]),
        capture_output=True,
        text=True,
        check=True,
    )
    codes: list[int] = json.loads(done.stdout)
    return {
        name: Outcome(code, *(Path(start.directory, stream).read_text() for stream in ("output", "errors")))
        for (name, start), code in zip(starts.items(), codes, strict=True)
    }


def _run(start: Start) -> int:
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    code = 70
    try:
        os.chdir(start.directory)
        os.environ.update(start.environment)
        if start.nameless:
            _forget_user()
        for name, descriptor in (("output", 1), ("errors", 2)):
            os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT, 0o600), descriptor)
        sys.argv = ["datastorage", *start.arguments]
        code = main()
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:  # noqa: BLE001 -- as the interpreter does at the end of a program
        traceback.print_exc()
        code = 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _forget_user() -> None:
    for variable in ("HOME", "XDG_STATE_HOME", "XDG_DATA_HOME"):
        os.environ.pop(variable, None)
    pwd.getpwuid = {}.__getitem__  # type: ignore[assignment]  # raises KeyError
    os.geteuid = lambda: 12345


if __name__ == "__main__":
    from app import embedded, serve  # noqa: F401 -- imported once, for every start
    from app.cli import main

    json.dump([_run(Start(**start)) for start in json.load(sys.stdin)], sys.stdout)
