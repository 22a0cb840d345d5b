"""The note of the last checkpoint that this replica has seen, in its spool's directory: it is out of the database's reach.

Only the process that writes has the directory. Whoever can write there can take the note away, but not forge it: it counts only if
one of the log's keys has signed it.
"""

import asyncio
import logging
import os
import stat
from collections.abc import Sequence
from pathlib import Path

from app.tlog.note import MalformedNote, NoValidSignature, PublicKey, verified_checkpoint
from app.workers import Reminder

FILE_NAME = "checkpoint"
_BYTES_MAX = 64 * 1024

log = logging.getLogger(__name__)


class SeenCheckpoint:
    """The last checkpoint that this replica has seen, also before this process."""

    def __init__(self, directory: Path | None, keys: Sequence[PublicKey]) -> None:
        """Read the note in `directory`. Without a directory nothing is read or written."""
        self._path = None if directory is None else directory / FILE_NAME
        self._reminder = Reminder()
        self.note = None if self._path is None else _read(self._path, keys)
        """As a note; None if none was seen."""
        self._stored = self.note
        """What the directory has."""

    async def store(self, note: str | None) -> None:
        """Replace the note, if it is another one: it is on disk when this returns. A disk that fails is logged, and tried again with the next call."""
        if note is None or note == self._stored:
            return
        self.note = note
        if self._path is None:
            return
        try:
            await asyncio.to_thread(_replace, self._path, note)
            self._stored = note
        except OSError as error:
            if self._reminder.is_due():
                extra = {"path": str(self._path), "error": repr(error)}
                log.warning("the last checkpoint that was seen could not be noted in the spool", extra=extra)


def _read(path: Path, keys: Sequence[PublicKey]) -> str | None:
    """The note in a file; None if there is none that one of `keys` has signed."""
    try:
        # Whatever somebody has put there: nothing is waited for, and no link is followed.
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW), "rb") as file:
            is_file = stat.S_ISREG(os.fstat(file.fileno()).st_mode)
            text = file.read(_BYTES_MAX).decode() if is_file else ""
        origin = text.partition("\n")[0]  # this log's name, or that of one that continues it
        later = [PublicKey(origin, key.public, key.algorithm) for key in keys if origin.startswith(f"{key.name}/")]
        verified_checkpoint(text, [*keys, *later])
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError, MalformedNote, NoValidSignature) as error:
        extra = {"path": str(path), "reason": str(error)}
        log.warning("the spool's note of the last checkpoint is ignored: no key of this log has signed it", extra=extra)
        return None
    return text


def _replace(path: Path, note: str) -> None:
    temporary = path.with_suffix(".new")
    temporary.unlink(missing_ok=True)
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(note.encode())
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
