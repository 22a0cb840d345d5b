"""One flush, one transaction: compare-and-set on the end of the log, rows, chain heads, claims.

The rule (docs/design.md, section 5): the end of the log is read before everything else that a flush relies on, and all of it
is dropped after a lost race. So a won compare-and-set proves that every cached head and every cached hold was current.

When Postgres goes away in the middle of a flush, commit() cannot know whether COMMIT happened. It reconnects and compares the
leaves in the log at the flush's first position: its own leaves mean that it was committed, others that the race was lost, and
with none it sends the same flush again. At the deadline, or with a spool after `away_patience_ms`, it raises
DatabaseAway; the writer then spools the requests, and replay looks every id up before it writes.

With `require_synchronous_standby` a flush is committed only where COMMIT waits for a standby, and what was committed or is found stored
counts only once standbys have it: else DatabaseAway, as if Postgres were away.
"""

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import suppress
from itertools import count
from typing import Any, NamedTuple, TypeVar
from uuid import UUID

import asyncpg

from app import metrics, standby, tracing
from app.bookmark import LEAF_BYTES, Bookmark
from app.db import DATABASE_ERRORS, Connection, FailureKind, connect_writer, failure_kind
from app.errors import AuditError, DatabaseAway, DatabaseFailed, Unavailable
from app.events.canonical import canonical, loads
from app.events.log import Log
from app.events.record import is_logged, stored_hash
from app.ingest import partitions
from app.ingest.accept import ACCEPTED_COLUMNS, TIME_RECEIVED, Event
from app.ingest.claim import Claim
from app.ingest.hold_index import HoldIndex
from app.ingest.link import Flush, Head, link
from app.settings import Settings
from app.sql import load
from app.standby import StandbyMissing
from app.tlog.alarm import LogAlarm, PendingAlarms
from app.workers import database_is_away

SQL = load("ingest")
COPY_COLUMNS = (
    *ACCEPTED_COLUMNS,
    *("log_index", "chain_index", "previous_event_hash", "event_hash", "trace_id", "span_id", "event_metadata"),
    *("log_id", "hash_algorithm"),
)
_COPY_ROWS_MIN = 50
_HEADS_MAX = 50_000
_CAUTIOUS_FLUSHES = 100
_CLOSE_SECONDS = 1.0
_PAUSE_SECONDS = 0.02
_MEMBER_OF_COLUMN = {"event_version": "version"}
_PAUSE_DOUBLINGS_MAX = 6
_LENGTH_MAX = 2**62
_LEAF_BYTES = 32
_TAIL_STEPS = 10_000
_ROWS_HASHED_AT_ONCE = 100

SAME_AS_STORED = ", which differs only in what is not stored"

Claimed = tuple[Claim, list[UUID]]
"""The claim of an Idempotency-Key, and the event ids in the answer to its request."""
_T = TypeVar("_T")
FlushAction = Callable[[Connection, Flush], Awaitable[None]]
"""More work in the transaction of a flush, run after the compare-and-set is won. An AuditError rolls everything back.

Nobody else can write to the log until the commit, so what it reads stays true. A store does not see that its own action has
changed a hold: it must not be used again.
"""
FindLog = Callable[[Connection, Log], Awaitable[Log]]
"""Reads which log events are written to: a known one, or one that continues it."""
SignedSize = Callable[[Connection, Log], Awaitable[int]]
"""Reads how many events the newest checkpoint of a log in the database covers that the log's key has signed; 0 without one."""

log = logging.getLogger(__name__)


class Stored(NamedTuple):
    """An event that is stored already."""

    id: UUID
    """Its own, or that of another send of the same item."""
    same: bool
    """Whether it has the same content."""
    is_sealed: bool = True
    """False if only rows that others inserted by SQL have the id: then the event itself is not stored."""


class LostRace(AuditError):
    """Another replica appended first."""


class PossibleResend(AuditError):
    """An id of this flush is stored already: look the ids up, then send the rest."""


