"""Injects one fault after the other, judges each, and prints the table of all."""

import argparse
import asyncio
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from app.db import DATABASE_ERRORS
from tests.torture.delivery import wrong_at_destination
from tests.torture.failover import forks
from tests.torture.faults import Kind
from tests.torture.judge import Verdict, judge
from tests.torture.load import IN_FLIGHT_MIN, Sent
from tests.torture.patroni import NotPromoted
from tests.torture.postgres import Postgres, binaries
from tests.torture.world import Needs, NotPossible, Unwell, World, running_world

_FAULTS_A_WORLD = 5
_FAULTS_A_CLUSTER = 16  # it takes half a minute to start
_WORLDS_A_ROUND = 5
_AFTERWARDS_SECONDS = 0.2
_SETTLE_SECONDS = 90.0


@dataclass
class Line:
    """All faults of one kind."""

    name: str
    faults: int = 0
    not_counted: int = 0
    """With too few requests in flight."""
    acknowledged: int = 0
    lost: int = 0
    doubled: int = 0
    forked: int = 0
    """Replicas that have seen the log contradict what was signed or seen of it."""
    repeats: int = 0
    """Requests to a destination that it has recognised as repeats."""
    first_201: list[float] = field(default_factory=list)
    named: list[float] = field(default_factory=list)
    loses: bool = False
    statuses: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    skipped: str = ""


class Report:
    """The results so far."""

    def __init__(self) -> None:
        self.lines: dict[str, Line] = {}

    def line(self, kind: str) -> Line:
        return self.lines.setdefault(kind, Line(kind))

    @property
    def is_good(self) -> bool:
        return not any(
            line.wrong or (line.lost and not line.loses) or line.doubled or line.forked for line in self.lines.values()
        )

    def table(self) -> str:
        """A Markdown table, also readable as text."""
        columns = ("faults", "acknowledged", "lost", "doubled", "forked")
        rows: list[tuple[str, ...]] = [("kind", *columns, "notes")]
        for name, line in self.lines.items():
            notes = [f"skipped: {line.skipped}"] if line.skipped else []
            notes += [f"{line.not_counted} not counted"] if line.not_counted else []
            notes += [f"{len(line.wrong)} wrong"] if line.wrong else []
            if line.repeats:
                notes.append(f"{line.repeats} repeats recognised")
            if line.first_201:
                notes.append(f"first 201 after {_span(line.first_201)} s")
            if line.named:
                notes.append(f"loss named after {_span(line.named)} s, log continued")
            numbers = [getattr(line, column) for column in columns]
            rows.append((name, *(f"{number:,}" for number in numbers), "; ".join(notes)))
        lines = self.lines.values()
        sums = [sum(getattr(line, name) for line in lines) for name in columns]
        rows.append(("all", *(f"{number:,}" for number in sums), ""))
        widths = [max(len(row[column]) for row in rows) for column in range(7)]
        text = [
            "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
        ]
        text.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
        for name, line in self.lines.items():
            text += [f"{name}: {one}" for one in line.wrong]
        return "\n".join(text)


