"""A whole database: the log against its rows, chains against their heads, flushes, tiles and checkpoints.

The work is cut into items by position and by correlation, which share nothing but the snapshot. The result is the same whether
they run on one connection or on a process for each core.
"""

from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, NamedTuple, Protocol

from cryptography.x509 import Certificate

from app.db import LONG_FETCH_SECONDS, Connection, portions
from app.errors import Fatal
from app.events.log import Log
from app.events.positions import Positions
from app.tlog.continued import Seam, keys_of, newest_log, read_seam
from app.tlog.evidence import Evidence, read_evidence
from app.tlog.gaps import MissingPositions
from app.tlog.note import PublicKey
from app.tlog.orders import read_orders
from app.tlog.timestamp import Timestamp, WrongTimestamp, require_timestamp, verified_timestamp
from app.verify.chain import ChainChecker, gap_defect
from app.verify.checkpoints import LogState, checkpoint_defect, parse_checkpoint, signers
from app.verify.extent import log_size
from app.verify.heads import GAPS_AT_ONCE, ChainGap, verify_equal_heads, verify_gaps, verify_sum_of_heads
from app.verify.inserted import verify_inserted
from app.verify.log import LogResult, verify_positions
from app.verify.notifications import NotificationsResult, verify_notifications
from app.verify.orders import Selectors, held_selectors, verify_marks, verify_orders
from app.verify.row import Defect, Defects, mark_reordered
from app.verify.shadowed import verify_ids_of, verify_unlogged_ids
from app.verify.snapshot import SQL
from app.verify.tree import Tree, read_tree, verify_last_signed
from app.verify.unsealed import UnsealedResult, verify_unsealed

_EVENTS_PER_ITEM = 20_000
_CHAINS_PER_ITEM = 2_000
_UNSEALED_CORRELATIONS_PER_ITEM = 500
_ROWS_MAX = 500
_NAMED_IN_A_DEFECT = ("event_id", "event_timestamp", "previous_event_hash", "log_index", "correlation_id")


@dataclass(frozen=True, slots=True)
class WorkItem:
    """Work for one connection."""

    task: str
    """The name of one of TASKS."""
    arguments: tuple[Any, ...]
    weight: int
    """How many positions of the log it is about, to show the progress."""
    log_id: int = 0
    """The log that it is about."""


class Runner(Protocol):
    """Runs work items, in any order, and yields each with its result."""

    def __call__(self, items: Sequence[WorkItem], /) -> AsyncIterator[tuple[WorkItem, Any]]: ...


@dataclass(frozen=True, slots=True)
class TrustAnchors:
    """What the verifier trusts without the database: keys that may have signed, and a checkpoint from outside."""

    keys: Sequence[PublicKey] = ()
    """Without any, signatures are not checked."""
    checkpoint: str | None = None
    """A note."""
    checkpoint_name: str = "the checkpoint"
    """Its name in messages."""
    certificates: Sequence[Certificate] = ()
    """Of timestamp authorities, or of their issuers. Without any, tokens are not checked."""


@dataclass(slots=True)
class LogPart:
    """What verification found in one log of the database."""

    log: Log
    size: int
    """How many events the log has."""
    checkpoints: "Sequence[_NamedCheckpoint]"
    seam: Seam | None = None
    """How it was closed, as the first event of the next log says; None for the last log, or if that event is missing."""
    events: LogResult = field(default_factory=LogResult)
    admitted: int = 0
    """Checkpoints that contradict the log, which the seam admits."""


