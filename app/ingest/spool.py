"""The durable queue on local disk for what Postgres cannot take: append (fsync before the answer), replay in order, remove.

One SQLite file in a directory that one process holds. Whole requests go in and come out, in order. What Postgres refuses
for its content stays in quarantine until an operator has decided; nothing is ever dropped. All work on the file is done by
one thread, which takes what has gathered as one transaction.
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
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

from app import metrics
from app.errors import AuditError, Fatal, Unavailable
from app.ingest.accept import Event
from app.ingest.spool_codec import keep, revive
from app.ingest.submission import Claim, Submission, conflict, key_reused

FREE_BYTES_MIN = 64 * 1024**2
"""Never taken from the disk: whoever else writes there needs some, and so does SQLite when it tidies up."""
_SCHEMA = 1
_CHUNK = 500  # parameters of one statement
_T = TypeVar("_T")
_CREATE = """
CREATE TABLE requests (
    position INTEGER PRIMARY KEY AUTOINCREMENT,
    token BLOB NOT NULL UNIQUE,
    kept_at REAL NOT NULL,
    events INTEGER NOT NULL,
    bytes INTEGER NOT NULL,
    correlations TEXT NOT NULL,
    scope TEXT,
    key TEXT,
    digest BLOB,
    expires_at TEXT,
    reason TEXT,
    body BLOB NOT NULL
);
CREATE INDEX requests_claim ON requests (scope, key) WHERE scope IS NOT NULL;
CREATE INDEX requests_quarantined ON requests (position) WHERE reason IS NOT NULL;
CREATE TABLE ids (event_id BLOB PRIMARY KEY, position INTEGER NOT NULL, event_date TEXT NOT NULL, digest BLOB) WITHOUT ROWID;
CREATE INDEX ids_position ON ids (position);
CREATE TABLE notifications (
    position INTEGER PRIMARY KEY AUTOINCREMENT,
    token BLOB NOT NULL UNIQUE,
    kept_at REAL NOT NULL,
    notification_id TEXT NOT NULL,
    bytes INTEGER NOT NULL,
    scope TEXT,
    key TEXT,
    digest BLOB,
    expires_at TEXT,
    reason TEXT,
    body BLOB NOT NULL
);
"""

log = logging.getLogger(__name__)


class SpoolFull(Unavailable):
    """Postgres is away and the spool has no room left; nothing was kept, send the request again shortly."""


class SpoolFailed(Unavailable):
    """Postgres is away and the spool's disk fails; nothing was acknowledged, send the request again shortly."""


@dataclass(frozen=True, slots=True)
class SpooledRequest:
    """One request in the spool."""

    position: int
    events: list[Event]
    claim: Claim | None
    correlations: tuple[str, ...]


@dataclass(slots=True)
class Depth:
    """What is in the spool. Bytes are those of the requests, quarantined ones included."""

    requests: int = 0
    events: int = 0
    bytes: int = 0
    oldest: float | None = None
    """When the oldest waiting request was kept, Unix time."""
    quarantined: int = 0
    """Events in quarantine, not counted in `events`."""
    notifications: int = 0
    """Notifications that wait. Those in quarantine are only listed."""


