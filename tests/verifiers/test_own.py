"""`datastorage verify-export` and `verify-proof` on the files on which the other verifiers are tested."""

import sys

import pytest

from app import cli
from tests.verifiers.files import Corpus


def test_verdicts(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], subtests: pytest.Subtests
) -> None:
    """Our own commands accept what the others refuse, or the other way round, or fail on an exact number."""
    for case in corpus.cases:
        with subtests.test(case.name):
            command = (
                "verify-export"
                if case.files[0].suffix in {".ndjson", ".csv"} or case.name.startswith("bundle")
                else "verify-proof"
            )
            monkeypatch.setattr(sys, "argv", ["datastorage", command, *map(str, case.files), "--key", str(corpus.keys)])
            code = cli.main()
            assert code == (0 if case.holds else 1), capsys.readouterr()
