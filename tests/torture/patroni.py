"""Three Postgres under a real Patroni, with a real etcd, as processes here: a cluster that fails over by itself."""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import asyncpg

from app import schema
from app.db import DATABASE_ERRORS
from bench.processes import descendants
from tests.proxy import Proxy
from tests.services import free_port, own_host
from tests.torture.postgres import LOG_NAME, Postgres, _give, alive, send, unprivileged

NODES = 3
_SCOPE = "torture"
_START_SECONDS = 90.0
_WHOLE_SECONDS = 300.0
"""A node whose rewinding failed is copied anew, beside the load, and another one after it."""
_COPIED_AFTER_SECONDS = 75.0
"""A standby that has not come back by itself is copied anew by command after so long, as docs/operations.md says."""
_POLL_SECONDS = 0.05
_WELL = {"running", "streaming"}
_PACKAGES = ("patroni[etcd3]", "psycopg[binary]")
_PARAMETERS = {
    "fsync": "on",
    "full_page_writes": "on",
    "synchronous_commit": "on",
    "shared_buffers": "32MB",
    "max_connections": 80,
    "max_wal_size": "256MB",
    "wal_keep_size": "1GB",
    "wal_sender_timeout": "4s",
    "wal_receiver_timeout": "4s",
    "wal_retrieve_retry_interval": "500ms",
}


def programs() -> Path | None:
    """The directory of patroni and patronictl, in a virtual environment of their own, made once; None where that cannot be made."""
    root = os.geteuid() == 0  # then another user runs it, who cannot read what is in root's home
    place = Path("/var/lib/datastorage/patroni/venv") if root else Path.home() / ".cache/datastorage/patroni"
    found = place / "bin"
    if not (found / "patronictl").exists():
        python = shutil.which("python3", path="/usr/bin:/usr/local/bin") if root else sys.executable
        if python is None or shutil.which("etcd") is None:
            return None
        place.parent.mkdir(parents=True, exist_ok=True)
        made = subprocess.run([python, "-m", "venv", place], capture_output=True, check=False)
        command = [str(found / "pip"), "install", "--quiet", *_PACKAGES]
        if made.returncode or subprocess.run(command, capture_output=True, check=False).returncode:
            shutil.rmtree(place, ignore_errors=True)
            return None
    return found if shutil.which("etcd") else None


class Node:
    """One Postgres and its Patroni. Its standbys reach it through a proxy, so that they alone can be cut off."""

    def __init__(self, name: str, directory: Path, host: str) -> None:
        self.name, self.directory, self.host = name, directory, host
        self.port, self.api_port = free_port(host), free_port(host)
        self.between = Proxy(f"postgresql://datastorage@{host}:{self.port}/postgres?sslmode=disable")
        self.config = directory / "patroni.json"
        self._server: asyncio.Server | None = None
        self._patroni: subprocess.Popen[bytes] | None = None

    async def open(self) -> int:
        """The proxy's port."""
        self._server = await asyncio.start_server(self.between.connected, self.host, 0)
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def close(self) -> None:
        self.kill()
        if self._server is not None:
            await self.between.close(self._server)

    def launch(self, bin_dir: Path) -> None:
        """Start Patroni, unless it runs."""
        if self._patroni is not None and self._patroni.poll() is None:
            return
        user = unprivileged()
        with (self.directory / "log").open("ab") as log:
            self._patroni = subprocess.Popen(
                [bin_dir / "patroni", self.config],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                env={"LC_ALL": "C", "TZ": "UTC", "PATH": os.defpath, "HOME": str(self.directory)},
                start_new_session=True,
                user=user and user.pw_uid,
                group=user and user.pw_gid,
                extra_groups=() if user else None,
            )

    @property
    def patroni(self) -> list[int]:
        """The process of Patroni, if it runs, and what it has started: pg_rewind and pg_basebackup, which would outlive it."""
        if self._patroni is None or self._patroni.poll() is not None:
            return []
        return [self._patroni.pid, *descendants(self._patroni.pid)]

    @property
    def postgres(self) -> list[int]:
        """All processes of Postgres, which is no child of Patroni."""
        try:
            pid = int((self.directory / "data" / "postmaster.pid").read_text().split()[0])
        except (OSError, ValueError, IndexError):
            return []
        return [pid, *descendants(pid)] if alive(pid) else []

    def signal(self, sig: signal.Signals) -> None:
        """To all processes of the node, as when its machine stops."""
        for pid in [*self.patroni, *self.postgres]:
            send(pid, sig)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        if self._patroni is not None:
            self._patroni.wait()

    async def is_primary(self) -> bool | None:
        """None if it does not answer."""
        url = f"postgresql://datastorage@{self.host}:{self.port}/postgres?sslmode=disable"
        try:
            async with asyncio.timeout(1):
                connection = await asyncpg.connect(url)
                try:
                    return not await connection.fetchval("SELECT pg_is_in_recovery()")
                finally:
                    connection.terminate()
        except DATABASE_ERRORS:
            return None


