"""Holds rendered manifests against Kubernetes, against the CRDs in crds/, and against the restricted pod security profile.

check.py DIR: a file of DIR for each values file. Everything that kubernetes-validate would only warn about is a failure here. The
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


def main(directory: Path) -> int:
    """Print every fault; 1 if there is one."""
    faults, documents, pods = [], 0, 0
    for file in sorted(directory.glob("*.yaml")):
        for document in yaml.safe_load_all(file.read_text("utf-8")):
            if document is None:
                continue
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
    sys.exit(main(Path(sys.argv[1])))
