"""The release before this one, and this one, as programs that can be run beside each other."""

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.services import OTHER_SETTINGS, ROOT

BASE = "306e059"
"""The revision that was released last."""
BUILT = ROOT / "build" / "versions"
_COMMAND_SECONDS = 900


@dataclass(frozen=True)
class Release:
    """What was built of one revision."""

    name: str
    program: tuple[str, ...]
    """The command `datastorage`."""
    python_path: str
    roles: Path
    """Its script of the roles."""

    def environment(self, settings: dict[str, object]) -> dict[str, str]:
        """Variables for a process of it, with these settings and no other."""
        env = {name: value for name, value in os.environ.items() if not name.startswith(OTHER_SETTINGS)}
        env |= {f"DATASTORAGE_{name.upper()}": str(value) for name, value in settings.items() if value is not None}
        return env | {"PYTHONPATH": self.python_path}

    def run(self, *arguments: object, settings: dict[str, object]) -> subprocess.CompletedProcess[str]:
        """One command to its end."""
        with tempfile.TemporaryDirectory(prefix="datastorage-versions-") as directory:
            return subprocess.run(
                [*self.program, *map(str, arguments)],
                cwd=directory,
                env=self.environment(settings),
                capture_output=True,
                text=True,
                timeout=_COMMAND_SECONDS,
                check=False,
            )


def this() -> Release:
    """This checkout."""
    return Release("this", (sys.executable, "-m", "app"), str(ROOT), ROOT / "migrations" / "sql" / "roles.sql")


def before(revision: str = BASE) -> Release:
    """An earlier revision of this repository, built once into build/versions, with the packages of its own lock file."""
    name = subprocess.run(
        ["git", "-C", str(ROOT), "rev-parse", "--short=12", f"{revision}^{{commit}}"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    place = BUILT / name
    if not (place / "complete").exists():
        _build(name, place)
    program = (str(place / "venv" / "bin" / "datastorage"),)
    return Release("before", program, "", place / "source" / "migrations" / "sql" / "roles.sql")


def _build(revision: str, place: Path) -> None:
    shutil.rmtree(place, ignore_errors=True)
    source, pip = place / "source", (str(place / "venv" / "bin" / "python"), "-m", "pip", "--quiet", "install")
    source.mkdir(parents=True)
    with tempfile.TemporaryFile() as archive:
        subprocess.run(["git", "-C", str(ROOT), "archive", revision], check=True, stdout=archive)
        archive.seek(0)
        subprocess.run(["tar", "-x", "-C", str(source)], check=True, stdin=archive)
    for command in (
        (sys.executable, "-m", "venv", str(place / "venv")),
        (*pip, "--require-hashes", "-r", str(source / "requirements.lock")),
        (*pip, "--no-deps", str(source)),
    ):
        subprocess.run(["nice", *command], check=True, stdout=sys.stderr)
    (place / "complete").touch()
