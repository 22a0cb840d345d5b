"""Holds rendered manifests against Kubernetes, the CRDs in crds/, the restricted pod security profile, and what the chart promises.

check.py DIR LATER: a file of DIR for each values file, and in LATER the same of a chart that only has other versions. Everything that kubernetes-validate would only warn about is a failure here. The
schemas of the CRDs were made by controller-gen v0.23.0 from the Go module
github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring v0.95.1, without their descriptions.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import yaml
from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match
from kubernetes_validate.utils import SchemaNotFoundError, all_versions

CRDS = Path(__file__).parent / "crds"
VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}
"""What the restricted profile lets a pod mount."""


def main(directory: Path, later: Path) -> int:
    """Print every fault; 1 if there is one."""
    faults, documents, pods = [], 0, 0
    for file in sorted(directory.glob("*.yaml")):
        rendered, upgraded = read(file), read(later / file.name)
        faults += [f"{file.stem}: {fault}" for fault in (*tests_nothing(rendered), *restarts(rendered, upgraded))]
        for document in rendered:
            documents += 1
            name = f"{file.stem}: {document['kind']} {document['metadata']['name']}"
            faults += [f"{name}: {fault}" for fault in unknown_to_kubernetes(document)]
            for pod in pods_of(document):
                pods += 1
                faults += [f"{name}: {fault}" for fault in beyond_restricted(pod)]
    faults += [f"check.py takes a pod that breaks the restricted profile: {name}" for name in blind_spots()]
    print(
        "\n".join(faults)
        or f"{documents} objects fit Kubernetes {all_versions()[0]} to {all_versions()[-1]}, {pods} pods are restricted"
    )
    return 1 if faults or not pods else 0


def read(file: Path) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all(file.read_text("utf-8")) if document is not None]


def tests_nothing(documents: list[dict[str, Any]]) -> Iterator[str]:
    """`helm test` has to run one pod, which the service admits: with a token unless everybody is admitted, through its network policy."""
    hooks = [one for one in documents if "test" in (one["metadata"].get("annotations") or {}).get("helm.sh/hook", "")]
    pods = [one for one in hooks if one["kind"] == "Pod"]
    if [pod["spec"]["containers"][0]["args"][0] for pod in pods] != ["try"]:
        yield "helm test runs no pod that tries the service"
        return
    environment = {one["name"]: one["value"] for one in pods[0]["spec"]["containers"][0]["env"]}
    [settings] = [one["data"] for one in documents if "DATASTORAGE_AUTH" in one.get("data", {})]
    if ("DATASTORAGE_TOKEN_FILE" in environment) == (settings["DATASTORAGE_AUTH"] == "none"):
        yield "the pod of helm test has no token, or one for nobody"
    if "DATASTORAGE_TLS_DIR" in settings and (
        "DATASTORAGE_CA_FILE" not in environment or "https:" not in environment["DATASTORAGE_URL"]
    ):
        yield "the pod of helm test does not ask by https"
    labels = pods[0]["metadata"]["labels"]
    for policy in (one for one in documents if one["kind"] == "NetworkPolicy"):
        peers = [peer for rule in policy["spec"]["ingress"] for peer in rule["from"]]
        selected = [peer.get("podSelector", {}).get("matchLabels", {}) for peer in peers]
        if not any(one.items() <= labels.items() for one in selected if "app.kubernetes.io/name" in one):
            yield f"{policy['metadata']['name']} admits no pod of helm test"


def restarts(documents: list[dict[str, Any]], upgraded: list[dict[str, Any]]) -> Iterator[str]:
    """An upgrade that only changes versions must not restart a trial's Postgres: with it goes the service."""

    def of_postgres(of: list[dict[str, Any]]) -> list[Any]:
        return [
            one["spec"]["template"]
            for one in of
            if one["kind"] == "StatefulSet" and "postgres" in one["metadata"]["name"]
        ]

    if of_postgres(documents) != of_postgres(upgraded):
        yield "an upgrade to another version restarts Postgres"
    for template in of_postgres(documents):
        if template["spec"]["securityContext"].get("fsGroupChangePolicy") != "OnRootMismatch":
            yield "each start of Postgres walks through its volume"


