"""A Spark cluster of this machine: a master and two workers, each a process, on ports of loopback that are free."""

import json
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from urllib.request import urlopen

from tests.services import free_port

WORKERS = 2
_HOST = "127.0.0.1"
_START_SECONDS = 180.0
_STOP_SECONDS = 30.0


@contextmanager
def local_cluster(pyspark: Path, directory: Path) -> Iterator[str]:
    """The URL of a master that has all its workers; logs and the workers' files are in the directory."""
    port, pages = free_port(), free_port()
    url = f"spark://{_HOST}:{port}"
    with ExitStack() as stack:
        master = ["master.Master", "--port", str(port), "--webui-port", str(pages)]
        stack.enter_context(_running(pyspark, directory / "master", master))
        for number in range(WORKERS):
            own = directory / f"worker-{number + 1}"
            limits = ["--cores", "1", "--memory", "512m", "--work-dir", str(own / "work")]
            ports = ["--port", str(free_port()), "--webui-port", str(free_port())]
            stack.enter_context(_running(pyspark, own, ["worker.Worker", *limits, *ports, url]))
        _wait_for_workers(f"http://{_HOST}:{pages}/json/")
        yield url


@contextmanager
def _running(pyspark: Path, directory: Path, arguments: list[str]) -> Iterator[None]:
    """One process of the cluster. A worker ends its executors when it is stopped."""
    directory.mkdir()
    environment = os.environ | {
        "SPARK_HOME": str(pyspark),
        "SPARK_LOCAL_IP": _HOST,
        "SPARK_DAEMON_MEMORY": "256m",
        "SPARK_LOCAL_DIRS": str(directory),
        "TZ": "UTC",
    }
    name, *options = arguments
    command = [str(pyspark / "bin" / "spark-class"), f"org.apache.spark.deploy.{name}", "--host", _HOST, *options]
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=directory)
        try:
            yield
            assert process.poll() is None, f"{name} has ended: {directory / 'log'}"
        finally:
            process.terminate()
            try:
                process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_for_workers(url: str) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        with suppress(OSError), urlopen(url, timeout=10) as answer:
            if json.load(answer)["aliveworkers"] == WORKERS:
                return
        time.sleep(0.5)
    raise AssertionError("the workers have not found their master")
