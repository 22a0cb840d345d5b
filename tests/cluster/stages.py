"""The stages of `make cluster`, each of which installs what it needs: python -m tests.cluster.stages DIRECTORY STAGE...

Runs inside of the node's namespaces (node.py). Prints each figure as it comes, and at the end all of them as a table; the exit code is 1
if one is wrong.
"""

import asyncio
import base64
import contextlib
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from http.client import HTTPException
from pathlib import Path
from statistics import median
from typing import Any

import asyncpg
import httpx

from tests.cluster import manifests
from tests.cluster.kube import READY_SECONDS, Cluster, Failed, is_ready, measured, until
from tests.cluster.load import Target, load
from tests.cluster.trial import (
    BASE_TAG,
    CHART,
    DATABASE,
    E2E,
    IMAGE,
    LAPTOP,
    NEXT_TAG,
    PRODUCTION,
    RELEASE,
    REPLICAS,
    TAG,
    Trial,
    seconds,
)
from tests.events import make_event

EVENTS = "/api/v1/audit/events"
TIMES = 3
"""Each order of database and service is tried so often."""
SIGNATURES = 2
_SETTLED_SECONDS = 3
_SPOOLING_SECONDS = 5
_AWAY_PAUSE_SECONDS = 0.05
_TRIED = ("posted ", "found ", "verified ", "proved ", "NOT proved")
"""How the lines of `datastorage try` begin."""


def laptop(trial: Trial) -> None:
    target = trial.laptop()
    trial.say("a request without a token", *answered(Target(target.url), "GET", EVENTS, 401))
    trial.say("an event, with the token of datastorage-trial", *answered(target, "POST", EVENTS, 201))
    trial.say("a search", *answered(target, "GET", f"{EVENTS}?limit=1", 200))


def answered(target: Target, method: str, path: str, wanted: int) -> tuple[int, bool]:
    """The status of an answer, and whether it is the wanted one; what is posted is a valid event.

    A pod that is ready is behind its service's address a moment later.
    """

    def ask() -> int | None:
        with contextlib.suppress(ConnectionRefusedError):
            return target.ask(method, path, make_event() if method == "POST" else None)[0]
        return None

    status = until(f"{target} takes connections", ask)
    return status, status == wanted


def orders(trial: Trial) -> None:
    trial.laptop()
    both_orders(trial, LAPTOP, "datastorage-postgres")


def platform(trial: Trial) -> None:
    """The platform's manifest probes `/health` on the API's port."""
    trial.cluster.namespace("platform")
    trial.cluster.apply(*manifests.postgres("platform"), *manifests.platforms_pod("platform", f"{IMAGE}:{TAG}"))
    with measured() as took:
        trial.cluster.wait_for_pods("platform", 1, component="service")
    trial.say(
        "applied together with its Postgres, until ready", seconds(took.seconds), right=took.seconds < READY_SECONDS
    )
    both_orders(trial, "platform", manifests.POSTGRES)
    target = Target(f"http://{trial.cluster.address_of('platform', manifests.SERVICE)}:8080")
    trial.say("an event", *answered(target, "POST", EVENTS, 201))


def both_orders(trial: Trial, namespace: str, postgres: str) -> None:
    """How long the service needs behind its database, and how long it waits without harm for one that comes later."""
    after, behind = [], []
    for _ in range(TIMES):
        stop(trial.cluster, namespace)
        with measured() as took:
            trial.cluster.scale("Deployment", namespace, RELEASE, 1)
            trial.cluster.wait_for_pods(namespace, 1, component="service")
        after.append(took.seconds)
    for _ in range(TIMES):
        stop(trial.cluster, namespace, postgres)
        trial.cluster.scale("Deployment", namespace, RELEASE, 1)
        until(
            "the service runs",
            lambda: any(is_running(pod) for pod in trial.cluster.pods(namespace, component="service")),
        )
        time.sleep(_SETTLED_SECONDS)
        trial.cluster.scale("StatefulSet", namespace, postgres, 1)
        until("ready", lambda: trial.cluster.ready_pods(namespace, component="service"))
        ready = datetime.now(UTC)
        behind.append((ready - takes_connections(trial.cluster, namespace, f"{postgres}-0")).total_seconds())
    trial.say("database first: from the pod's creation to ready", spread(after), right=max(after) < READY_SECONDS)
    trial.say(
        "service first: ready after Postgres takes connections", spread(behind), right=max(behind) < READY_SECONDS
    )


