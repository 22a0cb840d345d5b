"""Copies of checkpoints outside the database: appended to a file, posted to a URL."""

import asyncio
import logging
import os
from itertools import pairwise
from pathlib import Path

from app import metrics
from app.errors import Fatal
from app.tlog.note import MalformedNote, Note

_TAIL_BYTES = 64 * 1024
_TIMEOUT_SECONDS = 2.0

log = logging.getLogger(__name__)


class CheckpointCopies:
    """Where checkpoints are copied to, and the one that could not be posted yet."""

    def __init__(self, file: Path | None, url: str | None) -> None:
        self._file = file
        self._url = url
        self._unsent: str | None = None

    def newest_note(self, origin: str) -> str | None:
        """The newest checkpoint of a log in the file, as newest_note_in(); None without a file."""
        return None if self._file is None else newest_note_in(self._file, origin)

    async def add(self, note: str) -> None:
        """Append the checkpoint to the file and post it. A failure is logged and counted; retry_post() repeats the post."""
        if self._file is not None:
            try:
                await asyncio.to_thread(append_note, self._file, note)
            except OSError as error:
                _record_failure("file", error)
        self._unsent = note if self._url else None
        await self.retry_post()

    async def retry_post(self) -> None:
        """Post the newest checkpoint, if that has not succeeded yet."""
        if self._unsent is None or self._url is None:
            return
        import httpx  # noqa: PLC0415 -- a service that posts no copies starts without it

        try:
            async with httpx.AsyncClient(timeout=_TIMEOUT_SECONDS) as client:
                response = await client.post(
                    self._url, content=self._unsent.encode(), headers={"Content-Type": "text/plain"}
                )
                response.raise_for_status()
            self._unsent = None
        except httpx.HTTPError as error:
            _record_failure("url", error)


def append_note(path: Path, note: str) -> None:
    """Append a note to the file, and an empty line after it; it is on disk when this returns."""
    with path.open("a+b") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 2))
        # A crash may have left half a note: end it, so that this one is separate.
        separator = b"" if file.read() in {b"", b"\n\n"} else b"\n\n"
        file.write(separator + f"{note}\n".encode())
        file.flush()
        os.fsync(file.fileno())


def newest_note_in(path: Path, origin: str | None = None) -> str | None:
    """The last whole note, of the log named `origin` if it is given, in the last 64 KiB of a file that append_note() wrote; or None."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
            paragraphs = file.read().decode(errors="replace").split("\n\n")
    except FileNotFoundError:
        return None
    for text, signatures in reversed(list(pairwise(paragraphs[:-1]))):
        is_of_log = origin is None or text.lstrip().partition("\n")[0] == origin
        if is_of_log and signatures.startswith("\u2014 "):
            return f"{text.lstrip()}\n\n{signatures}\n"
    return None


def read_checkpoint(path: Path) -> str:
    """The note in a file, or the last of several that append_note() has written to it. Fatal if there is none."""
    try:
        text = path.read_text("utf-8")
        Note.parse(text)
    except (OSError, UnicodeDecodeError) as error:
        raise Fatal(f"Cannot read {path}: {error}") from None
    except MalformedNote:
        if (last := newest_note_in(path)) is None:
            raise Fatal(f"There is no checkpoint in {path}: download it from /tlog/checkpoint.") from None
        return last
    return text


def _record_failure(where: str, error: Exception) -> None:
    metrics.CHECKPOINT_COPY_FAILURES.labels(where=where).inc()
    log.warning("a checkpoint could not be copied outside the database", extra={"where": where, "error": repr(error)})
