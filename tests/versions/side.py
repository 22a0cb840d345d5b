"""Two replicas on one database, each of whichever release is wanted, under clients that post to both and send again to the other one."""

import asyncio
import contextlib
import json
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg
import httpx

from tests.receiver import SinkReceiver
from tests.torture.load import Load, Sent
from tests.torture.postgres import Postgres, binaries
from tests.torture.world import Needs, Replica, Unwell, write_key
from tests.versions.release import Release

OWNER, SERVICE, RETENTION = "datastorage", "datastorage_service", "datastorage_retention"
DUE_DAYS = 3
"""Events that are older than this are purged."""
_READY_SECONDS = 180.0
_DRAIN_SECONDS = 180.0
_POLL_SECONDS = 0.02
_ANSWER_SECONDS = 60.0
_COMMON: dict[str, object] = {
    "verifier_events_per_second": 2_000,
    "retention_floor_days": DUE_DAYS,
    "retention_ceiling_days": DUE_DAYS,
    "propagation_delay_ms": 500,
    "heartbeat_interval_s": 5,
    # So that a busy machine is not a stall: how long a post takes is measured apart.
    "single_deadline_ms": 20_000,
    "away_patience_ms": 5_000,
}
CUSTOM_TYPE = "versions.artifact.pushed"
_CUSTOM = {
    "description": "Something happened to an artifact.",
    "x-category": "security",
    "type": "object",
    "properties": {"event_type": {"const": CUSTOM_TYPE}, "repository": {"type": "string"}},
    "required": ["repository"],
    "x-cloudevents": {"correlationid": {"from": "/data/repository"}, "eventoutcome": {"const": "success"}},
}


@dataclass
class Side:
    """The two replicas, what they run on, and who posts."""

    directory: Path
    postgres: Postgres
    replicas: list[Replica]
    releases: list[Release]
    """Of each replica, by its number."""
    load: Load
    sinks: SinkReceiver
    key_file: Path
    everything: list[Sent] = field(default_factory=list)
    """What was sent before the ledger of the load was last emptied."""

    @property
    def common(self) -> dict[str, object]:
        """The settings of every process of both releases."""
        return _COMMON | {
            "database_url": self.url(SERVICE),
            "retention_url": self.url(RETENTION),
            "checkpoint_key_file": self.key_file,
            "event_types_dir": self.directory / "types",
        }

    def url(self, role: str) -> str:
        return self.postgres.empty_url.replace(f"//{OWNER}@", f"//{role}@")

    async def start(self, number: int, release: Release) -> None:
        """A replica of this release on the spool of that number. Returns when it is ready."""
        self.launch(number, release)
        await self.ready(number)

    def launch(self, number: int, release: Release) -> None:
        replica = self.replicas[number]
        replica.program, replica.python_path = release.program, release.python_path
        replica.settings = self.common | {"checkpoint_file": replica.directory / "checkpoints"}
        if release.name == "this":
            replica.settings["sinks"] = self.sinks.file(self.directory)
        self.releases[number] = release
        replica.launch()

    async def ready(self, number: int) -> None:
        replica, deadline = self.replicas[number], time.monotonic() + _READY_SECONDS
        while not await replica.is_ready():
            if not replica.runs or time.monotonic() > deadline:
                raise Unwell(f"{self.releases[number].name} is not ready: {replica.log[-3000:]}")
            await asyncio.sleep(_POLL_SECONDS)

    async def stop(self, number: int) -> None:
        """As a kubelet does."""
        self.replicas[number].signal(signal.SIGTERM)
        if code := await self.replicas[number].ended():
            raise Unwell(f"{self.releases[number].name} ended with {code}: {self.replicas[number].log[-2000:]}")

    async def replace(self, number: int, release: Release) -> None:
        """As a StatefulSet does: stop it, then start the other one on the same spool."""
        if self.replicas[number].runs:
            await self.stop(number)
        await self.start(number, release)

    async def run(self, release: Release, *arguments: object, **settings: object) -> tuple[int, str]:
        """Exit code and output of a command of a release, beside whatever runs."""
        done = await asyncio.to_thread(release.run, *arguments, settings=self.common | settings)
        return done.returncode, done.stdout + done.stderr

    async def migrate(self, release: Release) -> float:
        """How many seconds it took, as a command of the owner."""
        began = time.monotonic()
        code, output = await self.run(release, "migrate", database_url=self.url(OWNER))
        if code:
            raise Unwell(f"{release.name} does not migrate: {output}")
        return time.monotonic() - began

    async def make_roles(self, release: Release) -> None:
        connection = await asyncpg.connect(self.url(OWNER))
        await connection.execute(release.roles.read_text("utf-8"))
        await connection.close()

    def client(self, number: int) -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url=str(self.replicas[number].url), timeout=_ANSWER_SECONDS)

    async def drained(self) -> None:
        """Wait until nothing waits in a spool. Unwell if something is in quarantine then."""
        deadline = time.monotonic() + _DRAIN_SECONDS
        for number, replica in enumerate(self.replicas):
            while await replica.metric("datastorage_spool_events") != 0:
                if time.monotonic() > deadline or not replica.runs:
                    raise Unwell(f"a spool of {self.releases[number].name} is not drained: {replica.log[-2000:]}")
                await asyncio.sleep(_POLL_SECONDS)
            if await replica.metric("datastorage_spool_quarantined_events"):
                raise Unwell(f"{self.releases[number].name} put events aside: {replica.log[-2000:]}")

    async def alarms(self) -> list[str]:
        """What the replicas that run have found wrong, and errors in their logs."""
        found = []
        for release, replica in zip(self.releases, self.replicas, strict=True):
            for metric in (
                "datastorage_log_alarms_total",
                "datastorage_verifier_findings",
                "datastorage_open_findings",
            ):
                lines = await replica.lines(metric)
                found += [f"{release.name}: {line}" for line in lines if not line.endswith((" 0.0", " 0"))]
            found += [f"{release.name}: {line}" for line in replica.complaints]
        return found

    def warnings(self) -> list[str]:
        """What the replicas have warned of since they were made, each with how often."""
        found: Counter[str] = Counter()
        for release, replica in zip(self.releases, self.replicas, strict=True):
            for line in replica.log.splitlines():
                if '"level":"warning"' in line:
                    warning = json.loads(line)
                    found[
                        f"{release.name}: {warning['message']} {warning.get('error') or warning.get('reason') or ''}"
                    ] += 1
        return [f"{number} times {text[:400]}" for text, number in found.most_common(8)]


