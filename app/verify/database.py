"""A whole database verified: the log against its rows, chains against their heads, flushes, tiles and checkpoints.

The work is cut into parts by position and by correlation, which share nothing but the moment that they look at. Whoever runs
them, one connection or a process for each core, gets the same result.
"""

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, Protocol

from app.db import Connection
from app.errors import Fatal
from app.events.positions import Positions
from app.tlog.evidence import Evidence, read_evidence
from app.tlog.note import PublicKey
from app.verify.chain import Chain, Gap
from app.verify.checkpoints import LogState, checkpoint_defect, checkpoint_of
from app.verify.log import Walk, walk
from app.verify.row import DEFECTS_MAX, Defect, Defects, named
from app.verify.snapshot import FETCH_TIMEOUT_SECONDS, SQL, portions
from app.verify.tree import Tree, read_tree
from app.verify.unsealed import Unsealed, verify_unsealed

_EVENTS_AT_ONCE = 20_000
_CHAINS_AT_ONCE = 2_000
_CORRELATIONS_AT_ONCE = 500
_ROWS_AT_ONCE = 500
_FIRST, _LAST = -(2**63), 2**63 - 1


@dataclass(frozen=True, slots=True)
class WorkItem:
    """Work for one connection: `work` names one of WORK."""

    work: str
    arguments: tuple[Any, ...]
    weight: int
    """How many events it is about, for who shows the progress."""


class Runner(Protocol):
    """Has parts done, in any order, and gives each result with its part."""

    def __call__(self, parts: Sequence[WorkItem], /) -> AsyncIterator[tuple[WorkItem, Any]]: ...


@dataclass(frozen=True, slots=True)
class TrustAnchors:
    """What the verifier brings along: keys that may have signed, and a checkpoint that was kept elsewhere."""

    keys: Sequence[PublicKey] = ()
    checkpoint: str | None = None
    name: str = "the checkpoint"


@dataclass(slots=True)
class Report:
    """What verification found in the whole database."""

    log: str
    size: int
    """How many events the log has."""
    events: Walk = field(default_factory=Walk)
    chains: int = 0
    checkpoints: int = 0
    unsealed: Unsealed = field(default_factory=Unsealed)
    defects: Defects = field(default_factory=Defects)


async def verify_database(
    connection: Connection, run: Runner, anchors: TrustAnchors, hmac_key: bytes | None = None
) -> Report:
    """Verify everything. `connection` is in the snapshot that `run` shows its parts. Raises Fatal when there is no log."""
    report = await _begun(connection)
    evidence = await read_evidence(connection, report.log)
    notes = await _notes(connection, anchors)
    parts = [WorkItem("tree", (_sizes(notes),), 0), *await _log_parts(connection, report, evidence)]
    async for _, result in run(parts):
        if isinstance(result, Tree):
            _take_tree(report, result, notes, anchors)
        else:
            _take_walk(report.events, result)
    _name(report)
    gone = Missing(evidence.purged, Positions(report.events.missing), frozenset(report.events.missing_leaves))
    parts = [*await _chain_parts(connection, gone), *await _unsealed_parts(connection, hmac_key)]
    async for _, result in run(parts):
        if isinstance(result, Unsealed):
            _take_unsealed(report, result)
        else:
            report.chains += result[0]
            report.defects.extend(result[1])
    return report


async def verify_checkpoints(connection: Connection, anchors: TrustAnchors) -> Report:
    """Verify the log's own tables and what was signed, but no row. `connection` is in a snapshot. Raises Fatal as above."""
    report, notes = await _begun(connection), await _notes(connection, anchors)
    _take_tree(report, await read_tree(connection, _sizes(notes)), notes, anchors)
    return report


async def _begun(connection: Connection) -> Report:
    extent = await connection.fetchrow(SQL["log_extent"], timeout=FETCH_TIMEOUT_SECONDS)
    assert extent is not None
    if extent["name"] is None:
        raise Fatal(
            "The table logs has no row for log 0: put it back, with the name that the events were hashed under."
        )
    return Report(extent["name"], extent["log_end"] or 0)


