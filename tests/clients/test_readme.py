"""The programs of README.md that send an event, as they stand there, but for the service's address."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx

from tests.services import ROOT, Service


def test_the_programs_of_the_readme(service: Callable[..., Service], tmp_path: Path) -> None:
    """A program that newcomers copy does not run, or what it sends is not there, or twice after it was sent twice."""
    url = service().url
    programs: dict[str, str] = dict(
        re.findall(r"```(python|go)\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    )
    for language, command in {"python": [sys.executable], "go": ["go", "run"]}.items():
        if language == "go" and ("DATASTORAGE_TEST_GO" not in os.environ or shutil.which("go") is None):
            continue  # compiles for a minute; `make clients` runs it
        file = tmp_path / f"send.{language.removesuffix('thon')}"
        program = programs[language].replace("http://127.0.0.1:8080", url)
        file.write_text(program.replace("    send(client, event)\n", "    send(client, event)\n" * 2))
        done = subprocess.run([*command, file.name], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        found = httpx.get(f"{url}/api/v1/audit/events", params={"correlation_id": f"rr-{language}"}).json()["data"]
        assert len(found) == 1