def stop(cluster: Cluster, namespace: str, postgres: str = "") -> None:
    cluster.scale("Deployment", namespace, RELEASE, 0)
    cluster.wait_for_pods(namespace, 0, component="service")
    if postgres:
        cluster.scale("StatefulSet", namespace, postgres, 0)
        cluster.wait_for_pods(namespace, 0, component=manifests.POSTGRES)


def is_running(pod: dict[str, Any]) -> bool:
    return any("running" in one["state"] for one in pod["status"].get("containerStatuses", []))


def takes_connections(cluster: Cluster, namespace: str, pod: str) -> datetime:
    """When Postgres said so last."""
    lines = [line for line in cluster.log_of(namespace, pod).splitlines() if "ready to accept connections" in line]
    return datetime.fromisoformat(lines[-1].split()[0])


def spread(values: list[float]) -> str:
    return f"{min(values):.1f}, {median(values):.1f}, {max(values):.1f} s (shortest, median, longest of {len(values)})"


def test(trial: Trial) -> None:
    """`helm test` posts an event as a client of the cluster, finds it, and verifies its chain and its proof."""
    trial.laptop()
    trial.production()
    for namespace in (LAPTOP, PRODUCTION):
        with measured() as took:
            lines = trial.helm("test", RELEASE, "--namespace", namespace).splitlines()
        shown = [" ".join(line.split()) for line in lines if line.startswith(_TRIED)]
        last = "proved" if namespace == PRODUCTION else "NOT"  # the laptop's log has no key
        wanted = ["posted", "found", "verified", last]
        right = [line.split()[0] for line in shown] == wanted
        trial.say(f"`helm test` in {namespace}", f"{' / '.join(shown)} ({took.seconds:.0f} s)", right=right)


def single(trial: Trial) -> None:
    target = trial.laptop()
    (pod,) = trial.cluster.pods(LAPTOP, component="service")
    with trial.under_load(target, "the only replica is deleted", none_fails=False):
        trial.cluster.delete("Pod", LAPTOP, pod["metadata"]["name"])
        trial.cluster.wait_for_successors(LAPTOP, uids([pod]), 1, component="service")
    with trial.under_load(target, "the only replica is rolled", none_fails=True):
        trial.cluster.roll("Deployment", LAPTOP, RELEASE)


def e2e(trial: Trial) -> None:
    """As the platform's end-to-end suite installs it and posts to it: HTTPS by a node port, three accounts, Postgres by another."""
    cluster = trial.cluster
    cluster.namespace(E2E, restricted=False)
    cluster.secret(E2E, "datastorage-tls", trial.pair())
    with measured() as took:
        trial.install(E2E, CHART / "values-e2e.yaml")
    trial.say("`helm install --wait` with values-e2e.yaml", seconds(took.seconds), right=took.seconds < READY_SECONDS)
    for account, read, write in (("full", 200, 201), ("readonly", 200, 403), ("none", 403, 403)):
        target = Target("https://localhost:30081", cluster.token(E2E, f"datastorage-e2e-{account}"), trial.trusted)
        statuses = (target.ask("GET", f"{EVENTS}?limit=1")[0], target.ask("POST", EVENTS, make_event())[0])
        trial.say(
            f"datastorage-e2e-{account} reads, posts", "{}, {}".format(*statuses), right=statuses == (read, write)
        )
    full = Target("https://localhost:30081", cluster.token(E2E, "datastorage-e2e-full"), trial.trusted)
    at_once(trial, full, 80)
    with measured() as took:
        status, _ = full.ask("POST", f"{EVENTS}/batch", [make_event() for _ in range(100)])
    trial.say("a batch of 100", f"{status} in {took.seconds:.2f} s", right=status == 201 and took.seconds < 8)
    for name, port, path in (("health", 30281, "/healthz"), ("metrics", 30181, "/metrics")):
        trial.say(f"{path} at the node port of {name}", *answered(Target(f"http://localhost:{port}"), "GET", path, 200))
    password = cluster.get("Secret", E2E, "datastorage-postgres")["data"]["password"]
    count = asyncio.run(count_events(password))
    trial.say("events that Postgres shows at its node port", count, right=count > 180)


