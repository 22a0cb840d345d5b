"""The cluster's API, with every right, and what runs in it."""

import json
import ssl
import subprocess
import time
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import httpx

from tests.cluster.node import API_URL, ENGINE, ROOT_TOKEN

_Result = TypeVar("_Result")

READY_SECONDS = 120
"""The platform waits for a pod as long as this."""
PATIENCE_SECONDS = 300
"""What is no promise of the service may take longer, on a machine that does other things too."""
_PATHS = {
    "ClusterRoleBinding": "/apis/rbac.authorization.k8s.io/v1/{}clusterrolebindings",
    "CustomResourceDefinition": "/apis/apiextensions.k8s.io/v1/{}customresourcedefinitions",
    "Deployment": "/apis/apps/v1/{}deployments",
    "Job": "/apis/batch/v1/{}jobs",
    "CronJob": "/apis/batch/v1/{}cronjobs",
    "Namespace": "/api/v1/{}namespaces",
    "Node": "/api/v1/{}nodes",
    "PersistentVolume": "/api/v1/{}persistentvolumes",
    "Pod": "/api/v1/{}pods",
    "PodDisruptionBudget": "/apis/policy/v1/{}poddisruptionbudgets",
    "RoleBinding": "/apis/rbac.authorization.k8s.io/v1/{}rolebindings",
    "Secret": "/api/v1/{}secrets",
    "Service": "/api/v1/{}services",
    "ServiceAccount": "/api/v1/{}serviceaccounts",
    "StatefulSet": "/apis/apps/v1/{}statefulsets",
    "StorageClass": "/apis/storage.k8s.io/v1/{}storageclasses",
}


class Failed(Exception):
    """What a stage needs does not come."""


def until(what: str, poll: Callable[[], _Result | None], seconds: float = PATIENCE_SECONDS) -> _Result:
    """The first result of `poll` that is true. Raises Failed."""
    end = time.monotonic() + seconds
    while not (result := poll()):
        if time.monotonic() > end:
            raise Failed(f"not within {seconds:.0f} s: {what}")
        time.sleep(0.05)
    return result


def path(kind: str, namespace: str = "", name: str = "") -> str:
    return _PATHS[kind].format(f"namespaces/{namespace}/" if namespace else "") + (f"/{name}" if name else "")