@dataclass(frozen=True, slots=True)
class Missing:
    """Positions without a row: those that were purged, and the others with the leaves of the first of them."""

    purged: Positions
    unpurged: Positions
    leaves: frozenset[str]

    def why(self, gap: Gap) -> str | None:
        """None when a gap in a chain can have been purged; else what more is to be said of it."""
        if gap.last_hash in self.leaves:
            return ""
        high = 2**62 if gap.high is None else gap.high
        gone = self.unpurged.count(gap.low + 1, high) + self.purged.count(gap.low + 1, high)
        return None if gap.missing <= gone else f"; the log misses only {gone} there"


async def verify_chains(connection: Connection, first: str, end: str | None, gone: Missing) -> tuple[int, Defects]:
    """Hold the chains of correlations from `first` up to, not including, `end` against their heads, and say how many they are."""
    number, defects = 0, Defects()
    chain, head, correlation_id = Chain(""), None, None
    async for rows in portions(connection, "links", "event_hash", first, end, at_once=_ROWS_AT_ONCE):
        for row in rows:
            if row["correlation_id"] != correlation_id:
                _finish(chain, correlation_id, head, gone, defects)
                chain, correlation_id = Chain(""), row["correlation_id"]
                head = None if row["length"] is None else (row["length"], row["hash"])
                number += 1
            if row["event_id"] is not None:
                chain.link(row)
    _finish(chain, correlation_id, head, gone, defects)
    return number, defects


def _finish(
    chain: Chain,
    correlation_id: str | None,
    head: tuple[int, str] | None,
    gone: Missing,
    defects: Defects,
) -> None:
    if correlation_id is None:
        return
    end = chain.finish(head)
    found = [end] if end is not None else []
    for gap, row in chain.gaps:
        if (more := gone.why(gap)) is not None:
            found.append(gap.defect(row, more))
    defects.extend(chain.defects)
    for defect in found:
        defects.add(replace(defect, correlation_id=correlation_id))


async def verify_all_unsealed(
    connection: Connection, correlation_ids: Sequence[str], hmac_key: bytes | None
) -> Unsealed:
    """The rows that others inserted into some correlations."""
    found = Unsealed()
    for correlation_id in correlation_ids:
        one = await verify_unsealed(connection, correlation_id, hmac_key)
        found.total += one.total
        found.verified += one.verified
        found.unhashed += one.unhashed
        found.defects.extend(one.defects)
    return found


async def walk_fast(connection: Connection, log: str, first: int, end: int, evidence: Evidence) -> Walk:
    """As walk(), in larger portions, for a process that does nothing else."""
    return await walk(connection, log, first, end, evidence, rows_at_once=_ROWS_AT_ONCE)


WORK: dict[str, Callable[..., Any]] = {
    "tree": read_tree,
    "walk": walk_fast,
    "chains": verify_chains,
    "unsealed": verify_all_unsealed,
}


def one_by_one(connection: Connection) -> Runner:
    """Has parts done on one connection."""

    async def run(parts: Sequence[WorkItem], /) -> AsyncIterator[tuple[WorkItem, Any]]:
        for part in parts:
            yield part, await WORK[part.work](connection, *part.arguments)

    return run


async def _log_parts(connection: Connection, report: Report, evidence: Evidence) -> list[WorkItem]:
    """Positions from end to end: those before and behind the log are none, which makes every row there a defect."""
    rows = await connection.fetch(SQL["log_parts"], _EVENTS_AT_ONCE, timeout=FETCH_TIMEOUT_SECONDS)
    edges = [_FIRST, *(row["first"] for row in rows if row["first"] < report.size), report.size, _LAST]
    return [
        WorkItem(
            "walk",
            (report.log, first, end, evidence.within(first, end)),
            end - first if 0 <= first < report.size else 0,
        )
        for first, end in pairwise(edges)
    ]