def at_once(trial: Trial, target: Target, number: int) -> None:
    """As the suite's test of concurrency."""

    def post(_: int) -> tuple[int, float]:
        with measured() as took:
            status, _body = target.ask("POST", EVENTS, make_event())
        return status, took.seconds

    with ThreadPoolExecutor(number) as pool:
        answers = list(pool.map(post, range(number)))
    right = all(status == 201 and took < 10 for status, took in answers)
    created = sum(status == 201 for status, _ in answers)
    trial.say(
        f"{number} posts at once",
        f"{created} of them 201, the slowest {max(took for _, took in answers):.2f} s",
        right=right,
    )


async def count_events(password_base64: str) -> int:
    password = base64.b64decode(password_base64).decode()
    connection = await asyncpg.connect(
        host="127.0.0.1", port=30433, user="slm_user", password=password, database="action_history"
    )
    try:
        return int(await connection.fetchval("SELECT count(*) FROM audit_events"))
    finally:
        await connection.close()


def production(trial: Trial) -> None:
    target = trial.production()
    for account, read, write in (("writer", 200, 201), ("reader", 200, 403), ("nobody", 403, 403)):
        one = trial.target(PRODUCTION, account)
        statuses = (one.ask("GET", f"{EVENTS}?limit=1")[0], one.ask("POST", EVENTS, make_event())[0])
        trial.say(f"TokenReview: {account} reads, posts", "{}, {}".format(*statuses), right=statuses == (read, write))
    trial.say("plain HTTP at the same port", plain_http(target))
    signatures = until("both signatures", lambda: signatures_of(target) == SIGNATURES and SIGNATURES)
    trial.say("signatures of the checkpoint (Ed25519, ML-DSA-44)", signatures)
    bound_later(trial)


def signatures_of(target: Target) -> int:
    """How many the checkpoint has."""
    return target.ask("GET", "/tlog/checkpoint")[1].count("\n\N{EM DASH} ")


def plain_http(target: Target) -> str:
    try:
        status, _ = Target(target.url.replace("https", "http")).ask("GET", "/readyz")
    except (HTTPException, OSError) as error:
        return type(error).__name__
    return str(status)


def bound_later(trial: Trial) -> None:
    """An account of another namespace is bound as docs/operations.md says, and deleted."""
    cluster, account = trial.cluster, {"name": "orchestrator", "namespace": "default"}
    cluster.apply({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": account})
    url = trial.target(PRODUCTION, "trial").url
    target = Target(url, cluster.token("default", "orchestrator"), trial.trusted)
    trial.say("an account that nobody has bound", *answered(target, "GET", f"{EVENTS}?limit=1", 403))
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "datastorage-writer"}
    subjects = [{"kind": "ServiceAccount", **account}]
    cluster.apply(
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "RoleBinding",
            "metadata": {"name": "orchestrator", "namespace": PRODUCTION},
            "roleRef": role,
            "subjects": subjects,
        }
    )
    wait_for_status(trial, target, "bound to datastorage-writer: admitted after", 200)
    cluster.delete("ServiceAccount", "default", "orchestrator")
    wait_for_status(trial, target, "deleted: refused after", 401)


def wait_for_status(trial: Trial, target: Target, what: str, status: int) -> None:
    with measured() as took:
        until(what, lambda: target.ask("GET", f"{EVENTS}?limit=1")[0] == status)
    trial.say(what, seconds(took.seconds))


def roll(trial: Trial) -> None:
    target = trial.production()
    with trial.under_load(target, f"{REPLICAS} replicas are rolled", none_fails=True):
        trial.cluster.roll("StatefulSet", PRODUCTION, RELEASE)


def upgrade(trial: Trial) -> None:
    """To an image of another tag, and back."""
    target = trial.production()
    with trial.under_load(target, f"`helm upgrade` to tag {NEXT_TAG}", none_fails=True):
        trial.install(PRODUCTION, *trial.production_values(image={"tag": NEXT_TAG}), command="upgrade")
        trial.cluster.wait_for_roll("StatefulSet", PRODUCTION, RELEASE)
    trial.say("the pods' image", *same_image(trial, PRODUCTION, f"{IMAGE}:{NEXT_TAG}"))
    with trial.under_load(target, "`helm rollback`", none_fails=True):
        trial.helm("rollback", RELEASE, "--namespace", PRODUCTION, "--wait", "--timeout", "300s")
        trial.cluster.wait_for_roll("StatefulSet", PRODUCTION, RELEASE)
    trial.say("the pods' image", *same_image(trial, PRODUCTION, f"{IMAGE}:{TAG}"))


