"""The environment of one kind of fault: its own Postgres, two replicas with their spools, and clients that post without pause."""

import asyncio
import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from bench.processes import descendants
from tests import pgbouncer
from tests.pgbouncer import PgBouncer
from tests.proxy import Proxy, proxy
from tests.receiver import SinkReceiver
from tests.services import OTHER_SETTINGS, ROOT, free_port, own_host
from tests.torture.load import Load
from tests.torture.patroni import Cluster, programs
from tests.torture.postgres import Postgres, alive, binaries, send

REPLICAS = 2
_READY_SECONDS = 120.0  # where three Postgres start as well
_DRAIN_SECONDS = 90.0
_CLOSE_SECONDS = 0.05
_POLL_SECONDS = 0.02
_POOLED = 40
"""Connections of all replicas together; PgBouncer's own default is 20."""


class Unwell(Exception):
    """Something does not work again after a fault."""


@dataclass(frozen=True)
class Needs:
    """What a kind of fault needs beyond the usual environment."""

    proxies: bool = False
    """Replicas reach Postgres through a proxy each."""
    pgbouncer: bool = False
    """Replicas reach Postgres through one PgBouncer."""
    postgres_disk_mib: int = 0
    """Postgres has a disk of its own, this large; 0: the one that everything is on."""
    spool_disk_mib: int = 0
    inside: bool = False
    """Replicas are started by tests.torture.service, which lets the harness reach inside."""
    reserve_bytes: int | None = None
    """What a spool leaves free on its disk, if not the service's own value."""
    postgres_only: bool = False
    """The kind starts the replicas itself, on an empty database."""
    cluster: str = ""
    """`synchronous` or `asynchronous`: three Postgres under Patroni, which replicate so."""
    settings: dict[str, object] = field(default_factory=dict)
    sink: bool = False
    """Everything is delivered to a webhook."""