@dataclass(slots=True)
class DatabaseResult:
    """What verification found in the whole database."""

    parts: list[LogPart]
    """One for each log, in order."""
    chains: int = 0
    """How many were verified."""
    checkpoints: int = 0
    """How many were verified."""
    signatures: Counter[str] = field(default_factory=Counter)
    """How many of those each key has signed, by the key's label."""
    timestamps: list[Timestamp] = field(default_factory=list)
    """What valid tokens show, in the order of sizes."""
    unchecked_timestamps: int = 0
    """Tokens that nothing was given to verify with."""
    unsealed: UnsealedResult = field(default_factory=UnsealedResult)
    notifications: NotificationsResult = field(default_factory=NotificationsResult)
    defects: Defects = field(default_factory=Defects)

    @property
    def log(self) -> Log:
        """The log that events are written to."""
        return self.parts[-1].log

    @property
    def size(self) -> int:
        """How many events all logs have."""
        return sum(part.size for part in self.parts)

    @property
    def events(self) -> LogResult:
        """Of all logs together; positions are places."""
        total = LogResult()
        for part in self.parts:
            total.add(part.events, part.log.place(0))
        return total


async def verify_database(
    connection: Connection, run: Runner, anchors: TrustAnchors, hmac_key: bytes | None = None
) -> DatabaseResult:
    """Verify everything. `connection` is in the snapshot that `run` uses for its items. Raises Fatal when there is no log."""
    result = await _new_result(connection, anchors)
    log = result.log
    evidence, orders = await read_evidence(connection, log), await read_orders(connection, log)
    await _verify_logs(connection, run, result, anchors, evidence, await held_selectors(connection, orders))
    for part in result.parts:
        result.defects.extend(await verify_ids_of(connection, part.events.defects.listed))
        _add_missing_events(result, part)
    result.defects.extend(result.notifications.defects)
    events = result.events
    missing = MissingPositions(evidence.missing, Positions(events.missing), frozenset(events.missing_leaves))
    gaps: list[ChainGap] = []
    items = [*await _chain_items(connection, missing), *await _unsealed_items(connection, hmac_key)]
    async for _, of_item in run(items):
        if isinstance(of_item, UnsealedResult):
            result.unsealed.add(of_item)
        else:
            number, defects, may_be_purges = of_item
            result.chains += number
            result.defects.extend(defects)
            gaps += may_be_purges
            if len(gaps) >= GAPS_AT_ONCE:
                result.defects.extend(await verify_gaps(connection, log, gaps, missing))
                gaps.clear()
    result.defects.extend(await verify_gaps(connection, log, gaps, missing))
    result.defects.extend(await verify_equal_heads(connection))
    if not result.defects.count:  # else it is known already why the sum is another one
        result.defects.extend(await verify_sum_of_heads(connection, log, result.parts[-1].size))
    result.defects.extend(await verify_orders(connection, log, orders))
    # Those of correlations without any hash are only counted.
    counted = await connection.fetchrow(SQL["count_unsealed"], timeout=LONG_FETCH_SECONDS)
    assert counted is not None
    result.unsealed.unhashed, result.unsealed.correlations = counted["unhashed"], counted["correlations"]
    return result


async def _verify_logs(  # noqa: PLR0917 -- what is verified, and with what
    connection: Connection,
    run: Runner,
    result: DatabaseResult,
    anchors: TrustAnchors,
    evidence: Evidence,
    held: Selectors,
) -> None:
    """Verify each log against its rows, and the notifications."""
    log, parts = result.log, {part.log.id: part for part in result.parts}
    items = [WorkItem("notifications", (log, evidence.purged), 0)]
    for part in result.parts:
        of_part = part.log, part.size
        items += [
            WorkItem("tree", (part.log, _sizes_of_interest(part), part.size), 0, part.log.id),
            WorkItem("inserted", of_part, 0, part.log.id),
            WorkItem("unlogged ids", of_part, 0, part.log.id),
            *await _position_items(connection, part, evidence, held),
        ]
    async for item, of_item in run(items):
        part = parts[item.log_id]
        if isinstance(of_item, Tree):
            await _add_tree(connection, result, part, of_item, anchors)
        elif isinstance(of_item, NotificationsResult):
            result.notifications = of_item
        elif isinstance(of_item, Defects):
            part.events.defects.extend(of_item)
        else:
            part.events.add(of_item)


