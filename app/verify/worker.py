"""The background verifier: verifies the log again and again at a bounded rate. It writes its position and what it finds only.

A round is one pass over the whole log, part by part; the next round begins at position 0.

Every replica runs it; a lock in Postgres lets one at a time work. No finding ever stops the service.
"""

import logging
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from time import monotonic
from typing import NoReturn, Protocol

import asyncpg
from cryptography.x509 import Certificate

from app import metrics
from app.db import DATABASE_ERRORS, Connection, connect
from app.errors import DatabaseAway
from app.events.log import Log
from app.settings import Settings
from app.tlog.continued import Seam, keys_of, newest_log, read_seam
from app.tlog.evidence import NO_EVIDENCE, read_evidence
from app.tlog.merkle import HASH_BYTES, Frontier, hashes
from app.tlog.note import PublicKey
from app.tlog.orders import read_orders, version
from app.tlog.tiles import SQL as TLOG_SQL
from app.tlog.timestamp import WrongTimestamp, require_timestamp
from app.verify.checkpoints import REWRITTEN, LogState, checkpoint_defect, parse_checkpoint
from app.verify.extent import log_size
from app.verify.heads import verify_equal_heads, verify_heads_without_end, verify_sum_of_heads
from app.verify.inserted import verify_inserted
from app.verify.log import LogResult, verify_positions
from app.verify.notifications import verify_notifications
from app.verify.orders import Selectors, held_selectors, verify_marks, verify_orders
from app.verify.row import Defect, mark_reordered
from app.verify.shadowed import verify_ids_of, verify_unlogged_ids
from app.verify.snapshot import SQL
from app.verify.tree import verify_last_signed
from app.workers import WorkerConnection, run_forever

_PART_EVENTS_MAX = 500
_PARTS_PER_SECOND = 2
_RETRY_SECONDS = 10.0
_IDLE_SECONDS = 5.0
_COUNT_SECONDS = 300.0
_IDLE_TIMES = 20
"""How many times longer than the end of a round the pause after it is: it reads all unsealed rows."""
_FINDINGS_MAX = 100
_STATEMENT_TIMEOUT_MS = 600_000

log = logging.getLogger(__name__)

KnownCheckpoints = Callable[[], Awaitable[Mapping[str, str]]]
"""Reads checkpoints that are out of the database's reach, as notes by what messages call them."""


class Recorder(Protocol):
    """Records what is found beyond the round in which it is; app/findings/recorder.py says how."""

    async def record(self, defects: Sequence[tuple[Defect, bool]]) -> None: ...
    async def end_round(self) -> None: ...
    def follow(self, log: Log) -> None: ...


async def no_checkpoints() -> Mapping[str, str]:
    """None are known."""
    return {}


