"""Every route, called with real service accounts of a real kube-apiserver: python -m tests.kubernetes.check DIRECTORY, of check.sh.

DIRECTORY contains etcd as `server`, `kube-apiserver`, and `access.yaml`, rendered by the chart from the platform's end-to-end values.
"""

import ssl
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import yaml

from tests.blackbox.test_access import DENIALS, EVENTS, MATRIX, bearer
from tests.events import make_event
from tests.services import free_port, spawn, stop, wait_until_ready

NAMESPACE = "datastorage-e2e"
OWN = "datastorage"
ROLES = {"datastorage-e2e-full": "admin", "datastorage-e2e-readonly": "reader", "datastorage-e2e-none": "nobody"}
WRITER = "orchestrator"
CACHE_MS, API_CACHE_MS = 2_000, 10_000
"""How long the service, and kube-apiserver itself, cache an answer about a token."""


def main() -> int:
    tools = Path(sys.argv[1])
    failures: list[str] = []
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="datastorage-kubernetes-")))
        directory.chmod(0o711)  # as root, Postgres runs as another user, who must reach its data
        etcd = stack.enter_context(running_etcd(tools, directory))
        api_port = free_port()
        first = stack.enter_context(ExitStack())
        cluster = first.enter_context(running_api_server(tools, directory, etcd, api_port))
        version = cluster.get("/version").json()["gitVersion"]
        print(f"kube-apiserver {version} with etcd: ready", flush=True)
        tokens = make_accounts(cluster, tools / "access.yaml")
        (directory / "own-token").write_text(tokens[OWN])
        service = spawn(
            {
                "data_dir": directory / "data",
                "auth": "kubernetes",
                "auth_cache_ms": CACHE_MS,
                "auth_timeout_ms": 2_000,
                "kubernetes_url": f"https://127.0.0.1:{api_port}",
                "kubernetes_token_file": directory / "own-token",
                "kubernetes_ca_file": directory / "apiserver.crt",
                "kubernetes_namespace": NAMESPACE,
            },
            directory / "service",
        )
        stack.callback(stop, [service])
        wait_until_ready(service)
        client = stack.enter_context(httpx.Client(base_url=service.url, timeout=20))

        failures += check_matrix(client, tokens)
        failures += check_denials(client, tokens)
        failures += check_actor(client, tokens)
        failures += check_deleted(client, cluster, tokens)
        first.close()
        failures += expect(
            "kube-apiserver stopped, an account whose cached answer has expired",
            500,
            ask(client, tokens[WRITER], CACHE_MS),
        )
        with running_api_server(tools, directory, etcd, api_port):
            failures += expect("kube-apiserver is back", 200, ask(client, tokens[WRITER]))
    print("\n".join(["", *(f"WRONG: {one}" for one in failures)]) if failures else "all as expected")
    return bool(failures)


@contextmanager
def running(command: list[object], log: Path) -> Iterator[None]:
    """A process that is stopped after the block."""
    with log.open("ab") as output:
        process = subprocess.Popen([str(part) for part in command], stdout=output, stderr=output)
    try:
        yield
    finally:
        process.terminate()
        process.wait(30)


def wait_for(what: str, is_ready: Callable[[], bool], log: Path) -> None:
    for _ in range(1800):
        try:
            if is_ready():
                return
        except (httpx.HTTPError, OSError):
            pass
        time.sleep(0.1)
    raise SystemExit(f"{what} does not become ready:\n{log.read_text()[-3000:]}")


@contextmanager
def running_etcd(tools: Path, directory: Path) -> Iterator[str]:
    """etcd; its URL."""
    url, peers, log = f"http://127.0.0.1:{free_port()}", f"http://127.0.0.1:{free_port()}", directory / "etcd.log"
    command: list[object] = [tools / "server", "--data-dir", directory / "etcd", "--listen-client-urls", url]
    command += ["--advertise-client-urls", url, "--listen-peer-urls", peers, "--initial-advertise-peer-urls", peers]
    command += ["--initial-cluster", f"default={peers}"]
    with running(command, log):
        wait_for("etcd", lambda: httpx.get(f"{url}/health").status_code == 200, log)
        yield url