async def verify_tree_and_checkpoints(connection: Connection, anchors: TrustAnchors) -> DatabaseResult:
    """Verify the logs' own tables and the checkpoints, but no row. `connection` is in a snapshot. Raises Fatal when there is no log."""
    result = await _new_result(connection, anchors)
    for part in result.parts:
        tree = await read_tree(connection, part.log, _sizes_of_interest(part), part.size)
        await _add_tree(connection, result, part, tree, anchors)
    return result


async def _new_result(connection: Connection, anchors: TrustAnchors) -> DatabaseResult:
    """A part for each log, with its size. The size of a closed one is what the first event of the next one says."""
    name = await connection.fetchval(SQL["log_name"], timeout=LONG_FETCH_SECONDS)
    if name is None:
        raise Fatal(
            "The table logs has no row for log 0: put it back, with the name that the events were hashed under."
        )
    newest = await newest_log(connection, Log(0, name), anchors.keys)
    names = {log.name for log in newest.and_earlier()}
    result, seam = DatabaseResult([]), None
    for log in reversed(list(newest.and_earlier())):
        checkpoints = await _named_checkpoints(connection, log, anchors, names)
        keys, notes = keys_of(log, anchors.keys), [one.note for one in checkpoints]
        size = seam.size if seam is not None else await log_size(connection, log, notes, keys)
        result.parts.insert(0, LogPart(log, size, checkpoints, seam))
        seam = await read_seam(connection, log)
        if seam is None and log.id:
            closed = Log(log.id - 1, name).name
            message = f"removed: the first event of the log {log.name} does not say how it continues {closed}"
            result.defects.add(Defect("removed", message))
    return result


async def verify_links(
    connection: Connection, first: str, end: str | None, missing: MissingPositions
) -> tuple[int, Defects, list[ChainGap]]:
    """Verify the links of the chains of correlations from `first` up to, not including, `end`: how many there are, and defects.

    `end` is None for the last correlations. The rows' own hashes are verified by position, not here. The last of the answer are
    the gaps that can be purges by their size; verify_gaps() decides.
    """
    number, defects, gaps = 0, Defects(), list[ChainGap]()
    chain, head, correlation_id = ChainChecker(), None, None
    async for rows in portions(connection, SQL["chain_links"], first, end, widest="event_hash", rows_max=_ROWS_MAX):
        for row in rows:
            if row["correlation_id"] != correlation_id:
                gaps += _finish_chain(chain, correlation_id, head, missing, defects)
                chain, correlation_id = ChainChecker(), row["correlation_id"]
                head = None if row["length"] is None else (row["length"], row["hash"])
                number += 1
            if row["event_id"] is not None:
                chain.check_link(row)
    gaps += _finish_chain(chain, correlation_id, head, missing, defects)
    return number, defects, gaps


def _finish_chain(
    chain: ChainChecker,
    correlation_id: str | None,
    head: tuple[int, str] | None,
    missing: MissingPositions,
    defects: Defects,
) -> list[ChainGap]:
    """Check the chain's head and gaps after its last row, and add its defects. Returns the gaps that may be purges."""
    if correlation_id is None:
        return []
    may_be_purges = []
    head_defect = chain.check_head(head)
    of_chain = [head_defect] if head_defect is not None else []
    for gap, row in chain.gaps:
        verdict = missing.judge_gap_by_count(gap)
        if verdict.is_purge:
            after = None if row is None else {name: row.get(name) for name in _NAMED_IN_A_DEFECT}
            may_be_purges.append(ChainGap(correlation_id, gap, after))
        else:
            of_chain.append(gap_defect(gap, row, verdict.detail))
    defects.extend(chain.defects)
    for defect in of_chain:
        defects.add(replace(defect, correlation_id=correlation_id))
    return may_be_purges


async def _verify_all_unsealed(
    connection: Connection, correlation_ids: Sequence[str], hmac_key: bytes | None
) -> UnsealedResult:
    result = UnsealedResult()
    for correlation_id in correlation_ids:
        result.add(await verify_unsealed(connection, correlation_id, hmac_key))
    return result


