"""The one writer of this process: inbox → flush → commit, else spool → receipts; and back from the spool, in order.

While a flush runs, requests gather in the inbox; the next flush takes them, always whole requests. Nobody waits on a timer.
A request is answered when its flush has committed. Resends are recognised here, event by event.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date
from time import perf_counter
from uuid import UUID

from app import metrics, tracing
from app.errors import AuditError, DatabaseAway, DatabaseFailed, InboxFull, KeyBusy, KeyReused
from app.ingest.accept import Event
from app.ingest.spool import Spool, SpooledRequest, SpoolFailed
from app.ingest.store import Claimed, LostRace, MonthAway, PossibleResend, RowRefused, Store
from app.ingest.submission import Claim, Submission, conflict, key_reused
from app.settings import Settings

_RESEND_REPEATS_MAX = 3
_COMMIT_SECONDS_MIN = 2.0  # for one attempt, however late it begins

log = logging.getLogger(__name__)


class Writer:
    """Owns the inbox, the spool, and the only task that talks to the store."""

    def __init__(self, store: Store, settings: Settings, spool: Spool | None = None) -> None:
        self.store = store
        self.spool = spool
        self._settings = settings
        if spool is not None:
            store.patience_seconds = settings.away_patience_ms / 1000
        self._inbox: deque[Submission] = deque()
        self._taken: list[Submission] = []
        self._events_waiting = 0
        self._bytes_waiting = 0
        self._claims_running: set[tuple[str, str]] = set()
        self._arrived = asyncio.Event()
        self._closing = False
        self._away = False
        """Postgres did not take the last flush: what comes goes to the spool until `on_presence`."""
        self._spool_fails = False
        """Replay waits for `on_presence`, which mends the spool."""
        self._committed_at = 0.0
        self._overdue_tasks: set[asyncio.Task[None]] = set()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="writer")

    async def submit(self, submission: Submission, deadline: float) -> bool:
        """Return when every event of `submission` is stored (False), or safe in the spool (True).

        Raises InboxFull, Conflict, KeyBusy, KeyReused, BadRequest, SpoolFull, SpoolFailed, or, without a spool, DatabaseAway
        at `deadline` (the event loop's clock): then the outcome is unknown.
        """
        events, size = len(submission.events), submission.size
        if self._closing or not self._fits(events, size):
            raise InboxFull
        with self.running(submission.claim):
            self._inbox.append(submission)
            self._events_waiting += events
            self._bytes_waiting += size
            metrics.ACCEPTED.inc(events)
            self._arrived.set()
            timer = asyncio.get_running_loop().call_at(deadline, self._overdue, submission)
            try:
                return await submission.done
            except AuditError as error:
                metrics.REFUSED.labels(type(error).__name__).inc(events)
                raise
            finally:
                timer.cancel()
                self._events_waiting -= events
                self._bytes_waiting -= size

    def _fits(self, events: int, size: int) -> bool:
        """Whatever is alone fits: one batch may be larger than all that may wait beside others."""
        return self._events_waiting == 0 or (
            self._events_waiting + events <= self._settings.inbox_events_max
            and self._bytes_waiting + size <= self._settings.inbox_bytes_max
        )

    @contextmanager
    def running(self, claim: Claim | None) -> Iterator[None]:
        """Of requests with the same Idempotency-Key, one at a time."""
        if claim is None:
            yield
            return
        name = claim.scope, claim.key
        if name in self._claims_running:
            raise KeyBusy
        self._claims_running.add(name)
        try:
            yield
        finally:
            self._claims_running.discard(name)

    def _overdue(self, submission: Submission) -> None:
        """Its time is over. If nothing was committed since it came, Postgres stalls, and the spool takes it.

        Its outcome may be unknown then; replay looks every id up.
        """
        if submission.done.done():
            return
        if self.spool is None:
            submission.fail(DatabaseAway())
        elif submission not in self._taken and self._committed_at > submission.arrived:
            submission.fail(InboxFull())
        else:
            submission.known = True
            task = asyncio.create_task(self.spool.append([submission]))
            self._overdue_tasks.add(task)
            task.add_done_callback(self._overdue_tasks.discard)

    async def dates(self, ids: set[UUID]) -> dict[UUID, date]:
        """Dates of those of `ids` that wait to be written, for events that name them as their parent."""
        waiting = (e for s in (*self._taken, *self._inbox) if s.known for e in s.events if e.id in ids)
        found = {event.id: event.date for event in waiting}
        return found if self.spool is None else await self.spool.dates(ids) | found

    @property
    def away(self) -> bool:
        """Whether Postgres did not take the last flush."""
        return self._away

    async def on_presence(self, there: bool) -> None:
        """Mend a spool that has failed. When Postgres is `there`, try it with what waits in the spool and with what comes."""
        if self.spool is not None:
            await self.spool.mend()
        if not there:
            return
        self._away = self._spool_fails = False
        if self._replay_is_due:
            self._arrived.set()

    @property
    def _replay_is_due(self) -> bool:
        waits = self.spool is not None and self.spool.depth.requests > 0
        return waits and not (self._away or self._spool_fails or self._closing)

    async def close(self) -> None:
        """Write what waits, or spool it, then end."""
        self._closing = True
        self._arrived.set()
        if self._task is not None:
            await self._task
        await asyncio.gather(*self._overdue_tasks)
        await self.store.close()

    async def _run(self) -> None:
        while not (self._closing and not self._inbox):
            self._arrived.clear()
            if self.spool is not None and self._replay_is_due:
                await self._replay(self.spool)
            if self._inbox:
                taken = self._taken = self._take()
                metrics.INBOX_EVENTS.set(self._events_waiting)
                try:
                    await self._write_or_spool(taken)
                except Exception:  # the top of the loop: without it nothing would be written any more
                    log.exception("what Postgres did not take could not be spooled")
                    _fail(taken, SpoolFailed())
                self._taken = []
            elif not (self._closing or self._replay_is_due):
                await self._arrived.wait()

    async def _write_or_spool(self, taken: list[Submission]) -> None:
        """Commit what can be committed; what has to wait behind spooled events, or for Postgres, goes to the spool."""
        now, behind = (taken, []) if self.spool is None else self._sorted(self.spool, taken)
        try:
            if now:
                await self._write(now)
        except DatabaseAway:
            self._away = self.spool is not None
            # Together, so that their order stays: what waits behind the spool came among what could not be written.
            behind = [s for s in taken if not s.done.done()]
        except Exception as error:  # the top of the loop: one failed flush must not end the writer
            log.exception("a flush failed unexpectedly")
            self.store.disconnect()
            _fail(now, error if isinstance(error, AuditError) else DatabaseFailed())
        if self.spool is None:
            _fail(behind, DatabaseAway())
        elif behind := [s for s in behind if not s.done.done()]:
            for submission in behind:
                submission.known = (
                    submission.known or submission in now
                )  # its flush may have been committed all the same
            await self.spool.append(behind)

    def _sorted(self, spool: Spool, taken: list[Submission]) -> tuple[list[Submission], list[Submission]]:
        """(what may be written now, what has to go to the spool): whole requests, in order for each correlation."""
        if self._away:
            return [], taken
        if not spool.depth.requests:
            return taken, []
        now: list[Submission] = []
        behind: list[Submission] = []
        waiting: set[str] = set()
        for submission in taken:
            correlations = {event.correlation_id for event in submission.events}
            if spool.waits(correlations) or correlations & waiting:
                waiting |= correlations
                behind.append(submission)
            else:
                now.append(submission)
        return now, behind

    async def _replay(self, spool: Spool) -> None:
        """Write one portion of the spool, in order. What Postgres refuses for its content goes to the quarantine."""
        try:
            settings = self._settings
            kept = await spool.next(settings.flush_events_max, settings.flush_bytes_max, self.store.log_name)
            for portion in _distinct(kept):
                await self._replay_requests(spool, portion)
        except DatabaseAway:
            self._away = True
        except SpoolFailed:
            self._spool_fails = True
        except Exception:  # the top of the loop, as above
            log.exception("replay failed unexpectedly")
            self.store.disconnect()
            self._away = True

    async def _replay_requests(self, spool: Spool, kept: list[SpooledRequest]) -> None:
        whole = [Submission(one.events, {}, known=True, claim=one.claim) for one in kept]
        await self._write(whole)
        stored = []
        for one, submission in zip(kept, whole, strict=True):
            error = submission.done.exception()
            if error is None:
                stored.append(one)
            elif isinstance(error, AuditError) and error.status < 500:
                await self._replay_singly(spool, one, error)
            else:
                raise DatabaseAway from error
        await spool.remove(stored)
        metrics.REPLAYED.inc(sum(len(one.events) for one in stored))
        metrics.DLQ_DRAIN.inc()

    async def _replay_singly(self, spool: Spool, kept: SpooledRequest, error: AuditError) -> None:
        """Acknowledgement outranks atomicity: of a request that conflicts, only what conflicts stays out."""
        refused, reason = kept.events, error.detail
        if len(kept.events) > 1 and not isinstance(error, KeyReused):
            refused = []
            for event in kept.events:
                submission = Submission([event], {}, known=True)
                await self._write([submission])
                failed = submission.done.exception()
                if isinstance(failed, AuditError) and failed.status >= 500:
                    raise DatabaseAway from failed
                if failed is not None:
                    refused.append(event)
                    reason = str(failed)
        if refused:
            await spool.quarantine(kept, refused, reason)
        else:
            await spool.remove([kept])
        metrics.REPLAYED.inc(len(kept.events) - len(refused))

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
        with tracing.span("flush", links=(s.link for s in submissions), requests=len(submissions)):
            await self._write_flush(submissions)

    async def _write_flush(self, submissions: list[Submission]) -> None:
        """Commit `submissions`, each whole or not at all, and finish or fail them. Raises DatabaseAway for all that are not."""
        started = perf_counter()
        deadline = self._deadline(submissions)
        stored: dict[UUID, bool] = {}
        waiting = list(submissions)
        repeats = 0
        while waiting := [s for s in waiting if not s.done.done()]:
            try:
                waiting = await self._settle(waiting, stored, deadline)
                events = [e for s in waiting for e in s.events if e.id not in stored]
                claims = [(s.claim, [e.id for e in s.events]) for s in waiting if s.claim is not None]
                if events:
                    await self._commit(events, claims, deadline)
            except LostRace:
                self.store.lost()
                stored.clear()
                _doubt(waiting)
            except PossibleResend:
                _doubt(waiting)
                repeats += 1
                if repeats > _RESEND_REPEATS_MAX or not any(s.known for s in waiting):
                    await self._isolate(waiting, RowRefused("Postgres holds another row with the id of this event"))
                    return
            except (RowRefused, MonthAway) as refused:
                await self._isolate(waiting, refused)
                return
            except DatabaseFailed as error:
                _fail(waiting, error)
                return
            else:
                self._committed_at = asyncio.get_running_loop().time()
                _observe(len(events), sum(len(s.events) for s in waiting) - len(events), perf_counter() - started)
                _finish(waiting)
                return

    async def _commit(self, events: Sequence[Event], claims: Sequence[Claimed], deadline: float) -> None:
        """No server that has stopped answering holds the writer beyond the deadline; what was sent has an unknown outcome."""
        if self.spool is None:
            await self.store.commit(events, claims, deadline)
            return
        try:
            async with asyncio.timeout_at(max(deadline, asyncio.get_running_loop().time() + _COMMIT_SECONDS_MIN)):
                await self.store.commit(events, claims, deadline)
        except TimeoutError:
            self.store.disconnect()
            raise DatabaseAway from None

    async def _settle(
        self, submissions: list[Submission], stored: dict[UUID, bool], deadline: float
    ) -> list[Submission]:
        """Look up the ids that may be stored, add what is found to `stored`, and return what is still to be written."""
        unsure = [s for s in submissions if not s.lookup_done]
        if not unsure:
            return submissions
        stored |= await self.store.stored([event for s in unsure for event in s.events], deadline)
        digests = await self.store.claims([s.claim for s in unsure if s.claim is not None], deadline)
        for submission in unsure:
            submission.lookup_done = True
            claim = submission.claim
            if claim is not None and digests.get((claim.scope, claim.key), claim.digest) != claim.digest:
                submission.fail(key_reused())
                submissions = [s for s in submissions if s is not submission]
        for submission in submissions:
            if other := next((e for e in submission.events if stored.get(e.id) is False), None):
                submission.fail(conflict(other.id, await self.store.difference(other, deadline)))
        return [s for s in submissions if _still_wanted(s, stored)]

    async def _isolate(self, submissions: list[Submission], refused: RowRefused | MonthAway) -> None:
        """Halve the flush until the request that Postgres refuses stands alone."""
        if len(submissions) == 1:
            submissions[0].fail(refused)
            return
        middle = len(submissions) // 2
        for half in (submissions[:middle], submissions[middle:]):
            await self._write(half)

    def _deadline(self, submissions: Sequence[Submission]) -> float:
        """The store repeats as long as any request of the flush may still be waiting."""
        single = all(len(s.events) == 1 for s in submissions)
        limit_ms = self._settings.single_deadline_ms if single else self._settings.batch_deadline_ms
        return asyncio.get_running_loop().time() + limit_ms / 1000


def _still_wanted(submission: Submission, stored: Mapping[UUID, bool]) -> bool:
    """Whether something of `submission` is still to be written; else it has its answer now."""
    if all(stored.get(event.id) for event in submission.events):
        if not submission.done.done():
            metrics.RESENDS.inc(len(submission.events))
        submission.finish()
    elif refusal := next((r for event_id, r in submission.refusals.items() if event_id not in stored), None):
        submission.fail(refusal)
    return not submission.done.done()


def _doubt(submissions: Sequence[Submission]) -> None:
    """Ids that may be stored have to be looked up again."""
    for submission in submissions:
        submission.lookup_done = not submission.known


def _finish(submissions: Sequence[Submission]) -> None:
    for submission in submissions:
        if submission.done.done():  # from the spool, where its copy will end as a resend
            metrics.ACCEPTED.inc(len(submission.events))
        submission.finish()


def _fail(submissions: Sequence[Submission], error: AuditError) -> None:
    for submission in submissions:
        submission.fail(error)


def _observe(written: int, resent: int, seconds: float) -> None:
    metrics.RESENDS.inc(resent)
    if written:
        metrics.EVENTS_COMMITTED.inc(written)
        metrics.FLUSH_EVENTS.observe(written)
        metrics.FLUSH_DURATION.observe(seconds)


def _distinct(kept: list[SpooledRequest]) -> Iterator[list[SpooledRequest]]:
    """Portions of `kept` in which no id stands twice."""
    portion: list[SpooledRequest] = []
    ids: set[UUID] = set()
    for one in kept:
        own = {event.id for event in one.events}
        if own & ids:
            yield portion
            portion, ids = [], set()
        portion.append(one)
        ids |= own
    if portion:
        yield portion
