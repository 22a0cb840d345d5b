"""A Kubernetes cluster of one node, from nothing, and the chart in it: python -m tests.cluster [--stay] [STAGE...]

Compiles (binaries.sh), builds (images.sh), starts the node in namespaces of its own (node.py), runs the stages (stages.py), all of them
unless some are named, and leaves nothing running. Data of the last run stay in build/cluster/run, logs among them. Needs Linux with
cgroup v1, root and Go; says `skipped: …` and succeeds where one of these is missing. README.md has what was found out on the way.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.certificates import Authority
from tests.cluster.node import ADDRESS, API_SERVICE, CGROUP, CGROUPS, HIDDEN
from tests.cluster.stages import STAGES
from tests.cluster.trial import E2E, PRODUCTION

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
DIRECTORY = ROOT / "build" / "cluster"
PACKAGES = {
    "containerd": "containerd",
    "runc": "runc",
    "/usr/lib/cni/ptp": "containernetworking-plugins",
    "iptables": "iptables",
    "ipset": "ipset",
    "conntrack": "conntrack",
    "nft": "nftables",
    "curl": "curl",
}
"""By a program that it has: packages of Debian."""
API_NAMES = ("kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local")


def main() -> int:
    options = argparse.ArgumentParser(prog="make cluster", description=f"Stages: {' '.join(STAGES)}")
    options.add_argument("--stay", action="store_true", help="keep the cluster until Ctrl-C, and say how to enter it")
    options.add_argument("stages", nargs="*", metavar="STAGE")
    asked = options.parse_args()
    if unknown := set(asked.stages) - STAGES.keys():
        options.error(f"no such stages: {', '.join(sorted(unknown))}")
    if missing := what_is_missing():
        print(f"skipped: {missing}")
        return 0
    began = time.monotonic()
    install_packages()
    for script in ("binaries.sh", "images.sh"):
        subprocess.run([HERE / script, DIRECTORY], check=True)
    print(f"programs and images are there after {time.monotonic() - began:.0f} s", flush=True)
    prepare()
    try:
        return run_node(asked.stages, stay=asked.stay)
    finally:
        clean_up()


def what_is_missing() -> str:
    if os.geteuid() != 0:
        return "a node needs root"
    if not (CGROUPS / "cpuset" / "cpuset.cpus").exists():
        return "this machine has no cgroup v1, and nothing else was tried"
    return "" if shutil.which("go") else "there is no Go on this machine"


def install_packages() -> None:
    missing = [package for program, package in PACKAGES.items() if not shutil.which(program)]
    if missing:
        print(f"installing {' '.join(missing)}", flush=True)
        environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        for command in (
            ["update"],
            ["-o", "DPkg::Lock::Timeout=300", "install", "-y", "--no-install-recommends", *missing],
        ):
            subprocess.run(["apt-get", "-qq", *command], check=True, env=environment, stdout=subprocess.DEVNULL)


def prepare() -> None:
    """An empty `run` with what has to be there before the node: the authority, and the pairs of the API server and of the service."""
    own = DIRECTORY / "run"
    shutil.rmtree(own, ignore_errors=True)
    own.mkdir()
    authority = Authority(own)
    authority.write_pair(own / "api", "kube-apiserver", [*API_NAMES, ADDRESS, API_SERVICE])
    authority.write_pair(
        own / "service", "data-storage-service", [f"data-storage-service.{name}.svc" for name in (E2E, PRODUCTION)]
    )


def run_node(stages: list[str], *, stay: bool) -> int:
    """The exit code of the stages."""
    command = [sys.executable, "-m", "tests.cluster.stages", str(DIRECTORY), *stages]
    if stay:
        command = ["sh", "-c", f"{' '.join(command)}; exec sleep infinity"]
    alone = ["unshare", "--net", "--mount", "--pid", "--ipc", "--uts", "--fork", "--kill-child", "--mount-proc"]
    node = subprocess.Popen(
        [*alone, "--propagation", "private", sys.executable, "-m", "tests.cluster.node", str(DIRECTORY), *command],
        cwd=ROOT,
    )
    signal.signal(signal.SIGTERM, lambda *_: node.kill())  # unshare ignores SIGTERM
    if stay:
        print(f"enter: nsenter --target $(pgrep -P {node.pid}) --net --mount --pid --ipc --uts", flush=True)
    try:
        return node.wait()
    except KeyboardInterrupt:
        return 130
    finally:
        node.kill()
        node.wait()


def clean_up() -> None:
    """What the node has left on the machine: empty directories."""
    for hierarchy in CGROUPS.iterdir():
        for path in sorted((hierarchy / CGROUP).rglob("*"), reverse=True):
            if path.is_dir():
                remove_empty(path)
        remove_empty(hierarchy / CGROUP)
    for name in (*HIDDEN, "/run/datastorage-cluster"):
        remove_empty(Path(name))


def remove_empty(path: Path) -> None:
    """A directory that somebody else uses is left."""
    for _ in range(50):
        try:
            path.rmdir()
        except FileNotFoundError:
            return
        except OSError:
            if not str(path).startswith(str(CGROUPS)):
                return
            time.sleep(0.1)  # its processes are ending


if __name__ == "__main__":
    sys.exit(main())