def same_image(trial: Trial, namespace: str, wanted: str) -> tuple[str, bool]:
    images = {pod["spec"]["containers"][0]["image"] for pod in trial.cluster.pods(namespace, component="service")}
    return ", ".join(sorted(images)), images == {wanted}


def previous(trial: Trial) -> None:
    """From the chart and image of an earlier commit to these, and back to that release on this one's schema."""
    namespace, chart = "previous", trial.directory / "base" / "charts" / "datastorage"
    trial.database()
    trial.sql("CREATE DATABASE previous")
    trial.cluster.namespace(namespace)
    url = manifests.url(f"{manifests.POSTGRES}.{DATABASE}").removesuffix(manifests.OWNER) + "previous"
    trial.cluster.secret(namespace, "datastorage-database", {"url": url})
    common = {
        "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"memory": "1Gi"}},
        "clients": [{"name": "trial", "role": "admin", "create": True}],
    }
    trial.install(namespace, trial.values("base", **common, image={"tag": BASE_TAG}), chart=chart)
    target = trial.target(namespace, "trial")
    with trial.under_load(target, "`helm upgrade` from the earlier commit's chart and image to these", none_fails=True):
        trial.install(namespace, trial.values("now", **common), command="upgrade")
        trial.cluster.wait_for_roll("StatefulSet", namespace, RELEASE)
    with trial.under_load(target, "`helm rollback` to them, on this schema", none_fails=True):
        trial.helm("rollback", RELEASE, "--namespace", namespace, "--wait", "--timeout", "300s")
        trial.cluster.wait_for_roll("StatefulSet", namespace, RELEASE)
    trial.install(namespace, trial.values("now", **common), command="upgrade")
    trial.cluster.wait_for_roll("StatefulSet", namespace, RELEASE)
    trial.say("`datastorage verify` after upgrade, rollback and upgrade", *verified(trial, namespace))
    trial.helm("uninstall", RELEASE, "--namespace", namespace, "--wait")


def verified(trial: Trial, namespace: str) -> tuple[str, bool]:
    """What `datastorage verify` says in a pod of the service, and whether it found nothing wrong."""
    pod = trial.cluster.pods(namespace, component="service")[0]
    try:
        lines = trial.cluster.run_in(pod, "datastorage", "verify").splitlines()
    except Failed as failed:
        return str(failed), False
    return f"{lines[0].rpartition(': ')[2]}, no defects found", "no defects found" in lines


def drain(trial: Trial) -> None:
    """All replicas are on the only node: with it cordoned, the budget lets one go and no other; uncordoned, one after the other."""
    target, cluster = trial.production(), trial.cluster
    cordon(cluster, is_closed=True)
    try:
        with trial.under_load(target, "the node is cordoned and drained", none_fails=True):
            evicted, refused = 0, 0
            for name in sorted(cluster.ready_pods(PRODUCTION, component="service")):
                gone = cluster.evict(PRODUCTION, name)
                evicted, refused = evicted + gone, refused + (not gone)
            trial.say(
                "evicted, refused by the budget", f"{evicted}, {refused}", right=(evicted, refused) == (1, REPLICAS - 1)
            )
            time.sleep(_SETTLED_SECONDS)
    finally:
        cordon(cluster, is_closed=False)
    cluster.wait_for_roll("StatefulSet", PRODUCTION, RELEASE)
    with (
        trial.under_load(target, "each replica evicted as soon as the budget lets it go", none_fails=True),
        measured() as took,
    ):
        refused = evict_all(cluster)
    trial.say("evictions refused meanwhile, time for all", f"{refused}, {took.seconds:.0f} s", right=refused > 0)


def cordon(cluster: Cluster, *, is_closed: bool) -> None:
    cluster.patch("Node", "", "node", {"spec": {"unschedulable": is_closed}})


def evict_all(cluster: Cluster) -> int:
    """How often the budget refused."""
    refused, pods = 0, cluster.pods(PRODUCTION, component="service")
    for pod in pods:
        while not cluster.evict(PRODUCTION, pod["metadata"]["name"]):
            refused += 1
            time.sleep(0.5)
    cluster.wait_for_successors(PRODUCTION, uids(pods), REPLICAS, component="service")
    return refused


def uids(pods: list[dict[str, Any]]) -> set[str]:
    return {pod["metadata"]["uid"] for pod in pods}


