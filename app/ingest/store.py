"""One flush, one transaction: compare-and-set on the log, rows, chain heads, claims. The writer is its only user.

The one rule (design section 5): the end of the log is read before everything else that a flush relies on, and all of it is
forgotten after a lost race. So a won compare-and-set proves that every cached head was true, and every hold.
"""

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from itertools import count
from typing import Any, TypeVar
from uuid import UUID

import asyncpg

from app import metrics, tracing
from app.db import CONNECTION_ERRORS, Connection, FailureKind, connect_writer, failure_kind
from app.errors import AuditError, DatabaseAway, DatabaseFailed, Unavailable
from app.events.canonical import canonical, loads
from app.ingest import partitions
from app.ingest.accept import ACCEPTED_COLUMNS, Event
from app.ingest.hold_index import HoldIndex
from app.ingest.link import Flush, Head, link
from app.ingest.submission import Claim
from app.settings import Settings
from app.sql import load

SQL = load("ingest")
COPY_COLUMNS = (
    *ACCEPTED_COLUMNS,
    *("log_index", "chain_index", "previous_event_hash", "event_hash", "trace_id", "span_id"),
    *("log_id", "hash_algorithm"),
)
_CONSTANTS = (0, "sha256-rfc6962")
_COPY_ROWS_MIN = 50
_HEADS_MAX = 50_000
_CAREFUL_FLUSHES = 100
_CLOSE_SECONDS = 1.0
_PAUSE_SECONDS = 0.02
_MEMBERS = {"event_version": "version"}
_PAUSE_DOUBLINGS_MAX = 6
_LENGTH_MAX = 2**62

Claimed = tuple[Claim, list[UUID]]
"""What was promised under an Idempotency-Key, and the ids in its answer."""
_T = TypeVar("_T")
FlushAction = Callable[[Connection, Flush], Awaitable[None]]
"""What belongs to a flush beside its rows: done in its transaction, when the compare-and-set is won. An AuditError undoes all.

Whatever it reads is true until the commit: nobody else can write to the log meanwhile. A store whose act has changed a hold
does not know of it, and must not be used again.
"""

log = logging.getLogger(__name__)


class LostRace(AuditError):
    """Another replica wrote to the log first: everything known of it is forgotten, begin again."""


class PossibleResend(AuditError):
    """An id of this flush is stored already: look it up, then send the rest."""


class RowRefused(AuditError):
    """Postgres refuses the content of a row; alone in its flush, the request is at fault."""

    status = 400
    slug = "validation-error"
    title = "Validation Error"


class MonthAway(Unavailable):
    """The month of this event is just being removed by a retention run; send it again shortly."""