@contextmanager
def running_api_server(
    tools: Path, directory: Path, etcd: str, port: int, flags: Sequence[object] = ()
) -> Iterator[httpx.Client]:
    """kube-apiserver; a client of it with every right."""
    key, log = directory / "accounts.key", directory / "kube-apiserver.log"
    if not key.exists():
        subprocess.run(["openssl", "genrsa", "-out", str(key), "2048"], check=True, capture_output=True)
        (directory / "tokens.csv").write_text("the-root,root,root,system:masters\n")
    command: list[object] = [tools / "kube-apiserver", "--etcd-servers", etcd, "--bind-address", "127.0.0.1"]
    command += ["--secure-port", port, "--cert-dir", directory, "--authorization-mode", "RBAC"]
    command += ["--service-account-issuer", "https://kubernetes.test", "--service-account-key-file", key]
    command += ["--service-account-signing-key-file", key, "--token-auth-file", directory / "tokens.csv"]
    command += ["--service-cluster-ip-range", "10.0.0.0/24", *flags]
    with running(command, log):
        wait_for("the certificate of kube-apiserver", (directory / "apiserver.crt").exists, log)
        trusted = ssl.create_default_context(cafile=str(directory / "apiserver.crt"))
        with httpx.Client(
            base_url=f"https://127.0.0.1:{port}", verify=trusted, headers=bearer("the-root"), timeout=20
        ) as cluster:
            wait_for("kube-apiserver", lambda: cluster.get("/readyz").status_code == 200, log)
            yield cluster


def make_accounts(cluster: httpx.Client, access: Path) -> dict[str, str]:
    """Everything of the chart's access.yaml, and a writer bound as the documentation says; a token for each account."""
    create(cluster, "/api/v1/namespaces", {"metadata": {"name": NAMESPACE}})
    rbac = "/apis/rbac.authorization.k8s.io/v1"
    core, roles = f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts", f"{rbac}/namespaces/{NAMESPACE}"
    paths = {"ServiceAccount": core, "Role": f"{roles}/roles", "RoleBinding": f"{roles}/rolebindings"}
    paths["ClusterRoleBinding"] = f"{rbac}/clusterrolebindings"
    made = [one for one in yaml.safe_load_all(access.read_text()) if one]
    for one in made:
        create(cluster, paths[one["kind"]], one)
    create(cluster, core, {"metadata": {"name": WRITER}})
    binding = {
        "metadata": {"name": WRITER},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "datastorage-writer"},
        "subjects": [{"kind": "ServiceAccount", "name": WRITER, "namespace": NAMESPACE}],
    }
    create(cluster, paths["RoleBinding"], binding)
    names = [*(one["metadata"]["name"] for one in made if one["kind"] == "ServiceAccount"), WRITER]
    counted = Counter(one["kind"] for one in made)
    print(f"made of the chart: {', '.join(f'{number} {kind}' for kind, number in counted.items())}")
    return {name: token(cluster, name) for name in names}


def create(cluster: httpx.Client, path: str, item: dict[str, Any]) -> Any:
    answer = cluster.post(path, json=item)
    if answer.status_code != 201:
        raise SystemExit(f"POST {path}: {answer.status_code} {answer.text}")
    return answer.json()


def token(cluster: httpx.Client, name: str, **spec: Any) -> str:
    path = f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts/{name}/token"
    return str(create(cluster, path, {"spec": {"expirationSeconds": 3600, **spec}})["status"]["token"])