def kill(trial: Trial) -> None:
    target, cluster = trial.production(), trial.cluster
    (first, *_) = cluster.pods(PRODUCTION, component="service")
    with trial.under_load(target, "one replica's processes are killed (-9)", none_fails=False), measured() as took:
        subprocess.run(["kill", "-KILL", str(cluster.process_of(first))], check=True)
        until("it is seen", lambda: len(cluster.ready_pods(PRODUCTION, component="service")) < REPLICAS)
        cluster.wait_for_pods(PRODUCTION, REPLICAS, component="service")
    trial.say("all replicas ready again after", seconds(took.seconds))
    name = first["metadata"]["name"]
    with trial.under_load(target, "one replica is deleted by force", none_fails=False), measured() as took:
        (deleted,) = (pod for pod in cluster.pods(PRODUCTION, component="service") if pod["metadata"]["name"] == name)
        cluster.delete("Pod", PRODUCTION, name, grace_seconds=0)
        cluster.wait_for_successors(PRODUCTION, uids([deleted]), REPLICAS, component="service")
    trial.say("all replicas ready again after", seconds(took.seconds))


def spool(trial: Trial) -> None:
    """Events wait on the volumes of pods that die while Postgres is away."""
    target, cluster = trial.production(), trial.cluster
    with load(target, _AWAY_PAUSE_SECONDS) as running:
        cluster.scale("StatefulSet", DATABASE, manifests.POSTGRES, 0)
        cluster.wait_for_pods(DATABASE, 0, component=manifests.POSTGRES)
        time.sleep(_SPOOLING_SECONDS)
        spooled = running.answers[202]
        names = sorted(pod["metadata"]["name"] for pod in cluster.pods(PRODUCTION, component="service"))
        cluster.delete("Pod", PRODUCTION, names[0], grace_seconds=0)
        for name in names[1:]:
            cluster.delete("Pod", PRODUCTION, name)
        until(
            "they are replaced",
            lambda: {pod["metadata"]["name"] for pod in cluster.pods(PRODUCTION, component="service")} == set(names),
        )
        cluster.scale("StatefulSet", DATABASE, manifests.POSTGRES, 1)
        cluster.wait_for_pods(PRODUCTION, REPLICAS, component="service")
    trial.say("answered 202 while Postgres was away", f"{spooled:,}", right=spooled > 0)
    trial.outcome(
        running, "meanwhile one pod is deleted by force, the others in order; then Postgres is back", none_fails=False
    )


def policies(trial: Trial) -> None:
    """Who reaches whom; each refusal has a control that shows that nothing else refuses it."""
    trial.laptop()
    trial.production()
    cluster = trial.cluster
    cluster.namespace("outside")
    cluster.apply(manifests.outsider("outside", f"{IMAGE}:{TAG}"))
    until("the outsider", lambda: is_ready(cluster.get("Pod", "outside", "outsider")))
    outsider = cluster.get("Pod", "outside", "outsider")
    service = cluster.pods(PRODUCTION, component="service")[0]
    (trial_postgres,) = cluster.pods(LAPTOP, component="postgres")
    (postgres,) = cluster.pods(DATABASE, component=manifests.POSTGRES)
    for name, source, destination, port, is_open in (
        ("any pod → the API", outsider, service, 8080, True),
        ("any pod → the metrics", outsider, service, 9090, True),
        ("any pod → the health port", outsider, service, 8081, False),
        ("control: the node → the health port", None, service, 8081, True),
        ("any pod → the trial Postgres", outsider, trial_postgres, 5432, False),
        ("control: any pod → a Postgres without a policy", outsider, postgres, 5432, True),
        ("the service → its Postgres", service, postgres, 5432, True),
        ("the service → any other pod", service, outsider, 8088, False),
        ("control: the node → that pod", None, outsider, 8088, True),
    ):
        is_reached = reaches(cluster, source, destination, port)
        trial.say(name, "open" if is_reached else "closed", right=is_reached is is_open)
    without_policy(trial, lambda: reaches(cluster, outsider, trial_postgres, 5432))


