"""Checkpoints out of the database's reach: appended to a file, posted to a URL."""

import asyncio
import logging
import os
from itertools import pairwise
from pathlib import Path

import httpx

from app import metrics

_TAIL_BYTES = 64 * 1024
_TIMEOUT_SECONDS = 2.0

log = logging.getLogger(__name__)


class CheckpointCopies:
    """Where checkpoints are kept besides the database, and the one that could not be posted yet."""

    def __init__(self, file: Path | None, url: str | None) -> None:
        self._file = file
        self._url = url
        self._unsent: str | None = None

    def newest(self) -> str | None:
        """The last checkpoint in the file."""
        return None if self._file is None else newest_note_in(self._file)

    async def keep(self, note: str) -> None:
        """Append and post; what fails is logged and counted. A post is repeated by send_again()."""
        if self._file is not None:
            try:
                await asyncio.to_thread(append, self._file, note)
            except OSError as error:
                _failed("file", error)
        self._unsent = note if self._url else None
        await self.send_again()

    async def send_again(self) -> None:
        """Post the newest checkpoint, if that did not succeed so far."""
        if self._unsent is None or self._url is None:
            return
        try:
            async with httpx.AsyncClient(timeout=_TIMEOUT_SECONDS) as client:
                answer = await client.post(
                    self._url, content=self._unsent.encode(), headers={"Content-Type": "text/plain"}
                )
                answer.raise_for_status()
            self._unsent = None
        except httpx.HTTPError as error:
            _failed("url", error)


def append(path: Path, note: str) -> None:
    """Put a note behind those of the file, with an empty line after each; it is on disk when this returns."""
    with path.open("a+b") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 2))
        # What a crash has left of a note ends here.
        ending = b"" if file.read() in {b"", b"\n\n"} else b"\n\n"
        file.write(ending + f"{note}\n".encode())
        file.flush()
        os.fsync(file.fileno())


def newest_note_in(path: Path) -> str | None:
    """The last whole note of such a file; None when there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
            parts = file.read().decode(errors="replace").split("\n\n")
    except FileNotFoundError:
        return None
    for text, signatures in reversed(list(pairwise(parts[:-1]))):
        if signatures.startswith("\u2014 "):
            return f"{text.lstrip()}\n\n{signatures}\n"
    return None


def _failed(where: str, error: Exception) -> None:
    metrics.CHECKPOINT_COPY_FAILURES.labels(where=where).inc()
    log.warning("a checkpoint could not be kept outside the database", extra={"where": where, "error": repr(error)})
