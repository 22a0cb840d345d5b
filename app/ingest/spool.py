"""The durable queue on local disk for what Postgres cannot accept now: append, replay in order, remove.

One SQLite file in a directory that one process locks. Whole requests go in and come out, in order; a request is answered when
it is on disk (fsync). What Postgres refuses for its content stays in quarantine until an operator decides. Nothing is dropped.
spool_file.py has the file; this module is what the event loop does: it counts, refuses what does not fit, and survives a disk
that fails.

After a failure it is unknown what the file contains. So the spool refuses everything until mend() has opened the file again,
deleted the rows of requests that were refused, and counted what is there.
"""

import asyncio
import fcntl
import logging
import os
import shutil
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path
from typing import TypeVar, TypeVarTuple
from uuid import UUID

from app import metrics
from app.errors import AuditError, Fatal, Unavailable
from app.ingest.accept import Event
from app.ingest.claim import Claim
from app.ingest.notifications import Notification
from app.ingest.spool_codec import encode, encode_notification
from app.ingest.spool_file import Added, Depth, Request, SpooledNotification, SpooledRequest, SpoolFile
from app.ingest.submission import Submission

FREE_BYTES_MIN = 64 * 1024**2
"""Left free on the disk for other programs that write there, and for SQLite when it reorganises its file."""
_T = TypeVar("_T")
_Arguments = TypeVarTuple("_Arguments")

log = logging.getLogger(__name__)


class SpoolFull(Unavailable):
    """Postgres is away and the spool is full; nothing was stored, send the request again shortly."""


class SpoolFailed(Unavailable):
    """Postgres is away and the spool's disk fails; nothing was acknowledged, send the request again shortly."""


