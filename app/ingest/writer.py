"""The one writer of this process: inbox → flush → commit, or else → spool; and from the spool to Postgres, in order.

While a flush runs, requests gather in the inbox; the next flush is made of them, always of whole requests, without waiting for
more. A request is answered when its flush is committed or when it is spooled. Resends are recognised here, event by event.

When Postgres goes away in the middle of a flush, store.py finds out whether it was committed: until the deadline, or with a
spool for `away_patience_ms`. After that the requests of the flush are spooled, marked as ones that may be stored already, so
that replay looks their ids up before it writes them. Until Postgres answers again, every request is spooled at once; afterwards
every request with a correlation of which events still wait in the spool.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date
from time import monotonic, perf_counter
from uuid import UUID

import asyncpg

from app import metrics, tracing
from app.bookmark import Bookmark
from app.database_url import reason
from app.db import Connection, server_names
from app.errors import AuditError, DatabaseAway, DatabaseFailed, InboxFull, KeyBusy, KeyReused
from app.ingest.accept import Event
from app.ingest.claim import Claim, key_reused
from app.ingest.event_writer import OwnState, WriterState
from app.ingest.link import Flush
from app.ingest.notifications import SQL, NotificationsLocked, NotificationStored
from app.ingest.spool import Spool, SpoolFailed
from app.ingest.spool_file import SpooledRequest
from app.ingest.store import (
    SAME_AS_STORED,
    Claimed,
    FlushAction,
    LostRace,
    MonthDetached,
    PossibleResend,
    RowRefused,
    Store,
    Stored,
)
from app.ingest.submission import Submission, conflict, unsealed_conflict
from app.settings import Settings
from app.workers import Reminder

_RESEND_RETRIES_MAX = 3
_SPOOL_SECONDS = 0.25  # before its deadline, so that what is spooled instead is answered in time
_DIFFERENCES_MAX = 20  # conflicts of one request of which the members that differ are named
_NOTIFICATIONS_MAX = 100  # in one flush: each takes a statement of its own, while other replicas wait for the log
_NOTIFICATIONS_LOCKED_SECONDS = (
    5.0  # after a lock of somebody else none is tried: each try costs the events beside it 0.1 s
)
_COMMIT_SECONDS_MIN = 2.0  # for one commit, however late it begins
_HANGING_SECONDS = 1.0  # for a commit from before an outage, once Postgres commits again

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Outage:
    """What the log tells about a time in which nothing could be committed."""

    began: float = field(default_factory=monotonic)
    reminder: Reminder = field(default_factory=Reminder)
    replayed: int = 0
    """Events that were replayed since then."""


class Writer:
    """Owns the inbox, the spool, and the only task that uses the store."""

    def __init__(
        self,
        store: Store,
        settings: Settings,
        spool: Spool | None = None,
        state: WriterState | None = None,
        *,
        away: bool = False,
    ) -> None:
        """`state` is where others see what this writer lets them see.

        `away`: nothing is written to Postgres before `on_presence` says that it is there. Only with a spool.
        """
        self.store = store
        self.spool = spool
        self._settings = settings
        if spool is not None:
            store.reconnect_seconds = settings.away_patience_ms / 1000
        self._inbox: deque[Submission] = deque()
        self._in_flush: list[Submission] = []
        self._events_waiting = 0
        self._bytes_waiting = 0
        self._claims_running: set[tuple[str, str]] = set()
        self._arrived = asyncio.Event()
        self._closing = False
        self._state = state or OwnState()
        """While it is away, what arrives is spooled until `on_presence`."""
        self._state.away = away
        self._state.busy_seconds = 0.0
        self._server = server_names(settings)
        self.committed = asyncio.Event()
        """Set with each flush that is committed; whoever announces it clears it."""
        self.failure = ""
        """Why the last flush could not be committed, in the words of Postgres or the network; empty if it was."""
        self._outage = _Outage() if away else None
        """From the first failure until everything that was spooled is replayed."""
        self._replaying = False
        self._spool_failed = False
        """Replay waits for `on_presence`, which mends the spool."""
        self._committed_at = 0.0
        """When the last flush was committed, on the event loop's clock."""
        self._committing: asyncio.Timeout | None = None
        self._committing_since = 0.0
        """Of the commit that runs, by monotonic time."""
        self._notifications_locked_until = 0.0
        """Until when, on the event loop's clock, no notification is tried: somebody else has locked what they need."""
        self._late: list[Submission] = []
        """Near their deadline, to be spooled."""
        self._spooling: asyncio.Task[None] | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="writer")

    async def submit(self, submission: Submission, deadline: float) -> bool:
        """Return when every event of `submission` is committed (False), or on disk in the spool (True).

        Raises InboxFull, Conflict, KeyBusy, KeyReused, BadRequest, RowRefused, MonthDetached, DatabaseFailed, SpoolFull,
        SpoolFailed, or, without a spool, DatabaseAway at `deadline` (the event loop's clock): then the outcome is unknown.
        """
        events, size = len(submission.events), submission.payload_bytes
        if self._closing or not self._fits(events, size):
            raise InboxFull
        with self.exclusive(submission.claim):
            self._inbox.append(submission)
            self._events_waiting += events
            self._bytes_waiting += size
            metrics.ACCEPTED.inc(events)
            self._arrived.set()
            loop = asyncio.get_running_loop()
            early = min(_SPOOL_SECONDS, (deadline - loop.time()) / 4)
            timer = loop.call_at(deadline - early, self._before_deadline, submission, early)
            try:
                return await submission.outcome
            except AuditError as error:
                metrics.REFUSED.labels(error.label).inc(events)
                raise
            finally:
                for rejection in (submission.rejections or {}).values():
                    metrics.REFUSED.labels(rejection.label).inc()
                timer.cancel()
                self._events_waiting -= events
                self._bytes_waiting -= size

    def _fits(self, events: int, size: int) -> bool:
        """Whether a request fits into the inbox. A request alone always fits: one batch may be larger than the limits."""
        return self._events_waiting == 0 or (
            self._events_waiting + events <= self._settings.inbox_events_max
            and self._bytes_waiting + size <= self._settings.inbox_bytes_max
        )

    @contextmanager
    def exclusive(self, claim: Claim | None) -> Iterator[None]:
        """Admits one request at a time for each Idempotency-Key. Raises KeyBusy for a second one."""
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

    def _before_deadline(self, submission: Submission, seconds: float) -> None:
        """Fail `submission`, or spool it if it is in a flush or nothing was committed since it arrived: then Postgres stalls.

        Its outcome may be unknown then; replay looks every id up. After `seconds` it fails, also if the spool's disk stalls; that is the
        deadline, unless this process was not running when they began.
        """
        if submission.outcome.done():
            return
        asyncio.get_running_loop().call_later(seconds, submission.fail, DatabaseAway())
        if self.spool is None:
            return
        if submission.notification is not None:  # its sender spools it
            submission.fail(DatabaseAway())
            return
        if submission not in self._in_flush and self._committed_at > submission.arrived:
            submission.fail(InboxFull())
        else:
            submission.may_exist = True
            self._late.append(submission)
            if self._spooling is None or self._spooling.done():
                self._spooling = asyncio.create_task(self._spool_late(self.spool))

    async def _spool_late(self, spool: Spool) -> None:
        """Spool what is near its deadline, all that has come together at once: each append waits for the disk."""
        while self._late:
            late, self._late = self._late, []
            await spool.append(late)

    async def waiting_event_dates(self, ids: set[UUID]) -> dict[UUID, date]:
        """Dates of those of `ids` that wait to be written, for events that name them as their parent."""
        waiting = (e for s in (*self._in_flush, *self._inbox) if s.may_exist for e in s.events if e.id in ids)
        dates = {event.id: event.date for event in waiting}
        return dates if self.spool is None else await self.spool.event_dates(ids) | dates

    @property
    def away(self) -> bool:
        """Whether Postgres was away at the last flush."""
        return self._state.away

    @property
    def requires_standby(self) -> bool:
        """Whether what is acknowledged has to be on synchronous standbys."""
        return self._settings.require_synchronous_standby

    @property
    def has_spool(self) -> bool:
        """Whether requests are spooled while Postgres is away."""
        return self.spool is not None

    async def on_presence(self, failure: str) -> None:
        """Mend a spool that has failed. If Postgres can commit, replay what is spooled and write what arrives to Postgres again.

        `failure` is why it cannot, or empty.
        """
        if self.spool is not None:
            await self.spool.mend()
        if failure:
            self._begin_outage(failure)
            return
        self._hurry_hanging()
        self._state.away = self._spool_failed = False
        if self._replay_is_due:
            self._arrived.set()
        elif not self._replaying and (self.spool is None or not self.spool.depth.requests):
            self._end_outage()

    def _hurry_hanging(self) -> None:
        """Wait not much longer for a commit that began before Postgres was away: it may be one of a primary that is frozen, and another leads now."""
        if self._committing is None or self._committing.expired() or self._outage is None:
            return
        if self._committing_since < self._outage.began:
            soon = asyncio.get_running_loop().time() + _HANGING_SECONDS
            self._committing.reschedule(min(self._committing.when() or soon, soon))

    def _begin_outage(self, failure: str) -> None:
        """Log that nothing can be committed, now and every minute until it can."""
        self.failure = failure
        if self._outage is None:
            self._outage = _Outage()
        if self._outage.reminder.is_due():
            then = "answered 503" if self.spool is None else "spooled"
            log.warning("Postgres cannot commit", extra={"server": self._server, "error": failure, "events_are": then})

    def _end_outage(self) -> None:
        self.failure = ""
        if self._outage is not None:
            seconds = round(monotonic() - self._outage.began, 1)
            log.warning(
                "Postgres commits again",
                extra={"server": self._server, "replayed_events": self._outage.replayed, "away_seconds": seconds},
            )
            self._outage = None

    @property
    def _replay_is_due(self) -> bool:
        waits = self.spool is not None and self.spool.depth.requests > 0
        return waits and not (self._state.away or self._spool_failed or self._closing)

    async def close(self) -> None:
        """Write or spool what waits in the inbox, then end."""
        self._closing = True
        self._arrived.set()
        if self._task is not None:
            await self._task
        if self._spooling is not None:
            await self._spooling
        await self.store.close()

    async def _run(self) -> None:
        while not (self._closing and not self._inbox):
            self._arrived.clear()
            if self.spool is not None and self._replay_is_due:
                with self._busy():
                    await self._replay(self.spool)
            if self._inbox:
                submissions = self._in_flush = self._next_flush()
                metrics.INBOX_EVENTS.set(self._events_waiting)
                try:
                    await self._write_or_spool(submissions)
                except Exception:  # the top of the loop: without it nothing would be written any more
                    log.exception("requests could not be spooled")
                    _fail(submissions, SpoolFailed())
                self._in_flush = []
            elif not (self._closing or self._replay_is_due):
                await self._arrived.wait()

    @contextmanager
    def _busy(self) -> Iterator[None]:
        """Show readers that this writes to Postgres. To spool is not to be busy: Postgres has nothing of it."""
        self._state.busy_seconds -= monotonic()
        try:
            yield
        finally:
            self._state.busy_seconds += monotonic()

    async def _write_or_spool(self, submissions: list[Submission]) -> None:
        """Commit what can be committed; spool what has to be written after spooled events, or cannot be written now."""
        now, later = (submissions, []) if self.spool is None else await self._split_for_spool(self.spool, submissions)
        try:
            if now:
                with self._busy():
                    await self._write(now)
        except DatabaseAway as error:
            self._state.away = self.spool is not None
            self._begin_outage(reason(error.__cause__ or error))
            # In one append, in the order of arrival: events of one correlation may be in both parts.
            later = [s for s in submissions if not s.outcome.done()]
        except Exception as error:  # the top of the loop: one failed flush must not end the writer
            log.exception("a flush failed with an unexpected error")
            self.store.disconnect()
            _fail(now, error if isinstance(error, AuditError) else DatabaseFailed())
        _fail([s for s in later if self.spool is None or s.notification is not None], DatabaseAway())
        if self.spool is None:
            return
        if later := [s for s in later if not s.outcome.done()]:
            for submission in later:
                # Its flush may have been committed nevertheless.
                submission.may_exist = submission.may_exist or submission in now
            await self.spool.append(later)

    async def _split_for_spool(
        self, spool: Spool, submissions: list[Submission]
    ) -> tuple[list[Submission], list[Submission]]:
        """(what may be written now, what has to be spooled): whole requests, in order for each correlation."""
        if self._state.away:
            return [], submissions
        if not spool.depth.requests:
            return submissions, []
        now: list[Submission] = []
        later: list[Submission] = []
        waiting: set[str] = set()
        promised = await spool.promised(submissions)
        for submission in submissions:
            correlations = {event.correlation_id for event in submission.events}
            if submission in promised or spool.waits(correlations) or correlations & waiting:
                waiting |= correlations
                later.append(submission)
            else:
                now.append(submission)
        return now, later

    async def _replay(self, spool: Spool) -> None:
        """Write one portion of the spool, in order. What Postgres refuses for its content is quarantined."""
        self._replaying = True  # what it removes from the spool last is counted after that
        try:
            settings = self._settings
            requests = await spool.next(settings.flush_events_max, settings.flush_bytes_max, self.store.log.first_name)
            for portion in _without_repeated_ids(requests):
                await self._replay_requests(spool, portion)
            if not spool.depth.requests:
                self._end_outage()
        except DatabaseAway as error:
            self._state.away = True
            self._begin_outage(reason(error.__cause__ or error))
        except SpoolFailed:
            self._spool_failed = True
        except Exception:  # the top of the loop, as above
            log.exception("replay failed unexpectedly")
            self.store.disconnect()
            self._state.away = True
        finally:
            self._replaying = False

    async def _replay_requests(self, spool: Spool, requests: list[SpooledRequest]) -> None:
        submissions = [Submission(request.events, {}, may_exist=True, claim=request.claim) for request in requests]
        await self._write(submissions)
        stored = []
        for request, submission in zip(requests, submissions, strict=True):
            error = submission.outcome.exception()
            if error is None:
                stored.append(request)
            elif isinstance(error, AuditError) and error.status < 500:
                await self._replay_events(spool, request, error)
            else:
                raise DatabaseAway from error
        await spool.remove(stored)
        self._count_replayed(sum(len(request.events) for request in stored))
        metrics.DLQ_DRAIN.inc()

    async def _replay_events(self, spool: Spool, request: SpooledRequest, error: AuditError) -> None:
        """Write the events of a refused request one by one: it was acknowledged, so only what Postgres refuses stays out."""
        refused, reason = request.events, error.detail
        if len(request.events) > 1 and not isinstance(error, KeyReused):
            refused = []
            for event in request.events:
                submission = Submission([event], {}, may_exist=True)
                await self._write([submission])
                failed = submission.outcome.exception()
                if isinstance(failed, AuditError) and failed.status >= 500:
                    raise DatabaseAway from failed
                if failed is not None:
                    refused.append(event)
                    reason = str(failed)
        if refused:
            await spool.quarantine(request, refused, reason)
        else:
            await spool.remove([request])
        self._count_replayed(len(request.events) - len(refused))

    def _count_replayed(self, events: int) -> None:
        metrics.REPLAYED.inc(events)
        if self._outage is not None:
            self._outage.replayed += events

    def _next_flush(self) -> list[Submission]:
        """Remove the next flush from the inbox: whole requests, up to the limits; a larger request alone; no id twice."""
        submissions: list[Submission] = []
        events = size = notifications = 0
        ids: set[UUID | str] = set()
        while self._inbox:
            first = self._inbox[0]
            if first.outcome.done():
                self._inbox.popleft()
                continue
            events += len(first.events)
            size += first.payload_bytes
            if submissions and (events > self._settings.flush_events_max or size > self._settings.flush_bytes_max):
                break
            if first.may_exist or first.notification is not None:
                first_ids = _ids_of(first)
                notifications += first.notification is not None
                if first_ids & ids or notifications > _NOTIFICATIONS_MAX:
                    break
                ids |= first_ids
            submissions.append(self._inbox.popleft())
        return submissions

    async def _write(self, submissions: list[Submission]) -> None:
        with tracing.span("flush", links=(s.trace_link for s in submissions), requests=len(submissions)):
            await self._write_flush(submissions)

    async def _write_flush(self, submissions: list[Submission]) -> None:
        """Commit `submissions`, each whole or not at all, and finish or fail each. Raises DatabaseAway for all that are undecided."""
        started = perf_counter()
        deadline = self._deadline(submissions)
        stored: dict[UUID, Stored] = {}
        waiting = list(submissions)
        self._fail_locked_notifications(waiting)
        retries = 0
        while waiting := [s for s in waiting if not s.outcome.done()]:
            try:
                waiting = await self._look_up(waiting, stored, deadline)
                events = [e for s in waiting for e in s.events if e.id not in stored]
                claims = [(s.claim, [e.id for e in s.events]) for s in waiting if s.claim is not None]
                if events:
                    await self._commit(events, claims, deadline, _notification_action(waiting))
            except LostRace:
                self.store.reset_after_lost_race()
                stored.clear()
                _require_lookup(waiting)
            except PossibleResend:
                _require_lookup(waiting)
                retries += 1
                if retries > _RESEND_RETRIES_MAX or not any(s.may_exist for s in waiting):
                    await self._isolate(waiting, RowRefused("Postgres holds another row with the id of this event"))
                    return
            except (NotificationStored, NotificationsLocked) as refusal:
                self._fail_notifications(waiting, refusal)
            except (RowRefused, MonthDetached) as refusal:
                await self._isolate(waiting, refusal)
                return
            except DatabaseFailed as error:
                _fail(waiting, error)
                return
            else:
                self.failure = ""
                self._state.log_id = self.store.log.id
                self._committed_at = asyncio.get_running_loop().time()
                self.committed.set()
                _observe_flush(len(events), sum(len(s.events) for s in waiting) - len(events), perf_counter() - started)
                _finish(waiting, self._bookmark())
                return

    def _bookmark(self) -> Bookmark | None:
        """What a caller knows whose request was just committed; None while others wait in the spool, which he may have sent too."""
        if self._settings.read_database_url is None or (self.spool is not None and self.spool.depth.requests):
            return None
        return self.store.bookmark

    def _fail_notifications(
        self, submissions: Sequence[Submission], refusal: NotificationStored | NotificationsLocked
    ) -> None:
        """Fail those notifications that cannot be written, so that the rest of the flush can be."""
        if isinstance(refusal, NotificationStored):
            _fail([s for s in submissions if s.notification in refusal.pending], refusal)
            return
        log.warning("notifications wait for a lock of somebody else", extra={"error": str(refusal.__cause__)})
        self._notifications_locked_until = asyncio.get_running_loop().time() + _NOTIFICATIONS_LOCKED_SECONDS
        self._fail_locked_notifications(submissions)

    def _fail_locked_notifications(self, submissions: Sequence[Submission]) -> None:
        """Fail notifications as while Postgres is away, if somebody else has locked what they need: their senders spool them."""
        if asyncio.get_running_loop().time() < self._notifications_locked_until:
            _fail([s for s in submissions if s.notification is not None], DatabaseAway())

    async def _commit(
        self, events: Sequence[Event], claims: Sequence[Claimed], deadline: float, action: FlushAction | None
    ) -> None:
        """Commit a flush. With a spool, a server that stops answering is away at the deadline; the outcome is unknown then."""
        if self.spool is None:
            await self.store.commit(events, claims, deadline, action)
            return
        try:
            end = max(deadline, asyncio.get_running_loop().time() + _COMMIT_SECONDS_MIN)
            async with asyncio.timeout_at(end) as self._committing:
                self._committing_since = monotonic()
                await self.store.commit(events, claims, deadline, action)
        except TimeoutError:
            self.store.disconnect()
            raise DatabaseAway from TimeoutError("a flush was not answered by its deadline")
        finally:
            self._committing = None

    async def _look_up(
        self, submissions: list[Submission], stored: dict[UUID, Stored], deadline: float
    ) -> list[Submission]:
        """Look up ids and claims that may be stored, add the ids to `stored`, and return what is still to be written."""
        pending = [s for s in submissions if s.needs_lookup]
        if not pending:
            return submissions
        stored |= await self.store.find_stored([event for s in pending for event in s.events], deadline)
        digests = await self.store.find_claims([s.claim for s in pending if s.claim is not None], deadline)
        for submission in pending:
            submission.needs_lookup = False
            claim = submission.claim
            digest = None if claim is None else digests.get((claim.scope, claim.key))
            if digest is not None and claim is not None:
                submission.claim = None  # it is stored
                if digest != claim.digest:
                    submission.fail(key_reused())
        submissions = [s for s in submissions if not s.outcome.done()]
        for submission in submissions:
            others = [e for e in submission.events if e.id in stored and not stored[e.id].same]
            conflicts = {
                one.id: conflict(one.id) if stored[one.id].is_sealed else unsealed_conflict(stored[one.id].id)
                for one in others
            }
            for number, one in enumerate(one for one in others if stored[one.id].is_sealed):
                other_form = one.is_imported or one.digest is None  # it may have been posted in another form
                if number < _DIFFERENCES_MAX or other_form:
                    text = await self.store.difference(one, stored[one.id].id, deadline)
                    conflicts[one.id] = conflict(one.id, text)
                    if text == SAME_AS_STORED and other_form:
                        stored[one.id] = stored[one.id]._replace(same=True)
                        del conflicts[one.id]
            submission.reject(conflicts)
        for submission in submissions:
            _settle_without_write(submission, stored)
        return [s for s in submissions if not s.outcome.done()]

    async def _isolate(self, submissions: list[Submission], refusal: RowRefused | MonthDetached) -> None:
        """Halve the flush until the request that Postgres refuses is alone, and fail that one."""
        if len(submissions) == 1:
            submissions[0].fail(refusal)
            return
        middle = len(submissions) // 2
        for half in (submissions[:middle], submissions[middle:]):
            await self._write(half)

    def _deadline(self, submissions: Sequence[Submission]) -> float:
        """Until when the store retries: as long as any request of the flush may still be waiting."""
        single = all(len(s.events) == 1 for s in submissions)
        limit_ms = self._settings.single_deadline_ms if single else self._settings.batch_deadline_ms
        return asyncio.get_running_loop().time() + limit_ms / 1000