class Store:
    """The writer's own connection, and what it knows of the end of the log and of the chains."""

    def __init__(self, settings: Settings, log_name: str) -> None:
        self.log_name = log_name
        self._settings = settings
        self._connection: Connection | None = None
        self._tail: tuple[int, int] | None = None
        self._heads: dict[str, Head] = {}
        self._holds = HoldIndex()
        self._holds_version: tuple[int | None, int | None] = None, None  # where in the log they last changed
        self._next_index_seen = 0
        self._careful = 0  # flushes that read heads first: after a start, and after a lost race
        self._contended = 0  # flushes that take turns with the other replicas
        self.patience_seconds = math.inf
        """How long a flush is tried again after the connection was lost, within its deadline. Short where there is a spool."""

    async def commit(
        self, events: Sequence[Event], claims: Sequence[Claimed], deadline: float, act: FlushAction | None = None
    ) -> None:
        """Write `events` behind the log, what was promised of them, and `act`, whole or not at all; returns when it is durable.

        Raises LostRace, PossibleResend, RowRefused, MonthAway, DatabaseFailed, or DatabaseAway. Whatever else goes wrong is
        repeated here until `deadline` (the event loop's clock). An outcome that is unknown is resolved by looking at the log.
        """
        uncertain: Flush | None = None
        promises = _claim_columns(events, claims)
        for repeat in count():
            flush = uncertain
            try:
                connection = await self._reconnect(deadline) if uncertain else await self.connection()
                if uncertain and (written := await self._is_written(connection, uncertain)) is not None:
                    if written:
                        return
                    raise LostRace
                flush = flush or await self._link(connection, events)
                with tracing.span("transaction", first_index=flush.first_index, events=len(flush.rows)):
                    await self._send(connection, flush, promises, act)
            except (*CONNECTION_ERRORS, asyncpg.PostgresError) as error:
                kind = failure_kind(error)
                metrics.FLUSH_REPEATS.labels(reason=kind.name.lower()).inc()
                if kind is FailureKind.AWAY:
                    log.warning("a flush failed", extra={"error": repr(error), "events": len(events)})
                    self.disconnect()
                    uncertain = flush
                    deadline = min(deadline, asyncio.get_running_loop().time() + self.patience_seconds)
                else:
                    await self._rollback()
                    if kind is FailureKind.BUSY:
                        await self._end_frozen()
                    # What was sent before may be what this attempt collides with: then the log says whose it is.
                    if uncertain is None:
                        await self._clear_up(kind, error, events)
                await _pause(repeat, deadline, error)
            else:
                self._remember(flush)
                return

    async def connection(self) -> Connection:
        """The writer's connection, opened when there is none. Raises DatabaseAway."""
        if self._connection is None or self._connection.is_closed():
            self._forget()
            self._connection = await connect_writer(self._settings)
        return self._connection

    async def _reconnect(self, deadline: float) -> Connection:
        """As connection(), but patient: what was sent may be stored, and only Postgres knows."""
        while True:
            try:
                return await self.connection()
            except DatabaseAway:
                if asyncio.get_running_loop().time() > deadline:
                    raise
                await asyncio.sleep(_PAUSE_SECONDS)

    async def _end_frozen(self) -> None:
        """End the session of a replica that holds the log and does not go on; its events are still its own to send."""
        try:
            connection = await self.connection()
            for row in await connection.fetch(SQL["end_frozen"]):
                log.warning("ended a session that held the log and waited for its client", extra={"pid": row["pid"]})
        except (DatabaseAway, *CONNECTION_ERRORS, asyncpg.PostgresError) as error:
            log.warning("frozen sessions could not be looked for", extra={"error": repr(error)})

    def disconnect(self) -> None:
        """Drop the connection at once; the server ends what it was doing."""
        if self._connection is not None:
            self._connection.terminate()
        self._connection = None
        self._forget()

    async def stored(self, events: Sequence[Event], deadline: float) -> dict[UUID, bool]:
        """Of the ids of `events`, those that are stored: True when the content is the same, False when it is another's.

        Ids that the service computed are equal by construction. An id that a client chose is claimed with its body's digest.
        Repeated as commit() is; raises DatabaseAway or DatabaseFailed.
        """

        async def look_up(connection: Connection) -> dict[UUID, bool]:
            return await self._look_up(connection, events)

        return await self._patiently(look_up, deadline)

    async def _patiently(self, read: Callable[[Connection], Awaitable[_T]], deadline: float) -> _T:
        for repeat in count():
            try:
                return await read(await self.connection())
            except (*CONNECTION_ERRORS, asyncpg.PostgresError) as error:
                kind = failure_kind(error)
                if kind is not FailureKind.BUSY:
                    self.disconnect()
                if kind not in {FailureKind.BUSY, FailureKind.AWAY}:
                    raise DatabaseFailed from error
                await _pause(repeat, deadline, error)
        raise AssertionError  # count() never ends

    async def _look_up(self, connection: Connection, events: Sequence[Event]) -> dict[UUID, bool]:
        ids = [event.id for event in events]
        chosen = {str(event.id): event.digest for event in events if event.digest is not None}
        rows = {row["event_id"] for row in await connection.fetch(SQL["stored_ids"], ids)}
        claims = await connection.fetch(SQL["claims"], list(chosen)) if chosen else []
        digests = {row["event_id"]: row["body_digest"] for row in claims}
        rows |= {row["event_id"] for row in claims if row["purged"]}
        if void := [str(event_id) for event_id in digests.keys() - rows]:
            await connection.execute(SQL["void_claims"], void)
        return {e.id: e.digest is None or digests.get(e.id) == e.digest for e in events if e.id in rows}

    async def claims(self, claims: Sequence[Claim], deadline: float) -> dict[tuple[str, str], bytes]:
        """The digests of the bodies that came first under the keys of `claims`, where any did. Raises as stored() does."""
        if not claims:
            return {}
        arguments = [c.scope for c in claims], [c.key for c in claims]

        async def look_up(connection: Connection) -> dict[tuple[str, str], bytes]:
            rows = await connection.fetch(SQL["key_claims"], *arguments)
            return {(row["scope"], row["key"]): row["body_digest"] for row in rows}

        return await self._patiently(look_up, deadline)

    async def difference(self, event: Event, deadline: float) -> str:
        """In which members `event` differs from the one that is stored under its id, in words for its sender."""

        async def look_up(connection: Connection) -> asyncpg.Record | None:
            return await connection.fetchrow(SQL["stored_event"], event.id)

        row = await self._patiently(look_up, deadline)
        if row is None:
            return ""
        own = dict(zip(ACCEPTED_COLUMNS, event.row, strict=True))
        stored = {**row, "event_data": canonical(loads(row["event_data"]))}
        names = [_MEMBERS.get(name, name) for name, value in stored.items() if value != own[name]]
        return f", which differs in {', '.join(names)}" if names else ", which differs only in what is not stored"

    async def close(self) -> None:
        """End the connection, in good order if the server answers."""
        if self._connection is not None:
            with suppress(*CONNECTION_ERRORS, asyncpg.PostgresError):
                await self._connection.close(timeout=_CLOSE_SECONDS)

    async def _link(self, connection: Connection, events: Sequence[Event]) -> Flush:
        """Places for `events`. A chain that is not known is taken as new, unless recent flushes say that this is unwise."""
        if self._contended:
            await connection.execute("BEGIN")
            await connection.execute(SQL["lock_log"])
            self._tail = None
            self._heads.clear()
        if self._tail is None:
            self._tail = await self._read_tail(connection)
        if self._careful or self._contended:
            unknown = {event.correlation_id for event in events} - self._heads.keys()
            if unknown:
                self._learn(await connection.fetch(SQL["chain_heads"], list(unknown)))
        return link(events, self._tail, self._heads)

    async def _read_tail(self, connection: Connection) -> tuple[int, int]:
        row = await connection.fetchrow(SQL["tail"])
        if (
            not self._next_index_seen
            or row is None
            or row["count"] < 1
            or row["first_index"] + row["count"] < self._next_index_seen
        ):
            row = await self._mended_tail(connection)
        if self._holds_version != (version := (row["placed"], row["released"])):
            self._holds = HoldIndex(await connection.fetch(SQL["active_holds"]))
            self._holds_version = version
        return row["first_index"], row["count"]

    async def _mended_tail(self, connection: Connection) -> asyncpg.Record:
        """The end of a log that is not as it was left, or was not looked at yet: behind every position that a row has."""
        row = await connection.fetchrow(SQL["tail_and_last"])
        next_index = 0 if row is None else row["first_index"] + row["count"]
        if row is not None and next_index < self._next_index_seen:
            _alarm(
                "rolled_back", f"the log ends at {next_index}; this process has written up to {self._next_index_seen}"
            )
            self._next_index_seen = next_index
        if row is not None and row["count"] > 0 and (row["last"] is None or row["last"] < next_index):
            return row
        _alarm(
            "damaged", "rows of log_flushes are missing or changed; the log goes on behind every position that is known"
        )
        await connection.execute(SQL["seed"])
        row = await connection.fetchrow(SQL["tail"])
        assert row is not None
        return row

    async def _send(
        self, connection: Connection, flush: Flush, promises: tuple[list[Any], ...], act: FlushAction | None = None
    ) -> None:
        """A crash before COMMIT leaves no trace; after it the flush is found by its leaves at its first_index."""
        parameters = (
            *(flush.previous_first, flush.first_index, len(flush.rows), flush.leaves),
            *_head_columns(flush),
            *promises,
        )
        rows, copied = (flush.rows, []) if len(flush.rows) < _COPY_ROWS_MIN else ([], flush.rows)
        traces = [(event.record["trace_id"], event.record["span_id"]) for event in flush.events]
        held = self._holds.marks(flush.events) if self._holds else []
        if (copied or held or act) and not connection.is_in_transaction():
            await connection.execute("BEGIN")
        won = await connection.fetchval(
            SQL["flush"], *parameters, rows, *(zip(*traces, strict=True) if rows else ([], []))
        )
        if not won:
            await self._rollback()
            raise LostRace
        # After the compare-and-set, so that a replica with many small flushes cannot win against every large one.
        if copied:
            records = [row + trace + _CONSTANTS for row, trace in zip(copied, traces, strict=True)]
            await connection.copy_records_to_table("audit_events", records=records, columns=COPY_COLUMNS)
        if held:
            await connection.execute(SQL["hold_written"], *map(list, zip(*held, strict=True)))
        if act is not None:
            try:
                await act(connection, flush)
            except AuditError:
                await self._rollback()
                raise
        if connection.is_in_transaction():
            await connection.execute("COMMIT")

    async def _clear_up(self, kind: FailureKind, error: Exception, events: Sequence[Event]) -> None:
        """Make the next attempt a better one, or raise what the writer has to decide."""
        match kind:
            case FailureKind.LOST_RACE:
                raise LostRace
            case FailureKind.RESEND:
                raise PossibleResend
            case FailureKind.REQUEST:
                raise RowRefused(_refusal(error)) from error
            case FailureKind.STALE_HEADS:
                self._heads.clear()
                self._careful = _CAREFUL_FLUSHES
            case FailureKind.MISSING_PARTITION:
                await self._make_partitions(events)
            case FailureKind.BUSY:
                pass
            case _:
                log.error("a flush failed", extra={"error": repr(error), "events": len(events)})
                self.disconnect()
                raise DatabaseFailed from error

    async def _make_partitions(self, events: Sequence[Event]) -> None:
        dates = [event.date for event in events]
        try:
            connection = await self.connection()
            await partitions.ensure(connection, min(dates), max(dates) + timedelta(days=1))
        except (*CONNECTION_ERRORS, asyncpg.PostgresError) as error:
            if getattr(error, "sqlstate", "") == "55000":
                raise MonthAway from error
            if failure_kind(error) not in {FailureKind.BUSY, FailureKind.AWAY}:
                raise DatabaseFailed from error  # else the next attempt comes here again

    async def _is_written(self, connection: Connection, flush: Flush) -> bool | None:
        """Whether a flush of unknown outcome was committed; None while nothing stands at its place."""
        leaves = await connection.fetchval(SQL["leaves"], flush.first_index)
        return None if leaves is None else leaves == flush.leaves

    async def _rollback(self) -> None:
        connection = self._connection
        if connection is None or connection.is_closed() or not connection.is_in_transaction():
            return
        try:
            await connection.execute("ROLLBACK")
        except (*CONNECTION_ERRORS, asyncpg.PostgresError):
            self.disconnect()

    def lost(self) -> None:
        """Forget what a lost race has made doubtful, and take turns for a while."""
        self._forget()
        self._contended = _CAREFUL_FLUSHES

    def _forget(self) -> None:
        self._tail = None
        self._heads.clear()
        self._careful = _CAREFUL_FLUSHES

    def _learn(self, rows: Sequence[asyncpg.Record]) -> None:
        for row in rows:
            length = row["length"]
            if not 0 < length <= _LENGTH_MAX:
                _alarm("damaged", f"a chain's head has the length {length}; the chain begins anew")
                length = 0
            self._heads[row["correlation_id"]] = Head(length, row["hash"], row["length"])

    def _remember(self, flush: Flush) -> None:
        self._tail = (flush.first_index, len(flush.rows))
        self._next_index_seen = flush.first_index + len(flush.rows)
        self._careful = max(0, self._careful - 1)
        self._contended = max(0, self._contended - 1)
        heads = self._heads
        for correlation_id, head in flush.heads.items():
            heads.pop(correlation_id, None)  # so that the dict stays in order of use
            heads[correlation_id] = head
        while len(heads) > _HEADS_MAX:
            del heads[next(iter(heads))]


