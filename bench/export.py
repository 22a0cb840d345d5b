"""Exports all events of a full table as one file: how long that takes, and how long its verification takes without the service."""

import subprocess
import sys
from http.client import HTTPConnection
from pathlib import Path
from time import perf_counter
from urllib.request import urlopen

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from bench.processes import ROOT, Running

_CHUNK_BYTES = 1024 * 1024


def make_key(path: Path) -> None:
    key = Ed25519PrivateKey.generate()
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


def fetch(server: Running, query: str, file: Path) -> float:
    """Seconds until the export is on disk. Raises if the answer breaks off."""
    started = perf_counter()
    connection = HTTPConnection("127.0.0.1", server.port, timeout=600)
    connection.request("GET", f"/api/v1/audit/export?{query}")
    answer = connection.getresponse()
    if answer.status != 200:
        raise SystemExit(f"bench: the export was answered {answer.status}: {answer.read(1000)!r}")
    with file.open("wb") as output:
        while chunk := answer.read(_CHUNK_BYTES):
            output.write(chunk)
    connection.close()
    return perf_counter() - started


def verify(server: Running, file: Path) -> float:
    """Seconds that `datastorage verify-export` takes. Exits if the file does not verify."""
    key = file.with_suffix(".key")
    with urlopen(f"http://127.0.0.1:{server.port}/tlog/key", timeout=10) as answer:
        key.write_bytes(answer.read())
    started = perf_counter()
    command = [sys.executable, "-m", "app", "verify-export", str(file), "--key", str(key)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"bench: the export does not verify:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    print(done.stdout, file=sys.stderr)
    return perf_counter() - started
