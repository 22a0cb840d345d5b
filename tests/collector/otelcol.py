"""The Collector that `make collector` builds, run with a configuration of the documentation."""

import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = ROOT / "build" / "collector" / "otelcol"
needs_program = pytest.mark.skipif(not PROGRAM.exists(), reason="there is no Collector (make collector)")


@contextmanager
def running(directory: Path, page: str, used: Mapping[str, str], **environment: str) -> Iterator[None]:
    """The Collector with the first YAML of docs/`page`, of which each text that is a key of `used` has to be there and is replaced."""
    config = (ROOT / "docs" / page).read_text("utf-8").partition("```yaml\n")[2].partition("```")[0]
    for documented, instead in used.items():
        assert documented in config
        config = config.replace(documented, instead)
    (directory / "config.yaml").write_text(config)
    options = ["--config", f"file:{directory}/config.yaml", "--set", "service::telemetry::metrics::level=none"]
    with (
        (directory / "output").open("wb") as output,
        subprocess.Popen(
            [str(PROGRAM), *options], stdout=output, stderr=output, env=os.environ | environment
        ) as process,
    ):
        try:
            yield
        finally:
            process.terminate()
