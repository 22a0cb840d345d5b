"""Answers that equal questions share, so that a crowd that asks the same costs Postgres what a few askers cost."""

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

_Question = TypeVar("_Question", bound=Hashable)
_Answer = TypeVar("_Answer")


class SharedReads(Generic[_Question, _Answer]):
    """Reads each question once for all who ask it while its last reading is under way.

    Nobody gets an answer whose reading began before they asked: they find what they have written. Nobody waits for a reading of
    others longer than `patience_seconds`: a slow one would take them the time that they have for their own. A reading that nobody
    waits for any more is cancelled. An answer belongs to all who get it, and must not be changed.
    """

    def __init__(self, read: Callable[[_Question], Awaitable[_Answer]], patience_seconds: float = 1.0) -> None:
        self._read = read
        self._patience_seconds = patience_seconds
        self._begun: dict[_Question, asyncio.Task[_Answer]] = {}
        """The readings that are under way, by question; of each the one that began last."""
        self._next: dict[_Question, _Reading[_Answer]] = {}
        """Those that begin when the reading of the same question ends, or has taken too long."""

    async def ask(self, question: _Question) -> _Answer:
        """The answer to `question`. Raises what the reading raises."""
        reading = self._next.get(question)
        if reading is None:
            reading = self._next[question] = _Reading(asyncio.create_task(self._read_in_turn(question)))
        reading.askers += 1
        try:
            return await asyncio.shield(reading.task)
        finally:
            reading.askers -= 1
            if not reading.askers and not reading.task.done():
                if self._next.get(question) is reading:
                    del self._next[question]
                reading.task.cancel()
                await asyncio.wait({reading.task})  # what it has borrowed is given back before the asker goes

    async def _read_in_turn(self, question: _Question) -> _Answer:
        if (before := self._begun.get(question)) is not None:
            await asyncio.wait({before}, timeout=self._patience_seconds)
        task = asyncio.current_task()
        assert task is not None
        del self._next[question]  # from here on nobody joins
        self._begun[question] = task
        try:
            return await self._read(question)
        finally:
            if self._begun.get(question) is task:
                del self._begun[question]


class _Reading(Generic[_Answer]):
    """A reading, and how many wait for it."""

    def __init__(self, task: asyncio.Task[_Answer]) -> None:
        self.task = task
        self.askers = 0