class Cluster(Postgres):
    """The cluster in the place of one server. It heals as a whole: killed nodes come back and follow the new primary."""

    def __init__(self, server_programs: Path, directory: Path, *, synchronous: bool) -> None:
        super().__init__(server_programs, directory)
        found = programs()
        assert found is not None
        self._patroni, self._synchronous = found, synchronous
        self.host = own_host()
        self._etcd_port, self._peer_port = free_port(self.host), free_port(self.host)
        self._etcd: subprocess.Popen[bytes] | None = None
        _give(directory)
        self.nodes = [Node(f"n{number}", directory / f"n{number}", self.host) for number in range(NODES)]

    @property
    def url(self) -> str:
        hosts = ",".join(f"{node.host}:{node.port}" for node in self.nodes)
        return f"postgresql://datastorage@{hosts}/datastorage?sslmode=disable&target_session_attrs=read-write"

    async def begin(self) -> None:
        """Start everything, and bring the schema up."""
        self._launch_etcd()
        for node in self.nodes:
            _give(node.directory)
            self._configure(node, await node.open())
        self.nodes[0].launch(self._patroni)
        await self.primary()
        await self.start()
        connection = await asyncpg.connect(self.url.replace("/datastorage?", "/postgres?"))
        await connection.execute("CREATE DATABASE datastorage")
        await connection.close()
        await schema.upgrade(self.url, LOG_NAME)

    def _launch_etcd(self) -> None:
        if self._etcd is not None and self._etcd.poll() is None:
            return
        client, peer = f"http://{self.host}:{self._etcd_port}", f"http://{self.host}:{self._peer_port}"
        words = ["etcd", "--name", "e", "--data-dir", str(self.directory / "etcd"), "--unsafe-no-fsync"]
        words += ["--listen-client-urls", client, "--advertise-client-urls", client, "--listen-peer-urls", peer]
        words += ["--initial-advertise-peer-urls", peer, "--initial-cluster", f"e={peer}"]
        with (self.directory / "etcd.log").open("ab") as log:
            self._etcd = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def _configure(self, node: Node, proxy_port: int) -> None:
        login = {"username": "datastorage"}
        dcs: dict[str, Any] = {
            "ttl": 20,
            "loop_wait": 1,
            "retry_timeout": 3,
            "primary_start_timeout": 0,
            "maximum_lag_on_failover": 64 << 20,
            "synchronous_mode": "quorum" if self._synchronous else False,
            "synchronous_mode_strict": self._synchronous,
            "postgresql": {"use_pg_rewind": True, "use_slots": False, "parameters": _PARAMETERS},
        }
        hba = ["local all all trust", "host all all 0.0.0.0/0 trust", "host replication all 0.0.0.0/0 trust"]
        config = {
            "scope": _SCOPE,
            "name": node.name,
            "restapi": {
                "listen": f"{node.host}:{node.api_port}",
                "connect_address": f"{node.host}:{node.api_port}",
            },
            "etcd3": {"host": f"{self.host}:{self._etcd_port}"},
            "bootstrap": {
                "dcs": dcs,
                "initdb": ["data-checksums", {"encoding": "UTF8"}, {"locale": "C.UTF-8"}, {"wal-segsize": "1"}],
            },
            "postgresql": {
                "listen": f"{node.host}:{node.port}",
                "connect_address": f"{node.host}:{proxy_port}",
                "data_dir": str(node.directory / "data"),
                "bin_dir": str(self._programs),
                "pgpass": str(node.directory / "pgpass"),
                "use_unix_socket": True,
                "authentication": {"superuser": login, "replication": login, "rewind": login},
                "parameters": {"unix_socket_directories": str(node.directory)},
                "pg_hba": hba,
                "pg_ctl_timeout": 30,  # a standby that finds no WAL at its start is copied anew after this time
                # Else each copy waits for a checkpoint that is spread over minutes.
                "basebackup": [{"checkpoint": "fast"}],
                "remove_data_directory_on_rewind_failure": True,
                "remove_data_directory_on_diverged_timelines": True,
            },
            "watchdog": {"mode": "off"},
        }
        node.config.write_text(json.dumps(config))
        node.config.chmod(0o644)

    def launch(self) -> None:
        """Start what does not run."""
        self._launch_etcd()
        for node in self.nodes:
            node.launch(self._patroni)

    async def start(self) -> None:
        """Return when there is one primary that both others follow."""
        await self.connect_again()
        self.launch()
        copied = time.monotonic()
        try:
            async with asyncio.timeout(_WHOLE_SECONDS):
                while not await self._is_whole():
                    self.launch()
                    await asyncio.sleep(4 * _POLL_SECONDS)
                    if time.monotonic() > copied + _COPIED_AFTER_SECONDS:
                        copied = time.monotonic()
                        await self._copy_anew()
        except TimeoutError:
            tails = "\n".join((node.directory / "log").read_text("utf-8", "replace")[-1500:] for node in self.nodes)
            raise TimeoutError(f"the cluster does not become whole:\n{tails}") from None

    async def _copy_anew(self) -> None:
        """Those that follow nobody. Two primaries in short succession can begin timelines of one number: then Patroni sees nothing wrong."""
        for member in await asyncio.to_thread(self._members):
            if member["role"] not in {"leader", "primary"} and member["state"] != "streaming":
                print(f"{member['name']} follows nobody, and is copied anew", flush=True)
                await self._patronictl("reinit", _SCOPE, member["name"], "--force")

    async def _is_whole(self) -> bool:
        members = await asyncio.to_thread(self._members)
        standbys = [member for member in members if member["role"] not in {"leader", "primary"}]
        if len(members) != NODES or len(standbys) != NODES - 1 or any(m["state"] not in _WELL for m in members):
            return False
        # Whom Patroni may promote, as etcd has it.
        if self._synchronous and any(member["role"] not in {"quorum_standby", "sync_standby"} for member in standbys):
            return False
        try:
            connection = await asyncpg.connect(self.url.replace("/datastorage?", "/postgres?"), timeout=5)
        except DATABASE_ERRORS:
            return False
        rows = await connection.fetch("SELECT sync_state FROM pg_stat_replication WHERE state = 'streaming'")
        await connection.close()
        wanted = {"quorum", "sync"} if self._synchronous else {"async"}
        return sum(row["sync_state"] in wanted for row in rows) == NODES - 1

    def _members(self) -> list[dict[str, Any]]:
        for node in self.nodes:
            with (
                suppress(OSError, ValueError),
                urlopen(f"http://{node.host}:{node.api_port}/cluster", timeout=2) as said,
            ):
                members: list[dict[str, Any]] = json.load(said)["members"]
                return members
        return []

    async def primary(self, but: Sequence[Node] = ()) -> Node:
        """The node that takes writes, of those that are not in `but`."""
        async with asyncio.timeout(_START_SECONDS):
            while True:
                for node in self.nodes:
                    if node not in but and await node.is_primary():
                        return node
                await asyncio.sleep(_POLL_SECONDS)

    async def standbys(self) -> list[Node]:
        primary = await self.primary()
        return [node for node in self.nodes if node is not primary]

    async def expire(self) -> None:
        """The leader's lock is gone at once, as it would be after its 20 seconds."""
        key = f"/service/{_SCOPE}/leader"
        words = ["etcdctl", "--endpoints", f"http://{self.host}:{self._etcd_port}", "del", key]
        done = await asyncio.create_subprocess_exec(
            *words, stdout=subprocess.DEVNULL, env=os.environ | {"ETCDCTL_API": "3"}
        )
        await done.wait()

    async def switch_over(self, leader: Node) -> None:
        """As an operator does it, by command."""
        await self._patronictl("switchover", _SCOPE, "--leader", leader.name, "--force")

    async def _patronictl(self, *words: str) -> None:
        command = [str(self._patroni / "patronictl"), "-c", str(self.nodes[0].config), *words]
        done = await asyncio.create_subprocess_exec(*command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        await done.wait()

    def freeze_dcs(self) -> None:
        """etcd answers nothing."""
        if self._etcd is not None:
            send(self._etcd.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        if self._etcd is not None:
            send(self._etcd.pid, signal.SIGCONT)
        for node in self.nodes:
            node.signal(signal.SIGCONT)

    async def connect_again(self) -> None:
        """Standbys reach their primary."""
        for node in self.nodes:
            node.between.silent = False
            await node.between.refuse(False)

    async def accept_writes(self) -> None:
        """Nothing here makes it read-only for good."""

    async def end(self) -> None:
        for node in self.nodes:
            await node.close()
        self.close()

    def close(self) -> None:
        for node in self.nodes:
            node.kill()
        if self._etcd is not None:
            send(self._etcd.pid, signal.SIGKILL)
            self._etcd.wait()


class NotPromoted(Exception):
    """Patroni promotes no standby, since none has what may be lost: as it should, after it has seen all of them go."""


class Promotion:
    """Waits for another primary than `old`, from now on."""

    def __init__(self, cluster: Cluster, *old: Node) -> None:
        self._task = asyncio.create_task(self._wait(cluster, old))

    @staticmethod
    async def _wait(cluster: Cluster, old: Sequence[Node]) -> tuple[Node, float]:
        found = await cluster.primary(old)
        return found, time.monotonic()

    async def done(self) -> tuple[Node, float]:
        """The new primary, and when it was first seen to take writes."""
        try:
            return await self._task
        except TimeoutError:
            raise NotPromoted from None
