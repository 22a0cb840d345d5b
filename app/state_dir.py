"""The state directory: it contains the data of the embedded Postgres, the spool, and keys that were generated."""

import os
from pathlib import Path

ROOT_STATE_DIR = Path("/var/lib/datastorage")


def state_dir(data_dir: Path | None) -> Path:
    """The absolute path of the state directory: `data_dir` if set, else by the XDG Base Directory specification, or root's own."""
    if data_dir is not None:
        return data_dir.absolute()
    if os.geteuid() == 0:
        return ROOT_STATE_DIR
    state = Path(os.environ.get("XDG_STATE_HOME", ""))
    return (state if state.is_absolute() else Path.home() / ".local/state") / "datastorage"
