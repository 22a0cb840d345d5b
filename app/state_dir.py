"""The state directory: it contains the data of the embedded Postgres, the spool, and keys that were generated."""

import os
from pathlib import Path

from app.errors import Fatal

ROOT_STATE_DIR = Path("/var/lib/datastorage")


def state_dir(data_dir: Path | None) -> Path:
    """The absolute path of the state directory. Fatal if there is none, as find_state_dir() says."""
    directory = find_state_dir(data_dir)
    if directory is None:
        raise Fatal(
            f"There is no directory for what this command stores: HOME is not set, and user {os.geteuid()} has no entry in "
            "passwd; set DATASTORAGE_DATA_DIR, XDG_STATE_HOME or HOME."
        )
    return directory


def find_state_dir(data_dir: Path | None) -> Path | None:
    """`data_dir` if set, else by the XDG Base Directory specification, or root's own. None for a user who has no home."""
    if data_dir is not None:
        return data_dir.absolute()
    if (directory := xdg_dir("XDG_STATE_HOME")) is not None:
        return directory
    if os.geteuid() == 0:
        return ROOT_STATE_DIR
    try:
        return Path.home() / ".local/state/datastorage"
    except RuntimeError:  # neither HOME nor an entry in passwd
        return None


def xdg_dir(variable: str) -> Path | None:
    """This program's directory in the one that `variable` names; None if it names none. A relative path counts as none."""
    base = Path(os.environ.get(variable, ""))
    return base / "datastorage" if base.is_absolute() else None
