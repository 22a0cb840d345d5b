"""A cache of reviews: what a slow identity provider answered a short time ago."""

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

Question = TypeVar("Question", bound=Hashable)
Answer = TypeVar("Answer")
_REFUSALS_MAX = 1_000


class ReviewCache(Generic[Question, Answer]):
    """Reviews each question once at a time, however many wait for its answer. A review that fails is not cached.

    Refusals (falsy answers) have a limit of their own, so that made-up tokens cannot evict the answers for valid ones.
    """

    def __init__(self, seconds: float, entries_max: int, clock: Callable[[], float]) -> None:
        self._seconds = seconds
        self._clock = clock
        self._approvals: dict[Question, tuple[float, Answer]] = {}
        self._refusals: dict[Question, tuple[float, Answer]] = {}
        self._approvals_max = entries_max
        self._running: dict[Question, asyncio.Task[Answer]] = {}

    def __len__(self) -> int:
        return len(self._approvals) + len(self._refusals)

    def get(self, question: Question) -> Answer | None:
        """The cached answer if it has not expired, else None."""
        entry = self._approvals.get(question) or self._refusals.get(question)
        return entry[1] if entry is not None and self._clock() < entry[0] else None

    async def get_or_review(self, question: Question, review: Callable[[], Awaitable[Answer]]) -> Answer:
        """The cached answer, or that of `review`. Raises what `review` raises."""
        if (cached := self.get(question)) is not None:
            return cached
        task = self._running.get(question)
        if task is None:
            task = self._running[question] = asyncio.create_task(self._review(question, review))
            task.add_done_callback(lambda done: self._on_done(question, done))
        # The client that asked first may disconnect while others wait for the same answer.
        return await asyncio.shield(task)

    async def _review(self, question: Question, review: Callable[[], Awaitable[Answer]]) -> Answer:
        expires = self._clock() + self._seconds  # from before the review: it may miss what changes while it runs
        answer = await review()
        entries, entries_max = (self._approvals, self._approvals_max) if answer else (self._refusals, _REFUSALS_MAX)
        self._approvals.pop(question, None)
        self._refusals.pop(question, None)
        if len(entries) >= entries_max:
            del entries[next(iter(entries))]  # the oldest, which expires first
        entries[question] = (expires, answer)
        return answer

    def _on_done(self, question: Question, task: "asyncio.Task[Answer]") -> None:
        del self._running[question]
        if not task.cancelled():
            task.exception()  # retrieved, or asyncio would log it when nobody waits any more