class RowRefused(AuditError):
    """Postgres refuses the content of a row; alone in its flush, the request is at fault."""

    label = "Refused"
    status = 400
    slug = "validation-error"
    title = "Validation Error"


class MonthDetached(Unavailable):
    """A retention run is removing the month of this event; send it again shortly."""

    label = "MonthAway"


class Store:
    """The writer's own connection, and its cache of the end of the log, of chain heads and of holds."""

    def __init__(
        self,
        settings: Settings,
        of_log: Log,
        signed_size: SignedSize | None = None,
        find_log: FindLog | None = None,
    ) -> None:
        """Without `find_log`, `of_log` is the only log there is."""
        self.log = of_log
        """The log that it writes to."""
        self._find_log = find_log or _the_same
        self._settings = settings
        self._signed_size = signed_size or _nothing_signed
        self._connection: Connection | None = None
        self._tail: tuple[int, int] | None = None
        """first_index and count of the last flush in the log; None if it has to be read."""
        self._heads: dict[str, Head] = {}
        self._holds = HoldIndex()
        self._holds_version: tuple[int | None, int | None] | None = None
        """Positions in this log at which a hold was last placed and last released; None if the holds, of all logs, have to be read."""
        self._known_flush: tuple[int, int] | None = None
        """first_index and end of the last flush that this process has read or written; None before the first."""
        self._flushes_reading_heads = 0
        """Flushes that still read unknown heads before they are sent: after a start, and after a lost race."""
        self._flushes_locking_log = 0
        """Flushes that still lock the log for themselves first, so that replicas take turns: after a lost race."""
        self.alarms = PendingAlarms()
        """What was found wrong with the log while it was written to, and is not recorded yet."""
        self.bookmark: Bookmark | None = None
        """Of the last flush; None if it took more than one try to commit it."""
        self.reconnect_seconds = math.inf
        """How long a flush is retried after the connection was lost, within its deadline. Short where there is a spool."""

    async def commit(
        self, events: Sequence[Event], claims: Sequence[Claimed], deadline: float, action: FlushAction | None = None
    ) -> None:
        """Append `events` to the log with their claims, and run `action`: all or nothing. Returns when it is durable.

        Raises LostRace, PossibleResend, RowRefused, MonthDetached, DatabaseFailed, or DatabaseAway, after which it may be stored
        although no standby has it. A flush that fails for
        another reason is retried here until `deadline` (the event loop's clock). An unknown outcome is looked up in the log.
        """
        uncertain: Flush | None = None
        self.bookmark = None
        claim_columns = _claim_columns(events, claims)
        for retry in count():
            flush = uncertain
            try:
                connection = await self._reconnect(deadline) if uncertain else await self.connection()
                if uncertain and await self._is_committed(connection, uncertain, deadline):
                    return
                flush = flush or await self._link(connection, events)
                with tracing.span("transaction", first_index=flush.first_index, events=len(flush.rows)):
                    await self._send(connection, flush, claim_columns, action)
                uncertain = flush  # where a standby is required, it counts once that has it
                await self._confirm(connection, deadline)
            except DATABASE_ERRORS as error:
                kind = failure_kind(error)
                metrics.FLUSH_REPEATS.labels(reason=kind.name.lower()).inc()
                if kind is FailureKind.AWAY:
                    level = logging.DEBUG if database_is_away.get()() else logging.WARNING
                    extra = {"error": repr(error), "events": len(events)}
                    log.log(level, "the connection was lost during a flush", extra=extra)
                    self.disconnect()
                    uncertain = flush
                    deadline = min(deadline, asyncio.get_running_loop().time() + self.reconnect_seconds)
                else:
                    await self._rollback()
                    if kind is FailureKind.LOG_CLOSED and await self._leave_closed_log(uncertain, error, deadline):
                        return
                    if kind is FailureKind.BUSY:
                        await self._terminate_stalled_sessions()
                    # This retry may have collided with the flush that it repeats: then the next read of the log decides.
                    if uncertain is None:
                        await self._handle_failure(kind, error, events)
                await _pause(retry, deadline, error)
            else:
                self._cache_flush_result(flush)
                return

    async def connection(self) -> Connection:
        """The writer's connection, opened if there is none. Raises DatabaseAway."""
        if self._connection is None or self._connection.is_closed():
            self._drop_cache()
            self._connection = await connect_writer(self._settings)
            self._connection.add_log_listener(_on_server_message)
            try:
                await self._follow_log(self._connection)
            except BaseException:
                self.disconnect()
                raise
        return self._connection

    async def _follow_log(self, connection: Connection) -> None:
        """Write to the log that is open now. Everything that is known of another one is dropped."""
        found = await self._find_log(connection, self.log)
        if found != self.log:
            log.warning("events are written to the next log", extra={"log": found.name, "closed": self.log.name})
            self.log, self._known_flush, self._holds_version = found, None, None
            self._holds = HoldIndex()
            self._drop_cache()

    async def _reconnect(self, deadline: float) -> Connection:
        """As connection(), but retried until `deadline`: a flush of unknown outcome may be stored, and only Postgres knows."""
        while True:
            try:
                return await self.connection()
            except DatabaseAway:
                if asyncio.get_running_loop().time() > deadline:
                    raise
                await asyncio.sleep(_PAUSE_SECONDS)

    async def _terminate_stalled_sessions(self) -> None:
        """End the session of a replica that has locked the log and stalls in its flush, which it can send again later."""
        try:
            connection = await self.connection()
            for row in await connection.fetch(SQL["terminate_stalled_sessions"]):
                log.warning(
                    "ended a session that had locked the log and waited for its client", extra={"pid": row["pid"]}
                )
        except (DatabaseAway, *DATABASE_ERRORS) as error:
            log.warning("stalled sessions could not be ended", extra={"error": repr(error)})

    def disconnect(self) -> None:
        """Close the connection at once; the server rolls back what it has not committed."""
        if self._connection is not None:
            self._connection.terminate()
        self._connection = None
        self._drop_cache()

    async def find_stored(self, events: Sequence[Event], deadline: float) -> dict[UUID, Stored]:
        """By id, those of `events` that are stored, under this or another id of the same item.

        The digests in the claims are compared. An id that the service computed has the same content by construction, and no
        claim, unless a client has chosen it for another event. Retried until `deadline`; raises DatabaseAway or DatabaseFailed.
        """

        async def find(connection: Connection) -> dict[UUID, Stored]:
            return await self._find_stored(connection, events)

        return await self._read_with_retries(find, deadline)

    async def _read_with_retries(self, read: Callable[[Connection], Awaitable[_T]], deadline: float) -> _T:
        for retry in count():
            try:
                connection = await self.connection()
                if found := await read(connection):
                    await self._confirm(connection, deadline)
            except DATABASE_ERRORS as error:
                kind = failure_kind(error)
                if kind is not FailureKind.BUSY:
                    self.disconnect()
                if kind not in {FailureKind.BUSY, FailureKind.AWAY}:
                    raise DatabaseFailed from error
                await _pause(retry, deadline, error)
            else:
                return found
        raise AssertionError  # count() never ends

    async def _find_stored(self, connection: Connection, events: Sequence[Event]) -> dict[UUID, Stored]:
        aliases = await self._aliases(connection, events)
        ids = [*(one for event in events for one in event.possible_ids), *aliases.values()]
        found_ids = [row["event_id"] for row in await connection.fetch(SQL["stored_ids"], ids)]
        stored, unsealed = await self._ids_by_seal(connection, found_ids)
        claimed = stored | {event.id for event in events if event.digest is not None}
        claims = await connection.fetch(SQL["event_claims"], list(map(str, claimed))) if claimed else []
        digests = {row["event_id"]: row["body_digest"] for row in claims}
        stored |= {row["event_id"] for row in claims if row["purged"]}
        if void := [str(event_id) for event_id in digests.keys() - stored]:
            await connection.execute(SQL["delete_void_claims"], void)
        if void := [str(alias) for alias, event_id in aliases.items() if event_id not in stored]:
            await connection.execute(SQL["delete_void_aliases"], void)
        found: dict[UUID, Stored] = {}
        for event in events:
            possible = [*event.possible_ids, *(aliases[one] for one in event.other_ids if one in aliases)]
            known = [one for one in possible if one in stored]
            if known:  # its own id counts if several are stored
                # A claim alone does not say what is stored: by an alias the content is compared.
                is_same = digests.get(known[0]) == event.digest and (
                    known[0] in event.possible_ids or bool(event.digest)
                )
                found[event.id] = Stored(known[0], is_same)
            elif others := [one for one in event.possible_ids if one in unsealed]:
                found[event.id] = Stored(others[0], same=False, is_sealed=False)
        for one in found.values():
            if not one.is_sealed:
                message = f"an event was sent whose id {one.id} a row has that the log does not"
                self._alarm("unsealed", f"event {one.id}", message)
        return found

    async def _confirm(self, connection: Connection, deadline: float) -> None:
        """Return when standbys have what was committed, or seen, on this very connection, if the settings want that.

        Another one may lead to a server that does not have it. Raises StandbyMissing.
        """
        if not self._settings.require_synchronous_standby:
            return
        try:
            patience_end = asyncio.get_running_loop().time() + self.reconnect_seconds
            await standby.confirm(connection, min(deadline, patience_end))
        except StandbyMissing:
            self._drop_cache()  # the log may have grown by what is not acknowledged
            raise

    async def _aliases(self, connection: Connection, events: Sequence[Event]) -> dict[UUID, UUID]:
        """By an id of an item that is among the other ids of `events`: the id under which the item was stored."""
        others = [str(one) for event in events for one in event.other_ids]
        rows = await connection.fetch(SQL["aliases"], others) if others else []
        return {row["alias"]: row["event_id"] for row in rows}

    async def _ids_by_seal(self, connection: Connection, ids: Collection[UUID]) -> tuple[set[UUID], set[UUID]]:
        """Those of `ids` under which the log has an event that is stored, and those that only rows inserted by SQL have."""
        sealed, present, remaining = set[UUID](), set[UUID](), list(ids)
        while remaining:
            some, remaining = remaining[:_ROWS_HASHED_AT_ONCE], remaining[_ROWS_HASHED_AT_ONCE:]
            rows = await connection.fetch(SQL["rows_with_ids"], some)
            if any(
                (row["log_id"] or 0) > self.log.id for row in rows
            ):  # another replica writes to the next log already
                await self._follow_log(connection)
            for row in rows:
                present.add(row["event_id"])
                if is_logged(row, self.log):
                    sealed.add(row["event_id"])
        return sealed, present - sealed

    async def find_claims(self, claims: Sequence[Claim], deadline: float) -> dict[tuple[str, str], bytes]:
        """The digest of the first body under each (scope, key) of `claims` that was sent before. Raises as find_stored()."""
        if not claims:
            return {}
        arguments = [c.scope for c in claims], [c.key for c in claims]

        async def find(connection: Connection) -> dict[tuple[str, str], bytes]:
            rows = await connection.fetch(SQL["key_claims"], *arguments)
            return {(row["scope"], row["key"]): row["body_digest"] for row in rows}

        return await self._read_with_retries(find, deadline)

    async def difference(self, event: Event, stored_id: UUID, deadline: float) -> str:
        """The members in which `event` differs from the one stored under `stored_id`, as text for its sender."""

        async def find(connection: Connection) -> asyncpg.Record | None:
            return await connection.fetchrow(SQL["stored_event"], stored_id)

        row = await self._read_with_retries(find, deadline)
        if row is None:
            return ""
        sent = dict(zip(ACCEPTED_COLUMNS, event.row, strict=True))
        if event.metadata == TIME_RECEIVED:  # the time of arrival: each send has another
            sent["event_timestamp"] = row["event_timestamp"]
        stored = {**row, "event_data": canonical(loads(row["event_data"]))}
        names = [_MEMBER_OF_COLUMN.get(name, name) for name, value in stored.items() if value != sent[name]]
        return f", which differs in {', '.join(names)}" if names else SAME_AS_STORED

    async def close(self) -> None:
        """Close the connection; if the server answers, the session ends without an error in its log."""
        if self._connection is not None:
            with suppress(*DATABASE_ERRORS):
                await self._connection.close(timeout=_CLOSE_SECONDS)

    async def _link(self, connection: Connection, events: Sequence[Event]) -> Flush:
        """Positions and links for `events`. A chain whose head is not cached counts as new; after a start or a lost race it is read.

        A wrong guess costs one retry: the flush detects it (FailureKind.STALE_HEADS), and the retry reads the heads.
        """
        if self._flushes_locking_log:
            await connection.execute("BEGIN")
            await connection.execute(SQL["lock_log"])
            self._tail = None
            self._heads.clear()
        if self._tail is None:
            self._tail = await self._read_tail(connection)
        if self._flushes_reading_heads or self._flushes_locking_log:
            unknown = {event.correlation_id for event in events} - self._heads.keys()
            if unknown:
                self._cache_heads(await connection.fetch(SQL["chain_heads"], list(unknown)))
        # After the end of the log was read: no unique key reveals a resend under another id.
        others = [one for event in events for one in event.other_ids]
        if others and (await connection.fetch(SQL["stored_ids"], others) or await self._aliases(connection, events)):
            await self._rollback()
            raise PossibleResend
        return link(events, self.log, self._tail, self._heads)

    async def _read_tail(self, connection: Connection) -> tuple[int, int]:
        """The last flush of the log: the one that follows without a gap from what this process knows.

        Whatever lies beyond a gap is not followed, so that no row that somebody inserts decides where the log goes on.
        """
        if is_new := self._known_flush is None:
            self._known_flush, is_new = await self._first_known_flush(connection)
        first, end = self._known_flush
        while True:
            row = await connection.fetchrow(SQL.of(self.log)["tail"], first, end, _TAIL_STEPS)
            if row is None:
                first, end = await self._continue_after_damage(connection, end)
                continue
            first, end = row["first_index"], row["first_index"] + row["count"]
            if row["step"] == _TAIL_STEPS:
                continue
            behind = await self._end_of_events(connection, end) if is_new else end
            if behind == end:
                break
            row = await connection.fetchrow(SQL.of(self.log)["tail"], first, end, 2)
            if (
                row is not None and row["first_index"] + row["count"] == end
            ):  # else another replica has written them since
                first, end, is_new = end, behind, False
        self._known_flush = first, end
        if self._holds_version != (version := (row["placed"], row["released"])):
            self._holds = HoldIndex(await connection.fetch(SQL["active_holds"]))
            self._holds_version = version
        return first, end - first

    async def _first_known_flush(self, connection: Connection) -> tuple[tuple[int, int], bool]:
        """Where a process that has read nothing yet begins to follow: at the leaf up to which a checkpoint was signed.

        Without one it is the leaf up to which the tiles reach, and without a flush there the first flush. Then (True) events that
        have lost their flushes at the end count too.
        """
        signed = await self._signed_size(connection, self.log)
        for size in (signed or await connection.fetchval(SQL.of(self.log)["tiled_size"]), 0):
            row = await connection.fetchrow(SQL.of(self.log)["flush_before"], size)
            if row is not None and row["end"] >= size:
                return (row["first_index"], row["end"]), not signed
            if signed:  # what was signed is there, whatever became of its flushes
                return (signed, signed), False
        return (0, 0), True

    async def _end_of_events(self, connection: Connection, end: int) -> int:
        """The position behind the events that follow from position `end` on and have their own hash, but have lost their flushes."""
        while True:
            before = end
            for row in await connection.fetch(SQL.of(self.log)["events_behind"], end):
                if row["log_index"] != end or stored_hash(row, self.log.name) != row["event_hash"]:
                    return end
                end += 1
            if end == before:
                return end

    async def _continue_after_damage(self, connection: Connection, end: int) -> tuple[int, int]:
        """The flush after which the log goes on if no flush ends at `end`, where this process knows that one did."""
        row = await connection.fetchrow(SQL.of(self.log)["flush_before"], end)
        first, stored_end = (-1, -1) if row is None else (row["first_index"], row["end"])
        if row is not None and stored_end < end and await connection.fetchval(SQL.of(self.log)["is_end"], stored_end):
            message = f"the log ends at {stored_end}; this process has seen it up to {end}"
            self._alarm("rolled_back", f"log of {end} events", message)
            return first, stored_end
        message = f"rows of log_flushes before position {end} are missing or changed; the log continues after them"
        self._alarm("damaged", f"flushes before {end}", message)
        if stored_end > end:
            return first, stored_end
        await connection.execute(SQL.of(self.log)["fill_hole"], stored_end, end)
        row = await connection.fetchrow(SQL.of(self.log)["flush_before"], end)
        assert row is not None
        return row["first_index"], row["end"]

    async def _send(
        self,
        connection: Connection,
        flush: Flush,
        claim_columns: tuple[list[Any], ...],
        action: FlushAction | None = None,
    ) -> None:
        """A crash before COMMIT leaves no trace; after it the flush is found by its leaves at its first_index."""
        parameters = (
            *(flush.previous_first, flush.first_index, len(flush.rows), flush.leaves),
            *_head_columns(flush),
            *claim_columns,
        )
        is_copied = len(flush.rows) >= _COPY_ROWS_MIN
        extra = [(event.record["trace_id"], event.record["span_id"], event.metadata) for event in flush.events]
        marks = self._holds.marks_for(flush.events) if self._holds else []
        requires_standby = self._settings.require_synchronous_standby
        if (is_copied or marks or action or requires_standby) and not connection.is_in_transaction():
            await connection.execute("BEGIN")
        if requires_standby:
            await self._require_standby(connection)
        won = await connection.fetchval(
            SQL.of(flush.log)["flush"],
            *parameters,
            *(([], [], [], []) if is_copied else (flush.rows, *zip(*extra, strict=True))),
        )
        if not won:
            await self._rollback()
            raise LostRace
        # After the compare-and-set, so that a replica with many small flushes cannot win against every large one.
        if is_copied:
            log_columns = flush.log.id, "sha256-rfc6962"
            records = (row + more + log_columns for row, more in zip(flush.rows, extra, strict=True))
            await connection.copy_records_to_table("audit_events", records=records, columns=COPY_COLUMNS)
        if marks:
            await connection.execute(SQL["mark_held"], *map(list, zip(*marks, strict=True)))
        if action is not None:
            try:
                await action(connection, flush)
            except AuditError:
                await self._rollback()
                raise
        if connection.is_in_transaction():
            await connection.execute("COMMIT")

    async def _require_standby(self, connection: Connection) -> None:
        """Commit nothing where COMMIT would not wait for a standby. It is asked in the transaction itself."""
        try:
            await standby.require(connection)
        except StandbyMissing:
            await self._rollback()
            raise

    async def _handle_failure(self, kind: FailureKind, error: Exception, events: Sequence[Event]) -> None:
        """Remove the cause, so that a retry can succeed, or raise what the writer has to decide."""
        match kind:
            case FailureKind.LOST_RACE:
                raise LostRace
            case FailureKind.RESEND:
                raise PossibleResend
            case FailureKind.REQUEST:
                raise RowRefused(_refusal(error)) from error
            case FailureKind.STALE_HEADS:
                self._heads.clear()
                self._flushes_reading_heads = _CAUTIOUS_FLUSHES
            case FailureKind.MISSING_PARTITION:
                await self._create_partitions(events)
            case FailureKind.BUSY:
                pass
            case _:
                log.error(
                    "a flush failed with an unexpected error", extra={"error": repr(error), "events": len(events)}
                )
                self.disconnect()
                raise DatabaseFailed from error

    async def _create_partitions(self, events: Sequence[Event]) -> None:
        dates = [event.date for event in events]
        try:
            connection = await self.connection()
            for month in sorted({date.replace(day=1) for date in dates}):  # not those between: imports reach far back
                await partitions.ensure(connection, month, month)
        except DATABASE_ERRORS as error:
            if getattr(error, "sqlstate", "") == "55000":
                raise MonthDetached from error
            if failure_kind(error) not in {FailureKind.BUSY, FailureKind.AWAY}:
                raise DatabaseFailed from error  # else the retry fails in the same way and comes here again

    async def _outcome_in_log(self, connection: Connection, flush: Flush) -> bool | None:
        """Whether a flush of unknown outcome was committed; None while the log has nothing at its position."""
        leaves = await connection.fetchval(SQL.of(flush.log)["leaves"], flush.first_index)
        return None if leaves is None else leaves == flush.leaves

    async def _is_committed(self, connection: Connection, flush: Flush, deadline: float) -> bool:
        """Whether a flush of unknown outcome was committed. LostRace if another one was; False while the log has nothing there."""
        written = await self._outcome_in_log(connection, flush)
        if written is False:
            raise LostRace
        if written:
            await self._confirm(connection, deadline)
        return written is True

    async def _leave_closed_log(self, uncertain: Flush | None, error: Exception, deadline: float) -> bool:
        """Write to the next log from now on. True if a flush of unknown outcome was committed before its log was closed.

        Else LostRace; DatabaseAway if there is no next log that may be written to, or Postgres went away.
        """
        try:
            connection, closed = await self.connection(), self.log
            if uncertain is not None and await self._outcome_in_log(connection, uncertain) is True:
                await self._confirm(connection, deadline)
                return True
            await self._follow_log(connection)
        except DATABASE_ERRORS as failure:
            self.disconnect()
            raise DatabaseAway from failure
        if self.log == closed and (uncertain is None or uncertain.log == closed):
            message = f"the log {closed.name} is closed, and no next one has a checkpoint that its key has signed"
            self._alarm("closed", "", message)
            raise DatabaseAway from error
        raise LostRace

    async def open_log(self, of_log: Log, event: Event, action: FlushAction) -> None:
        """Write the first event of a log that was opened in the transaction begun on connection(), run `action`, and commit."""
        self.log = of_log
        flush = link([event], of_log, (-1, 1), {})
        connection = await self.connection()
        await self._send(connection, flush, _claim_columns([event], []), action)
        await self._confirm(connection, math.inf)

    async def _rollback(self) -> None:
        connection = self._connection
        if connection is None or connection.is_closed() or not connection.is_in_transaction():
            return
        try:
            await connection.execute("ROLLBACK")
        except DATABASE_ERRORS:
            self.disconnect()

    def reset_after_lost_race(self) -> None:
        """After LostRace: read everything again, and take turns with the other replicas for a while."""
        self._drop_cache()
        self._flushes_locking_log = _CAUTIOUS_FLUSHES

    def _drop_cache(self) -> None:
        self._tail = None
        self._heads.clear()
        self._flushes_reading_heads = _CAUTIOUS_FLUSHES

    def _cache_heads(self, rows: Sequence[asyncpg.Record]) -> None:
        for row in rows:
            length = row["length"]
            if not 0 < length <= _LENGTH_MAX:
                message = f"a chain's head has the length {length}; the chain starts again at 0"
                self._alarm("damaged", f"correlation {row['correlation_id']}", message)
                length = 0
            self._heads[row["correlation_id"]] = Head(length, row["hash"], row["length"])

    def _cache_flush_result(self, flush: Flush) -> None:
        self._tail = (flush.first_index, len(flush.rows))
        self.bookmark = Bookmark(
            flush.log.id, flush.first_index + len(flush.rows) - 1, _beginning_of_last(flush.leaves)
        )
        self._known_flush = flush.first_index, flush.first_index + len(flush.rows)
        self._flushes_reading_heads = max(0, self._flushes_reading_heads - 1)
        self._flushes_locking_log = max(0, self._flushes_locking_log - 1)
        heads = self._heads
        for correlation_id, head in flush.heads.items():
            heads.pop(correlation_id, None)  # so that the dict stays in order of use
            heads[correlation_id] = head
        while len(heads) > _HEADS_MAX:
            del heads[next(iter(heads))]

    def _alarm(self, name: str, subject: str, message: str) -> None:
        """Count and log an alarm. It waits to be recorded as a finding, if it is about something: a closed log records nothing."""
        metrics.LOG_ALARMS.labels(alarm=name).inc()
        log.critical(message, extra={"alarm": name})
        if subject:
            self.alarms.add(LogAlarm(name, subject, message))


