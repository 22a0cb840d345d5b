"""Where this user's DataStorage keeps what outlives it: data of the embedded Postgres, the spool."""

import os
from pathlib import Path

ROOT_STATE_DIR = Path("/var/lib/datastorage")


def state_dir(data_dir: Path | None) -> Path:
    """Where the service keeps what outlives it on this machine, absolute."""
    if data_dir is not None:
        return data_dir.absolute()
    if os.geteuid() == 0:
        return ROOT_STATE_DIR
    state = Path(os.environ.get("XDG_STATE_HOME", ""))
    return (state if state.is_absolute() else Path.home() / ".local/state") / "datastorage"
