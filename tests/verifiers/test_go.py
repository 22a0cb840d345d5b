"""A verifier in Go that shares no line with the service (tests/go_verifier)."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.services import ROOT
from tests.verifiers.files import Corpus

SOURCE = ROOT / "tests" / "go_verifier"
pytestmark = pytest.mark.skipif(shutil.which("go") is None, reason="there is no Go")


@pytest.fixture(scope="module")
def verifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    program = tmp_path_factory.mktemp("go") / "go_verifier"
    subprocess.run(["go", "build", "-o", program, "."], cwd=SOURCE, check=True)
    return program


def test_vectors() -> None:
    """What docs/vectors and the tables of docs/design.md fix comes out differently."""
    subprocess.run(["go", "test", "."], cwd=SOURCE, check=True)


def test_verdicts(verifier: Path, corpus: Corpus, subtests: pytest.Subtests) -> None:
    """A good file is refused, or a tampered one is accepted or refused for another reason."""
    for case in corpus.cases:
        with subtests.test(case.name):
            command = [str(verifier), *map(str, case.files), "--key", str(corpus.keys)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            output = done.stdout + done.stderr
            assert done.returncode == (0 if case.holds else 1), output
            assert re.search(case.says, output), output
