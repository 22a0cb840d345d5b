"""What is refused before any Postgres runs, with a message that names the remedy."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from app.embedded import EmbeddedPostgres
from app.errors import Fatal
from app.state_dir import state_dir

ROOT = Path(__file__).parent.parent.parent


def test_not_installed() -> None:
    """Without the package, the message does not name the two ways to a database."""
    start = "from app.errors import Fatal\nfrom app.embedded import EmbeddedPostgres\n"
    start += "try: EmbeddedPostgres.start()\nexcept Fatal as error: print(error)"
    bare = [sys.executable, "-S", "-c", start]
    result = subprocess.run(bare, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True)
    assert "DATASTORAGE_DATABASE_URL" in result.stdout
    assert "pip install 'datastorage[embedded]'" in result.stdout


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A directory that every user can enter, as root's Postgres has to."""
    for path in (tmp_path, *tmp_path.parents):
        if path.stat().st_uid == os.geteuid():
            path.chmod(path.stat().st_mode | 0o011)
    return tmp_path


@pytest.mark.parametrize("major", ["16", "19"])
def test_other_major_version(directory: Path, major: str) -> None:
    """Data of another Postgres is opened, changed, or refused without saying what to do."""
    data = directory / "postgres"
    data.mkdir()
    (data / "PG_VERSION").write_text(f"{major}\n")
    with pytest.raises(Fatal, match=rf"written by Postgres {major}, .* Postgres 18, .*pg_dump.*DATASTORAGE_DATA_DIR"):
        EmbeddedPostgres.start(directory)
    assert [path.name for path in directory.rglob("*")] == ["postgres", "PG_VERSION"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root starts Postgres as another user")
def test_directory_that_postgres_cannot_enter(directory: Path) -> None:
    """Root's Postgres fails somewhere inside when it may not enter the directory, instead of saying so."""
    (directory / "closed").mkdir(mode=0o700)
    with pytest.raises(Fatal, match=r"cannot enter .*/closed: set DATASTORAGE_DATA_DIR"):
        EmbeddedPostgres.start(directory / "closed/state")


@pytest.mark.skipif(os.geteuid() == 0, reason="root's place is fixed")
def test_default_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A user's data is stored elsewhere than in the state directory."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    assert state_dir(None) == tmp_path / ".local/state/datastorage"
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    assert state_dir(None) == tmp_path / "state/datastorage"
