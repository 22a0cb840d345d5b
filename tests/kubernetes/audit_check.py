"""A real kube-apiserver whose audit webhook posts to the service, which is killed meanwhile: python -m tests.kubernetes.audit_check DIRECTORY, of check.sh.

Thousands of real calls are made. The same kube-apiserver writes the same audit events to a file: at the end each of them has to be in the
database once, and no other. In batch mode the service reviews the webhook's token by this very kube-apiserver, whose policy is the documented one.
"""

import argparse
import asyncio
import itertools
import json
import re
import signal
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, ExitStack
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import asyncpg
import httpx
import yaml

from app import schema
from tests import databases, pods
from tests.certificates import Authority
from tests.kubernetes.check import create, running_api_server, running_etcd
from tests.proxy import Proxy, proxy
from tests.services import ROOT, Service, free_port, spawn, stop, wait_until_ready

NAMESPACE = "audit"
POLICY = ROOT / "charts" / "datastorage" / "files" / "audit-policy.yaml"
PATH = "/api/v1/audit/kubernetes"
SECRET = "aHVudGVyMg=="
_AWAY_SECONDS = 2.0
_SILENCE_SECONDS = 120.0
"""Longer than the webhook waits between two tries, and for a list to become full."""


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("tools", type=Path, help="directory with etcd as `server`, and `kube-apiserver`")
    parser.add_argument("--calls", type=int, default=10_000)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--mode", choices=("batch", "blocking"), action="append")
    parser.add_argument("--record", type=Path, help="file for a few of the audit events")
    arguments = parser.parse_args()
    failures: list[str] = []
    for mode in arguments.mode or ("batch", "blocking"):
        failures += run(arguments, mode)
    print("\n".join(f"WRONG: {one}" for one in failures) if failures else "all as expected")
    return bool(failures)


