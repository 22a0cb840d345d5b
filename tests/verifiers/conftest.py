"""One corpus of files for all verifiers that are not ours."""

import pytest

from tests.verifiers import files


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory, server_url: str, template_database: str) -> files.Corpus:
    return files.build(tmp_path_factory.mktemp("corpus"), server_url, template_database)