def check_matrix(client: httpx.Client, tokens: dict[str, str]) -> list[str]:
    """Each route with each account, against the table that was written by hand for the tests."""
    wrong = []
    told: dict[str, Counter[int]] = {}
    for account, role in [*ROLES.items(), (WRITER, "writer")]:
        for (method, template), (allowed, expected, url, sent) in MATRIX.items():
            answer = client.request(method, url, json=sent and sent(), headers=bearer(tokens[account]))
            told.setdefault(f"{account} ({role})", Counter())[answer.status_code] += 1
            if template.startswith("/tlog/"):  # open; there is something or nothing yet
                continue
            if answer.status_code != (expected if role in allowed else 403):
                wrong.append(f"{method} {template} as {account}: {answer.status_code} {answer.text[:200]}")
    print(f"\n{len(MATRIX)} routes, answers by status")
    for account, counted in told.items():
        print(f"  {account:34} {', '.join(f'{status}: {number}' for status, number in sorted(counted.items()))}")
    return wrong


def check_denials(client: httpx.Client, tokens: dict[str, str]) -> list[str]:
    """Contract section 4, word for word."""
    print("\nrefusals")
    wrong = []
    for header, status, _, detail in DENIALS:
        named = header and header.replace("kube-all", tokens[WRITER]).replace(
            "kube-nobody", tokens["datastorage-e2e-none"]
        )
        answer = client.post(EVENTS, json=make_event(), headers={} if named is None else {"Authorization": named})
        print(
            f"  {'no header' if header is None else header or 'an empty one':24} {answer.status_code} {answer.json()['detail']}"
        )
        if (answer.status_code, answer.json()["detail"]) != (status, detail):
            wrong.append(f"{header}: {answer.text}")
    return wrong


def check_actor(client: httpx.Client, tokens: dict[str, str]) -> list[str]:
    """A service account keeps the body's actor, and is known by its own name."""
    body = make_event(actor_id="the-controller", correlation_id="rr-kubernetes")
    posted = client.post(EVENTS, json=body, headers=bearer(tokens[WRITER]))
    stored = client.get(f"{EVENTS}/{posted.json()['event_id']}", headers=bearer(tokens[WRITER])).json()
    full = bearer(tokens["datastorage-e2e-full"])
    client.post("/api/v1/audit/legal-hold", json={"correlation_id": "rr-kubernetes", "reason": "case 7"}, headers=full)
    [hold] = client.get("/api/v1/audit/legal-hold", headers=full).json()["holds"]
    print(f"\nactor of a service account's event: {stored['actor_id']}; a hold was placed by {hold['placed_by']}")
    expected = ("the-controller", f"system:serviceaccount:{NAMESPACE}:datastorage-e2e-full")
    return [] if (stored["actor_id"], hold["placed_by"]) == expected else [f"actor and placed_by: {stored}, {hold}"]


def check_deleted(client: httpx.Client, cluster: httpx.Client, tokens: dict[str, str]) -> list[str]:
    """A token ends with its account, one for others is none for us, and a role that is taken away is gone."""
    print()
    wrong = expect("a token for another audience", 401, ask(client, token(cluster, WRITER, audiences=["vault"])))
    wrong += expect("before its account is deleted", 200, ask(client, tokens["datastorage-e2e-readonly"]))
    cluster.delete(f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts/datastorage-e2e-readonly")
    wrong += expect("after, and the cache's time", 401, ask(client, tokens["datastorage-e2e-readonly"], CACHE_MS))
    path = f"/apis/rbac.authorization.k8s.io/v1/namespaces/{NAMESPACE}/rolebindings/datastorage-admin"
    cluster.delete(path)
    wrong += expect("an admin whose binding is deleted", 403, ask(client, tokens["datastorage-e2e-full"], CACHE_MS))
    return wrong


def ask(client: httpx.Client, account: str, after_ms: int = 0) -> httpx.Response:
    if after_ms:
        time.sleep((after_ms + API_CACHE_MS) / 1000)
    return client.get(EVENTS, headers=bearer(account))


def expect(what: str, status: int, answer: httpx.Response) -> list[str]:
    print(f"{what}: {answer.status_code} {answer.json().get('detail', '')}", flush=True)
    return [] if answer.status_code == status else [f"{what}: {answer.status_code} {answer.text}"]


if __name__ == "__main__":
    sys.exit(main())