class Spool:
    """The spool of this process. Used by the writer and by the replay of notifications, on the event loop only."""

    def __init__(self, directory: Path, bytes_max: int) -> None:
        """Lock the directory, and create it if there is none. Raises Fatal when another process uses it, or nobody can."""
        self.directory = directory
        self.depth = Depth()
        self.on_depth: Callable[[Depth], None] = lambda _: None
        """Called after every change of `depth`, before anybody is answered."""
        self._bytes_max = bytes_max
        self._correlations: Counter[str] = Counter()
        """How many requests of each correlation wait."""
        self._counting = asyncio.Lock()
        """Locked from a change of the file until it is counted, so that mend() does not count the file in between."""
        try:
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Fatal(
                f"Another DataStorage uses the spool {directory}: stop it, or set DATASTORAGE_SPOOL_DIR to another directory."
            ) from None
        except OSError as error:
            raise Fatal(
                f"The spool {directory} cannot be used ({error.strerror}): set DATASTORAGE_SPOOL_DIR."
            ) from None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="spool")
        try:
            self._file = self._thread.submit(SpoolFile, directory).result()
        except sqlite3.Error as error:
            raise Fatal(f"The spool {directory} cannot be read ({error}): move it away, or repair it.") from error
        self.log_name = self._thread.submit(lambda: self._file.log_name).result()
        """Name of the log that the events here are for; None before the first database was seen."""
        self._load_depth()
        # Computed whenever the metrics are read: both change while nothing is appended or replayed.
        metrics.SPOOL_OLDEST.set_function(self._oldest_age_seconds)
        metrics.SPOOL_FREE.set_function(self._free_bytes)

    def waits(self, correlations: Iterable[str]) -> bool:
        """Whether events of one of these correlations wait: later ones have to be written after them."""
        counts = self._correlations
        return bool(counts) and any(counts[one] > 0 for one in correlations)

    @property
    def can_append(self) -> bool:
        """Whether the next request will probably fit, on a disk that works."""
        return not self._file.broken and self.depth.bytes < self._bytes_max and self._free_bytes() > FREE_BYTES_MIN

    async def belong_to(self, log_name: str) -> None:
        """Store the name of the log that the events here are for. Fatal, with nothing changed, when some are for another one."""
        if log_name == self.log_name:
            return
        try:
            await self._on_thread(self._file.belong_to, log_name)
            self.log_name = log_name
        except SpoolFailed:
            if self.log_name is not None:
                raise

    async def append(self, submissions: Sequence[Submission]) -> None:
        """Add each submission and finish it, or fail it. When this returns, what was added is on disk."""
        if self._file.broken:
            for submission in submissions:
                submission.fail(SpoolFailed())
            return
        fitting, size = [], 0
        free = self._free_bytes()
        for submission in submissions:
            size += submission.payload_bytes
            if self._fits(size, free):
                fitting.append(submission)
            else:
                submission.fail(SpoolFull())
                size -= submission.payload_bytes
        requests: list[Request] = []
        async with self._counting:
            try:
                while True:
                    requests = [
                        Request(s, events := list(s.events), os.urandom(16), encode(events))
                        for s in fitting
                        if not s.is_refused
                    ]
                    outcomes = await self._on_thread(self._file.append, requests)
                    if not any(map(_is_refused_now, requests, outcomes)):
                        break
                    # What the flush has refused meanwhile was answered so: nothing of it may be replayed. Another request may
                    # have left out an event because that one had it, so all are added again.
                    await self._on_thread(self._file.withdraw, [one.token for one in requests])
            except SpoolFailed as failed:
                self._file.refused_tokens += [one.token for one in requests]
                for submission in fitting:
                    submission.fail(failed)
                return
            for one, outcome in zip(requests, outcomes, strict=True):
                self._end(one.submission, outcome, len(one.body))
        self._update_metrics()

    def _end(self, submission: Submission, outcome: Added | AuditError, size: int) -> None:
        """Finish a submission that was added, or fail it."""
        if isinstance(outcome, AuditError):
            submission.fail(outcome)
            return
        if events := outcome.events:
            self._count(events, size, +1)
            metrics.SPOOLED.inc(len(events))
            metrics.DLQ_XADD.labels("audit_events").inc(len(events))
        if submission.outcome.done():  # it was too late for its client, or was committed meanwhile
            metrics.ACCEPTED.inc(len(events))
        else:
            metrics.RESENDS.inc(len(submission.events) - len(events))
            submission.stored_as |= outcome.spooled_as
        submission.finish(spooled=True)

    async def next(self, events_max: int, bytes_max: int, log_name: str) -> list[SpooledRequest]:
        """The oldest waiting requests, up to the limits, at least one if there is any."""
        async with self._counting:  # never one that is about to be withdrawn
            return await self._on_thread(self._file.next, events_max, bytes_max, log_name)

    async def promised(self, submissions: Iterable[Submission]) -> set[Submission]:
        """Those that have an id which a client chose, or an Idempotency-Key, of a request that waits here: this one was acknowledged.

        All that have one, if the disk fails: then nobody knows.
        """
        chosen = {s: {e.id for e in s.events if e.digest} for s in submissions if s.notification is None}
        asked = {s: ids for s, ids in chosen.items() if ids or s.claim is not None}
        if not asked:
            return set()
        try:
            dates = await self.event_dates(set().union(*asked.values()))
            keys = await self._on_thread(self._file.waiting_keys, [s.claim for s in asked if s.claim is not None])
        except SpoolFailed:
            return set(asked)
        return {s for s, ids in asked.items() if not ids.isdisjoint(dates) or (s.claim and s.claim[:2] in keys)}

    async def remove(self, requests: Sequence[SpooledRequest]) -> None:
        """Remove requests that are stored in Postgres. After a crash before this, the next replay finds them stored."""
        async with self._counting:
            sizes = await self._on_thread(self._file.remove, [request.position for request in requests])
            for request in requests:
                self._count(request.events, sizes.get(request.position, 0), -1)
            self.depth.oldest = await self._on_thread(self._file.oldest)
        self._update_metrics()

    async def quarantine(self, request: SpooledRequest, refused: list[Event], reason: str) -> None:
        """Move a request to quarantine, with only the events that Postgres refuses; the others are stored in Postgres."""
        body = encode(refused)
        async with self._counting:
            size = await self._on_thread(self._file.quarantine, request.position, reason, len(refused), body)
            self._count(request.events, size, -1)
            self.depth.bytes += len(body)
            self.depth.quarantined += len(refused)
            self.depth.oldest = await self._on_thread(self._file.oldest)
        metrics.QUARANTINED.inc(len(refused))
        metrics.DLQ_XADD.labels("dead_letter_audit_events").inc(len(refused))
        metrics.DLQ_REFUSED.labels("audit_events", "field_validation").inc(len(refused))
        log.error("a spooled request was quarantined", extra={"position": request.position, "reason": reason})
        self._update_metrics()

    async def requeue_quarantined(self) -> None:
        """Move everything in quarantine back to what waits for replay, each request at its old position."""
        await self._on_thread(self._file.requeue_quarantined)
        self._load_depth()

    async def event_dates(self, ids: set[UUID]) -> dict[UUID, date]:
        """Dates of those of `ids` that wait here."""
        if not self.depth.requests:
            return {}
        return await self._on_thread(self._file.event_dates, ids)

    async def event(self, event_id: UUID) -> Event | None:
        """The event with this id, if it waits here."""
        if not self.depth.requests:
            return None
        return await self._on_thread(self._file.event, event_id)

    async def has_notification(self, notification: Notification, claim: Claim | None) -> bool:
        """Whether this very request waits. Raises Conflict or KeyReused where another one waits under its id or key."""
        if not self.depth.notifications:
            return False
        return await self._on_thread(self._file.has_notification, notification, claim)

    async def append_notification(self, notification: Notification, claim: Claim | None) -> None:
        """Add a notification; when this returns, it is on disk. Raises as has_notification() does, SpoolFull or SpoolFailed."""
        if self._file.broken:
            raise SpoolFailed
        body, token = encode_notification(notification), os.urandom(16)
        if not self._fits(len(body), self._free_bytes()):
            raise SpoolFull
        async with self._counting:
            try:
                added = await self._on_thread(self._file.append_notification, notification, claim, token, body)
            except SpoolFailed:
                self._file.refused_tokens.append(token)
                raise
            if added:
                self.depth.notifications += 1
                self.depth.bytes += len(body)
        metrics.DLQ_XADD.labels("notifications").inc(added)
        self._update_metrics()

    async def next_notifications(self) -> list[SpooledNotification]:
        """The oldest waiting notifications, up to a limit; none if none waits."""
        if not self.depth.notifications:
            return []
        return await self._on_thread(self._file.next_notifications)

    async def end_notification(self, spooled: SpooledNotification, refusal: str | None) -> None:
        """Remove a notification that is stored in Postgres, or move it to quarantine with the reason for its refusal."""
        async with self._counting:
            await self._on_thread(self._file.end_notification, spooled.position, refusal)
            self.depth.notifications -= 1
            self.depth.bytes -= spooled.size
        self._update_metrics()

    async def mend(self) -> None:
        """After a failure: open the file again, delete what was refused, and count it. Raises nothing; the next call retries."""
        if not self._file.broken:
            return
        async with self._counting:
            try:
                await self._on_thread(self._file.reopen)
                self.depth, self._correlations = await self._on_thread(self._file.read_depth)
                self._update_metrics()
            except (SpoolFailed, Fatal, OSError):
                return
            self._file.broken = False
        log.info("the spool recovered")

    def close(self) -> None:
        """Close the file and unlock the directory."""
        self._thread.submit(self._file.close).result()
        self._thread.shutdown()
        os.close(self._lock)

    async def _on_thread(self, work: Callable[[*_Arguments], _T], *arguments: *_Arguments) -> _T:
        """Run `work` on the file's thread. Raises SpoolFailed, and marks the file as broken, when the disk fails."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work, *arguments)
        except (sqlite3.Error, OSError) as error:
            self._file.broken = True
            metrics.SPOOL_FAILURES.inc()
            log.critical("the spool's disk fails", extra={"error": repr(error), "directory": str(self.directory)})
            raise SpoolFailed from error

    def _load_depth(self) -> None:
        """Count what is in the file."""
        self.depth, self._correlations = self._thread.submit(self._file.read_depth).result()
        self._update_metrics()

    def _count(self, events: Sequence[Event], size: int, sign: int) -> None:
        self.depth.requests += sign
        self.depth.events += sign * len(events)
        self.depth.bytes += sign * size
        if sign > 0:
            self.depth.oldest = self.depth.oldest or time.time()
        for correlation in {event.correlation_id for event in events}:
            self._correlations[correlation] += sign
            if not self._correlations[correlation]:
                del self._correlations[correlation]

    def _fits(self, size: int, free: int) -> bool:
        """Whether `size` more bytes fit. On disk they need twice as much: in the write-ahead log and in the database."""
        return self.depth.bytes + size <= self._bytes_max and free - 2 * size >= FREE_BYTES_MIN

    def _free_bytes(self) -> int:
        """Bytes that are free on the disk; 0 if the disk does not answer."""
        try:
            return shutil.disk_usage(self.directory).free
        except OSError:
            return 0

    def _oldest_age_seconds(self) -> float:
        return time.time() - self.depth.oldest if self.depth.oldest else 0.0

    def _update_metrics(self) -> None:
        depth = self.depth
        self.on_depth(depth)
        metrics.SPOOL_EVENTS.set(depth.events)
        metrics.SPOOL_BYTES.set(depth.bytes)
        metrics.SPOOL_QUARANTINED.set(depth.quarantined)
        metrics.DLQ_PENDING.set(depth.events)
        share = depth.bytes / self._bytes_max
        metrics.DLQ_WARNING.labels("events").set(0.8 <= share < 0.9)
        metrics.DLQ_CRITICAL.labels("events").set(share >= 0.9)


def _is_refused_now(request: Request, outcome: Added | AuditError) -> bool:
    """Whether it was answered meanwhile that the request, or an item of it that was added, is not stored."""
    submission = request.submission
    if isinstance(outcome, AuditError) or not outcome.events:
        return False
    return submission.is_refused or any(event.id in (submission.rejections or ()) for event in outcome.events)