class Spool:
    """Owned by the writer. `waiting` and `depth` are of the event loop's thread, everything else is the file's."""

    def __init__(self, directory: Path, bytes_max: int) -> None:
        """Take the directory, and make it the first time. Fatal when another process has it, or it cannot be used."""
        self.directory = directory
        self.depth = Depth()
        self._bytes_max = bytes_max
        self._correlations: Counter[str] = Counter()
        self._void: list[bytes] = []
        """Tokens of requests that were refused since the disk failed: they may stand in the file all the same."""
        self._broken = False
        self._counting = asyncio.Lock()
        """Held from a change of the file until it is counted, so that nobody counts the file anew in between."""
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
            self._file = self._thread.submit(self._open).result()
        except sqlite3.Error as error:
            raise Fatal(f"The spool {directory} cannot be read ({error}): move it away, or mend it.") from error
        self._load()
        # Asked for whenever somebody looks: both change while nothing is kept or replayed.
        metrics.SPOOL_OLDEST.set_function(self._age)
        metrics.SPOOL_FREE.set_function(self._free)

    def waits(self, correlations: Iterable[str]) -> bool:
        """Whether events of one of these wait: what comes later has to queue behind them."""
        counts = self._correlations
        return bool(counts) and any(counts[one] > 0 for one in correlations)

    @property
    def has_room(self) -> bool:
        """Whether the next request will probably be kept."""
        return not self._broken and self.depth.bytes < self._bytes_max and self._free() > FREE_BYTES_MIN

    async def append(self, submissions: Sequence[Submission]) -> None:
        """Keep each submission and finish it, or fail it. When this returns, what was kept is on disk."""
        if self._broken:
            for submission in submissions:
                submission.fail(SpoolFailed())
            return
        taken, size = [], 0
        free = self._free()
        for submission in submissions:
            size += submission.size
            if self.depth.bytes + size > self._bytes_max or free - 2 * size < FREE_BYTES_MIN:
                submission.fail(SpoolFull())
                size -= submission.size
            else:
                taken.append(submission)
        requests = [(s, os.urandom(16), keep(list(s.events))) for s in taken]
        async with self._counting:
            try:
                outcomes = await self._on_thread(lambda: self._append(requests))
            except SpoolFailed as failed:
                self._void += [token for _, token, _ in requests]
                for submission in taken:
                    submission.fail(failed)
                return
            for (submission, _, body), outcome in zip(requests, outcomes, strict=True):
                if isinstance(outcome, AuditError):
                    submission.fail(outcome)
                    continue
                if outcome:
                    self._count(outcome, len(body), +1)
                    metrics.SPOOLED.inc(len(outcome))
                    metrics.DLQ_XADD.labels("audit_events").inc(len(outcome))
                submission.finish(spooled=True)
        self._show()

    async def next(self, events_max: int, bytes_max: int, log_name: str) -> list[SpooledRequest]:
        """The oldest requests that wait, up to the limits, at least one if there is any."""
        return await self._on_thread(lambda: self._next(events_max, bytes_max, log_name))

    async def remove(self, kept: Sequence[SpooledRequest]) -> None:
        """These are stored in Postgres. A crash before this leaves them to be found stored at the next replay."""
        positions = [one.position for one in kept]
        async with self._counting:
            sizes = await self._on_thread(lambda: self._remove(positions))
            for one in kept:
                self._count(one.events, sizes.get(one.position, 0), -1)
            self.depth.oldest = await self._on_thread(self._oldest)
        self._show()

    async def quarantine(self, kept: SpooledRequest, refused: list[Event], reason: str) -> None:
        """Postgres refuses these events of a request for their content: keep them aside, and let the others go on."""
        body = keep(refused)
        async with self._counting:
            size = await self._on_thread(lambda: self._quarantine(kept.position, reason, len(refused), body))
            self._count(kept.events, size, -1)
            self.depth.bytes += len(body)
            self.depth.quarantined += len(refused)
            self.depth.oldest = await self._on_thread(self._oldest)
        metrics.QUARANTINED.inc(len(refused))
        metrics.DLQ_XADD.labels("dead_letter_audit_events").inc(len(refused))
        metrics.DLQ_REFUSED.labels("audit_events", "field_validation").inc(len(refused))
        log.error("a spooled request was quarantined", extra={"position": kept.position, "reason": reason})
        self._show()

    async def release(self) -> None:
        """Let what is in quarantine wait again, in its old place."""
        await self._on_thread(lambda: self._transact(self._release))
        self._load()

    async def dates(self, ids: set[UUID]) -> dict[UUID, date]:
        """Dates of those of `ids` that wait here."""
        if not self.depth.requests:
            return {}
        return await self._on_thread(lambda: self._dates(ids))

    async def event(self, event_id: UUID) -> Event | None:
        """The event with this id, if it waits here."""
        if not self.depth.requests:
            return None
        return await self._on_thread(lambda: self._event(event_id))

    async def read(self, work: Callable[[sqlite3.Connection], _T]) -> _T:
        """What `work` finds in the file."""
        return await self._on_thread(lambda: work(self._file))

    async def change(self, work: Callable[[sqlite3.Connection], int], size: int) -> int:
        """One transaction on the file. `work` answers by how many notifications, of `size` bytes, more wait after it."""
        async with self._counting:
            more = await self._on_thread(lambda: self._guarded(work))
            self.depth.notifications += more
            self.depth.bytes += more * size
        self._show()
        return more

    async def keep(self, work: Callable[[sqlite3.Connection], int], token: bytes, size: int) -> int:
        """change() that adds a notification under `token`. Raises SpoolFull or SpoolFailed; then nothing was kept."""
        if self._broken:
            raise SpoolFailed
        if self.depth.bytes + size > self._bytes_max or self._free() - 2 * size < FREE_BYTES_MIN:
            raise SpoolFull
        try:
            return await self.change(work, size)
        except SpoolFailed:
            self._void.append(token)
            raise

    async def mend(self) -> None:
        """After a failure: open the file anew, void what was refused, and check it. Raises nothing; the next call tries again."""
        if not self._broken:
            return
        async with self._counting:
            try:
                await self._on_thread(self._reopen)
                self.depth, self._correlations = await self._on_thread(self._read_depth)
                self._show()
            except (SpoolFailed, Fatal, OSError):
                return
            self._broken = False
        log.info("the spool works again")

    def close(self) -> None:
        """Let the directory go."""
        self._thread.submit(self._file.close).result()
        self._thread.shutdown()
        os.close(self._lock)

    # Below, the file's thread.

    def _open(self) -> sqlite3.Connection:
        path = self.directory / "spool.sqlite3"
        file = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=5)
        path.chmod(0o600)
        file.execute("PRAGMA auto_vacuum = INCREMENTAL")
        file.execute("PRAGMA journal_mode = WAL")
        file.execute("PRAGMA synchronous = FULL")
        version = file.execute("PRAGMA user_version").fetchone()[0]
        if version == 0:
            file.executescript(f"BEGIN; {_CREATE} PRAGMA user_version = {_SCHEMA}; COMMIT;")
        elif version != _SCHEMA:
            raise Fatal(f"The spool {self.directory} was written by a newer DataStorage: upgrade this one.")
        return file

    def _reopen(self) -> None:
        self._file.close()
        self._file = self._open()
        # Into the database and a fresh WAL: behind frames whose fsync failed, later ones could be lost in a crash.
        if self._file.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]:
            raise sqlite3.OperationalError("the write-ahead log could not be emptied")
        self._transact(self._void_refused)
        self._void = []
        if (found := self._file.execute("PRAGMA quick_check").fetchone()[0]) != "ok":
            raise sqlite3.DatabaseError(found)

    def _void_refused(self) -> None:
        for token in self._void:
            for (position,) in self._file.execute("SELECT position FROM requests WHERE token = ?", [token]).fetchall():
                self._delete(position)
            self._file.execute("DELETE FROM notifications WHERE token = ?", [token])

    def _guarded(self, work: Callable[[sqlite3.Connection], _T]) -> _T:
        self._refuse_broken()
        return self._transact(lambda: work(self._file))

    def _transact(self, work: Callable[[], _T]) -> _T:
        self._file.execute("BEGIN IMMEDIATE")
        try:
            result = work()
        except BaseException:
            if self._file.in_transaction:
                self._file.execute("ROLLBACK")
            raise
        self._file.execute("COMMIT")
        return result

    def _append(self, requests: Sequence[tuple[Submission, bytes, bytes]]) -> list[list[Event] | AuditError]:
        """For each request, the events that it added, or why it cannot be kept."""
        self._refuse_broken()
        return self._transact(lambda: [self._append_one(*request) for request in requests])

    def _refuse_broken(self) -> None:
        """What an unfinished transaction has left would be read as if it had been acknowledged."""
        if self._broken:
            raise sqlite3.OperationalError("the spool waits to be mended")

    def _append_one(self, submission: Submission, token: bytes, body: bytes) -> list[Event] | AuditError:
        known = {}
        if submission.known:
            known = self._digests([event.id for event in submission.events])
            for event in submission.events:
                if event.id in known and known[event.id] != event.digest:
                    return conflict(event.id)
        claim = submission.claim
        if claim is not None:
            query = "SELECT digest FROM requests WHERE scope = ? AND key = ?"
            found = self._file.execute(query, [claim.scope, claim.key]).fetchone()
            if found is not None and found[0] != claim.digest:
                return key_reused()
        fresh = [event for event in submission.events if event.id not in known]
        if not fresh:
            return []
        correlations = "\0".join({event.correlation_id for event in fresh})
        row = (token, time.time(), len(fresh), len(body), correlations, *claim_columns(claim))
        if len(fresh) < len(submission.events):
            body = keep(fresh)
        position = self._file.execute(
            "INSERT INTO requests (token, kept_at, events, bytes, correlations, scope, key, digest, expires_at, body)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (*row, body),
        ).lastrowid
        self._file.executemany(
            "INSERT INTO ids VALUES (?, ?, ?, ?)",
            [(event.id.bytes, position, event.date.isoformat(), event.digest) for event in fresh],
        )
        return fresh

    def _digests(self, ids: Sequence[UUID]) -> dict[UUID, bytes | None]:
        return {UUID(bytes=row[0]): row[1] for row in self._select_ids("event_id, digest", ids)}

    def _dates(self, ids: Iterable[UUID]) -> dict[UUID, date]:
        return {
            UUID(bytes=row[0]): date.fromisoformat(row[1])
            for row in self._select_ids("event_id, event_date", list(ids))
        }

    def _select_ids(self, columns: str, ids: Sequence[UUID]) -> list[Any]:
        rows: list[Any] = []
        for start in range(0, len(ids), _CHUNK):
            chunk = [one.bytes for one in ids[start : start + _CHUNK]]
            marks = ",".join("?" * len(chunk))
            rows += self._file.execute(f"SELECT {columns} FROM ids WHERE event_id IN ({marks})", chunk)  # noqa: S608 - marks only
        return rows

    def _event(self, event_id: UUID) -> Event | None:
        query = "SELECT r.body FROM ids i JOIN requests r USING (position) WHERE i.event_id = ?"
        row = self._file.execute(query, [event_id.bytes]).fetchone()
        return next((one for one in revive(row[0], "") if one.id == event_id), None) if row else None

    def _next(self, events_max: int, bytes_max: int, log_name: str) -> list[SpooledRequest]:
        self._refuse_broken()
        query = (
            "SELECT position, events, bytes, correlations, scope, key, digest, expires_at, body FROM requests"
            " WHERE reason IS NULL ORDER BY position"
        )
        kept: list[SpooledRequest] = []
        events = size = 0
        for position, number, length, correlations, *claim, body in self._file.execute(query):
            events += number
            size += length
            if kept and (events > events_max or size > bytes_max):
                break
            kept.append(
                SpooledRequest(position, revive(body, log_name), claim_of(claim), tuple(correlations.split("\0")))
            )
        return kept

    def _remove(self, positions: Sequence[int]) -> dict[int, int]:
        def work() -> dict[int, int]:
            return {position: self._delete(position) for position in positions}

        sizes = self._transact(work)
        self._file.execute("PRAGMA incremental_vacuum(1000)")
        return sizes

    def _delete(self, position: int) -> int:
        """Size of the request that was deleted."""
        row = self._file.execute("DELETE FROM requests WHERE position = ? RETURNING bytes", [position]).fetchone()
        self._file.execute("DELETE FROM ids WHERE position = ?", [position])
        return int(row[0]) if row else 0

    def _quarantine(self, position: int, reason: str, events: int, body: bytes) -> int:
        """Size of the request as it was."""

        def work() -> int:
            size = self._file.execute("SELECT bytes FROM requests WHERE position = ?", [position]).fetchone()
            # The promise under its key, if any, is the one that Postgres keeps.
            statement = (
                "UPDATE requests SET reason = ?, events = ?, bytes = ?, body = ?, scope = NULL WHERE position = ?"
            )
            self._file.execute(statement, [reason, events, len(body), body, position])
            # Its ids are free: whoever sends one of them again has a claim of its own.
            self._file.execute("DELETE FROM ids WHERE position = ?", [position])
            return int(size[0]) if size else 0

        return self._transact(work)

    def _release(self) -> None:
        query = "SELECT position, body FROM requests WHERE reason IS NOT NULL"
        for position, body in self._file.execute(query).fetchall():
            ids = [(e.id.bytes, position, e.date.isoformat(), e.digest) for e in revive(body, "")]
            self._file.executemany("INSERT OR IGNORE INTO ids VALUES (?, ?, ?, ?)", ids)
            self._file.execute("UPDATE requests SET reason = NULL WHERE position = ?", [position])
        self._file.execute("UPDATE notifications SET reason = NULL")

    def _oldest(self) -> float | None:
        row = self._file.execute(
            "SELECT kept_at FROM requests WHERE reason IS NULL ORDER BY position LIMIT 1"
        ).fetchone()
        return row[0] if row else None

    def _read_depth(self) -> tuple[Depth, Counter[str]]:
        """What is in the file, and how many requests of each correlation wait."""
        depth, correlations = Depth(), Counter[str]()
        rows = self._file.execute(
            "SELECT reason IS NULL, events, bytes, kept_at, correlations FROM requests ORDER BY position"
        )
        for waiting, events, size, kept_at, names in rows:
            depth.bytes += size
            if not waiting:
                depth.quarantined += events
                continue
            depth.requests += 1
            depth.events += events
            depth.oldest = depth.oldest or kept_at
            correlations.update(names.split("\0"))
        query = "SELECT count(*), coalesce(sum(bytes), 0) FROM notifications WHERE reason IS NULL"
        depth.notifications, size = self._file.execute(query).fetchone()
        depth.bytes += size
        return depth, correlations

    # The event loop's thread again.

    async def _on_thread(self, work: Callable[[], _T]) -> _T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work)
        except (sqlite3.Error, OSError) as error:
            self._broken = True
            metrics.SPOOL_FAILURES.inc()
            log.critical("the spool's disk fails", extra={"error": repr(error), "directory": str(self.directory)})
            raise SpoolFailed from error

    def _load(self) -> None:
        """Depth and waiting correlations from the file."""
        self.depth, self._correlations = self._thread.submit(self._read_depth).result()
        self._show()

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

    def _free(self) -> int:
        """ByteBudget on the disk; none on one that does not even say how much."""
        try:
            return shutil.disk_usage(self.directory).free
        except OSError:
            return 0

    def _age(self) -> float:
        return time.time() - self.depth.oldest if self.depth.oldest else 0.0

    def _show(self) -> None:
        depth = self.depth
        metrics.SPOOL_EVENTS.set(depth.events)
        metrics.SPOOL_BYTES.set(depth.bytes)
        metrics.SPOOL_QUARANTINED.set(depth.quarantined)
        metrics.DLQ_PENDING.set(depth.events)
        share = depth.bytes / self._bytes_max
        metrics.DLQ_WARNING.labels("events").set(0.8 <= share < 0.9)
        metrics.DLQ_CRITICAL.labels("events").set(share >= 0.9)


def claim_columns(claim: Claim | None) -> tuple[Any, ...]:
    """Four columns; NULL without a claim."""
    return (None,) * 4 if claim is None else (claim.scope, claim.key, claim.digest, claim.expires_at.isoformat())


def claim_of(columns: Sequence[Any]) -> Claim | None:
    """What claim_columns() made of it."""
    if columns[0] is None:
        return None
    scope, key, digest, expires_at = columns
    return Claim(scope, key, digest, datetime.fromisoformat(expires_at))
