"""The service beside what else one could use, in one run: a plain application, an INSERT without HTTP, COPY, and a log without rows.
And beside itself without a database, which is how far less work in Postgres could bring it.

python -m bench.peers --seconds 3 --rounds 7

All store events of about 1 KB on one Postgres with fsync on; the client runs on the same cores. In each round each peer has its turn
at each number of connections. A turn during which other processes used more than a tenth of the cores is repeated, three times at
most. `pgbench` comes with Postgres. Tessera, which keeps a tree in files and no rows, is compiled if there is Go (--tessera).
"""

import argparse
import asyncio
import base64
import contextlib
import hashlib
import itertools
import json
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from app.embedded import EmbeddedPostgres
from bench import bodies, copy
from bench.client import drive, prepared
from bench.naive import COLUMNS
from bench.processes import Running, cpu_seconds, create_databases, database_url, descendants, service

SINGLES, BATCHES = (1, 16, 64, 256), (8, 16)
_SINGLES_PER_SECOND, _BATCHES_PER_SECOND, _COPY_ROWS, _BATCH = 12_000, 250, 30_000, 100
_FOREIGN_SHARE_MAX, _TRIES = 0.1, 3
_TESSERA = "github.com/transparency-dev/tessera/cmd/conformance/posix"
_PGBENCH_CLIENTS_MAX = 80  # each is a connection to Postgres, which takes a hundred
_LATENCY = re.compile(r"^\d+ \d+ (\d+)")


@dataclass(frozen=True)
class Turn:
    """What one peer did in one turn."""

    rate: float
    """Events a second."""
    p99_ms: float = float("nan")