async def _verify_many_positions(
    connection: Connection, log: Log, first: int, end: int, evidence: Evidence
) -> LogResult:
    """verify_positions() in larger portions, for a process that answers no requests."""
    return await verify_positions(connection, log, first, end, evidence, rows_max=_ROWS_MAX)


TASKS: dict[str, Callable[..., Any]] = {
    "tree": read_tree,
    "inserted": verify_inserted,
    "unlogged ids": verify_unlogged_ids,
    "notifications": verify_notifications,
    "positions": _verify_many_positions,
    "marks": verify_marks,
    "chains": verify_links,
    "unsealed": _verify_all_unsealed,
}
"""By name, since a name can be sent to another process. The parameters are a connection and the arguments of the work item."""


def sequential_runner(connection: Connection) -> Runner:
    """Runs work items one after another on one connection."""

    async def run(items: Sequence[WorkItem], /) -> AsyncIterator[tuple[WorkItem, Any]]:
        for item in items:
            yield item, await TASKS[item.task](connection, *item.arguments)

    return run


async def _position_items(connection: Connection, part: LogPart, evidence: Evidence, held: Selectors) -> list[WorkItem]:
    """Items for all positions of a log: its events, and the marks of those that are held."""
    log, size = part.log, part.size
    rows = await connection.fetch(SQL.of(log)["log_part_starts"], _EVENTS_PER_ITEM, timeout=LONG_FETCH_SECONDS)
    edges = [*(row["first"] for row in rows if row["first"] < size), size]
    events = [
        WorkItem(
            "positions",
            (log, first, end, evidence.within(log.place(first), log.place(end))),
            end - first,
            log.id,
        )
        for first, end in pairwise(edges)
    ]
    return events + [WorkItem("marks", (log, first, end, held), 0, log.id) for first, end in pairwise(edges) if held]


async def _chain_items(connection: Connection, missing: MissingPositions) -> list[WorkItem]:
    rows = await connection.fetch(SQL["chain_part_starts"], _CHAINS_PER_ITEM, timeout=LONG_FETCH_SECONDS)
    edges = ["", *(row["correlation_id"] for row in rows), None]
    return [WorkItem("chains", (first, end, missing), 0) for first, end in pairwise(edges)]


async def _unsealed_items(connection: Connection, hmac_key: bytes | None) -> list[WorkItem]:
    rows = await connection.fetch(SQL["unsealed_correlations"], timeout=LONG_FETCH_SECONDS)
    correlation_ids = [row["correlation_id"] for row in rows]
    step = _UNSEALED_CORRELATIONS_PER_ITEM
    starts = range(0, len(correlation_ids), step)
    return [WorkItem("unsealed", (correlation_ids[start : start + step], hmac_key), 0) for start in starts]


class _NamedCheckpoint(NamedTuple):
    """A checkpoint to verify."""

    name: str
    """Its name in messages."""
    note: str
    stored_size: int | None
    """The size in the database's column; None if it has none."""
    token: bytes | None = None
    """The timestamp of the note, if this is about one."""


async def _named_checkpoints(
    connection: Connection, log: Log, anchors: TrustAnchors, names: Collection[str]
) -> list[_NamedCheckpoint]:
    """The checkpoints that the database has of a log, then the one from outside: it is of the log that it names, else of the last."""
    rows = await connection.fetch(SQL.of(log)["stored_checkpoints"], timeout=LONG_FETCH_SECONDS)
    of_log = f" of {log.name}" if log.id or not log.is_open else ""
    stored = [
        _NamedCheckpoint(
            f"the stored checkpoint{of_log} at {row['size']}"
            if row["size"] is not None
            else f"the last signed checkpoint{of_log}",
            row["note"],
            row["size"],
        )
        for row in rows
    ]
    stamped = [
        _NamedCheckpoint(f"the timestamped checkpoint at {row['size']}", row["note"], row["size"], row["token"])
        for row in await connection.fetch(SQL.of(log)["stored_timestamps"], timeout=LONG_FETCH_SECONDS)
    ]
    if anchors.checkpoint is None:
        return [*stored, *stamped]
    parsed = parse_checkpoint(anchors.checkpoint)
    origin = log.name if parsed is None or parsed.origin not in names else parsed.origin
    if origin != log.name or (origin not in names and not log.is_open):
        return [*stored, *stamped]
    return [*stored, *stamped, _NamedCheckpoint(anchors.checkpoint_name, anchors.checkpoint, None)]