class Probe:
    """One client that posts one event after the other to a replica."""

    def __init__(self, side: Side, number: int, event: dict[str, Any]) -> None:
        self.seconds: list[float] = []
        """How long each answer took."""
        self._side, self._number, self._event = side, number, event
        self._task: asyncio.Task[None] | None = None

    @contextlib.asynccontextmanager
    async def posting(self) -> AsyncIterator["Probe"]:
        self._task = asyncio.create_task(self._post_forever())
        try:
            yield self
        finally:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def posted(self, number: int) -> None:
        """Wait until so many have been answered, each with 201."""
        assert self._task is not None
        while len(self.seconds) < number:
            if self._task.done():
                self._task.result()
            await asyncio.sleep(_POLL_SECONDS)

    async def _post_forever(self) -> None:
        body = json.dumps(self._event)
        headers = {"Content-Type": "application/json"}
        async with self._side.client(self._number) as client:
            while True:
                began = time.monotonic()
                answer = await client.post("/api/v1/audit/events", content=body, headers=headers)
                self.seconds.append(time.monotonic() - began)
                if answer.status_code != 201:
                    raise Unwell(f"a post was answered {answer.status_code}: {answer.text[:200]}")
                await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def two_replicas(where: Path, first: Release, seed: int, pause_seconds: float) -> AsyncIterator[Side]:
    """On an empty database of a new Postgres, in a directory that is removed at the end; nothing has been started."""
    async with contextlib.AsyncExitStack() as resources:
        directory = Path(tempfile.mkdtemp(prefix="datastorage-versions-", dir=where))
        resources.callback(shutil.rmtree, directory, ignore_errors=True)
        directory.chmod(0o755)
        postgres = Postgres(binaries(18), directory / "postgres")
        resources.callback(postgres.close)
        await postgres.initialise()
        await postgres.start()
        key_file = directory / "key.pem"
        write_key(key_file)
        (directory / "types").mkdir()
        (directory / "types" / f"{CUSTOM_TYPE}.json").write_text(json.dumps(_CUSTOM))
        sinks = SinkReceiver()
        resources.callback(sinks.end)
        replicas = [
            Replica(directory / f"replica-{number}", directory / f"spool-{number}", postgres.empty_url, Needs())
            for number in range(2)
        ]
        for replica in replicas:
            resources.callback(_kill, replica)
        load = Load(lambda number: replicas[number].url, len(replicas), seed)
        load.timeout = _ANSWER_SECONDS
        load.batch_sizes, load.pause_seconds = (1, 2, 5, 10), pause_seconds
        resources.push_async_callback(load.stop)
        load.start()
        yield Side(directory, postgres, replicas, [first, first], load, sinks, key_file)


def _kill(replica: Replica) -> None:
    if replica.runs:
        replica.signal(signal.SIGKILL)
        assert replica.process is not None
        replica.process.wait()
