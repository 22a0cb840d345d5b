"""The only node of a Kubernetes cluster, as process 1 of namespaces of its own: python -m tests.cluster.node DIRECTORY COMMAND...

DIRECTORY contains `programs` (binaries.sh), `images` (images.sh) and `run`, which __main__.py has emptied. COMMAND runs as soon as the
components do; its end is the end of all of them, and its exit code is this one's. Everything that the kubelet would set on the machine
finds a file of this mount namespace instead.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

NODE = "node"
ADDRESS, PODS, SERVICES, API_SERVICE = "10.99.0.1", "10.97.0.0/24", "10.98.0.0/24", "10.98.0.1"
API_URL, ROOT_TOKEN = "https://127.0.0.1:6443", "the-root"
CGROUP = "datastorage-cluster"
CGROUPS = Path("/sys/fs/cgroup")
ENGINE = "/run/datastorage-cluster/containerd.sock"
HIDDEN = ("/var/lib/cni", "/var/lib/kubelet", "/var/log/containers", "/var/log/pods")
"""Directories of the machine over which ones of `run` are mounted."""
SYSCTLS = {"vm/overcommit_memory": 1, "kernel/panic": 10, "kernel/panic_on_oops": 1}
"""What the kubelet insists on, and would set for the whole machine."""
ACCOUNTS = {
    "admin": (ROOT_TOKEN, "root", "system:masters"),
    "controllers": ("the-controllers", "system:kube-controller-manager", "controllers"),
    "scheduler": ("the-scheduler", "system:kube-scheduler", "scheduler"),
    "proxy": ("the-proxy", "system:kube-proxy", "proxy"),
    "kubelet": ("the-kubelet", f"system:node:{NODE}", "system:nodes"),
}
"""By the name of a kubeconfig: token, user and group."""


class Node(NamedTuple):
    """Where a node finds its programs and leaves its data."""

    programs: Path
    images: Path
    run: Path

    def start(self, log: str, *command: object) -> None:
        """Run a component, whose output is in `run`/LOG.log."""
        with (self.run / f"{log}.log").open("ab") as output:
            subprocess.Popen([str(part) for part in command], stdout=output, stderr=output, cwd=self.run)

    def config(self, name: str, content: object) -> Path:
        """A file of `run`; JSON is YAML too."""
        path = self.run / name
        path.write_text(content if isinstance(content, str) else json.dumps(content, indent=1))
        return path


def main() -> int:
    directory, command = Path(sys.argv[1]), sys.argv[2:]
    node = Node(directory / "programs", directory / "images", directory / "run")
    hide_the_machine(node)
    make_network()
    for name, (token, _, _) in ACCOUNTS.items():
        node.config(f"{name}.conf", kubeconfig(node, name, token))
    start_control_plane(node)
    start_engine(node)
    start_kubelet(node)
    start_network(node)
    return wait_for_the_end_of(subprocess.Popen(command, env=os.environ | {"KUBECONFIG": str(node.run / "admin.conf")}))


def wait_for_the_end_of(command: "subprocess.Popen[bytes]") -> int:
    """Its exit code. Process 1 has to wait for whatever else ends, too."""
    while True:
        process, status = os.wait()
        if process == command.pid:
            return os.waitstatus_to_exitcode(status)


def run(*command: object) -> None:
    subprocess.run([str(part) for part in command], check=True, capture_output=True)


def until(what: str, is_there: Callable[[], bool], seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not is_there():
        if time.monotonic() > end:
            raise SystemExit(f"{what} does not come up")
        time.sleep(0.1)


def succeeds(*command: object) -> bool:
    return subprocess.run([str(part) for part in command], check=False, capture_output=True).returncode == 0


def hide_the_machine(node: Node) -> None:
    run("hostname", NODE)
    run("mount", "--make-rshared", "/")
    for name, value in SYSCTLS.items():
        run("mount", "--bind", node.config(name.replace("/", "."), f"{value}\n"), f"/proc/sys/{name}")
    for path in HIDDEN:
        own = node.run / "machine" / path.removeprefix("/")
        for each in (own, Path(path)):
            each.mkdir(parents=True, exist_ok=True)
        run("mount", "--bind", own, path)
    run("mount", "--make-rshared", "/var/lib/kubelet")
    Path(ENGINE).parent.mkdir(exist_ok=True)
    run("mount", "-t", "tmpfs", "tmpfs", Path(ENGINE).parent)
    for hierarchy in CGROUPS.iterdir():
        (hierarchy / CGROUP).mkdir(exist_ok=True)
    (CGROUPS / "cpu" / CGROUP / "cpu.shares").write_text("4096")  # as much as four of the machine's sessions
    for name in ("cpuset.cpus", "cpuset.mems"):  # a cpuset begins empty, and nothing can run in it
        (CGROUPS / "cpuset" / CGROUP / name).write_text((CGROUPS / "cpuset" / name).read_text())


def make_network() -> None:
    """A bridge without ports has the node's address; the default route, which components look for, leads nowhere."""
    run("ip", "link", "set", "lo", "up")
    run("ip", "link", "add", "node0", "type", "bridge")
    run("ip", "addr", "add", f"{ADDRESS}/32", "dev", "node0")
    run("ip", "link", "set", "node0", "up")
    run("ip", "route", "add", "default", "dev", "node0")
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")


def kubeconfig(node: Node, user: str, token: str) -> object:
    cluster = {"server": API_URL, "certificate-authority": str(node.run / "ca.crt")}
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "cluster", "cluster": cluster}],
        "users": [{"name": user, "user": {"token": token}}],
        "contexts": [{"name": "cluster", "context": {"cluster": "cluster", "user": user}}],
        "current-context": "cluster",
    }


