"""ReviewCache of a slow judge, kept for a short time."""

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

Question = TypeVar("Question", bound=Hashable)
Answer = TypeVar("Answer")
_REFUSALS_MAX = 1_000


class ReviewCache(Generic[Question, Answer]):
    """Each question is asked once at a time, however many wait for its answer. A judge that fails is not remembered.

    Refusals (falsy answers) have a room of their own: whoever sends made-up tokens does not push out those that are good.
    """

    def __init__(self, seconds: float, entries_max: int, clock: Callable[[], float]) -> None:
        self._seconds = seconds
        self._clock = clock
        self._kept: dict[Question, tuple[float, Answer]] = {}
        self._refused: dict[Question, tuple[float, Answer]] = {}
        self._entries_max = entries_max
        self._asking: dict[Question, asyncio.Task[Answer]] = {}

    def __len__(self) -> int:
        return len(self._kept) + len(self._refused)

    def kept(self, question: Question) -> Answer | None:
        """The answer that is still good, or None."""
        entry = self._kept.get(question) or self._refused.get(question)
        return entry[1] if entry is not None and self._clock() < entry[0] else None

    async def ask(self, question: Question, judge: Callable[[], Awaitable[Answer]]) -> Answer:
        """The answer that is kept, or that of `judge`. Raises what the judge raises."""
        if (kept := self.kept(question)) is not None:
            return kept
        task = self._asking.get(question)
        if task is None:
            task = self._asking[question] = asyncio.create_task(self._judged(question, judge))
            task.add_done_callback(lambda done: self._done(question, done))
        # Whoever asked first may go away; the others still wait.
        return await asyncio.shield(task)

    async def _judged(self, question: Question, judge: Callable[[], Awaitable[Answer]]) -> Answer:
        good_until = self._clock() + self._seconds  # from before it is judged: a later change may not be in the answer
        answer = await judge()
        room, size = (self._kept, self._entries_max) if answer else (self._refused, _REFUSALS_MAX)
        self._kept.pop(question, None)
        self._refused.pop(question, None)
        if len(room) >= size:
            del room[next(iter(room))]  # the one that was asked for first, so that ends first
        room[question] = (good_until, answer)
        return answer

    def _done(self, question: Question, task: "asyncio.Task[Answer]") -> None:
        del self._asking[question]
        if not task.cancelled():
            task.exception()  # it was seen, even when nobody waits any more