def _sizes_of_interest(part: LogPart) -> frozenset[int]:
    """At which the log's root is compared: those of checkpoints, and that which the seam has."""
    parsed = [parse_checkpoint(one.note) for one in part.checkpoints]
    sizes = {checkpoint.size for checkpoint in parsed if checkpoint is not None}
    return frozenset(sizes if part.seam is None else sizes | {part.seam.tree_size})


async def _add_tree(
    connection: Connection, result: DatabaseResult, part: LogPart, tree: Tree, anchors: TrustAnchors
) -> None:
    """Add the defects of the log's own tables, and those of the checkpoints compared with the tree's roots.

    What the seam admits is none: a hole, and checkpoints that were signed before the loss.
    """
    seam, log, known = part.seam, part.log, result.defects.count
    if seam is None or tree.is_whole or tree.frontier.size != seam.tree_size:
        result.defects.extend(tree.defects)
    if seam is not None and tree.roots.get(seam.tree_size) != seam.root:
        message = f"the log {log.name} is not as it was when {seam.log.name} continued it, with {seam.tree_size} events"
        result.defects.add(Defect("edited", f"edited: {message}"))
    result.checkpoints += len(part.checkpoints)
    state, keys = LogState(log.name, part.size, tree.roots), keys_of(log, anchors.keys)
    for name, note, stored_size, token in part.checkpoints:
        result.signatures.update(key.label for key in signers(note, keys))
        defect = checkpoint_defect(name, note, keys, state, stored_size)
        signed = parse_checkpoint(note)
        if defect is None and token is not None:
            defect = _add_timestamp(result, name, note, token, anchors)
        if defect is None:
            continue
        contradicts = defect.kind in {"edited", "rolled back"} and signed is not None and signed.origin == log.name
        if seam is not None and contradicts and signed is not None and seam.admits(signed):
            part.admitted += 1
        else:
            result.defects.add(defect)
    if result.defects.count == known:  # else it is known already why they differ
        result.defects.extend(await verify_last_signed(connection, log))


def _add_timestamp(result: DatabaseResult, name: str, note: str, token: bytes, anchors: TrustAnchors) -> Defect | None:
    """Add what a token shows of a note, or return what is wrong with it."""
    try:
        if anchors.certificates:
            result.timestamps.append(verified_timestamp(token, note, anchors.certificates))
        else:
            require_timestamp(token, note, ())
            result.unchecked_timestamps += 1
    except WrongTimestamp as error:
        return Defect("forged checkpoint", f"forged checkpoint: the timestamp of {name} is not valid: {error}")
    return None


def _add_missing_events(result: DatabaseResult, part: LogPart) -> None:
    """Mark reordered events, then add a defect for each range of missing ones: truncated at the log's end, else removed."""
    events = part.events
    defects = mark_reordered(events.defects.listed, events.missing_leaves)
    moved = [
        events.missing_leaves[d.actual_hash]
        for d in defects
        if d.kind == "reordered" and d.actual_hash in events.missing_leaves
    ]
    events.missing = Positions(events.missing).without(Positions((p, p + 1) for p in moved)).ranges
    events.defects.listed = defects
    result.defects.extend(events.defects)
    of_log = f"the log {part.log.name}" if part.log.id or not part.log.is_open else "the log"
    for first, end in events.missing:
        where = f"position {first}" if end == first + 1 else f"positions {first} to {end - 1}"
        if end == part.size:
            message = f"truncated: the last {end - first} event(s) of {of_log} are missing, from position {first} on"
            result.defects.add(Defect("truncated", message, position=first))
        else:
            result.defects.add(Defect("removed", f"removed: no event is at {where} of {of_log}", position=first))