def _settle_without_write(submission: Submission, stored: Mapping[UUID, Stored]) -> None:
    """Finish `submission` if all its events are stored. Those that are refused and not stored are rejected."""
    submission.reject({one: refusal for one, refusal in submission.refusals.items() if one not in stored})
    submission.stored_as |= {event.id: stored[event.id].id for event in submission.events if event.id in stored}
    if all(event.id in stored for event in submission.events):
        if not submission.outcome.done():
            metrics.RESENDS.inc(len(submission.events))
        submission.finish()


def _ids_of(submission: Submission) -> set[UUID | str]:
    """What no two requests of one flush may share."""
    if submission.notification is not None:
        return {submission.notification.notification.notification_id}
    return {*_possible_ids(submission.events)}


def _notification_action(submissions: Sequence[Submission]) -> FlushAction | None:
    """Writes the notifications among `submissions`, whose events the flush has. It names all that are stored already at once."""
    pending = {s.events[0].id: s.notification for s in submissions if s.notification is not None}
    if not pending:
        return None

    async def write(connection: Connection, flush: Flush) -> None:
        stored = []
        await connection.execute(SQL["bound_locks"])
        try:
            for position, event in enumerate(flush.events, flush.first_index):
                if event.id in pending and not await pending[event.id].write(connection, flush.log.id, position):
                    stored.append(pending[event.id])
        except asyncpg.LockNotAvailableError as error:
            raise NotificationsLocked from error
        if stored:
            raise NotificationStored(stored)

    return write