Peer = Callable[[int], Turn]
"""A turn of a peer, with this number of connections."""
_ALONE = "this service without a database"
_SINGLE, _BATCHED = "single events", "events in batches of 100"
Found = dict[tuple[str, str, int], list[Turn]]
"""Turns by what was sent, peer and number of connections."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.peers", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each turn")
    parser.add_argument("--tessera", action="store_true", help="compile Tessera, and measure it too")
    options = parser.parse_args()
    found: Found = defaultdict(list)
    disturbed = 0
    with _peers(options) as (singles, batches):
        plan = [(_SINGLE, name, peer, number) for number in SINGLES for name, peer in singles.items()]
        plan += [(_BATCHED, name, peer, number) for number in BATCHES for name, peer in batches.items()]
        for turn in range(options.rounds):
            for what, name, peer, number in plan if turn % 2 else reversed(plan):
                result, quiet = _undisturbed(peer, number)
                disturbed += not quiet
                found[what, name, number].append(result)
                shown = f"{name} at {number}: {result.rate:,.0f}/s"
                print(f"round {turn + 1} of {options.rounds}, {shown}", file=sys.stderr, flush=True)
        report(found, list(singles), list(batches), options)
    print(f"{disturbed} of {options.rounds * len(plan)} turns were disturbed three times, and count")


def _undisturbed(peer: Peer, number: int) -> tuple[Turn, bool]:
    for _ in range(_TRIES):
        before, own, started = _busy_seconds(), _own_seconds(), perf_counter()
        result = peer(number)
        seconds = (perf_counter() - started) * (os.cpu_count() or 1)
        if (_busy_seconds() - before) - (_own_seconds() - own) < _FOREIGN_SHARE_MAX * seconds:
            return result, True
    return result, False


def _busy_seconds() -> float:
    """CPU time that was used on this machine since it was started; waiting and stolen time is not."""
    fields = [int(one) for one in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
    return (sum(fields[:3]) + sum(fields[5:7])) / os.sysconf("SC_CLK_TCK")


def _own_seconds() -> float:
    return cpu_seconds(os.getpid()) + sum(cpu_seconds(child) for child in descendants(os.getpid()))


@contextlib.contextmanager
def _peers(options: argparse.Namespace) -> Iterator[tuple[dict[str, Peer], dict[str, Peer]]]:
    """Peers by name: for single events, and for batches."""
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="datastorage-bench-")))
        directory.chmod(0o711)
        postgres = stack.enter_context(EmbeddedPostgres.start(directory / "data"))
        names = ("ours", "naive", "pgbench", "copy_key", "copy_all")
        create_databases(postgres.url, *names)
        urls = {name: database_url(postgres.url, name) for name in names}
        for name in names[1:]:
            asyncio.run(copy.prepare(urls[name], key_only=name == "copy_key"))
        ours = stack.enter_context(service(database_url=urls["ours"], migrate=True))
        naive = stack.enter_context(service("bench.naive", database_url=urls["naive"]))
        alone = stack.enter_context(service("bench.nodatabase"))
        script = directory / "insert.sql"
        script.write_text(_insert())
        singles = {
            "this service": _posting(ours, bodies.singles("single"), 1, options.seconds),
            "plain FastAPI application": _posting(naive, bodies.singles("single"), 1, options.seconds),
            _ALONE: _posting(alone, bodies.singles("alone"), 1, options.seconds),
            "pgbench, one prepared INSERT": _pgbench(script, urls["pgbench"], options.seconds, directory),
        }
        if options.tessera:
            singles["Tessera, files"] = stack.enter_context(_tessera(directory, options.seconds))
        batches = {
            "this service": _posting(ours, bodies.batches("batch"), _BATCH, options.seconds),
            "plain FastAPI application, executemany": _posting(naive, bodies.batches("batch"), _BATCH, options.seconds),
            _ALONE: _posting(alone, bodies.batches("alone"), _BATCH, options.seconds),
            "COPY, all indexes": lambda _: Turn(copy.rate(urls["copy_all"], _COPY_ROWS)),
            "COPY, key only": lambda _: Turn(copy.rate(urls["copy_key"], _COPY_ROWS)),
        }
        yield singles, batches


def _posting(server: Running, requests: Iterator[bytes], events: int, seconds: float) -> Peer:
    number = int(seconds * (_SINGLES_PER_SECOND if events == 1 else _BATCHES_PER_SECOND))

    def turn(connections: int) -> Turn:
        load = drive(server.port, prepared(requests, number), connections, seconds)
        if load.errors:
            raise SystemExit(f"bench: {load.errors}")
        return Turn(load.rate * events, load.percentile_ms(99))

    return turn


def _insert() -> str:
    """An event as the bench sends it, with values of the same length."""
    event = bodies.event("pgbench")
    values = {
        name: "'" + (value if isinstance(value, str) else json.dumps(value)).replace("'", "''") + "'"
        for name, value in event.items()
        if name in COLUMNS
    }
    values |= {"event_id": "gen_random_uuid()", "event_date": "current_date", "event_timestamp": "now()"}
    values["correlation_id"] = "'pgbench-' || :n"
    cells = ", ".join(values.values()).replace(":{", ": {")  # pgbench would take a colon before a name for a variable
    return (
        f"\\set n random(1, {bodies.CORRELATIONS})\nINSERT INTO audit_events ({', '.join(values)}) VALUES ({cells});\n"
    )


def _pgbench(script: Path, url: str, seconds: float, directory: Path) -> Peer:
    def turn(connections: int) -> Turn:
        for log in directory.glob("latency.*"):
            log.unlink()
        clients = min(connections, _PGBENCH_CLIENTS_MAX)
        command = ["pgbench", "-n", "-M", "prepared", "-c", str(clients), "-j", str(min(2, clients))]
        command += [
            "-T",
            str(max(1, round(seconds))),
            "-l",
            f"--log-prefix={directory}/latency",
            "-f",
            str(script),
            url,
        ]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        rate = re.search(r"tps = ([\d.]+)", done.stdout)
        assert rate is not None
        lines = itertools.chain.from_iterable(log.read_text().splitlines() for log in directory.glob("latency.*"))
        micros = [int(found[1]) for line in lines if (found := _LATENCY.match(line))]
        return Turn(float(rate[1]), statistics.quantiles(micros, n=100)[98] / 1000)

    return turn


@contextlib.contextmanager
def _tessera(directory: Path, seconds: float) -> Iterator[Peer]:
    """A log of Tessera that takes entries over HTTP and answers when they have their position, as its authors run it in tests."""
    module, binary, storage = directory / "tessera", directory / "posix", directory / "log"
    module.mkdir()
    for command in (
        ("go", "mod", "init", "bench"),
        ("go", "get", f"{_TESSERA}@v1.0.4"),
        ("go", "build", "-o", str(binary), _TESSERA),
    ):
        subprocess.run(command, cwd=module, check=True, capture_output=True)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [str(binary), f"--listen=127.0.0.1:{port}", f"--storage_dir={storage}"],
        env=os.environ | {"LOG_PRIVATE_KEY": _note_key("bench")},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        for _ in range(100):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.1)
        entries = (one.replace(b"/api/v1/audit/events", b"/add", 1) for one in bodies.singles("tessera"))
        yield _posting(Running(port, process.pid), entries, 1, seconds)
    finally:
        process.terminate()
        process.wait(60)


def _note_key(name: str) -> str:
    """A new private key in the text form of Go's sumdb/note."""
    key = Ed25519PrivateKey.generate()
    public, seed = b"\x01" + key.public_key().public_bytes_raw(), b"\x01" + key.private_bytes_raw()
    key_id = hashlib.sha256(name.encode() + b"\n" + public).hexdigest()[:8]
    return f"PRIVATE+KEY+{name}+{key_id}+{base64.b64encode(seed).decode()}"


def report(found: Found, singles: list[str], batches: list[str], options: argparse.Namespace) -> None:
    """The medians as tables, and the ratios to the service."""
    print(
        f"\n{os.cpu_count()} cores, {options.rounds} alternating rounds of {options.seconds:g} s, medians, client included"
    )
    for what, names, numbers in ((_SINGLE, singles, SINGLES), (_BATCHED, batches, BATCHES)):
        print(
            f"\n| {what} a second, at connections | "
            + " | ".join(map(str, numbers))
            + " | p99 ms | this service / it |"
        )
        print("|---|" + "---|" * (len(numbers) + 2))
        for name in names:
            rates = [statistics.median(turn.rate for turn in found[what, name, number]) for number in numbers]
            ratios = [
                statistics.median(
                    ours.rate / other.rate
                    for ours, other in zip(found[what, "this service", number], found[what, name, number], strict=True)
                )
                for number in numbers
            ]
            p99 = [statistics.median(turn.p99_ms for turn in found[what, name, number]) for number in numbers]
            cells = [f"{rate:,.0f}" for rate in rates]
            cells.append(" / ".join(f"{one:.0f}" for one in p99) if p99[0] == p99[0] else "-")
            cells.append(" / ".join(f"{one:.2f}" for one in ratios))
            print(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