def unknown_to_kubernetes(document: dict[str, Any]) -> Iterator[str]:
    if document["apiVersion"].startswith("monitoring.coreos.com/"):
        schema = strict(json.loads((CRDS / f"{document['kind'].lower()}.json").read_bytes()))
        error = best_match(Draft202012Validator(schema).iter_errors(document))
        if error is not None:
            yield f"CRD: {error.json_path}: {error.message}"
        return
    for version in all_versions():
        try:
            kubernetes_validate.validate(document, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            yield f"{version}: {'.'.join(map(str, error.path))}: {error.message}"
        except SchemaNotFoundError as error:
            yield error.message


def strict(schema: Any) -> Any:
    """Members that a CRD does not know would be dropped without a word: they are faults here."""
    if isinstance(schema, list):
        return [strict(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    inner = {key: strict(value) for key, value in schema.items()}
    return {"additionalProperties": False} | inner if isinstance(schema.get("properties"), dict) else inner


def pods_of(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Specs of the pods that an object makes."""
    if document["kind"] == "Pod":
        yield document["spec"]
    elif document["kind"] == "CronJob":
        yield document["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    elif "template" in document.get("spec", {}):
        yield document["spec"]["template"]["spec"]


def beyond_restricted(pod: dict[str, Any]) -> Iterator[str]:
    """The fields of the restricted profile (Pod Security Standards, with all of baseline), and a read-only root besides."""
    security = pod.get("securityContext") or {}
    for field in ("hostNetwork", "hostPID", "hostIPC"):
        if pod.get(field):
            yield field
    for volume in pod.get("volumes", ()):
        if not set(volume) - {"name"} <= VOLUMES:
            yield f"volume {volume['name']}"
    if security.get("sysctls"):
        yield "sysctls"
    for container in [*pod.get("initContainers", ()), *pod["containers"], *pod.get("ephemeralContainers", ())]:
        yield from (f"{container['name']}: {fault}" for fault in _container(container, security))


def _container(container: dict[str, Any], pod: dict[str, Any]) -> Iterator[str]:
    own = container.get("securityContext") or {}
    both = pod | own
    capabilities = own.get("capabilities") or {}
    if own.get("privileged"):
        yield "privileged"
    if own.get("allowPrivilegeEscalation") is not False:
        yield "allowPrivilegeEscalation"
    if own.get("readOnlyRootFilesystem") is not True:
        yield "the root can be written"
    if "ALL" not in capabilities.get("drop", ()) or set(capabilities.get("add", ())) - {"NET_BIND_SERVICE"}:
        yield "capabilities"
    if both.get("runAsNonRoot") is not True or both.get("runAsUser") == 0:
        yield "may run as root"
    if (both.get("seccompProfile") or {}).get("type") not in {"RuntimeDefault", "Localhost"}:
        yield "seccompProfile"
    if own.get("procMount", "Default") != "Default" or both.get("seLinuxOptions") or both.get("windowsOptions"):
        yield "procMount, seLinuxOptions or windowsOptions"
    if (both.get("appArmorProfile") or {}).get("type", "RuntimeDefault") not in {"RuntimeDefault", "Localhost"}:
        yield "appArmorProfile"
    if any(port.get("hostPort") for port in container.get("ports", ())):
        yield "hostPort"


def blind_spots() -> Iterator[str]:
    """Pods that must be found faulty, and are not: a check that sees nothing would pass everything."""
    wanted = {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "runAsNonRoot": True,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    good = {"name": "good", "securityContext": wanted}
    if list(beyond_restricted({"containers": [good]})):
        yield "a good one is refused"
    for field in wanted:
        bad = {"name": "bad", "securityContext": {name: value for name, value in wanted.items() if name != field}}
        if not list(beyond_restricted({"containers": [good], "initContainers": [bad]})):
            yield f"without {field}"
    for field, value in (("hostNetwork", True), ("volumes", [{"name": "v", "hostPath": {"path": "/"}}])):
        if not list(beyond_restricted({"containers": [good], field: value})):
            yield f"with {field}"


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
