"""The one writer of this process: inbox → flush → commit → receipts.

While a flush runs, requests gather in the inbox; the next flush takes them, always whole requests. Nobody waits on a timer.
A request is answered when its flush has committed. Resends are recognised here, event by event.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Mapping, Sequence
from datetime import date
from time import perf_counter
from uuid import UUID

from app import metrics
from app.errors import AuditError, Conflict, DatabaseAway, DatabaseFailed, InboxFull
from app.ingest.store import LostRace, MonthAway, PossibleResend, Refused, Store
from app.ingest.submission import Submission
from app.settings import Settings

_RESEND_REPEATS_MAX = 3

log = logging.getLogger(__name__)


class Writer:
    """Owns the inbox and the only task that talks to the store."""

    def __init__(self, store: Store, settings: Settings) -> None:
        self.store = store
        self._settings = settings
        self._inbox: deque[Submission] = deque()
        self._taken: list[Submission] = []
        self._events_waiting = 0
        self._arrived = asyncio.Event()
        self._closing = False
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="writer")

    async def submit(self, submission: Submission, deadline: float) -> None:
        """Return when every event of `submission` is stored.

        Raises InboxFull, Conflict, BadRequest, or DatabaseAway at `deadline` (the event loop's clock): then the outcome is
        unknown.
        """
        count = len(submission.events)
        if self._closing or self._events_waiting + count > self._settings.inbox_events_max:
            raise InboxFull
        self._inbox.append(submission)
        self._events_waiting += count
        self._arrived.set()
        timer = asyncio.get_running_loop().call_at(deadline, submission.fail, DatabaseAway())
        try:
            await submission.done
        finally:
            timer.cancel()
            self._events_waiting -= count

    def dates(self, ids: set[UUID]) -> dict[UUID, date]:
        """Dates of those of `ids` that wait to be written, for events that name them as their parent."""
        waiting = (e for s in (*self._taken, *self._inbox) if s.known for e in s.events if e.id in ids)
        return {event.id: event.date for event in waiting}

    async def close(self) -> None:
        """Write what waits, then end."""
        self._closing = True
        self._arrived.set()
        if self._task is not None:
            await self._task
        await self.store.close()

    async def _run(self) -> None:
        while not (self._closing and not self._inbox):
            if not self._inbox:
                self._arrived.clear()
                await self._arrived.wait()
                continue
            taken = self._taken = self._take()
            metrics.INBOX_EVENTS.set(self._events_waiting)
            try:
                await self._write(taken)
            except Exception as error:  # the top of the loop: one failed flush must not end the writer
                log.exception("a flush failed unexpectedly")
                self.store.disconnect()
                _fail(taken, error if isinstance(error, AuditError) else DatabaseFailed())

    def _take(self) -> list[Submission]:
        """The next flush: whole requests, up to the limits; a larger request alone; no id twice."""
        taken: list[Submission] = []
        events = size = 0
        ids: set[UUID] = set()
        while self._inbox:
            first = self._inbox[0]
            if first.done.done():
                self._inbox.popleft()
                continue
            events += len(first.events)
            size += first.size
            if taken and (events > self._settings.flush_events_max or size > self._settings.flush_bytes_max):
                break
            if first.known:
                own = {event.id for event in first.events}
                if own & ids:
                    break
                ids |= own
            taken.append(self._inbox.popleft())
        return taken

    async def _write(self, submissions: list[Submission]) -> None:
        """Commit `submissions`, each whole or not at all, and answer them."""
        started = perf_counter()
        stored: dict[UUID, bool] = {}
        waiting = list(submissions)
        repeats = 0
        while waiting := [s for s in waiting if not s.done.done()]:
            try:
                waiting = await self._settle(waiting, stored, self._deadline(waiting))
                events = [e for s in waiting for e in s.events if e.id not in stored]
                if events:
                    await self.store.commit(events, self._deadline(waiting))
            except LostRace:
                self.store.lost()
                stored.clear()
                _doubt(waiting)
            except PossibleResend:
                _doubt(waiting)
                repeats += 1
                if repeats > _RESEND_REPEATS_MAX or not any(s.known for s in waiting):
                    await self._isolate(waiting, Refused("Postgres holds another row with the id of this event"))
                    return
            except (Refused, MonthAway) as refused:
                await self._isolate(waiting, refused)
                return
            except (DatabaseAway, DatabaseFailed) as error:
                _fail(waiting, error)
                return
            else:
                _observe(len(events), len(stored), perf_counter() - started)
                for submission in waiting:
                    submission.finish()
                return

    async def _settle(
        self, submissions: list[Submission], stored: dict[UUID, bool], deadline: float
    ) -> list[Submission]:
        """Look up the ids that may be stored, add what is found to `stored`, and return what is still to be written."""
        unsure = [s for s in submissions if not s.looked_up]
        if not unsure:
            return submissions
        stored |= await self.store.stored([event for s in unsure for event in s.events], deadline)
        for submission in unsure:
            submission.looked_up = True
        return [s for s in submissions if _still_wanted(s, stored)]

    async def _isolate(self, submissions: list[Submission], refused: Refused | MonthAway) -> None:
        """Halve the flush until the request that Postgres refuses stands alone."""
        if len(submissions) == 1:
            submissions[0].fail(refused)
            return
        middle = len(submissions) // 2
        await self._write(submissions[:middle])
        await self._write(submissions[middle:])

    def _deadline(self, submissions: Sequence[Submission]) -> float:
        """The store repeats as long as any request of the flush may still be waiting."""
        single = all(len(s.events) == 1 for s in submissions)
        limit_ms = self._settings.single_deadline_ms if single else self._settings.batch_deadline_ms
        return asyncio.get_running_loop().time() + limit_ms / 1000


def _still_wanted(submission: Submission, stored: Mapping[UUID, bool]) -> bool:
    """Whether something of `submission` is still to be written; else it has its answer now."""
    if other := next((e.id for e in submission.events if stored.get(e.id) is False), None):
        submission.fail(
            Conflict(
                f"event_id {other} is taken by an event with other content: send the event that was sent first, or a new id",
                resource="audit_event",
                field="event_id",
                value=str(other),
            )
        )
        return False
    if all(event.id in stored for event in submission.events):
        submission.finish()
    elif refusal := next((r for event_id, r in submission.refusals.items() if event_id not in stored), None):
        submission.fail(refusal)
    return not submission.done.done()


def _doubt(submissions: Sequence[Submission]) -> None:
    """Ids that may be stored have to be looked up again."""
    for submission in submissions:
        submission.looked_up = not submission.known


def _fail(submissions: Sequence[Submission], error: AuditError) -> None:
    for submission in submissions:
        submission.fail(error)


def _observe(written: int, resent: int, seconds: float) -> None:
    metrics.RESENDS.inc(resent)
    if written:
        metrics.EVENTS_COMMITTED.inc(written)
        metrics.FLUSH_EVENTS.observe(written)
        metrics.FLUSH_DURATION.observe(seconds)
