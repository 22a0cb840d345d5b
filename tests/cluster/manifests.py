"""What the stages run beside the chart's releases, as the Kubernetes API takes it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.cluster.node import NODE

OWNER, PASSWORD = "owner", "only-for-a-test"
SERVICE = "data-storage-service"
POSTGRES = "postgres"
VOLUMES = 40
COMPONENT = "app.kubernetes.io/component"
_MONITORING = "monitoring.coreos.com"
Object = dict[str, Any]


def storage(directory: Path) -> Iterator[Object]:
    """A default class of volumes, and volumes of it below `directory`: kind `local` honours fsGroup, `hostPath` does not."""
    default = {"storageclass.kubernetes.io/is-default-class": "true"}
    yield {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {"name": "local", "annotations": default},
        "provisioner": "kubernetes.io/no-provisioner",
        "volumeBindingMode": "WaitForFirstConsumer",
    }
    here = {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": [NODE]}]}
    for number in range(VOLUMES):
        path = directory / f"{number:02}"
        path.mkdir(parents=True, exist_ok=True)
        yield {
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": f"local-{number:02}"},
            "spec": {
                "capacity": {"storage": "10Gi"},
                "accessModes": ["ReadWriteOnce"],
                "persistentVolumeReclaimPolicy": "Retain",
                "storageClassName": "local",
                "local": {"path": str(path)},
                "nodeAffinity": {"required": {"nodeSelectorTerms": [here]}},
            },
        }


def postgres(namespace: str) -> Iterator[Object]:
    """A Postgres of its own, outside of any release."""
    labels = {COMPONENT: POSTGRES}
    environment = {"POSTGRES_USER": OWNER, "POSTGRES_DB": OWNER, "POSTGRES_PASSWORD": PASSWORD, "PGDATA": "/data/own"}
    container = {
        "name": POSTGRES,
        "image": "postgres:15",
        "ports": [{"name": POSTGRES, "containerPort": 5432}],
        "env": [{"name": key, "value": value} for key, value in environment.items()],
        "readinessProbe": {"exec": {"command": ["pg_isready", "--quiet", "--host=127.0.0.1"]}, "periodSeconds": 1},
        "securityContext": _LOCKED,
        "volumeMounts": [{"name": "data", "mountPath": "/data"}, {"name": "run", "mountPath": "/var/run/postgresql"}],
    }
    claim = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "5Gi"}}}
    yield _service(namespace, POSTGRES, labels, 5432)
    yield {
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": {"name": POSTGRES, "namespace": namespace},
        "spec": {
            "replicas": 1,
            "serviceName": POSTGRES,
            "selector": {"matchLabels": labels},
            "template": _template(
                labels,
                container,
                volumes=[{"name": "run", "emptyDir": {}}],
                user={"runAsUser": 999, "runAsGroup": 999, "fsGroup": 999, "fsGroupChangePolicy": "OnRootMismatch"},
            ),
            "volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": claim}],
        },
    }


def platforms_pod(namespace: str, image: str) -> Iterator[Object]:
    """As the platform's manifest has the service: one pod with the API on 8080, which `/health` there shows to be ready."""
    labels = {COMPONENT: "service"}
    environment = {
        "DATASTORAGE_DATABASE_URL": url(f"{POSTGRES}.{namespace}"),
        "DATASTORAGE_ALLOW_UNAUTHENTICATED": "true",
        "DATASTORAGE_MIGRATE": "true",
    }
    container = {
        "name": "datastorage",
        "image": image,
        "ports": [{"containerPort": 8080}],
        "env": [{"name": key, "value": value} for key, value in environment.items()],
        "readinessProbe": {"httpGet": {"path": "/health", "port": 8080}, "periodSeconds": 1, "timeoutSeconds": 2},
        "securityContext": _LOCKED,
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
    }
    yield _service(namespace, SERVICE, labels, 8080)
    yield {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "datastorage", "namespace": namespace},
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": labels},
            "template": _template(labels, container, volumes=[{"name": "tmp", "emptyDir": {}}]),
        },
    }


def outsider(namespace: str, image: str) -> Object:
    """A pod that is nobody's client; it listens on 8088."""
    container = {
        "name": "outsider",
        "image": image,
        "command": ["python", "-m", "http.server", "8088"],
        "securityContext": _LOCKED,
    }
    template = _template({COMPONENT: "outsider"}, container)
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "outsider", "namespace": namespace}} | {
        "spec": template["spec"] | {"terminationGracePeriodSeconds": 0}
    }


def defined(kind: str) -> Object:
    """The definition of a kind of the Prometheus Operator, of which anything is valid."""
    schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    plural = f"{kind.lower()}s"
    version = {"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": schema}}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{_MONITORING}"},
        "spec": {
            "group": _MONITORING,
            "scope": "Namespaced",
            "names": {"kind": kind, "plural": plural, "singular": kind.lower(), "listKind": f"{kind}List"},
            "versions": [version],
        },
    }


def url(host: str, user: str = OWNER) -> str:
    return f"postgresql://{user}:{PASSWORD}@{host}.svc.cluster.local/{OWNER}"


_LOCKED = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def _service(namespace: str, name: str, labels: dict[str, str], port: int) -> Object:
    metadata = {"name": name, "namespace": namespace}
    spec = {"selector": labels, "ports": [{"port": port}]}
    return {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec}


def _template(labels: dict[str, str], container: Object, volumes: Any = (), user: Object | None = None) -> Object:
    return {
        "metadata": {"labels": labels},
        "spec": {
            "terminationGracePeriodSeconds": 20,
            "securityContext": {
                "runAsNonRoot": True,
                "seccompProfile": {"type": "RuntimeDefault"},
                **(user or {"runAsUser": 65532}),
            },
            "containers": [container | {"resources": {"requests": {"cpu": "100m", "memory": "128Mi"}}}],
            "volumes": list(volumes),
        },
    }
