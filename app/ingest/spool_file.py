"""The spool's SQLite file, and all work on it. Synchronous: `Spool` runs every call on the one thread of the file.

Requests and notifications wait in the order of `position`. A row whose `reason` is set is in quarantine.
"""

import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from uuid import UUID

from app.errors import AuditError, Fatal
from app.ingest.accept import Event
from app.ingest.claim import Claim, key_reused
from app.ingest.notifications import Notification, id_conflict
from app.ingest.spool_codec import decode, decode_notification, encode
from app.ingest.submission import Submission, conflict

FILE_NAME = "spool.sqlite3"
_SCHEMA = 1
_CHUNK = 500  # parameters of one statement
_NOTIFICATIONS_READ_MAX = 100
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

_CREATE_ALIASES = "CREATE TABLE IF NOT EXISTS aliases (alias BLOB PRIMARY KEY, event_id BLOB NOT NULL, position INTEGER NOT NULL) WITHOUT ROWID"


class Added(NamedTuple):
    """What became of one request that was added."""

    events: list[Event]
    """Those that it added."""
    spooled_as: dict[UUID, UUID]
    """Of its events that wait already: the id under which each does."""


class Request(NamedTuple):
    """One request to be added."""

    submission: Submission
    events: Sequence[Event]
    """Of the submission when it was encoded: a flush may still reject some of them."""
    token: bytes
    body: bytes
    """The events, encoded."""


@dataclass(frozen=True, slots=True)
class SpooledRequest:
    """One request in the spool."""

    position: int
    events: list[Event]
    claim: Claim | None
    correlations: tuple[str, ...]


class SpooledNotification(NamedTuple):
    """One notification in the spool."""

    position: int
    size: int
    notification: Notification
    claim: Claim | None


@dataclass(slots=True)
class Depth:
    """What is in the spool. Bytes are those of the requests, quarantined ones included."""

    requests: int = 0
    events: int = 0
    bytes: int = 0
    oldest: float | None = None
    """When the oldest waiting request was spooled, Unix time."""
    quarantined: int = 0
    """Events in quarantine, not counted in `events`."""
    notifications: int = 0
    """Notifications that wait. Those in quarantine are only listed."""