async def _chain_parts(connection: Connection, gone: Missing) -> list[WorkItem]:
    rows = await connection.fetch(SQL["chain_parts"], _CHAINS_AT_ONCE, timeout=FETCH_TIMEOUT_SECONDS)
    edges = ["", *(row["correlation_id"] for row in rows), None]
    return [WorkItem("chains", (first, end, gone), 0) for first, end in pairwise(edges)]


async def _unsealed_parts(connection: Connection, hmac_key: bytes | None) -> list[WorkItem]:
    rows = await connection.fetch(SQL["unsealed_correlations"], timeout=FETCH_TIMEOUT_SECONDS)
    named_so = [row["correlation_id"] for row in rows]
    steps = range(0, len(named_so), _CORRELATIONS_AT_ONCE)
    return [WorkItem("unsealed", (named_so[s : s + _CORRELATIONS_AT_ONCE], hmac_key), 0) for s in steps]


Noted = tuple[str, str, int | None]
"""What a checkpoint is called, its note, and the size that the database has it under."""


async def _notes(connection: Connection, anchors: TrustAnchors) -> list[Noted]:
    rows = await connection.fetch(SQL["checkpoints"], timeout=FETCH_TIMEOUT_SECONDS)
    notes: list[Noted] = [
        (
            f"the stored checkpoint at {row['size']}" if row["size"] is not None else "the last signed checkpoint",
            row["note"],
            row["size"],
        )
        for row in rows
    ]
    return notes if anchors.checkpoint is None else [*notes, (anchors.name, anchors.checkpoint, None)]


def _sizes(notes: Sequence[Noted]) -> frozenset[int]:
    return frozenset(said.size for _, note, _ in notes if (said := checkpoint_of(note)) is not None)


def _take_tree(report: Report, tree: Tree, notes: Sequence[Noted], anchors: TrustAnchors) -> None:
    report.defects.extend(tree.defects)
    report.checkpoints = len(notes)
    there = LogState(report.log, report.size, tree.roots)
    for what, note, size in notes:
        defect = checkpoint_defect(what, note, anchors.keys, there)
        if defect is None and size is not None and (said := checkpoint_of(note)) is not None and said.size != size:
            defect = Defect("forged checkpoint", f"forged checkpoint: {what} says that the log has {said.size} events")
        if defect is not None:
            report.defects.add(defect)


def _take_walk(events: Walk, part: Walk) -> None:
    events.total += part.total
    events.verified += part.verified
    events.erased += part.erased
    events.purged += part.purged
    events.missing += part.missing
    events.defects.extend(part.defects)
    if len(events.missing_leaves) < DEFECTS_MAX:
        events.missing_leaves |= part.missing_leaves


def _name(report: Report) -> None:
    """Call events reordered that stand at another's position, and missing ones at the log's end truncated."""
    events = report.events
    defects = named(events.defects.listed, events.missing_leaves)
    moved = [
        events.missing_leaves[d.actual_hash]
        for d in defects
        if d.kind == "reordered" and d.actual_hash in events.missing_leaves
    ]
    events.missing = Positions(events.missing).without(Positions((p, p + 1) for p in moved)).ranges
    events.defects.listed = defects
    report.defects.extend(events.defects)
    for first, end in events.missing:
        where = f"position {first}" if end == first + 1 else f"positions {first} to {end - 1}"
        if end == report.size:
            message = f"truncated: the last {end - first} event(s) of the log are missing, from position {first} on"
            report.defects.add(Defect("truncated", message, position=first))
        else:
            report.defects.add(Defect("removed", f"removed: no event stands at {where} of the log", position=first))


def _take_unsealed(report: Report, found: Unsealed) -> None:
    report.unsealed.total += found.total
    report.unsealed.verified += found.verified
    report.unsealed.unhashed += found.unhashed
    report.unsealed.defects.extend(found.defects)