async def verify_forever(
    settings: Settings,
    of_log: Log,
    keys: tuple[PublicKey, ...],
    recorder: Recorder,
    known: KnownCheckpoints,
    *,
    certificates: Sequence[Certificate] = (),
) -> NoReturn:
    """Verify the log again and again for as long as the process runs, whenever no other replica does.

    With `certificates` of timestamp authorities the signatures of stored timestamps are verified too.
    """
    rate = settings.verifier_events_per_second
    part_events = min(_PART_EVENTS_MAX, max(1, rate // _PARTS_PER_SECOND))
    verifier = LogVerifiers(of_log, keys, part_events, recorder, known, certificates=certificates)

    async def open_connection() -> Connection:
        opened = await connect(settings.model_copy(update={"statement_timeout_ms": _STATEMENT_TIMEOUT_MS}))
        verifier.has_lock = False
        return opened

    connection = WorkerConnection(open_connection)

    async def verify_part() -> float:
        async with connection.use() as usable:
            started = monotonic()
            if not verifier.has_lock and not await verifier.try_lock(usable):
                return _RETRY_SECONDS
            verified = await verifier.verify_next_part(usable)
            took = monotonic() - started
            return max(0.0, verified / rate - took) if verified else max(_IDLE_SECONDS, _IDLE_TIMES * took)

    await run_forever(
        "verifier",
        verify_part,
        pause_seconds=_RETRY_SECONDS,
        failure="the log could not be verified",
        uncounted=(DatabaseAway, *DATABASE_ERRORS),  # Postgres is away, not the verifier broken
    )


class LogVerifiers:
    """Verifies all logs of the database, a round of each after another."""

    def __init__(
        self,
        first: Log,
        keys: tuple[PublicKey, ...],
        part_events: int,
        recorder: Recorder | None = None,
        known: KnownCheckpoints = no_checkpoints,
        *,
        certificates: Sequence[Certificate] = (),
    ) -> None:
        self._recorder = recorder

        def verifier_of(of_log: Log) -> Verifier:
            return Verifier(of_log, keys, part_events, recorder, known, certificates=certificates)

        self._keys, self._verifier_of = keys, verifier_of
        self._verifiers = [verifier_of(first)]
        self._next = 0
        self.has_lock = False
        """Whether this process is the one that verifies."""

    async def try_lock(self, connection: Connection) -> bool:
        """Lock the verification; False while another replica has the lock. The lock ends with the connection."""
        self.has_lock = await connection.fetchval(SQL["try_lock_verifier"])
        return self.has_lock

    async def verify_next_part(self, connection: Connection) -> int:
        """Verify the next part and store the findings. Returns how many positions it had; 0 at the end of a round of one log."""
        newest = await newest_log(connection, self._verifiers[-1].log, self._keys)
        if newest != self._verifiers[-1].log:
            if self._recorder is not None:
                self._recorder.follow(newest)
            logs = list(newest.and_earlier())
            for later in logs[len(self._verifiers) :]:
                self._verifiers.append(self._verifier_of(later))
            for one, its_log in zip(self._verifiers, logs, strict=True):
                one.log, one.newest = its_log, newest
        verified = await self._verifiers[self._next].verify_next_part(connection)
        if not verified:
            self._next = (self._next + 1) % len(self._verifiers)
        return verified


class Verifier:
    """The state of the verification of one log.

    The tree so far is in this process only: after a start it is complete at the end of the next whole round.
    """

    def __init__(
        self,
        of_log: Log,
        keys: tuple[PublicKey, ...],
        part_events: int,
        recorder: Recorder | None = None,
        known: KnownCheckpoints = no_checkpoints,
        *,
        certificates: Sequence[Certificate] = (),
    ) -> None:
        self._certificates = certificates
        """Of timestamp authorities. Without one a token is only compared with what it was made for."""
        self.log = of_log
        self.newest = of_log
        """The last log, which may say what of this one was purged, erased or lost."""
        self._seam: Seam | None = None
        """How the log was closed."""
        self._keys = keys
        self._part_events = part_events
        self._recorder = recorder
        self._read_known = known
        self._held: Selectors = ()
        self._orders_version = ""
        self._known: Mapping[str, str] | None = None
        """The checkpoints with which this round compares the log, by what messages call them; None between rounds."""
        self._evidence = NO_EVIDENCE
        self._frontier = Frontier()
        self._last_round: tuple[int, bytes] | None = None
        """Size and root of the log at the end of the last round, which nobody who writes to the database can change."""
        self._unsealed: int | None = None
        """How many unsealed rows were counted last."""
        self._count_again_at = 0.0
        self._position: int | None = None
        """The next position to verify; None if it has to be read. Nobody who writes to the database changes it during a round."""
        self.has_lock = False
        """Whether this process is the one that verifies."""

    async def try_lock(self, connection: Connection) -> bool:
        """Lock the verification; False while another replica has the lock. The lock ends with the connection."""
        self.has_lock = await connection.fetchval(SQL["try_lock_verifier"])
        self._position = None
        return self.has_lock

    async def verify_next_part(self, connection: Connection) -> int:
        """Verify the next part of the log and record what is found. Returns how many positions it had; 0 at the end of a round.

        After a failure the same part is verified again.
        """
        if self._known is None:
            self._known = await self._read_known()  # before the snapshot, which has all of what they were signed for
        frontier, last_round = deepcopy(self._frontier), self._last_round
        try:
            return await self._verify_next_part(connection)
        except BaseException:
            self._frontier, self._last_round = frontier, last_round
            raise

    async def _verify_next_part(self, connection: Connection) -> int:
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            state = await connection.fetchrow(SQL.of(self.log)["verifier_state"])
            if not self.log.is_open:
                self._seam = await read_seam(connection, Log(self.log.id + 1, self.log.first_name))
            stored: int = 0 if state is None else state["position"]
            first = stored if self._position is None else self._position
            size = await self._size(connection)
            end = min(first + self._part_events, size)
            is_end = first >= size
            if monotonic() > self._count_again_at:
                await self._count_unsealed(connection)
            defects = (
                await self._verify_rest(connection, size)
                if is_end
                else await self._verify_part(connection, first, end, size)
            )
            if self._last_round is not None and size < self._last_round[0]:
                before = self._last_round[0]
                message = f"rolled back: the log has {size} events; {before} were verified before"
                defects.append(Defect("rolled back", message, position=size, subject=f"log of {before} events"))
                self._last_round = None
            if is_end:
                defects += self._defects_of_known(size) + await self._defects_of_sizes(connection, size)
        await self._store(connection, defects, 1 if state is None else state["round"])
        if is_end:
            await self._end_round(connection, size)
            return 0
        await connection.execute(SQL.of(self.log)["set_verifier_position"], end)
        self._position = end
        metrics.VERIFIER_POSITION.set(end)
        metrics.VERIFIED_EVENTS.inc(end - first)
        return end - first

    async def _store(self, connection: Connection, defects: list[Defect], round_number: int) -> None:
        """Store the defects for readers, and have those recorded in the log that stand there not yet."""
        if self._recorder is None or not defects:
            await _store_findings(connection, self.log, defects, round_number)
            return
        async with connection.transaction():  # what could not be recorded counts as new again
            found = await _store_findings(connection, self.log, defects, round_number)
            await self._recorder.record([(self._named(defect), is_new) for defect, is_new in found])

    def _named(self, defect: Defect) -> Defect:
        """A defect as a finding names it: the positions of findings are those of the open log."""
        if self.log.is_open or defect.position is None:
            return defect
        return replace(defect, position=None, subject=f"position {defect.position} of {self.log.name}")

    def _defects_of_known(self, size: int) -> list[Defect]:
        """The defects of known checkpoints whose roots no part of the log was compared with: they are larger, or not signed."""
        state, defects = LogState(self.log.name, size, {}), []
        for name, note in (self._known or {}).items():
            defect = checkpoint_defect(name, note, keys_of(self.log, self._keys), state)
            if defect is not None and self._is_about(note) and not self._admits(note):
                defects.append(replace(defect, subject=_subject_of(note)))
        return defects

    async def _size(self, connection: Connection) -> int:
        """How many positions the log has, whatever stands beyond its end."""
        if self._seam is not None:
            return self._seam.size
        notes = [row["note"] for row in await connection.fetch(TLOG_SQL.of(self.log)["newest_notes"])]
        known = 0 if self._last_round is None else self._last_round[0]
        return await log_size(
            connection, self.log, notes, keys_of(self.log, self._keys), max(known, self._frontier.size)
        )

    async def _verify_rest(self, connection: Connection, size: int) -> list[Defect]:
        """The defects of rows that are at no position of the log, and of heads without a last event, at the end of a round."""
        await self._count_unsealed(connection)
        found = [
            await verify_inserted(connection, self.log, size),
            await verify_unlogged_ids(connection, self.log, size),
        ]
        if not self.log.is_open:
            return [defect for defects in found for defect in defects.listed]
        found += [
            await verify_heads_without_end(connection, self.newest),
            await verify_equal_heads(connection),
            await verify_last_signed(connection, self.log),
        ]
        purged = (await read_evidence(connection, self.newest)).purged
        notifications = await verify_notifications(connection, self.newest, purged)
        if not any(defects.count for defects in found):  # else it is known already why the sum is another one
            found.append(await verify_sum_of_heads(connection, self.log, size))
        found += [notifications.defects, await verify_orders(connection, self.newest)]
        return [defect for defects in found for defect in defects.listed]

    async def _count_unsealed(self, connection: Connection) -> None:
        """Count the rows that others inserted: at the end of each round, and every few minutes of a long one."""
        started = monotonic()
        counted = await connection.fetchrow(SQL["count_unsealed"])
        assert counted is not None
        rows, correlations = counted["rows"], counted["correlations"]
        for what, count in (("rows", rows), ("correlations", correlations)):
            metrics.UNSEALED.labels(what=what).set(count)
        if self._unsealed is not None and rows > self._unsealed:
            extra = {"new": rows - self._unsealed, "rows": rows, "correlations": correlations}
            log.warning("others have inserted events by SQL, which are not in the log", extra=extra)
        self._unsealed = rows
        self._count_again_at = monotonic() + max(_COUNT_SECONDS, _IDLE_TIMES * (monotonic() - started))

    async def _verify_part(self, connection: Connection, first: int, end: int, size: int) -> list[Defect]:
        """The defects of positions from `first` up to, not including, `end`: of rows, heads, flushes and checkpoints."""
        if first == 0:
            self._evidence = NO_EVIDENCE
        result = await verify_positions(connection, self.log, first, end, self._evidence)
        if result.missing or result.defects.count:  # only then does it matter what was purged and erased meanwhile
            self._evidence = await read_evidence(connection, self.newest)
            result = await verify_positions(connection, self.log, first, end, self._evidence)
        defects = mark_reordered(result.defects.listed, result.missing_leaves)
        defects += (await verify_ids_of(connection, result.defects.listed)).listed
        if result.missing:
            defects += await _missing_event_defects(connection, result)
        for row in await connection.fetch(SQL.of(self.log)["head_mismatches"], first, end):
            message = f"edited: the chain's head does not match event {row['chain_index']} of the chain"
            defects.append(Defect("edited", message, correlation_id=row["correlation_id"], position=row["log_index"]))
        if held := await self._read_held(connection, is_new_round=first == 0):
            defects += (await verify_marks(connection, self.log, first, end, held)).listed
        stamped = await connection.fetch(SQL.of(self.log)["timestamps_within"], first, end)
        defects += self._defects_of_tokens(stamped)
        return defects + await self._verify_tree(connection, first, end, size, stamped)

    def _defects_of_tokens(self, stamped: Sequence[asyncpg.Record]) -> list[Defect]:
        """The defects of tokens: not one of the note beside it, or by no authority that is trusted."""
        defects = []
        for row in stamped:
            try:
                require_timestamp(row["token"], row["note"], self._certificates)
            except WrongTimestamp as error:
                defects.append(_wrong_timestamp(row["size"], error, self._timestamp(row["size"])))
        return defects

    def _timestamp(self, size: int) -> str:
        """What findings about a timestamp are about: in a later log the name tells it from one of that size in another."""
        return f"timestamp {size} of {self.log.name}" if self.log.id else f"timestamp {size}"

    async def _defects_of_sizes(self, connection: Connection, size: int) -> list[Defect]:
        """The defects of timestamps of checkpoints that a log of this size cannot have had."""
        state, defects = LogState(self.log.name, size, {}), []
        for row in await connection.fetch(SQL.of(self.log)["timestamps_outside"], size):
            name, keys = f"the timestamped checkpoint at {row['size']}", keys_of(self.log, self._keys)
            defect = checkpoint_defect(name, row["note"], keys, state, row["size"])
            if defect is not None and not self._admits(row["note"]):
                defects.append(replace(defect, subject=self._timestamp(row["size"])))
        return defects

    async def _checkpoints_within(
        self, connection: Connection, first: int, end: int, stamped: Sequence[asyncpg.Record]
    ) -> dict[int, dict[str, str]]:
        """The stored checkpoints of sizes above `first` up to `end`, and all known ones: by size, as notes by their names."""
        notes = defaultdict[int, dict[str, str]](dict)
        for row in stamped:
            notes[row["size"]][f"the timestamped checkpoint at {row['size']}"] = row["note"]
        for row in await connection.fetch(SQL.of(self.log)["checkpoints_within"], first, end):
            notes[row["size"]][f"the stored checkpoint at {row['size']}"] = row["note"]
        for name, note in (self._known or {}).items():
            if (checkpoint := parse_checkpoint(note)) is not None and checkpoint.origin == self.log.name:
                notes[checkpoint.size][name] = note
        return notes

    async def _read_held(self, connection: Connection, *, is_new_round: bool) -> Selectors:
        """What the active holds of the log cover. They are read again when there is another one, and in each round."""
        found = await version(connection)
        if is_new_round or found != self._orders_version:
            self._held = await held_selectors(connection, await read_orders(connection, self.newest))
            self._orders_version = found
        return self._held

    async def _verify_tree(
        self, connection: Connection, first: int, end: int, size: int, stamped: Sequence[asyncpg.Record]
    ) -> list[Defect]:
        """The defects of flushes and checkpoints, and whether the log still begins with the one of the last round."""
        if first == 0:
            self._frontier = Frontier()
        if self._frontier.size != first:
            return []  # this process began in the middle of a round, or a flush is missing
        notes = await self._checkpoints_within(connection, first, end, stamped)
        leaves, defects = b"", []
        for row in await connection.fetch(TLOG_SQL.of(self.log)["leaves"], first, end):
            position = first + len(leaves) // HASH_BYTES
            if leaves and row["first"] < position:
                message = f"inserted: another flush has the leaf at position {row['first']} of the log too"
                defects.append(Defect("inserted", message, position=row["first"]))
            else:
                leaves += row["leaves"]
        if len(leaves) != (end - first) * HASH_BYTES and (self._seam is None or end <= self._seam.tree_size):
            message = (
                f"removed: flushes between positions {first} and {end} of the log are missing, or have lost leaves"
            )
            defects.append(Defect("removed", message, position=first))
        for leaf in hashes(leaves):
            self._frontier.append(leaf)
            at = self._frontier.size
            for name, note in notes.get(at, {}).items():
                state = LogState(self.log.name, size, {at: self._frontier.root()})
                defect = checkpoint_defect(name, note, keys_of(self.log, self._keys), state, at)
                defects += [] if defect is None or self._admits(note) else [replace(defect, subject=_subject_of(note))]
            last = self._last_round
            if last is not None and at == last[0] and self._frontier.root() != last[1]:
                message = REWRITTEN.format(size=at, name="the last round")
                defects.append(Defect("edited", message, position=at, subject=f"checkpoint {at}"))
        return defects

    def _is_about(self, note: str) -> bool:
        """Whether a checkpoint has to fit this log: it names it, or names none and this one is the open one."""
        checkpoint = parse_checkpoint(note)
        if checkpoint is not None and checkpoint.origin == self.log.name:
            return True
        others = {one.name for one in self.newest.and_earlier()}
        return self.log.is_open and (checkpoint is None or checkpoint.origin not in others)

    def _admits(self, note: str) -> bool:
        """Whether the event that continued the log admits that it is not what this checkpoint was signed for."""
        checkpoint = parse_checkpoint(note)
        return self._seam is not None and checkpoint is not None and self._seam.admits(checkpoint)

    async def _end_round(self, connection: Connection, size: int) -> None:
        if self._recorder is not None:
            await self._recorder.end_round()
        if self._frontier.size == size:
            self._last_round = size, self._frontier.root()
        await connection.execute(SQL.of(self.log)["end_verifier_round"], size)
        self._known, self._position = None, 0
        await _export_finding_counts(connection)
        metrics.VERIFIER_ROUNDS.inc()


async def _store_findings(
    connection: Connection, of_log: Log, defects: list[Defect], round_number: int
) -> list[tuple[Defect, bool]]:
    """Store the defects; count and log those that were not found before. Returns all, each with whether it is known to be new."""
    found = []
    for defect in defects[:_FINDINGS_MAX]:
        position = -1 if defect.position is None else defect.position
        finding = position, defect.kind, defect.message, defect.correlation_id
        is_new = await connection.fetchval(SQL.of(of_log)["store_finding"], *finding, round_number)
        found.append((defect, is_new))
        if is_new:
            metrics.VERIFIER_DEFECTS.labels(kind=defect.kind).inc()
            extra = {"kind": defect.kind, "position": position, "correlation_id": defect.correlation_id}
            log.critical(defect.message, extra=extra | {"event_id": str(defect.event_id or "")})
    if len(defects) > _FINDINGS_MAX:
        log.critical("more defects were found than are listed; run `datastorage verify`", extra={"count": len(defects)})
    if defects:
        await _export_finding_counts(connection)
    return found + [(defect, False) for defect in defects[_FINDINGS_MAX:]]


def _wrong_timestamp(size: int, error: WrongTimestamp, subject: str) -> Defect:
    message = f"forged checkpoint: the timestamp of the checkpoint at {size} is not valid: {error}"
    return Defect("forged checkpoint", message, subject=subject)


def _subject_of(note: str) -> str:
    """What findings about a checkpoint are about."""
    checkpoint = parse_checkpoint(note)
    return "a note that is no checkpoint" if checkpoint is None else f"checkpoint {checkpoint.size}"


async def _export_finding_counts(connection: Connection) -> None:
    counts = Counter({row["kind"]: row["count"] for row in await connection.fetch(SQL["count_findings"])})
    for kind in metrics.DEFECT_KINDS:
        metrics.VERIFIER_FINDINGS.labels(kind=kind).set(counts[kind])


async def _missing_event_defects(connection: Connection, result: LogResult) -> list[Defect]:
    """A defect for each missing event; the first ones with their correlations, if the next event or the chain's head names them."""
    leaves = result.missing_leaves
    rows = await connection.fetch(SQL["correlations_of_hashes"], list(leaves)[:_FINDINGS_MAX])
    correlation_ids = {row["hash"]: row["correlation_id"] for row in rows}
    defects = []
    for leaf, position in leaves.items():
        message = f"removed: no event is at position {position} of the log"
        correlation_id = correlation_ids.get(leaf, "")
        defects.append(Defect("removed", message, correlation_id=correlation_id, position=position, leaf=leaf))
    return defects