class SpoolFile:
    """The file of one spool. Methods and constructor run on the spool's thread and raise sqlite3.Error or OSError.

    The event loop's thread uses only `broken`, and `refused_tokens` under the lock of `Spool`, so never while reopen() runs.
    """

    def __init__(self, directory: Path) -> None:
        self.broken = False
        """A call has failed since the file was opened. What an unfinished transaction left must not be read."""
        self.refused_tokens: list[bytes] = []
        """Tokens of requests that were refused because a call failed; their rows may be in the file nevertheless."""
        self._directory = directory
        self._connection = self._open()

    def _open(self) -> sqlite3.Connection:
        path = self._directory / FILE_NAME
        connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=5)
        path.chmod(0o600)
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version == 0:
            connection.executescript(f"BEGIN; {_CREATE} PRAGMA user_version = {_SCHEMA}; COMMIT;")
        elif version != _SCHEMA:
            raise Fatal(f"The spool {self._directory} was written by a newer DataStorage: upgrade this one.")
        # Without a new version: an older service does not look at it, and can still use the spool.
        connection.execute("CREATE TABLE IF NOT EXISTS log (name TEXT NOT NULL)")
        connection.execute(_CREATE_ALIASES)
        return connection

    def close(self) -> None:
        self._connection.close()

    @property
    def log_name(self) -> str | None:
        """Name of the log that the events here are for; None before the first one was seen."""
        row = self._connection.execute("SELECT name FROM log").fetchone()
        return row[0] if row else None

    def belong_to(self, log_name: str) -> None:
        """Store the log's name. Fatal, with nothing changed, when something waits for another log."""

        def replace() -> None:
            stored = self.log_name
            query = "SELECT EXISTS (SELECT 1 FROM requests) OR EXISTS (SELECT 1 FROM notifications)"
            if stored not in {None, log_name} and self._connection.execute(query).fetchone()[0]:
                raise Fatal(
                    f"The spool {self._directory} holds events for the log {stored!r}, but this database holds the log "
                    f"{log_name!r}. The spool is unchanged: set the database's URL to the right one, or DATASTORAGE_SPOOL_DIR "
                    "to another directory."
                )
            self._connection.execute("DELETE FROM log")
            self._connection.execute("INSERT INTO log VALUES (?)", [log_name])

        self._refuse_broken()
        self._transact(replace)

    def reopen(self) -> None:
        """After a failure: open the file again, delete what was refused, and check the file."""
        self._connection.close()
        self._connection = self._open()
        # Into the database and a fresh WAL: after frames whose fsync failed, later ones could be lost in a crash.
        if self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]:
            raise sqlite3.OperationalError("the write-ahead log could not be emptied")
        self._transact(self._delete_refused)
        self.refused_tokens = []
        if (result := self._connection.execute("PRAGMA quick_check").fetchone()[0]) != "ok":
            raise sqlite3.DatabaseError(result)

    def _delete_refused(self) -> None:
        for token in self.refused_tokens:
            self._delete_token(token)
            self._connection.execute("DELETE FROM notifications WHERE token = ?", [token])

    def _transact(self, work: Callable[[], _T]) -> _T:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            result = work()
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise
        self._connection.execute("COMMIT")
        return result

    def _refuse_broken(self) -> None:
        """What an unfinished transaction has left would be read as if it had been acknowledged."""
        if self.broken:
            raise sqlite3.OperationalError("the spool has failed and is not reopened yet")

    def read_depth(self) -> tuple[Depth, Counter[str]]:
        """What is in the file, and how many requests of each correlation wait."""
        depth, correlations = Depth(), Counter[str]()
        rows = self._connection.execute(
            "SELECT reason IS NULL, events, bytes, kept_at, correlations FROM requests ORDER BY position"
        )
        for waiting, events, size, spooled_at, names in rows:
            depth.bytes += size
            if not waiting:
                depth.quarantined += events
                continue
            depth.requests += 1
            depth.events += events
            depth.oldest = depth.oldest or spooled_at
            correlations.update(names.split("\0"))
        query = "SELECT count(*), coalesce(sum(bytes), 0) FROM notifications WHERE reason IS NULL"
        depth.notifications, size = self._connection.execute(query).fetchone()
        depth.bytes += size
        return depth, correlations

    def oldest(self) -> float | None:
        """When the oldest waiting request was spooled, Unix time."""
        row = self._connection.execute(
            "SELECT kept_at FROM requests WHERE reason IS NULL ORDER BY position LIMIT 1"
        ).fetchone()
        return row[0] if row else None

    # Requests with events.

    def append(self, requests: Sequence[Request]) -> list[Added | AuditError]:
        """Add requests. For each, what was added, or why it is refused."""
        self._refuse_broken()
        return self._transact(lambda: [self._append_one(*request) for request in requests])

    def withdraw(self, tokens: Sequence[bytes]) -> None:
        """Delete requests that were added and are refused nevertheless."""

        def delete_all() -> None:
            for token in tokens:
                self._delete_token(token)

        self._transact(delete_all)

    def _delete_token(self, token: bytes) -> None:
        query = "SELECT position FROM requests WHERE token = ?"
        for (position,) in self._connection.execute(query, [token]).fetchall():
            self._delete(position)

    def _append_one(
        self, submission: Submission, events: Sequence[Event], token: bytes, body: bytes
    ) -> Added | AuditError:
        spooled_as: dict[UUID, UUID] = {}
        if submission.may_exist:
            digests = self._digests([one for event in events for one in event.possible_ids])
            others = [e.id for e in events if e.id in digests and digests[e.id] != e.digest]
            if others and submission.fails_without(others):
                return conflict(others[0])
            submission.reject({one: conflict(one) for one in others})
            spooled_as = {event.id: one for event in events for one in reversed(event.possible_ids) if one in digests}
            spooled_as |= self._aliases([event for event in events if event.id not in spooled_as])
        claim = submission.claim
        if claim is not None:
            query = "SELECT digest FROM requests WHERE scope = ? AND key = ?"
            row = self._connection.execute(query, [claim.scope, claim.key]).fetchone()
            if row is not None and row[0] != claim.digest:
                return key_reused()
        left_out = submission.stored_as.keys() | spooled_as.keys() | (submission.rejections or {}).keys()
        added = [event for event in events if event.id not in left_out]
        if not added:
            return Added([], spooled_as)
        correlations = "\0".join({event.correlation_id for event in added})
        columns = (token, time.time(), len(added), len(body), correlations, *_claim_columns(claim))
        if len(added) < len(events):
            body = encode(added)
        position = self._connection.execute(
            "INSERT INTO requests (token, kept_at, events, bytes, correlations, scope, key, digest, expires_at, body)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (*columns, body),
        ).lastrowid
        self._connection.executemany(
            "INSERT INTO ids VALUES (?, ?, ?, ?)",
            [(event.id.bytes, position, event.date.isoformat(), event.digest) for event in added],
        )
        assert position is not None, "a row was inserted"
        self._add_aliases(position, added)
        return Added(added, spooled_as)

    def _aliases(self, events: Iterable[Event]) -> dict[UUID, UUID]:
        """Of those of `events` that wait under the id of another body: that id."""
        found = {}
        for event in events:
            for other in event.other_ids:
                row = self._connection.execute("SELECT event_id FROM aliases WHERE alias = ?", [other.bytes]).fetchone()
                if row is not None:
                    found[event.id] = UUID(bytes=row[0])
                    break
        return found

    def _add_aliases(self, position: int, events: Iterable[Event]) -> None:
        rows = [(event.alias.bytes, event.id.bytes, position) for event in events if event.alias is not None]
        self._connection.executemany("INSERT OR IGNORE INTO aliases VALUES (?, ?, ?)", rows)

    def next(self, events_max: int, bytes_max: int, log_name: str) -> list[SpooledRequest]:
        """The oldest waiting requests, up to the limits, at least one if there is any."""
        self._refuse_broken()
        query = (
            "SELECT position, events, bytes, correlations, scope, key, digest, expires_at, body FROM requests"
            " WHERE reason IS NULL ORDER BY position"
        )
        requests: list[SpooledRequest] = []
        events = size = 0
        for position, number, length, correlations, *claim, body in self._connection.execute(query):
            events += number
            size += length
            if requests and (events > events_max or size > bytes_max):
                break
            requests.append(
                SpooledRequest(position, decode(body, log_name), _claim(claim), tuple(correlations.split("\0")))
            )
        return requests

    def remove(self, positions: Sequence[int]) -> dict[int, int]:
        """Delete requests. The size of each by its position."""

        def delete_all() -> dict[int, int]:
            return {position: self._delete(position) for position in positions}

        sizes = self._transact(delete_all)
        self._connection.execute("PRAGMA incremental_vacuum(1000)")
        return sizes

    def _delete(self, position: int) -> int:
        """The size of the request that was deleted."""
        row = self._connection.execute("DELETE FROM requests WHERE position = ? RETURNING bytes", [position]).fetchone()
        self._delete_ids(position)
        return int(row[0]) if row else 0

    def _delete_ids(self, position: int) -> None:
        self._connection.execute("DELETE FROM ids WHERE position = ?", [position])
        self._connection.execute("DELETE FROM aliases WHERE position = ?", [position])

    def quarantine(self, position: int, reason: str, events: int, body: bytes) -> int:
        """Move a request to quarantine, with `body`, which has so many events. Returns the size that the request had before."""

        def update() -> int:
            size = self._connection.execute("SELECT bytes FROM requests WHERE position = ?", [position]).fetchone()
            # The claim under its key, if it has one, is the one in Postgres.
            statement = (
                "UPDATE requests SET reason = ?, events = ?, bytes = ?, body = ?, scope = NULL WHERE position = ?"
            )
            self._connection.execute(statement, [reason, events, len(body), body, position])
            # Its ids are free: a client that sends one of them again makes a claim of its own.
            self._delete_ids(position)
            return int(size[0]) if size else 0

        return self._transact(update)

    def requeue_quarantined(self) -> None:
        """Move requests and notifications in quarantine back to those that wait, each at its old position."""
        self._transact(self._requeue_quarantined)

    def _requeue_quarantined(self) -> None:
        query = "SELECT position, body FROM requests WHERE reason IS NOT NULL"
        for position, body in self._connection.execute(query).fetchall():
            events = decode(body, "")
            ids = [(e.id.bytes, position, e.date.isoformat(), e.digest) for e in events]
            self._connection.executemany("INSERT OR IGNORE INTO ids VALUES (?, ?, ?, ?)", ids)
            self._add_aliases(position, events)
            self._connection.execute("UPDATE requests SET reason = NULL WHERE position = ?", [position])
        self._connection.execute("UPDATE notifications SET reason = NULL")

    def waiting_keys(self, claims: Sequence[Claim]) -> set[tuple[str, str]]:
        """(scope, key) of those of `claims` under which requests wait here."""
        query = "SELECT 1 FROM requests WHERE scope = ? AND key = ?"
        return {c[:2] for c in claims if self._connection.execute(query, c[:2]).fetchone()}

    def event_dates(self, ids: Iterable[UUID]) -> dict[UUID, date]:
        """Dates of those of `ids` that wait here."""
        return {
            UUID(bytes=row[0]): date.fromisoformat(row[1])
            for row in self._select_ids("event_id, event_date", list(ids))
        }

    def _digests(self, ids: Sequence[UUID]) -> dict[UUID, bytes | None]:
        return {UUID(bytes=row[0]): row[1] for row in self._select_ids("event_id, digest", ids)}

    def _select_ids(self, columns: str, ids: Sequence[UUID]) -> list[Any]:
        rows: list[Any] = []
        for start in range(0, len(ids), _CHUNK):
            chunk = [one.bytes for one in ids[start : start + _CHUNK]]
            marks = ",".join("?" * len(chunk))
            rows += self._connection.execute(f"SELECT {columns} FROM ids WHERE event_id IN ({marks})", chunk)  # noqa: S608 - marks only
        return rows

    def event(self, event_id: UUID) -> Event | None:
        """The event with this id, if it waits here."""
        query = "SELECT r.body FROM ids i JOIN requests r USING (position) WHERE i.event_id = ?"
        row = self._connection.execute(query, [event_id.bytes]).fetchone()
        return next((one for one in decode(row[0], "") if one.id == event_id), None) if row else None

    # Notifications.

    def has_notification(self, notification: Notification, claim: Claim | None) -> bool:
        """Whether this very request waits. Raises Conflict or KeyReused where another one waits under its id or key."""
        if claim is not None:
            query = "SELECT digest FROM notifications WHERE scope = ? AND key = ? AND reason IS NULL"
            row = self._connection.execute(query, [claim.scope, claim.key]).fetchone()
            if row is not None:
                if row[0] != claim.digest:
                    raise key_reused()
                return True
        query = "SELECT 1 FROM notifications WHERE notification_id = ? AND reason IS NULL"
        if self._connection.execute(query, [notification.notification_id]).fetchone():
            raise id_conflict(notification)
        return False

    def append_notification(self, notification: Notification, claim: Claim | None, token: bytes, body: bytes) -> bool:
        """Whether it was added; False if it waits already. Raises as has_notification() does."""
        self._refuse_broken()

        def insert() -> bool:
            if self.has_notification(notification, claim):
                return False
            self._connection.execute(
                "INSERT INTO notifications (token, kept_at, notification_id, bytes, scope, key, digest, expires_at, body)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (token, time.time(), notification.notification_id, len(body), *_claim_columns(claim), body),
            )
            return True

        return self._transact(insert)

    def next_notifications(self) -> list[SpooledNotification]:
        """The oldest waiting notifications, up to a limit."""
        query = (
            "SELECT position, bytes, body, scope, key, digest, expires_at FROM notifications"
            " WHERE reason IS NULL ORDER BY position LIMIT ?"
        )
        return [
            SpooledNotification(row[0], row[1], decode_notification(row[2]), _claim(row[3:]))
            for row in self._connection.execute(query, [_NOTIFICATIONS_READ_MAX])
        ]

    def end_notification(self, position: int, refusal: str | None) -> None:
        """Remove a notification that is stored in Postgres, or move it to quarantine with the reason for its refusal."""
        self._refuse_broken()

        def update() -> None:
            if refusal is None:
                self._connection.execute("DELETE FROM notifications WHERE position = ?", [position])
            else:
                self._connection.execute("UPDATE notifications SET reason = ? WHERE position = ?", [refusal, position])

        self._transact(update)


def _claim_columns(claim: Claim | None) -> tuple[Any, ...]:
    """Four columns; NULL without a claim."""
    return (None,) * 4 if claim is None else (claim.scope, claim.key, claim.digest, claim.expires_at.isoformat())


def _claim(columns: Sequence[Any]) -> Claim | None:
    """The claim of _claim_columns()."""
    if columns[0] is None:
        return None
    scope, key, digest, expires_at = columns
    return Claim(scope, key, digest, datetime.fromisoformat(expires_at))
