"""Upgrades that a cluster would refuse: `helm template --dry-run=server` against an API server that has one StatefulSet.

cluster.py HELM CHART: the chart must refuse another size or class of its volumes in words of its own, and accept the ones that are there.
"""

import json
import subprocess
import sys
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

STATEFUL_SETS = "/apis/apps/v1/namespaces/audit/statefulsets/"
KUBECONFIG = """
apiVersion: v1
kind: Config
clusters: [{{name: fake, cluster: {{server: "http://127.0.0.1:{port}"}}}}]
contexts: [{{name: fake, context: {{cluster: fake, user: nobody}}}}]
users: [{{name: nobody, user: {{}}}}]
current-context: fake
"""
PERSISTENT = ["postgres.enabled=false"]
TRIAL = ["postgres.enabled=true", "migration.mode=pod", "spool.kind=ephemeral"]
REFUSED = "cannot be changed by an upgrade: the StatefulSet"
CASES: dict[str, tuple[list[str], bool]] = {
    "as it is": ([*PERSISTENT], True),
    "the same size in other units": ([*PERSISTENT, "spool.size=2048Mi"], True),
    "larger": ([*PERSISTENT, "spool.size=3Gi"], False),
    "a fraction larger": ([*PERSISTENT, "spool.size=2.5Gi"], False),
    "another class": ([*PERSISTENT, "spool.storageClassName=fast"], False),
    "a trial's Postgres as it is": ([*TRIAL], True),
    "a larger one": ([*TRIAL, "postgres.size=6Gi"], False),
}
"""Values that are set, and whether the upgrade may go on."""


class Cluster(BaseHTTPRequestHandler):
    """As much of an API server as Helm asks for `lookup`."""

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        found = DISCOVERY.get(path)
        if path.startswith(STATEFUL_SETS):
            found = stateful_set(path.removeprefix(STATEFUL_SETS))
        missing = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404}
        body = json.dumps(found or missing).encode()
        self.send_response(200 if found else 404)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 -- the base class's name
        pass


def resources(group: str, **kinds: str) -> dict[str, Any]:
    listed = [
        {"name": name, "singularName": "", "namespaced": True, "kind": kind, "verbs": ["get", "list", "create"]}
        for name, kind in kinds.items()
    ]
    return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group, "resources": listed}


DISCOVERY: dict[str, dict[str, Any]] = {
    "/version": {"major": "1", "minor": "30", "gitVersion": "v1.30.0"},
    "/api": {"kind": "APIVersions", "versions": ["v1"]},
    "/apis": {
        "kind": "APIGroupList",
        "apiVersion": "v1",
        "groups": [
            {
                "name": "apps",
                "versions": [{"groupVersion": "apps/v1", "version": "v1"}],
                "preferredVersion": {"groupVersion": "apps/v1", "version": "v1"},
            }
        ],
    },
    "/api/v1": resources("v1", secrets="Secret"),
    "/apis/apps/v1": resources("apps/v1", statefulsets="StatefulSet"),
}


def stateful_set(name: str) -> dict[str, Any]:
    size = "5Gi" if name.endswith("-postgres") else "2Gi"
    claim = {"metadata": {"name": "data"}, "spec": {"resources": {"requests": {"storage": size}}}}
    return {
        "kind": "StatefulSet",
        "apiVersion": "apps/v1",
        "metadata": {"name": name, "namespace": "audit"},
        "spec": {"volumeClaimTemplates": [claim]},
    }


def main(helm: str, chart: str) -> int:
    """Print every fault; 1 if there is one."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Cluster)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    faults = []
    with tempfile.TemporaryDirectory() as directory:
        config = Path(directory) / "config"
        config.write_text(KUBECONFIG.format(port=server.server_port))
        for name, (values, is_accepted) in CASES.items():
            command = [
                helm,
                "template",
                "datastorage",
                chart,
                "--namespace",
                "audit",
                "--is-upgrade",
                "--kube-version",
                "1.30.0",
                "--dry-run=server",
            ]
            options = [part for value in values for part in ("--set", value)]
            done = subprocess.run(
                [*command, "--kubeconfig", str(config), *options], capture_output=True, text=True, check=False
            )
            if is_accepted != (done.returncode == 0) or (REFUSED in done.stderr) == is_accepted:
                faults.append(f"{name}: code {done.returncode}: {done.stderr[-600:]}")
    server.shutdown()
    print("\n".join(faults) or f"{len(CASES)} upgrades are refused or accepted in words of the chart")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2]))