class Replica:
    """One `datastorage serve`, started as often as it is needed on the same spool."""

    def __init__(self, directory: Path, spool: Path, database_url: str, needs: Needs) -> None:
        self.directory = directory
        self.spool = spool
        self.clock = directory / "clock"
        self.url: str | None = None
        self.process: subprocess.Popen[bytes] | None = None
        self.told_to_end = False
        self._database_url = database_url
        self._needs = needs
        self.settings: dict[str, object] = dict(needs.settings)
        self.program: tuple[str, ...] = (sys.executable, "-m", "app")
        self.python_path = str(ROOT)
        directory.mkdir()

    @property
    def log(self) -> str:
        return (self.directory / "log").read_text("utf-8", "replace")

    @property
    def complaints(self) -> list[str]:
        """Internal errors in the replica's log, each once."""
        lines: dict[str, None] = {}
        for line in self.log.splitlines():
            if re.search(r"\"level\":\"(error|critical)\"|^Traceback", line):
                lines[re.sub(r"\d{2}:\d{2}:\d{2}[^ \"]*|\d+", "#", line)[:1500]] = None
        return list(lines)[:6]

    def launch(self, **settings: object) -> None:
        """A new process on a new port."""
        host = own_host()
        port = free_port(host)
        env = {name: value for name, value in os.environ.items() if not name.startswith(OTHER_SETTINGS)}
        common = {
            "database_url": self._database_url,
            "spool_dir": self.spool,
            "host": host,
            "port": port,
            "access_log": False,
            "processes": 1,
        }
        for name, value in (common | self.settings | settings).items():
            env[f"DATASTORAGE_{name.upper()}"] = str(value)
        env["PYTHONPATH"] = self.python_path
        program = self.program
        if self._needs.inside:
            program = (sys.executable, "-m", "tests.torture.service")
            env["TORTURE_CLOCK"] = str(self.clock)
            env["TORTURE_SPOOL_THREAD"] = str(self.directory / "thread")
            if self._needs.reserve_bytes is not None:
                env["TORTURE_SPOOL_RESERVE"] = str(self._needs.reserve_bytes)
        with (self.directory / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [*program, "serve"], cwd=self.directory, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        self.url = f"http://{host}:{port}"
        self.told_to_end = False

    @property
    def runs(self) -> bool:
        return self.process is not None and self.process.poll() is None

    @property
    def family(self) -> list[int]:
        """Its main process, and then those that it has started."""
        assert self.process is not None
        return [self.process.pid, *descendants(self.process.pid)]

    def processes(self, role: str) -> list[int]:
        """Those of its processes that have this role in the pod: front, reader or writer."""
        return [pid for pid in self.family[1:] if _name(pid).startswith(f"ds-{role}")]

    def signal(self, sig: signal.Signals) -> None:
        """SIGTERM is sent to the main process, as a kubelet does; any other signal to all of them."""
        assert self.process is not None
        self.told_to_end = self.told_to_end or sig in {signal.SIGTERM, signal.SIGKILL}
        if sig == signal.SIGTERM:
            self.process.send_signal(sig)
        else:
            for pid in self.family:
                send(pid, sig)

    async def kill(self) -> None:
        family = self.family
        self.signal(signal.SIGKILL)
        await self.ended()
        while any(alive(pid) for pid in family):
            await asyncio.sleep(_POLL_SECONDS)

    async def ended(self, seconds: float = 120.0) -> int:
        """Its exit code."""
        assert self.process is not None
        async with asyncio.timeout(seconds):
            while (code := self.process.poll()) is None:
                await asyncio.sleep(_POLL_SECONDS)
        return code

    async def lines(self, beginning: str) -> list[str]:
        """The metrics that begin so, as text."""
        return [line for line in await self._get("/metrics") if line.startswith(beginning)]

    async def metric(self, name: str) -> float | None:
        """A metric without labels; None when the replica does not answer."""
        lines = await self._get("/metrics")
        return next((float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{name} ")), None)

    async def is_ready(self) -> bool:
        return bool(await self._get("/readyz"))

    async def _get(self, path: str) -> list[str]:
        try:
            async with httpx.AsyncClient(timeout=5) as client:
                answer = await client.get(f"{self.url}{path}")
        except httpx.HTTPError:
            return []
        return answer.text.splitlines() if answer.status_code == 200 else []


class Disk:
    """A small file system in memory that can be filled and emptied again."""

    def __init__(self, place: Path, mib: int) -> None:
        self.place = place
        place.mkdir()
        options = f"size={mib}m,mode=0755"
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "torture", place], capture_output=True, check=False
        )
        if done.returncode:
            raise NotPossible(f"no tmpfs can be mounted: {done.stderr.decode().strip()}")

    def fill(self, leave_bytes: int = 0) -> None:
        """Fill the disk, except for `leave_bytes`."""
        free = shutil.disk_usage(self.place).free - leave_bytes
        with contextlib.suppress(OSError), (self.place / "ballast").open("ab") as ballast:
            for piece in (1 << 16, 1 << 12):
                while free >= piece:
                    ballast.write(b"\0" * piece)
                    ballast.flush()
                    free -= piece

    def empty(self) -> None:
        (self.place / "ballast").unlink(missing_ok=True)

    def close(self) -> None:
        subprocess.run(["umount", "--lazy", self.place], check=False)


class NotPossible(Exception):
    """This machine cannot run this kind of fault; the message says why."""


@dataclass
class World:
    """Everything that a fault may use."""

    postgres: Postgres
    replicas: list[Replica]
    proxies: list[Proxy]
    load: Load
    postgres_disk: Disk | None
    spool_disks: list[Disk]
    database_url: str
    pgbouncer: PgBouncer | None = None
    stop_seconds: float = 2.0
    """How long Postgres stays stopped in the kind that is about just that."""
    in_flight: int = 0
    """Requests in flight when the fault was injected."""
    notes: list[str] = field(default_factory=list)
    key_file: Path | None = None
    """Of the key that signs checkpoints; None where none are signed."""
    first_201: list[float] = field(default_factory=list)
    """Seconds from each promotion of a cluster to the first answer 201 after it."""
    named: list[float] = field(default_factory=list)
    """Seconds from a promotion after which events are lost until every replica says so."""
    receiver: SinkReceiver | None = None
    """Of the webhook, if there is one."""

    def begin(self) -> None:
        """Begin the next fault: clients post, and the results of the last one are cleared."""
        self.in_flight = 0
        self.notes, self.first_201, self.named = [], [], []
        self.load.forget()
        self.load.begin()

    async def ready(self) -> None:
        """Wait for every replica; one that has ended is an error."""
        for replica in self.replicas:
            try:
                async with asyncio.timeout(_READY_SECONDS):
                    while not await replica.is_ready():
                        if not replica.runs:
                            raise Unwell(f"a replica has ended: {replica.log[-2000:]}")
                        await asyncio.sleep(_POLL_SECONDS)
            except TimeoutError:
                raise Unwell(f"a replica does not become ready: {replica.log[-2000:]}") from None

    async def heal(self) -> None:
        """Make everything run, and free all disks."""
        for disk in (self.postgres_disk, *self.spool_disks):
            if disk is not None:
                disk.empty()
        self.postgres.thaw()
        for between in self.proxies:
            between.lose_answer = between.lose_question = between.silent = False
            await between.refuse(False)
        await self.postgres.start()
        await self.postgres.accept_writes()
        if self.pgbouncer is not None:
            self.pgbouncer.signal(signal.SIGCONT)
            self.pgbouncer.start()
        for replica in self.replicas:
            if replica.runs:
                replica.signal(signal.SIGCONT)
            if replica.told_to_end:
                await replica.ended()
            if not replica.runs:
                replica.launch()
        await self.ready()

    async def drained(self) -> None:
        """Wait until nothing waits in any spool."""
        for replica in self.replicas:
            try:
                async with asyncio.timeout(_DRAIN_SECONDS):
                    while await replica.metric("datastorage_spool_events") != 0:
                        if not replica.runs:
                            raise Unwell(f"a replica has ended: {replica.log[-2000:]}")
                        await asyncio.sleep(_POLL_SECONDS)
            except TimeoutError:
                depth = await replica.metric("datastorage_spool_events")
                raise Unwell(f"a spool is not drained: {depth} events; {replica.log[-1500:]}") from None
            if kept_aside := await replica.metric("datastorage_spool_quarantined_events"):
                self.notes.append(f"{kept_aside:.0f} events in quarantine: {_last_reason(replica.log)}")

    async def spooled(self, replica: Replica, seconds: float = 8.0) -> bool:
        """Wait until something waits in the spool of `replica`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not await replica.metric("datastorage_spool_events"):
                    await asyncio.sleep(_POLL_SECONDS)
                return True
        return False


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text()
    except OSError:
        return ""


def _last_reason(log: str) -> str:
    return next((line[:300] for line in reversed(log.splitlines()) if "quarantined" in line), "")


@contextlib.asynccontextmanager
async def running_world(template: Postgres, needs: Needs, seed: int, directory: Path) -> AsyncIterator[World]:
    """A world with two ready replicas and a load that has not begun. Raises NotPossible."""
    async with contextlib.AsyncExitStack() as resources:
        place = resources.enter_context(_scratch(directory))
        resources.push_async_callback(asyncio.sleep, _CLOSE_SECONDS)  # until the connections are closed
        postgres_disk = None
        if needs.postgres_disk_mib:
            postgres_disk = _disk(resources, place / "postgres", needs.postgres_disk_mib)
        if needs.cluster:
            postgres: Postgres = await _cluster(resources, place / "cluster", needs.cluster)
        else:
            postgres = template.copy(place / "postgres")
            resources.callback(postgres.close)
            await postgres.start()
        database_url = postgres.empty_url if needs.postgres_only else postgres.url
        key_file = place / "key.pem" if needs.cluster else None
        if key_file is not None:
            write_key(key_file)
        bouncer = _pgbouncer(resources, database_url, place) if needs.pgbouncer else None
        receiver = _receiver(resources) if needs.sink else None
        replicas, proxies, spool_disks = [], [], []
        for number in range(REPLICAS):
            url = bouncer.url if bouncer else database_url
            if needs.proxies:
                proxies.append(await resources.enter_async_context(proxy(url)))
                resources.push_async_callback(proxies[-1].refuse, True)
                url = proxies[-1].url
            spool = place / f"spool-{number}"
            if needs.spool_disk_mib:
                spool_disks.append(_disk(resources, spool, needs.spool_disk_mib))
            replica = Replica(place / f"replica-{number}", spool, url, needs)
            if key_file is not None:
                replica.settings |= {
                    "checkpoint_key_file": key_file,
                    "checkpoint_file": replica.directory / "checkpoints",
                }
            replica.settings |= {"sinks": receiver.file(place)} if receiver else {}
            resources.callback(_end, replica)
            replicas.append(replica)
        load = Load(lambda number: replicas[number].url, REPLICAS, seed)
        resources.push_async_callback(load.stop)
        world = World(postgres, replicas, proxies, load, postgres_disk, spool_disks, database_url, bouncer)
        world.key_file, world.receiver = key_file, receiver
        if not needs.postgres_only:
            for replica in replicas:
                replica.launch()
            await world.ready()
        load.start()
        yield world


def _receiver(resources: contextlib.AsyncExitStack) -> SinkReceiver:
    receiver = SinkReceiver()
    resources.callback(receiver.end)
    return receiver


async def _cluster(resources: contextlib.AsyncExitStack, place: Path, how: str) -> Cluster:
    if programs() is None:
        raise NotPossible("there is no etcd, or Patroni cannot be installed")
    cluster = Cluster(binaries(18), place, synchronous=how == "synchronous")
    resources.push_async_callback(cluster.end)
    await cluster.begin()
    return cluster


def write_key(path: Path) -> None:
    """A new key that signs checkpoints."""
    private = Ed25519PrivateKey.generate()
    path.write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


def _pgbouncer(resources: contextlib.AsyncExitStack, database_url: str, place: Path) -> PgBouncer:
    if pgbouncer.program() is None:
        raise NotPossible("there is no pgbouncer")
    bouncer = PgBouncer(database_url, place / "pgbouncer", listen_addr=own_host(), default_pool_size=_POOLED)
    resources.callback(bouncer.kill)
    bouncer.start()
    return bouncer


def _disk(resources: contextlib.AsyncExitStack, place: Path, mib: int) -> Disk:
    disk = Disk(place, mib)
    resources.callback(disk.close)
    return disk


@contextlib.contextmanager
def _scratch(directory: Path) -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="world-", dir=directory))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made, ignore_errors=True)


def _end(replica: Replica) -> None:
    if replica.runs:
        replica.signal(signal.SIGKILL)
        assert replica.process is not None
        replica.process.wait()
