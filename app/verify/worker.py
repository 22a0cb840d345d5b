"""The verifier in the service: walks the log for ever at a bounded rate, and says what it finds. It writes nothing but that.

Every replica runs it; a lock in Postgres lets one at a time work. No finding ever stops the service.
"""

import asyncio
import logging
from collections import Counter
from time import monotonic

import asyncpg

from app import metrics
from app.db import CONNECTION_ERRORS, Connection, connect
from app.errors import DatabaseAway
from app.settings import Settings
from app.tlog.evidence import NONE, read_evidence
from app.tlog.merkle import Frontier, hashes
from app.tlog.note import PublicKey
from app.verify.checkpoints import REWRITTEN, LogState, checkpoint_defect
from app.verify.log import LEAF_BYTES, Walk, walk
from app.verify.row import Defect, named
from app.verify.snapshot import SQL

_PORTION_EVENTS_MAX = 500
_PORTIONS_PER_SECOND = 2
_RETRY_SECONDS = 10.0
_IDLE_SECONDS = 5.0
_FINDINGS_MAX = 100
_STATEMENT_TIMEOUT_MS = 600_000

log = logging.getLogger(__name__)


async def verify_forever(settings: Settings, log_name: str, keys: tuple[PublicKey, ...] = ()) -> None:
    """Verify the log again and again, for as long as the process runs, whenever no other replica does."""
    rate = settings.verifier_events_per_second
    verifier = Verifier(log_name, keys, min(_PORTION_EVENTS_MAX, max(1, rate // _PORTIONS_PER_SECOND)))
    connection: Connection | None = None
    while True:
        pause = _RETRY_SECONDS
        try:
            if connection is None or connection.is_closed():
                connection = await connect(settings.model_copy(update={"statement_timeout_ms": _STATEMENT_TIMEOUT_MS}))
                verifier.is_alone = False
            started = monotonic()
            if verifier.is_alone or await verifier.begin(connection):
                seen = await verifier.step(connection)
                pause = max(0.0, seen / rate - (monotonic() - started)) if seen else _IDLE_SECONDS
        except (DatabaseAway, *CONNECTION_ERRORS, asyncpg.PostgresError) as error:
            log.warning("the log could not be verified", extra={"error": repr(error)})
            if connection is not None:
                connection.terminate()
        except Exception:  # top of a loop that has to outlive every damage
            metrics.WORKER_FAILURES.labels(worker="verifier").inc()
            log.exception("the log could not be verified")
            if connection is not None:
                connection.terminate()
        await asyncio.sleep(pause)


class Verifier:
    """Where it stands. The tree so far lives in this process only: after a start it is built by the next whole round."""

    def __init__(self, log_name: str, keys: tuple[PublicKey, ...], portion: int) -> None:
        self._log = log_name
        self._keys = keys
        self._portion = portion
        self._evidence = NONE
        self._frontier = Frontier()
        self._seen: tuple[int, bytes] | None = None
        """Size and root of the log at the end of the last round: what no writer of the database can change."""
        self.is_alone = False
        """Whether the lock is held."""

    async def begin(self, connection: Connection) -> bool:
        """Take the lock; False while another replica holds it."""
        self.is_alone = await connection.fetchval(SQL["try_verifier"])
        return self.is_alone

    async def step(self, connection: Connection) -> int:
        """Verify the next part of the log, keep what was found, and say how many positions that were; 0 at the log's end."""
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            state = await connection.fetchrow(SQL["verifier"])
            first: int = 0 if state is None else state["position"]
            extent = await connection.fetchrow(SQL["log_extent"])
            size: int = 0 if extent is None else extent["log_end"] or 0
            end = min(first + self._portion, size)
            defects = [] if first >= size else await self._look(connection, first, end, size)
            if self._seen is not None and size < self._seen[0]:
                message = f"rolled back: the log has {size} events; {self._seen[0]} were verified before"
                defects.append(Defect("rolled back", message, position=size))
                self._seen = None
        await self._keep(connection, defects, 1 if state is None else state["round"])
        if first >= size:
            await self._end_round(connection, size)
            return 0
        await connection.execute(SQL["verifier_at"], end)
        metrics.VERIFIER_POSITION.set(end)
        metrics.VERIFIED_EVENTS.inc(end - first)
        return end - first

    async def _look(self, connection: Connection, first: int, end: int, size: int) -> list[Defect]:
        if first == 0:
            self._evidence = NONE
        found = await walk(connection, self._log, first, end, self._evidence)
        if found.missing or found.defects.count:  # only then what was purged and erased meanwhile is worth reading
            self._evidence = await read_evidence(connection, self._log)
            found = await walk(connection, self._log, first, end, self._evidence)
        defects = named(found.defects.listed, found.missing_leaves)
        if found.missing:
            defects += await _missing(connection, found)
        for row in await connection.fetch(SQL["strange_heads"], first, end):
            message = f"edited: the head of the chain is not the one that event {row['chain_index']} of it left"
            defects.append(Defect("edited", message, correlation_id=row["correlation_id"], position=row["log_index"]))
        return defects + await self._look_at_tree(connection, first, end, size)

    async def _look_at_tree(self, connection: Connection, first: int, end: int, size: int) -> list[Defect]:
        if first == 0:
            self._frontier = Frontier()
        if self._frontier.size != first:
            return []  # begun in the middle of a round, or a flush is missing
        notes = {row["size"]: row["note"] for row in await connection.fetch(SQL["checkpoints_within"], first, end)}
        leaves = b"".join([row["leaves"] for row in await connection.fetch(SQL["leaves_within"], first, end)])
        defects = []
        if len(leaves) != (end - first) * LEAF_BYTES:
            message = (
                f"removed: flushes between positions {first} and {end} of the log are missing, or have lost leaves"
            )
            defects.append(Defect("removed", message, position=first))
        for leaf in hashes(leaves):
            self._frontier.append(leaf)
            at = self._frontier.size
            if at in notes:
                there = LogState(self._log, size, {at: self._frontier.root()})
                defect = checkpoint_defect(f"the stored checkpoint at {at}", notes[at], self._keys, there)
                defects += [] if defect is None else [defect]
            if self._seen is not None and at == self._seen[0] and self._frontier.root() != self._seen[1]:
                defects.append(Defect("edited", REWRITTEN.format(size=at, what="the last round"), position=at))
        return defects

    async def _keep(self, connection: Connection, defects: list[Defect], number: int) -> None:
        for defect in defects[:_FINDINGS_MAX]:
            position = -1 if defect.position is None else defect.position
            about = position, defect.kind, defect.message, defect.correlation_id
            if await connection.fetchval(SQL["keep_finding"], *about, number):
                metrics.VERIFIER_DEFECTS.labels(kind=defect.kind).inc()
                extra = {"kind": defect.kind, "position": position, "correlation_id": defect.correlation_id}
                log.critical(defect.message, extra=extra | {"event_id": str(defect.event_id or "")})
        if len(defects) > _FINDINGS_MAX:
            log.critical(
                "more defects were found than are listed; run `datastorage verify`", extra={"count": len(defects)}
            )
        if defects:
            await _show_findings(connection)

    async def _end_round(self, connection: Connection, size: int) -> None:
        if self._frontier.size == size:
            self._seen = size, self._frontier.root()
        await connection.execute(SQL["verifier_round"], size)
        await _show_findings(connection)
        metrics.VERIFIER_ROUNDS.inc()


async def _show_findings(connection: Connection) -> None:
    counted = Counter({row["kind"]: row["count"] for row in await connection.fetch(SQL["findings"])})
    for kind in metrics.DEFECT_KINDS:
        metrics.VERIFIER_FINDINGS.labels(kind=kind).set(counted[kind])


async def _missing(connection: Connection, found: Walk) -> list[Defect]:
    """A defect for each run of missing positions, and one for each event of which it is known whose it was."""
    told: list[Defect] = []
    leaves = dict(list(found.missing_leaves.items())[:_FINDINGS_MAX])
    owners = {row["hash"]: row["correlation_id"] for row in await connection.fetch(SQL["whose"], list(leaves))}
    for leaf, position in leaves.items():
        message = f"removed: no event stands at position {position} of the log"
        told.append(Defect("removed", message, correlation_id=owners.get(leaf, ""), position=position, leaf=leaf))
    return told
