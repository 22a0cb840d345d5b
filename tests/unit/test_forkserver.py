"""The fork server, without which tests leave services behind."""

import os
import signal
import sys
from pathlib import Path
from subprocess import PIPE, STDOUT, Popen

from tests import forkserver
from tests.services import free_port

ROOT = Path(__file__).parent.parent.parent


def settings(directory: Path) -> dict[str, str]:
    """A service that waits for its database, whatever is done to it."""
    url = "postgresql://u:p@127.0.0.1:9/d"
    return {
        "DATASTORAGE_DATABASE_URL": url,
        "DATASTORAGE_PORT": str(free_port()),
        "DATASTORAGE_DATA_DIR": str(directory),
    }


def test_an_interrupt_at_the_terminal(tmp_path: Path) -> None:
    """Ctrl-C ends the fork server, and services that hang are left; or services cannot be interrupted."""
    with (tmp_path / "log").open("wb") as output:
        process = forkserver.start(["serve"], tmp_path, settings(tmp_path), output)
    try:
        process._server._process.send_signal(signal.SIGINT)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        process.wait(20)
    finally:
        process.kill()


def test_killed_tests(tmp_path: Path) -> None:
    """Tests that are killed leave their services running."""
    program = (
        "import sys, time; from pathlib import Path; from tests import forkserver\n"
        f"forkserver.start(['serve'], Path({str(tmp_path)!r}), {settings(tmp_path)!r}, sys.stdout.buffer)\n"
        "print('started', flush=True); time.sleep(60)"
    )
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    with Popen([sys.executable, "-c", program], cwd=ROOT, env=env, stdout=PIPE, stderr=STDOUT) as tests:
        assert tests.stdout is not None
        assert b"started\n" in tests.stdout
        tests.kill()
        tests.communicate(timeout=20)  # until nobody has the pipe any more