def run(arguments: argparse.Namespace, mode: str) -> list[str]:
    """What is wrong after all calls of one run."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="datastorage-audit-")))
        directory.chmod(0o711)
        etcd, api_port = stack.enter_context(running_etcd(arguments.tools, directory)), free_port()
        with running_api_server(arguments.tools, directory, etcd, api_port) as cluster:
            make_accounts(cluster, directory)
        Authority(directory).write_pair(directory / "tls", "datastorage")
        server_url = stack.enter_context(databases.server())
        return asyncio.run(check(arguments, mode, Machine(directory, etcd, api_port, server_url)))


class Machine(NamedTuple):
    """What runs before the service, and after it."""

    directory: Path
    etcd: str
    api_port: int
    server_url: str


async def check(arguments: argparse.Namespace, mode: str, machine: Machine) -> list[str]:
    directory = machine.directory
    async with AsyncExitStack() as stack:
        port = free_port()
        url = await databases.create(machine.server_url)
        await schema.upgrade(url, log_name="test.example/audit")
        between = await stack.enter_async_context(proxy(url))
        killed = Killed(between, directory, port, access(mode, directory, machine.api_port))
        stack.push_async_callback(killed.end)
        await asyncio.to_thread(killed.start)
        flags = audit_flags(directory, port, mode)
        api_server = running_api_server(arguments.tools, directory, machine.etcd, machine.api_port, flags)
        cluster = await asyncio.to_thread(api_server.__enter__)  # it posts already, by way of the proxy
        stack.push(api_server.__exit__)
        started = time.monotonic()
        await make_calls(cluster, arguments.calls, arguments.kills, killed)
        seconds = time.monotonic() - started
        logged, found = await all_stored(directory / "audit.log", url)
        metrics = cluster.get("/metrics").text
        if arguments.record is not None:
            record(directory / "audit.log", arguments.record)
        version = cluster.get("/version").json()["gitVersion"]
        print(
            f"{mode}: kube-apiserver {version}, {arguments.calls} calls in {seconds:.0f} s, service killed {killed.times} times, "
            f"Postgres cut off {killed.cuts} times"
        )
        return judge(logged, found, metrics) + await secrets(url)


class Killed:
    """The service, which dies and comes back with its spool."""

    def __init__(self, between: Proxy, directory: Path, port: int, access: dict[str, object]) -> None:
        self._between, self._directory = between, directory
        self._health_port = free_port()
        self._settings: dict[str, object] = {
            "database_url": between.url,
            "unsafe_database": True,
            "port": port,
            "tls_dir": directory / "tls",
            "health_port": self._health_port,
            "processes": 2,
            "spool_dir": directory / "spool",
            "access_log": False,
            **access,
        }
        self._service: Service | None = None
        self._starts = itertools.count()
        self.times = self.cuts = 0

    def start(self) -> None:
        self._service = spawn(self._settings, self._directory / f"service-{next(self._starts)}")
        wait_until_ready(self._service, f"http://127.0.0.1:{self._health_port}")

    async def end(self) -> None:
        if self._service is not None:
            await asyncio.to_thread(stop, [self._service])
        await self._between.refuse(True)
        await asyncio.sleep(0.2)  # until the proxy has closed its ends

    async def kill(self) -> None:
        """Kill all its processes; every third time when it has spooled for a while, so that the next one begins with a spool."""
        assert self._service is not None
        if self.times % 3 == 1:
            self.cuts += 1
            await self._between.refuse(True)
            await asyncio.sleep(3 * _AWAY_SECONDS)
        for pid in [*pods.children(self._service), self._service.process.pid]:
            pods.kill(pid, signal.SIGKILL)
        await asyncio.to_thread(self._service.process.wait)
        self.times += 1
        await asyncio.sleep(_AWAY_SECONDS)
        await self._between.refuse(False)
        await asyncio.to_thread(self.start)


def access(mode: str, directory: Path, api_port: int) -> dict[str, object]:
    """Who knows the webhook: the kube-apiserver itself, or, where its requests wait for the service, a file."""
    if mode == "batch":
        return {
            "auth": "kubernetes",
            "kubernetes_url": f"https://127.0.0.1:{api_port}",
            "kubernetes_token_file": directory / "datastorage-token",
            "kubernetes_ca_file": directory / "apiserver.crt",
            "kubernetes_namespace": NAMESPACE,
        }
    digest = sha256((directory / "webhook-token").read_bytes()).hexdigest()
    entry = {"name": "kube-apiserver", "role": "writer", "sha256": digest}
    (directory / "tokens.yaml").write_text(yaml.safe_dump([entry]))
    return {"auth": "tokens", "tokens_file": directory / "tokens.yaml"}


def make_accounts(cluster: httpx.Client, directory: Path) -> None:
    """The service's own account, and that of the webhook with the role writer; a token of each in a file."""
    create(cluster, "/api/v1/namespaces", {"metadata": {"name": NAMESPACE}})
    core, rbac = f"/api/v1/namespaces/{NAMESPACE}", "/apis/rbac.authorization.k8s.io/v1"
    for name in ("datastorage", "webhook"):
        create(cluster, f"{core}/serviceaccounts", {"metadata": {"name": name}})
        made = create(cluster, f"{core}/serviceaccounts/{name}/token", {"spec": {"expirationSeconds": 7200}})
        (directory / f"{name}-token").write_text(made["status"]["token"])
    group = "rbac.authorization.k8s.io"
    reviewer = {"kind": "ServiceAccount", "name": "datastorage", "namespace": NAMESPACE}
    role = {"apiGroup": group, "kind": "ClusterRole", "name": "system:auth-delegator"}
    create(
        cluster,
        f"{rbac}/clusterrolebindings",
        {"metadata": {"name": "datastorage"}, "roleRef": role, "subjects": [reviewer]},
    )
    rule = {"apiGroups": [""], "resources": ["services"], "resourceNames": ["data-storage-service"]}
    writer = {"metadata": {"name": "writer"}, "rules": [rule | {"verbs": ["get", "create"]}]}
    create(cluster, f"{rbac}/namespaces/{NAMESPACE}/roles", writer)
    binding = {
        "metadata": {"name": "webhook"},
        "roleRef": {"apiGroup": group, "kind": "Role", "name": "writer"},
        "subjects": [reviewer | {"name": "webhook"}],
    }
    create(cluster, f"{rbac}/namespaces/{NAMESPACE}/rolebindings", binding)


def audit_flags(directory: Path, port: int, mode: str) -> list[object]:
    """Both backends with all their defaults, but for the mode."""
    # Without TLS a kube-apiserver sends no token.
    cluster = {"server": f"https://127.0.0.1:{port}{PATH}", "certificate-authority": str(directory / "ca.crt")}
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "datastorage", "cluster": cluster}],
        "users": [{"name": "webhook", "user": {"tokenFile": str(directory / "webhook-token")}}],
        "contexts": [{"name": "audit", "context": {"cluster": "datastorage", "user": "webhook"}}],
        "current-context": "audit",
    }
    (directory / "audit-webhook.yaml").write_text(yaml.safe_dump(config))
    flags: list[object] = [
        "--audit-policy-file",
        POLICY,
        "--audit-webhook-config-file",
        directory / "audit-webhook.yaml",
    ]
    return [*flags, "--audit-webhook-mode", mode, "--audit-log-path", directory / "audit.log"]