async def torture(report: Report, kinds: list[Kind], arguments: argparse.Namespace) -> None:
    """Rounds over all kinds until there are enough faults; the same number of each kind that is possible here."""
    with tempfile.TemporaryDirectory(prefix="torture-", dir=arguments.directory) as scratch:
        directory = Path(scratch)
        directory.chmod(0o755)
        template = await prepared(directory, arguments.postgres)
        rounds = 0
        for kind in kinds:
            report.line(kind.name)
        while (done := sum(report.line(kind.name).faults for kind in kinds)) < arguments.faults:
            possible = [kind for kind in kinds if not report.line(kind.name).skipped]
            if not possible:
                return
            for kind in possible:
                wanted = -(-arguments.faults // len(possible)) - report.line(kind.name).faults
                for _ in range(_WORLDS_A_ROUND if kind.own_world else 1):
                    most = _FAULTS_A_CLUSTER if kind.needs.cluster else _FAULTS_A_WORLD
                    several = [kind] * min(wanted, 1 if kind.own_world else most)
                    seed = f"{arguments.seed}-{rounds}-{kind.name}"
                    stop = arguments.stop_seconds
                    await one_world(report, template, several, seed, directory, stop_seconds=stop)
                    wanted -= len(several)
            rounds += 1
            if rounds > 20 and done == sum(report.line(kind.name).faults for kind in kinds):
                return


async def prepared(directory: Path, version: int = 18) -> Postgres:
    """A stopped Postgres with the schema, for worlds to copy."""
    template = Postgres(binaries(version), directory / "template")
    await template.initialise()
    return template


async def one_world(
    report: Report,
    template: Postgres,
    kinds: Sequence[Kind],
    seed: str,
    directory: Path,
    *,
    needs: Needs | None = None,
    stop_seconds: float = 2.0,
    batch_sizes: Sequence[int] | None = None,
) -> None:
    """One fault of each of `kinds` in one world, each judged on its own, and all of them once more at the end."""
    if not kinds:
        return
    chance = random.Random(seed)
    line = report.line(kinds[0].name)
    whole: list[Sent] = []
    try:
        async with running_world(template, needs or kinds[0].needs, chance.getrandbits(32), directory) as world:
            world.stop_seconds = stop_seconds
            world.load.batch_sizes = batch_sizes or world.load.batch_sizes
            for kind in kinds:
                line = report.line(kind.name)
                whole += await _one_fault(line, kind, world, chance)
            # Includes what a frozen replica or an abandoned session has written since; verifies all hashes.
            verdict = await judge(world.database_url, [] if kinds[0].loses else whole, verify=not kinds[0].loses)
            line.wrong += [f"at the end: {one}" for one in verdict.wrong]
            for one in verdict.wrong[:5]:
                _print(f"{line.name}: WRONG at the end: {one}")
    except NotPossible as why:
        line.skipped = str(why)
        _print(f"{line.name}: skipped: {why}")
    except (Unwell, *DATABASE_ERRORS) as error:
        line.wrong.append(repr(error))
        _print(f"{line.name}: WRONG {error!r}")


async def _one_fault(line: Line, kind: Kind, world: World, chance: random.Random) -> list[Sent]:
    """Inject one fault and judge it. The requests that were sent around it."""
    started = time.monotonic()
    world.begin()
    repeats = 0 if world.receiver is None else world.receiver.one.repeats
    await asyncio.sleep(chance.uniform(0.2, 0.8))
    try:
        await kind.inject(world, chance)
    except NotPromoted:
        world.in_flight = 0  # not counted; what was acknowledged is looked up nevertheless
    await world.heal()
    await asyncio.sleep(_AFTERWARDS_SECONDS)
    answered = await world.load.finish(_SETTLE_SECONDS)
    await world.drained()
    verdict = await judge(world.database_url, world.load.ledger, verify=False)
    if kind.loses:
        line.loses = True
        verdict.wrong = [one for one in verdict.wrong if not one.startswith("lost ")]
    elif kind.needs.cluster:
        line.forked += await forks(world)
    if world.receiver is not None:
        verdict.wrong += await wrong_at_destination(world)
        line.repeats += world.receiver.one.repeats - repeats
    line.first_201 += world.first_201
    line.named += world.named
    if not answered:
        verdict.wrong.append("requests stay without an answer")
    _add(line, world, verdict)
    _print(
        f"{kind.name}: {verdict.acknowledged} acknowledged, {verdict.lost} lost, {verdict.doubled} doubled, "
        f"{world.in_flight} in flight, {time.monotonic() - started:.1f} s, {dict(world.load.statuses)}"
        + "".join(f"\n  WRONG {one}" for one in verdict.wrong[:5])
    )
    return world.load.ledger


def _span(seconds: list[float]) -> str:
    return f"{statistics.median(seconds):.1f} (up to {max(seconds):.1f})"


def _add(line: Line, world: World, verdict: Verdict) -> None:
    verdict.wrong += world.load.surprises + world.notes
    if verdict.wrong:
        verdict.wrong += [f"log: {one}" for replica in world.replicas for one in replica.complaints]
    if world.in_flight >= IN_FLIGHT_MIN:
        line.faults += 1
    else:
        line.not_counted += 1
    line.acknowledged += verdict.acknowledged
    line.lost += verdict.lost
    line.doubled += verdict.doubled
    line.statuses += world.load.statuses
    line.wrong += verdict.wrong


def _print(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)
