"""The cluster as the stages use it: what they install, each once, and the table of what they measure."""

import json
import ssl
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from tests.cluster import manifests
from tests.cluster.kube import READY_SECONDS, Cluster, Failed, measured, until
from tests.cluster.load import Load, Target, load

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "datastorage"
RELEASE = "datastorage"
IMAGE, TAG, NEXT_TAG, BASE_TAG = "datastorage", "0.1.0", "0.1.1", "base"
"""NEXT_TAG is the same image under another name; BASE_TAG the image of the commit that images.sh names."""
LAPTOP, PRODUCTION, E2E, DATABASE = "audit", "production", "datastorage-e2e", "database"
REPLICAS = 3
_HELM_SECONDS = 300


@dataclass
class Trial:
    """One run of stages in `directory` (node.py)."""

    directory: Path
    cluster: Cluster
    rows: list[tuple[str, str, str]] = field(default_factory=list)
    stage: str = ""
    wrong: int = 0

    def say(self, what: str, figure: object, right: bool = True) -> None:
        """A row of the table; one that is not right fails the whole run."""
        self.rows.append((self.stage, what, str(figure) if right else f"**WRONG** {figure}"))
        self.wrong += not right
        print(f"{datetime.now(UTC):%H:%M:%S} {self.stage}: {what}: {self.rows[-1][2]}", flush=True)

    def lacks(self, namespace: str, service: str = manifests.SERVICE) -> bool:
        """Whether nobody has installed it yet, nor has an earlier run of stages in the same cluster."""
        return not self.cluster.is_there("Service", namespace, service)

    def helm(self, *arguments: object) -> str:
        """What it prints; what the pods of its hooks print comes by its stderr. Raises Failed."""
        command = [str(self.directory / "programs" / "helm"), *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise Failed(f"helm {' '.join(command[1:4])}: {(done.stderr or done.stdout)[-800:]}")
        return done.stdout + done.stderr

    def install(self, namespace: str, *values: Path, command: str = "install", chart: Path = CHART) -> None:
        """Install or upgrade the chart, and wait until it is ready."""
        files = [part for path in values for part in ("--values", path)]
        self.helm(command, RELEASE, chart, "--namespace", namespace, *files, "--wait", "--timeout", f"{_HELM_SECONDS}s")

    def values(self, name: str, **content: object) -> Path:
        """A file of values for Helm."""
        path = self.directory / "run" / f"values-{name}.json"
        path.write_text(json.dumps(content))
        return path

    @property
    def authority(self) -> Path:
        return self.directory / "run" / "ca.crt"

    @property
    def trusted(self) -> ssl.SSLContext:
        """Trusts the cluster's authority, by whichever address a client reaches the service."""
        context = ssl.create_default_context(cafile=str(self.authority))
        context.check_hostname = False
        return context

    def target(self, namespace: str, account: str) -> Target:
        """The service at its Service's address, asked by an account of its namespace."""
        address = self.cluster.address_of(namespace, manifests.SERVICE)
        token = self.cluster.token(namespace, account)
        if namespace == PRODUCTION:
            return Target(f"https://{address}:8080", token, self.trusted)
        return Target(f"http://{address}:8080", token)

    @contextmanager
    def under_load(self, target: Target, what: str, *, none_fails: bool) -> Iterator[Load]:
        """Load during the block; then the row of what came of it, `none_fails` being whether a request may fail."""
        with load(target) as running:
            yield running
        self.outcome(running, what, none_fails=none_fails)

    def outcome(self, running: Load, what: str, *, none_fails: bool) -> None:
        lost, failed = running.lost(), len(running.failures)
        figure = f"{running.total:,} acknowledged, {lost} lost, {failed} requests failed, longest gap {running.longest_gap_seconds:.2f} s"
        if failed:
            figure += f" (first failure: {running.failures[0][:120]})"
        self.say(what, figure, right=not lost and not (none_fails and failed))

    def laptop(self) -> Target:
        """The release of values-laptop.yaml."""
        if self.lacks(LAPTOP):
            self.cluster.namespace(LAPTOP)
            with measured() as took:
                self.install(LAPTOP, CHART / "values-laptop.yaml")
            self.say(
                "`helm install --wait` with values-laptop.yaml",
                seconds(took.seconds),
                right=took.seconds < READY_SECONDS,
            )
        return self.target(LAPTOP, "datastorage-trial")

    def database(self) -> None:
        """A Postgres in a namespace of its own, which production's releases use."""
        if self.lacks(DATABASE, manifests.POSTGRES):
            self.cluster.namespace(DATABASE)
            self.cluster.apply(*manifests.postgres(DATABASE))
            self.cluster.wait_for_pods(DATABASE, 1, component=manifests.POSTGRES)

    def sql(self, statements: str, database: str = manifests.OWNER) -> str:
        """Run them as the superuser of that Postgres, with its psql."""
        (pod,) = self.cluster.pods(DATABASE, component=manifests.POSTGRES)
        command = ("psql", "--username", manifests.OWNER, "--dbname", database, "--set=ON_ERROR_STOP=1", "--quiet")
        return self.cluster.run_in(pod, *command, "--command", statements)

    def production(self) -> Target:
        """The release of values-production.yaml, with TLS, signing keys and two roles, as docs/operations.md makes them."""
        if self.lacks(PRODUCTION):
            self.database()
            self.cluster.namespace(PRODUCTION)
            for kind in ("ServiceMonitor", "PrometheusRule"):
                self._define(kind)
            self._make_secrets()
            with measured() as took:
                self._install_with_two_roles()
            self.say(
                "`helm install --wait` with values-production.yaml, migration and roles among it", seconds(took.seconds)
            )
        return self.target(PRODUCTION, "trial")

    def production_values(self, **more: object) -> tuple[Path, Path]:
        """values-production.yaml, and what a machine of two cores and these stages need beside it."""
        own: dict[str, object] = {
            "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"memory": "2Gi"}},
            "clients": [
                {"name": name, "role": role, "create": True}
                for name, role in (("trial", "admin"), ("writer", "writer"), ("reader", "reader"), ("nobody", "none"))
            ],
            "retention": {"enabled": True, "existingSecret": {"name": "datastorage-retention", "key": "url"}},
        }
        return CHART / "values-production.yaml", self.values("production", **(own | more))

    def _define(self, kind: str) -> None:
        """A kind of the Prometheus Operator, which is not here itself; tests/chart holds the objects against its schema."""
        definition = manifests.defined(kind)
        self.cluster.apply(definition)
        name = definition["metadata"]["name"]

        def is_served() -> bool:
            conditions = (
                self.cluster.get("CustomResourceDefinition", name=name).get("status", {}).get("conditions") or []
            )
            return any(one["type"] == "Established" and one["status"] == "True" for one in conditions)

        until(name, is_served)

    def _make_secrets(self) -> None:
        """As docs/operations.md makes them."""
        keys = self.directory / "run" / "keys"
        keys.mkdir(exist_ok=True)
        subject = ("openssl", "req", "-x509", "-newkey", "rsa:3072", "-nodes", "-subj", "/CN=datastorage-export")
        datastorage = ROOT / ".venv" / "bin" / "datastorage"
        commands: list[tuple[str | Path, ...]] = [
            (*subject, "-keyout", keys / "export.key", "-out", keys / "export.crt"),
            (datastorage, "checkpoint-key", keys / "key.pem"),
            (datastorage, "checkpoint-key", keys / "ml-dsa.pem", "--algorithm", "ml-dsa-44"),
        ]
        for command in commands:
            subprocess.run(command, check=True, capture_output=True)
        export, signing = (
            pair_of(keys / "export"),
            {name: (keys / name).read_bytes() for name in ("key.pem", "ml-dsa.pem")},
        )
        host = f"{manifests.POSTGRES}.{DATABASE}"
        secrets: dict[str, Mapping[str, str] | Mapping[str, bytes]] = {
            "datastorage-tls": self.pair(),
            "datastorage-export": export,
            "datastorage-checkpoint": signing,
            "datastorage-owner": {"url": manifests.url(host)},
            "datastorage-database": {"url": manifests.url(host, "datastorage_service")},
            "datastorage-retention": {"url": manifests.url(host, "datastorage_retention")},
        }
        for name, content in secrets.items():
            self.cluster.secret(PRODUCTION, name, content)

    def pair(self) -> dict[str, bytes]:
        """Certificate and key of the service, signed by the cluster's authority."""
        return pair_of(self.directory / "run" / "service" / "tls")

    def _install_with_two_roles(self) -> None:
        """The roles need the tables, and the service the roles: it waits for them meanwhile."""
        arguments: list[str | Path] = [
            self.directory / "programs" / "helm",
            "install",
            RELEASE,
            CHART,
            "--namespace",
            PRODUCTION,
        ]
        for path in self.production_values():
            arguments += ["--values", path]
        installing = subprocess.Popen(
            [*arguments, "--wait", "--timeout", f"{_HELM_SECONDS}s"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        until("the first pod", lambda: installing.poll() or self.cluster.pods(PRODUCTION, component="service"))
        if installing.poll() is None:
            self.make_roles()
        output, _ = installing.communicate()
        if installing.returncode:
            raise Failed(f"helm install: {output[-800:]}")

    def make_roles(self) -> None:
        """As docs/operations.md says, after each migration."""
        self.sql((ROOT / "migrations" / "sql" / "roles.sql").read_text())
        for role in ("service", "retention"):
            self.sql(f"ALTER ROLE datastorage_{role} PASSWORD '{manifests.PASSWORD}'")


def pair_of(path: Path) -> dict[str, bytes]:
    """PATH.crt and PATH.key, as a secret for TLS has them."""
    return {"tls.crt": path.with_suffix(".crt").read_bytes(), "tls.key": path.with_suffix(".key").read_bytes()}


def seconds(value: float) -> str:
    return f"{value:.1f} s"