class Cluster:
    """The API server, asked as its root."""

    def __init__(self, authority: Path) -> None:
        headers = {"Authorization": f"Bearer {ROOT_TOKEN}"}
        trusted = ssl.create_default_context(cafile=str(authority))
        self._client = httpx.Client(base_url=API_URL, headers=headers, verify=trusted, timeout=30)

    def ask(self, method: str, url: str, **more: Any) -> httpx.Response:
        answer = self._client.request(method, url, **more)
        if answer.is_error:
            raise Failed(f"{method} {url}: {answer.status_code} {answer.text[:500]}")
        return answer

    def get(self, kind: str, namespace: str = "", name: str = "", **selector: str) -> Any:
        labels = ",".join(f"app.kubernetes.io/{key}={value}" for key, value in selector.items())
        return self.ask("GET", path(kind, namespace, name), params={"labelSelector": labels} if labels else None).json()

    def is_there(self, kind: str, namespace: str, name: str) -> bool:
        return self._client.get(path(kind, namespace, name)).status_code == httpx.codes.OK

    def apply(self, *objects: Mapping[str, Any]) -> None:
        """As `kubectl apply --server-side`."""
        for one in objects:
            metadata = one["metadata"]
            where = path(one["kind"], metadata.get("namespace", ""), metadata["name"])
            headers = {"Content-Type": "application/apply-patch+yaml"}
            parameters = {"fieldManager": "tests", "force": "true"}
            self.ask("PATCH", where, content=json.dumps(one), headers=headers, params=parameters)

    def patch(self, kind: str, namespace: str, name: str, change: Mapping[str, Any], part: str = "") -> None:
        headers = {"Content-Type": "application/merge-patch+json"}
        self.ask("PATCH", path(kind, namespace, name) + part, content=json.dumps(change), headers=headers)

    def scale(self, kind: str, namespace: str, name: str, replicas: int) -> None:
        self.patch(kind, namespace, name, {"spec": {"replicas": replicas}}, "/scale")

    def delete(self, kind: str, namespace: str, name: str, grace_seconds: int | None = None) -> None:
        options = {} if grace_seconds is None else {"gracePeriodSeconds": grace_seconds}
        self.ask("DELETE", path(kind, namespace, name), json={"propagationPolicy": "Background", **options})

    def evict(self, namespace: str, name: str) -> bool:
        """Whether the disruption budget lets the pod go, as `kubectl drain` asks for it."""
        body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name, "namespace": namespace}}
        answer = self._client.post(path("Pod", namespace, name) + "/eviction", json=body)
        if answer.status_code == httpx.codes.TOO_MANY_REQUESTS:
            return False
        if answer.is_error:
            raise Failed(answer.text)
        return True

    def namespace(self, name: str, *, restricted: bool = True) -> None:
        """Make it, with the strictest of the pod security standards enforced."""
        level = {"pod-security.kubernetes.io/enforce": "restricted"} if restricted else {}
        self.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": level}})

    def secret(self, namespace: str, name: str, values: Mapping[str, str] | Mapping[str, bytes]) -> None:
        """One of kind tls if it has a certificate."""
        kind = "kubernetes.io/tls" if "tls.crt" in values else "Opaque"
        data = {key: b64encode(as_bytes(value)).decode() for key, value in values.items()}
        metadata = {"name": name, "namespace": namespace}
        self.apply({"apiVersion": "v1", "kind": "Secret", "type": kind, "metadata": metadata, "data": data})

    def token(self, namespace: str, account: str) -> str:
        """As `kubectl create token`."""
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": 28800}}
        answer = self.ask("POST", path("ServiceAccount", namespace, account) + "/token", json=body)
        return str(answer.json()["status"]["token"])

    def log_of(self, namespace: str, pod: str) -> str:
        return self.ask("GET", path("Pod", namespace, pod) + "/log", params={"timestamps": "true"}).text

    def address_of(self, namespace: str, service: str) -> str:
        return str(self.get("Service", namespace, service)["spec"]["clusterIP"])

    def pods(self, namespace: str, **selector: str) -> list[dict[str, Any]]:
        """Those that nobody has deleted yet."""
        found = self.get("Pod", namespace, **selector)["items"]
        return [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]

    def ready_pods(self, namespace: str, **selector: str) -> set[str]:
        return {pod["metadata"]["name"] for pod in self.pods(namespace, **selector) if is_ready(pod)}

    def wait_for_pods(self, namespace: str, count: int, **selector: str) -> None:
        """Until so many are ready, and no others are left."""
        self.wait_for_successors(namespace, set(), count, **selector)

    def wait_for_successors(self, namespace: str, gone: set[str], count: int, **selector: str) -> None:
        """Until so many pods are ready and no others are left, `gone` being the uids of pods that have to have ended."""

        def are_ready() -> bool:
            everyone = self.get("Pod", namespace, **selector)["items"]
            uids = {pod["metadata"]["uid"] for pod in everyone}
            return not uids & gone and len(everyone) == count and all(map(is_ready, everyone))

        until(f"{count} other ready pods in {namespace}", are_ready)

    def roll(self, kind: str, namespace: str, name: str) -> None:
        """Replace its pods one by one, as `kubectl rollout restart` and `kubectl rollout status` do."""
        at = {"kubectl.kubernetes.io/restartedAt": datetime.now(UTC).isoformat()}
        self.patch(kind, namespace, name, {"spec": {"template": {"metadata": {"annotations": at}}}})
        self.wait_for_roll(kind, namespace, name)

    def wait_for_roll(self, kind: str, namespace: str, name: str, seconds: float = PATIENCE_SECONDS) -> None:
        def is_over() -> bool:
            found = self.get(kind, namespace, name)
            wanted, status = found["spec"]["replicas"], found["status"]
            counts = {
                status.get(key, 0) for key in ("replicas", "updatedReplicas", "readyReplicas", "availableReplicas")
            }
            return status.get("observedGeneration") == found["metadata"]["generation"] and counts == {wanted}

        until(f"{kind} {name} is rolled out", is_over, seconds)

    def process_of(self, pod: Mapping[str, Any]) -> int:
        """The id, among this node's, of the process 1 of a pod's container."""
        container = pod["status"]["containerStatuses"][0]["containerID"].removeprefix("containerd://")
        lines = in_engine("tasks", "list").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(container))

    def run_in(self, pod: Mapping[str, Any], *command: str) -> str:
        """What a command prints that runs in a pod's container, as `kubectl exec` runs it. Raises Failed."""
        container = pod["status"]["containerStatuses"][0]["containerID"].removeprefix("containerd://")
        name = f"tests-{time.monotonic_ns()}"
        return in_engine("tasks", "exec", "--exec-id", name, container, *command)


def in_engine(*command: str) -> str:
    """The output of `ctr`."""
    whole = ["ctr", "--address", ENGINE, "--namespace", "k8s.io", *command]
    done = subprocess.run(whole, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    if done.returncode:
        raise Failed(f"{' '.join(command[-3:])}: {(done.stderr or done.stdout).decode()[-500:]}")
    return done.stdout.decode()


def as_bytes(value: str | bytes) -> bytes:
    return value.encode() if isinstance(value, str) else value


def is_ready(pod: Mapping[str, Any]) -> bool:
    conditions = {one["type"]: one["status"] for one in pod["status"].get("conditions", [])}
    return conditions.get("Ready") == "True"


class Stopwatch:
    """`seconds` since the block began, and for good once it has ended."""

    def __init__(self) -> None:
        self._begin, self._end = time.monotonic(), 0.0

    @property
    def seconds(self) -> float:
        return (self._end or time.monotonic()) - self._begin

    def stop(self) -> None:
        self._end = time.monotonic()


@contextmanager
def measured() -> Iterator[Stopwatch]:
    watch = Stopwatch()
    try:
        yield watch
    finally:
        watch.stop()