def without_policy(trial: Trial, is_reached: Callable[[], bool]) -> None:
    """The control that has to fail: what a policy refuses is open as soon as it is gone."""
    where = f"/apis/networking.k8s.io/v1/namespaces/{LAPTOP}/networkpolicies"
    policy = trial.cluster.ask("GET", f"{where}/datastorage-postgres").json()
    trial.cluster.ask("DELETE", f"{where}/datastorage-postgres")
    with measured() as took:
        until("open", lambda: is_reached() or None)
    trial.say("control: without its policy, any pod → the trial Postgres is open after", seconds(took.seconds))
    metadata = {key: policy["metadata"][key] for key in ("name", "namespace", "labels", "annotations")}
    trial.cluster.ask("POST", where, json=policy | {"metadata": metadata})
    with measured() as took:
        until("closed", lambda: not is_reached())
    trial.say("and with it closed again after", seconds(took.seconds))


def reaches(cluster: Cluster, source: dict[str, Any] | None, destination: dict[str, Any], port: int) -> bool:
    """Whether a connection can be made, from inside of a pod's network or from the node."""
    enter = [] if source is None else ["nsenter", "--target", str(cluster.process_of(source)), "--net"]
    attempt = f"import socket; socket.create_connection(({destination['status']['podIP']!r}, {port}), timeout=2)"
    return subprocess.run([*enter, sys.executable, "-c", attempt], check=False, capture_output=True).returncode == 0


def retention(trial: Trial) -> None:
    """The CronJob runs by its schedule, as the role that purges."""
    trial.production()
    cluster, name = trial.cluster, "datastorage-retention"
    cluster.patch("CronJob", PRODUCTION, name, {"spec": {"schedule": "* * * * *"}})
    job = until("a run", lambda: run_of(cluster, name))
    cluster.patch("CronJob", PRODUCTION, name, {"spec": {"schedule": "17 3 * * *"}})
    where = job["metadata"]["name"]
    until("its end", lambda: {"succeeded", "failed"} & cluster.get("Job", PRODUCTION, where)["status"].keys())
    status = cluster.get("Job", PRODUCTION, where)["status"]
    pods = cluster.ask(
        "GET", f"/api/v1/namespaces/{PRODUCTION}/pods", params={"labelSelector": f"job-name={where}"}
    ).json()["items"]
    log = cluster.log_of(PRODUCTION, pods[0]["metadata"]["name"]).strip().splitlines()
    trial.say("a run by schedule", log[-1].partition(" ")[2][:160] if log else "", right=status.get("succeeded") == 1)


def run_of(cluster: Cluster, cron_job: str) -> dict[str, Any] | None:
    for job in cluster.get("Job", PRODUCTION)["items"]:
        if any(owner["name"] == cron_job for owner in job["metadata"].get("ownerReferences", [])):
            return dict(job)
    return None


def verify(trial: Trial) -> None:
    """After all that came before."""
    trial.production()
    trial.say("`datastorage verify` in a pod of production", *verified(trial, PRODUCTION))


STAGES: dict[str, Callable[[Trial], None]] = {
    stage.__name__: stage
    for stage in (
        laptop,
        orders,
        single,
        platform,
        e2e,
        production,
        test,
        policies,
        roll,
        upgrade,
        drain,
        kill,
        spool,
        retention,
        verify,
        previous,
    )
}


def main() -> int:
    directory, names = Path(sys.argv[1]), sys.argv[2:] or list(STAGES)
    trial = Trial(directory, Cluster(directory / "run" / "ca.crt"))
    with measured() as took:
        until("the node", lambda: is_ready(trial.cluster.get("Node", name="node")))
        trial.cluster.apply(*manifests.storage(directory / "run" / "volumes"))
    version = trial.cluster.ask("GET", "/version").json()["gitVersion"]
    trial.stage = "node"
    trial.say(f"Kubernetes {version}: node ready after all components run", seconds(took.seconds))
    for trial.stage in names:
        try:
            with measured() as took:
                STAGES[trial.stage](trial)
        except (Failed, HTTPException, httpx.HTTPError, OSError, LookupError, TypeError, ValueError) as error:
            trial.say("the stage ends", repr(error), right=False)
        print(f"         {trial.stage}: {took.seconds:.0f} s", flush=True)
    print(as_table(trial.rows))
    return 1 if trial.wrong else 0


def as_table(rows: list[tuple[str, str, str]]) -> str:
    lines = ["", "| stage | what | seen |", "|---|---|---|"]
    before = ""
    for stage, what, figure in rows:
        lines.append(f"| {'' if stage == before else stage} | {what} | {figure} |")
        before = stage
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