def _beginning_of_last(leaves: bytes) -> bytes:
    start = len(leaves) - _LEAF_BYTES
    return leaves[start : start + LEAF_BYTES]


def _on_server_message(_: object, message: Any) -> None:
    """Log what the server warns of: that a COMMIT has returned although somebody cancelled its wait for a standby."""
    if message.severity_en == "WARNING" and message.sqlstate == "01000":
        metrics.COMMIT_WARNINGS.inc()
        log.warning("Postgres has warned of a commit", extra={"warning": message.message})


async def _the_same(connection: Connection, known: Log) -> Log:
    del connection
    return known


async def _nothing_signed(connection: Connection, of_log: Log) -> int:
    del connection, of_log
    return 0


async def _pause(retry: int, deadline: float, error: Exception) -> None:
    """Wait before a retry: not at all the first time, longer each time after that. Raises DatabaseAway after `deadline`."""
    if asyncio.get_running_loop().time() > deadline:
        raise DatabaseAway from error
    if retry:
        await asyncio.sleep(_PAUSE_SECONDS * 2 ** min(retry - 1, _PAUSE_DOUBLINGS_MAX))


def _head_columns(flush: Flush) -> tuple[list[Any], ...]:
    """Columns of the new chains (correlation_id, length, hash) and of the others (with the expected length before length)."""
    new = [c for c, stored in flush.expected.items() if stored is None]
    old = [c for c, stored in flush.expected.items() if stored is not None]
    heads = flush.heads
    return (
        *(new, [heads[c].length for c in new], [heads[c].hash for c in new]),
        *(old, [flush.expected[c] for c in old], [heads[c].length for c in old], [heads[c].hash for c in old]),
    )


def _claim_columns(events: Sequence[Event], claims: Sequence[Claimed]) -> tuple[list[Any], ...]:
    """Columns scope, key, body_digest, event_ids, expires_at: of the ids that clients chose, and of Idempotency-Keys."""
    rows: list[tuple[Any, ...]] = [
        ("event", str(event.id), event.digest, f"{{{event.id}}}", None) for event in events if event.digest is not None
    ]
    rows += [("item", str(event.alias), b"", f"{{{event.id}}}", None) for event in events if event.alias is not None]
    for claim, ids in claims:
        rows.append((claim.scope, claim.key, claim.digest, f"{{{','.join(map(str, ids))}}}", claim.expires_at))
    return tuple([row[column] for row in rows] for column in range(5))


def _refusal(error: Exception) -> str:
    """Postgres's message about a value, without the rest of the row."""
    assert isinstance(error, asyncpg.PostgresError)
    where = f" in {error.column_name}" if error.column_name else ""
    return f"Postgres cannot store a value of this event{where}: {error.message}"