def _possible_ids(events: Sequence[Event]) -> set[UUID]:
    return {one for event in events for one in event.possible_ids}


def _require_lookup(submissions: Sequence[Submission]) -> None:
    """Have the ids that may be stored looked up before the next retry."""
    for submission in submissions:
        submission.needs_lookup = submission.may_exist


def _finish(submissions: Sequence[Submission], bookmark: Bookmark | None) -> None:
    for submission in submissions:
        submission.bookmark = bookmark
        if submission.outcome.done():  # spooled at its deadline; the spooled copy will end as a resend
            metrics.ACCEPTED.inc(len(submission.events))
        submission.finish()


def _fail(submissions: Sequence[Submission], error: AuditError) -> None:
    for submission in submissions:
        submission.fail(error)


def _observe_flush(written: int, resent: int, seconds: float) -> None:
    metrics.RESENDS.inc(resent)
    if written:
        metrics.EVENTS_COMMITTED.inc(written)
        metrics.FLUSH_EVENTS.observe(written)
        metrics.FLUSH_DURATION.observe(seconds)


def _without_repeated_ids(requests: list[SpooledRequest]) -> Iterator[list[SpooledRequest]]:
    """Portions of `requests`, in order, each without an id that occurs twice in it."""
    portion: list[SpooledRequest] = []
    ids: set[UUID] = set()
    for request in requests:
        request_ids = _possible_ids(request.events)
        if request_ids & ids:
            yield portion
            portion, ids = [], set()
        portion.append(request)
        ids |= request_ids
    if portion:
        yield portion