async def _pause(repeat: int, deadline: float, error: Exception) -> None:
    """Before what failed is tried again: not at all the first time, longer each further time. DatabaseAway past `deadline`."""
    if asyncio.get_running_loop().time() > deadline:
        raise DatabaseAway from error
    if repeat:
        await asyncio.sleep(_PAUSE_SECONDS * 2 ** min(repeat - 1, _PAUSE_DOUBLINGS_MAX))


def _head_columns(flush: Flush) -> tuple[list[Any], ...]:
    begun = [c for c, stored in flush.expected.items() if stored is None]
    grown = [c for c, stored in flush.expected.items() if stored is not None]
    heads = flush.heads
    return (
        *(begun, [heads[c].length for c in begun], [heads[c].hash for c in begun]),
        *(grown, [flush.expected[c] for c in grown], [heads[c].length for c in grown], [heads[c].hash for c in grown]),
    )


def _claim_columns(events: Sequence[Event], claims: Sequence[Claimed]) -> tuple[list[Any], ...]:
    rows: list[tuple[Any, ...]] = [
        ("event", str(event.id), event.digest, f"{{{event.id}}}", None) for event in events if event.digest is not None
    ]
    for claim, ids in claims:
        rows.append((claim.scope, claim.key, claim.digest, f"{{{','.join(map(str, ids))}}}", claim.expires_at))
    return tuple([row[column] for row in rows] for column in range(5))


def _refusal(error: Exception) -> str:
    """Postgres's words for a value, without row contents."""
    assert isinstance(error, asyncpg.PostgresError)
    where = f" in {error.column_name}" if error.column_name else ""
    return f"Postgres cannot store a value of this event{where}: {error.message}"


def _alarm(name: str, message: str) -> None:
    metrics.LOG_ALARMS.labels(alarm=name).inc()
    log.critical(message, extra={"alarm": name})
