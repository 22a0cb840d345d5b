"""The stages of an upgrade and of a rollback, one after the other on one database, each under load and each judged."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from tests.events import make_event
from tests.torture.judge import judge
from tests.torture.world import Unwell
from tests.versions.acts import Acts
from tests.versions.reading import differences
from tests.versions.release import Release
from tests.versions.side import OWNER, Probe, Side

_ANSWERS_SECONDS = 60.0
_OUTAGE_SECONDS = 8.0
_PROBES = 50
_FINE = {"201", "ConnectionRefusedError"}
"""A stopped process refuses connections; nothing else may fail."""


@dataclass
class Outcome:
    """What one stage has shown."""

    name: str
    seconds: float = 0.0
    requests: int = 0
    acknowledged: int = 0
    lost: int = 0
    doubled: int = 0
    failed: int = 0
    """Requests that were answered by something else than 201, and connections that broke."""
    refused: int = 0
    acts: int = 0
    notes: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def row(self) -> str:
        numbers = (self.requests, self.acknowledged, self.lost, self.doubled, self.failed, self.refused, self.acts)
        shown = " | ".join(f"{number:,}" for number in numbers)
        return f"| {self.name} | {self.seconds:,.0f} | {shown} | {len(self.wrong)} | {'; '.join(self.notes)} |"


HEAD = """| stage | s | requests | events acknowledged | lost | doubled | failed | refused | acts | wrong | |
|---|---|---|---|---|---|---|---|---|---|---|"""


@dataclass
class Story:
    """All stages; `outcomes` has those that have begun."""

    side: Side
    before: Release
    this: Release
    seconds: float
    """Of each stage that only waits."""
    turns: int
    """How often a replica is replaced in the rolling stage."""
    outcomes: list[Outcome] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.acts = Acts(self.side)

    async def run(self) -> None:
        for stage in (self.upgrade, self.side_by_side, self.rolling, self.outage, self.rollback, self.again):
            await stage()

    async def upgrade(self) -> None:
        """The schema is migrated while only the release before writes, which goes on."""
        await self.side.migrate(self.before)
        await self.side.make_roles(self.before)
        for number in range(2):
            await self.side.start(number, self.before)
        async with self._stage("before alone") as outcome:
            await self._acts_for(self.seconds / 4)
        async with self._stage("before on the schema of this one") as outcome:
            probe = Probe(self.side, 0, make_event(correlation_id="c-probe"))
            async with probe.posting():
                await probe.posted(_PROBES)
                seconds = await self.side.migrate(self.this)
                meanwhile = len(probe.seconds)
                await probe.posted(meanwhile + _PROBES)
            usual, longest = max(probe.seconds[:_PROBES]), max(probe.seconds[_PROBES:])
            outcome.notes.append(
                f"`migrate` took {seconds:.1f} s; the longest of {len(probe.seconds) - _PROBES} posts from its begin on "
                f"{longest * 1000:.0f} ms, of {_PROBES} before it {usual * 1000:.0f} ms"
            )
            await self._acts_for(self.seconds / 4)

    async def side_by_side(self) -> None:
        """One replica of each, for most of the time."""
        await self.side.replace(1, self.this)
        async with self._stage("side by side") as outcome:
            code, output = await self.side.run(
                self.this, "retention", "run"
            )  # before the new script of the roles has run
            if code not in {0, 1}:
                outcome.wrong.append(f"retention run before roles.sql: {output}")
            await self.side.make_roles(self.this)
            await self._acts_for(self.seconds, newer=1)
        await self._read("side by side")

    async def rolling(self) -> None:
        """The replicas are replaced in turn, up and down again."""
        async with self._stage("rolling, up and down") as outcome:
            for turn in range(self.turns):
                number = turn % 2
                release = self.this if self.side.releases[number] is self.before else self.before
                await self.side.replace(number, release)
                await asyncio.sleep(min(2.0, self.seconds / 10))
            outcome.notes.append(f"{self.turns} times")

    async def outage(self) -> None:
        """Each release spools, and the other one replays what it has spooled."""
        await self.side.replace(0, self.before)
        await self.side.replace(1, self.this)
        async with self._stage("spool of one replayed by the other", fine=_FINE | {"202", "503"}):
            await self.side.postgres.stop()
            await asyncio.sleep(_OUTAGE_SECONDS)
            await self.acts.newer_only(1)
            for number in range(2):
                await self.side.stop(number)
            await self.side.postgres.start()
            await asyncio.gather(self.side.start(0, self.this), self.side.start(1, self.before))
            await self.side.drained()

    async def rollback(self) -> None:
        """Only the release before goes on, on all that this one has written."""
        await self.side.replace(0, self.before)
        async with self._stage("before alone, again"):
            await self._acts_for(self.seconds / 2)

    async def again(self) -> None:
        """And this one takes over once more."""
        for number in range(2):
            await self.side.replace(number, self.this)
        async with self._stage("this alone"):
            await self._acts_for(self.seconds / 4, newer=0)
        async with self._judged("all of it"):
            pass

    async def _acts_for(self, seconds: float, newer: int | None = None) -> None:
        end = time.monotonic() + seconds
        while True:
            await self.acts.round()
            if newer is not None:
                await self.acts.newer_only(newer)
            if time.monotonic() > end:
                return

    @asynccontextmanager
    async def _stage(self, name: str, fine: set[str] = _FINE) -> AsyncIterator[Outcome]:
        """Clients post meanwhile; then all are asked, and everything is verified by both releases."""
        outcome = Outcome(name)
        self.outcomes.append(outcome)
        began, load = time.monotonic(), self.side.load
        load.forget()
        load.hang_up()
        load.begin()
        acts, wrong = self.acts.done.total(), len(self.acts.wrong)
        try:
            yield outcome
        except Unwell as error:
            outcome.wrong.append(str(error))
            raise
        finally:
            if not await load.finish(_ANSWERS_SECONDS):
                outcome.wrong.append("requests have no answer")
            outcome.seconds = time.monotonic() - began
            outcome.acts = self.acts.done.total() - acts
            outcome.wrong += self.acts.wrong[wrong:] + load.surprises[:5]
            outcome.requests, outcome.refused = load.statuses.total(), load.statuses["ConnectionRefusedError"]
            failed = {status: number for status, number in load.statuses.items() if status not in fine}
            outcome.failed = sum(failed.values())
            outcome.wrong += [f"{number} times {status}" for status, number in failed.items()]
            outcome.wrong += self.side.warnings() if failed else []
        self.side.everything += load.ledger
        await self._judge(outcome)
        print(outcome.row(), *outcome.wrong, sep="\n", flush=True)

    @asynccontextmanager
    async def _judged(self, name: str) -> AsyncIterator[Outcome]:
        """Nobody posts; all that was ever sent is looked up."""
        outcome = Outcome(name)
        self.outcomes.append(outcome)
        yield outcome
        self.side.load.ledger = self.side.everything
        await self._judge(outcome)
        print(outcome.row(), *outcome.wrong, sep="\n", flush=True)

    async def _judge(self, outcome: Outcome) -> None:
        await self.side.drained()
        verdict = await judge(self.side.url(OWNER), self.side.load.ledger, verify=False)
        outcome.acknowledged, outcome.lost, outcome.doubled = verdict.acknowledged, verdict.lost, verdict.doubled
        outcome.wrong += verdict.wrong[:5]
        outcome.wrong += await self.side.alarms()
        await self._verify(outcome)

    async def _verify(self, outcome: Outcome) -> None:
        """By the command of each release, against the copies of checkpoints of a replica."""
        key = self.side.directory / "key"
        async with self.side.client(0) as client:
            key.write_text((await client.get("/tlog/key")).text)
        for release, replica in zip((self.before, self.this), self.side.replicas, strict=True):
            arguments = ("verify", "--key", key, "--checkpoint", replica.directory / "checkpoints")
            code, output = await self.side.run(release, *arguments)
            if code:
                outcome.wrong.append(f"verify of {release.name}: {output[-1500:]}")

    async def _read(self, name: str) -> None:
        outcome = Outcome(f"{name}: what can be read")
        self.outcomes.append(outcome)
        outcome.requests, outcome.wrong = await differences(self.side)
        print(outcome.row(), *outcome.wrong, sep="\n", flush=True)