def start_control_plane(node: Node) -> None:
    etcd, peers = "http://127.0.0.1:2379", "http://127.0.0.1:2380"
    node.start(
        *("etcd", node.programs / "etcd", "--data-dir", "etcd", "--unsafe-no-fsync"),
        *("--listen-client-urls", etcd, "--advertise-client-urls", etcd, "--listen-peer-urls", peers),
        *("--initial-advertise-peer-urls", peers, "--initial-cluster", f"default={peers}"),
    )
    node.config("tokens.csv", "".join(f"{token},{user},{user},{group}\n" for token, user, group in ACCOUNTS.values()))
    run("openssl", "genrsa", "-out", node.run / "accounts.key", "2048")
    node.start(
        *("kube-apiserver", node.programs / "kube-apiserver", "--etcd-servers", etcd, "--secure-port", 6443),
        *("--advertise-address", ADDRESS, "--tls-cert-file", "api/tls.crt", "--tls-private-key-file", "api/tls.key"),
        *("--client-ca-file", "ca.crt", "--authorization-mode", "Node,RBAC", "--token-auth-file", "tokens.csv"),
        *("--service-account-issuer", "https://kubernetes.default.svc.cluster.local"),
        *("--service-account-key-file", "accounts.key", "--service-account-signing-key-file", "accounts.key"),
        *("--service-cluster-ip-range", SERVICES, "--kubelet-preferred-address-types", "InternalIP"),
    )
    ready = ("curl", "--silent", "--fail", "--cacert", node.run / "ca.crt", f"{API_URL}/readyz")
    until("kube-apiserver", lambda: succeeds(*ready))
    for name, log, more in (
        ("kube-controller-manager", "controllers", ("--service-account-private-key-file", "accounts.key")),
        ("kube-scheduler", "scheduler", ()),
    ):
        own = f"{log}.conf"
        node.start(
            *(name, node.programs / name, "--kubeconfig", own, "--authentication-kubeconfig", own),
            *("--authorization-kubeconfig", own, "--leader-elect=false", "--bind-address", "127.0.0.1", *more),
            *(("--root-ca-file", "ca.crt", "--use-service-account-credentials") if more else ()),
        )


def start_engine(node: Node) -> None:
    """containerd with every image of `images`; each pod is routed through the node, as policies need it."""
    (node.run / "cni").mkdir()
    addresses = {"type": "host-local", "subnet": PODS, "routes": [{"dst": "0.0.0.0/0"}]}
    plugins = [
        {"type": "ptp", "ipMasq": False, "ipam": addresses},
        {"type": "portmap", "capabilities": {"portMappings": True}},
    ]
    node.config("cni/10-pods.conflist", {"cniVersion": "0.4.0", "name": "pods", "plugins": plugins})
    config = node.config(
        "containerd.toml",
        f"""version = 2
root = "{node.run}/containerd"
state = "{Path(ENGINE).parent}/containerd"
[grpc]
  address = "{ENGINE}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "docker.io/library/pause:cluster"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{node.run}/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      SystemdCgroup = false
""",
    )
    node.start("containerd", "containerd", "--config", config)
    until("containerd", lambda: succeeds("ctr", "--address", ENGINE, "version"))
    for image in sorted(node.images.glob("*.tar")):
        run("ctr", "--address", ENGINE, "--namespace", "k8s.io", "images", "import", image)


def start_kubelet(node: Node) -> None:
    config = {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {"anonymous": {"enabled": True}, "webhook": {"enabled": False}},
        "authorization": {"mode": "AlwaysAllow"},
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{CGROUP}",
        "enforceNodeAllocatable": [],
        "failCgroupV1": False,  # what this machine has; a future kubelet will refuse it all the same
        "failSwapOn": False,
        "featureGates": {"KubeletInUserNamespace": True},  # what it may not set on the machine, it does without
        "clusterDNS": [ADDRESS],
        "clusterDomain": "cluster.local",
        "containerRuntimeEndpoint": f"unix://{ENGINE}",
        "resolvConf": str(node.config("resolv.conf", "")),
        "evictionHard": {"nodefs.available": "1%", "imagefs.available": "1%", "memory.available": "100Mi"},
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
    }
    path = node.config("kubelet.yaml", config)
    node.start(
        *("kubelet", node.programs / "kubelet", "--config", path, "--kubeconfig", "kubelet.conf"),
        *("--hostname-override", NODE, "--node-ip", ADDRESS, "--cert-dir", "kubelet", "--v", 2),
    )


def start_network(node: Node) -> None:
    config = {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "clientConnection": {"kubeconfig": "proxy.conf"},
        "clusterCIDR": PODS,
        "mode": "iptables",
        "hostnameOverride": NODE,
        "conntrack": {"maxPerCore": 0, "min": 0},  # the machine's
    }
    node.start("kube-proxy", node.programs / "kube-proxy", "--config", node.config("proxy.yaml", config))
    node.start("names", sys.executable, Path(__file__).parent / "names.py", ADDRESS, API_URL, node.run / "ca.crt")
    asked = ("curl", "--silent", "--fail", "--cacert", node.run / "ca.crt", "-H", f"Authorization: Bearer {ROOT_TOKEN}")
    until("the kubelet", lambda: succeeds(*asked, f"{API_URL}/api/v1/nodes/{NODE}"))
    node.start("policies", node.programs / "network-policies", "admin.conf", NODE, SERVICES)


if __name__ == "__main__":
    sys.exit(main())