async def make_calls(cluster: httpx.Client, calls: int, kills: int, killed: Killed) -> None:
    """All calls, ten at a time, with the kills spread evenly among them."""
    portion = -(-calls // (kills + 1))
    numbers = iter(range(calls))
    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(10) as pool:
        while these := list(itertools.islice(numbers, portion)):
            under_way = asyncio.gather(*(loop.run_in_executor(pool, call, cluster, number) for number in these))
            if killed.times < kills:
                await asyncio.sleep(1)  # in their middle
                await killed.kill()
            await under_way


def call(cluster: httpx.Client, number: int) -> None:
    """One of the things that people and controllers do."""
    core = f"/api/v1/namespaces/{NAMESPACE}"
    name, kind = f"thing-{number // 5}", ("configmaps", "secrets", "serviceaccounts")[number // 5 % 3]
    body: dict[str, Any] = {"metadata": {"name": name, "labels": {"n": str(number)}}}
    if kind != "serviceaccounts":
        body["data"] = {"password": SECRET}
    match number % 5:
        case 0:
            answer = cluster.post(f"{core}/{kind}", json=body)
        case 1:
            answer = cluster.get(f"{core}/{kind}/{name}")
        case 2:
            headers = {"Content-Type": "application/merge-patch+json"}
            answer = cluster.patch(
                f"{core}/{kind}/{name}", json={"metadata": {"labels": {"n": "\0 and more"}}}, headers=headers
            )
        case 3:
            answer = cluster.get(f"{core}/{kind}?limit=1", headers={"Impersonate-User": f"user-{number}@example.org"})
        case _:
            answer = cluster.delete(f"{core}/{kind}/{name}")
    if answer.status_code >= 500:
        raise SystemExit(f"{answer.request.method} {answer.request.url}: {answer.status_code} {answer.text}")


Key = tuple[str, str, str]


def logged_events(path: Path) -> Counter[Key]:
    """(auditID, stage, stageTimestamp) of each line of the audit log."""
    events = (json.loads(line) for line in path.read_text("utf-8").splitlines())
    return Counter((one["auditID"], one["stage"], one["stageTimestamp"]) for one in events)


async def stored_events(url: str) -> Counter[Key]:
    columns = "event_data->>'auditID', event_data->>'stage', event_data->>'stageTimestamp'"
    connection = await asyncpg.connect(url)
    try:
        rows = await connection.fetch(f"SELECT {columns} FROM audit_events WHERE event_category = 'kubernetes'")
    finally:
        await connection.close()
    return Counter(tuple(row) for row in rows)


async def all_stored(path: Path, url: str) -> tuple[Counter[Key], Counter[Key]]:
    """What was logged and what is stored, once they agree, or nothing has been stored any more for a long time."""
    last, since = -1, time.monotonic()
    while True:
        logged, found = logged_events(path), await stored_events(url)
        if logged == found:
            return logged, found
        if len(found) != last:
            last, since = len(found), time.monotonic()
        if time.monotonic() - since > _SILENCE_SECONDS:
            return logged, found
        await asyncio.sleep(2)


def judge(logged: Counter[Key], found: Counter[Key], metrics: str) -> list[str]:
    dropped = re.findall(r"^(apiserver_audit_(?:error_total|requests_rejected_total)\S* \S+)$", metrics, re.MULTILINE)
    missing, made_up = logged - found, found - logged
    print(f"  audit events in the kube-apiserver's log file: {logged.total()}")
    print(
        f"  stored: {found.total()}, twice: {found.total() - len(found)}, missing: {missing.total()}, not in the file: {made_up.total()}"
    )
    print(f"  dropped, as the kube-apiserver says: {', '.join(dropped) or 'none'}", flush=True)
    return [f"missing or too many: {list(one.items())[:3]}" for one in (missing, made_up) if one]


async def secrets(url: str) -> list[str]:
    connection = await asyncpg.connect(url)
    try:
        number = await connection.fetchval(
            "SELECT count(*) FROM audit_events WHERE strpos(audit_events::text, $1) > 0", SECRET
        )
    finally:
        await connection.close()
    return [f"{number} events have the content of a secret"] if number else []


def record(path: Path, to: Path) -> None:
    """The first event of each kind: by stage, verb, resource and code."""
    kinds: dict[object, Any] = {}
    for line in path.read_text("utf-8").splitlines():
        event = json.loads(line)
        of = event.get("objectRef", {})
        kinds.setdefault((event["verb"], of.get("resource"), event.get("responseStatus", {}).get("code")), event)
    to.write_text(json.dumps([*kinds.values()][:20], indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
