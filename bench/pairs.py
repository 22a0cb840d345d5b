"""Is this checkout slower than another revision, or than itself with other settings? Both run side by side and are
measured in alternating pairs; prints ratios with intervals.

python -m bench.pairs --base REVISION
python -m bench.pairs --base-setting tlog=false
python -m bench.pairs --base REVISION --load "single at 1" --load "batch at 8"
python -m bench.pairs --base-setting auth=none --kubernetes --least 0.9     # the cost of authentication with a warm cache
"""

import argparse
import contextlib
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from app.embedded import EmbeddedPostgres
from app.tlog import keys
from bench import bodies
from bench.client import drive, prepared
from bench.processes import Running, create_databases, database_url, postgres_cpu_seconds, service
from tests.apiserver import ACCOUNT, ALL, api_server

RESAMPLES = 10_000
_TOKEN = "t" * 900  # as long as that of a service account
_SINGLES_PER_SECOND, _BATCHES_PER_SECOND = 9_000, 220
LOADS = ("single at 1", "single at 64", "batch at 8", "batch at 16")
ROOT = Path(__file__).parent.parent


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.pairs", description=__doc__)
    parser.add_argument("--base", help="revision to compare with; this checkout unless named")
    parser.add_argument("--pairs", type=int, default=21)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    parser.add_argument("--least", type=float, default=0.95, help="fails if a whole interval lies below this ratio")
    parser.add_argument(
        "--setting", action="append", default=[], metavar="NAME=VALUE", help="of this checkout's service"
    )
    parser.add_argument("--base-setting", action="append", default=[], metavar="NAME=VALUE", help="of the base's")
    parser.add_argument(
        "--load", action="append", choices=LOADS, help="what is measured: single at 64 and batch at 16 unless named"
    )
    parser.add_argument("--kubernetes", action="store_true", help="this checkout asks an API server who calls")
    options = parser.parse_args()
    if not options.base and not options.base_setting:
        parser.error("name a revision or a setting to compare with")
    base_name = " ".join(filter(None, (options.base, *options.base_setting)))
    ratios: dict[str, list[float]] = {name: [] for name in options.load or ("single at 64", "batch at 16")}
    costs: dict[str, list[float]] = {name: [] for name in ratios}
    with _both(options) as (ours, base, postgres_pid):
        for pair in range(options.pairs):
            order = (ours, base) if pair % 2 else (base, ours)
            for name, values in ratios.items():
                found = {server.pid: _measure(server, name, options, postgres_pid) for server in order}
                (rate, cost), (base_rate, base_cost) = found[ours.pid], found[base.pid]
                values.append(rate / base_rate)
                costs[name].append(cost / base_cost)
            shown = ", ".join(f"{name} {values[-1]:.3f}, CPU {costs[name][-1]:.3f}" for name, values in ratios.items())
            print(f"pair {pair + 1} of {options.pairs}: {shown}", file=sys.stderr, flush=True)
    slower = False
    print(f"\nthis checkout / {base_name}, {options.pairs} alternating pairs of {options.seconds:g} s, client included")
    for name, values in ratios.items():
        low, high = interval(values)
        slower |= high < options.least
        print(f"{name:14} rate          median {statistics.median(values):.3f}   95 % interval {low:.3f} to {high:.3f}")
        low, high = interval(costs[name])
        print(
            f"{'':14} CPU an event  median {statistics.median(costs[name]):.3f}   95 % interval {low:.3f} to {high:.3f}"
        )
    sys.exit(f"slower than {options.least} of {base_name}" if slower else 0)


@contextlib.contextmanager
def _both(options: argparse.Namespace) -> Iterator[tuple[Running, Running, int]]:
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="datastorage-bench-")))
        directory.chmod(0o711)
        tree = ROOT
        if options.base:
            tree = directory / "base"
            git = ("git", "-C", str(ROOT), "worktree")
            subprocess.run([*git, "add", "--quiet", "--detach", str(tree), options.base], check=True)
            stack.callback(subprocess.run, [*git, "remove", "--force", str(tree)], check=True)
        keys.create_key_file(directory / "checkpoint.pem")
        postgres = stack.enter_context(EmbeddedPostgres.start(directory / "data"))
        create_databases(postgres.url, "ours", "base")
        ours: dict[str, object] = dict(one.split("=", 1) for one in options.setting)
        if options.kubernetes:
            api = stack.enter_context(api_server())
            api.add(_TOKEN, ACCOUNT + "bench", ALL)
            ours |= api.settings(directory)

        def serving(tree: Path, name: str, settings: dict[str, object]) -> Running:
            common = {"database_url": database_url(postgres.url, name), "migrate": True}
            key = {"checkpoint_key_file": directory / "checkpoint.pem"}
            return stack.enter_context(service(tree=tree, **(common | key | settings)))

        yield (
            serving(ROOT, "ours", ours),
            serving(tree, "base", dict(one.split("=", 1) for one in options.base_setting)),
            postgres.pid,
        )


def _measure(server: Running, name: str, options: argparse.Namespace, postgres_pid: int) -> tuple[float, float]:
    """Events a second, and seconds of CPU of service and Postgres for an event."""
    seconds = options.seconds
    kind, _, connections = name.partition(" at ")
    singles = kind == "single"
    requests = bodies.singles("pair") if singles else bodies.batches("pair")
    number = int(seconds * (_SINGLES_PER_SECOND if singles else _BATCHES_PER_SECOND))
    if options.kubernetes:  # both get the header
        header = f"\r\nAuthorization: Bearer {_TOKEN}\r\n".encode()
        requests = (request.replace(b"\r\n", header, 1) for request in requests)
    before = server.cpu_seconds() + postgres_cpu_seconds(postgres_pid)
    rate = drive(server.port, prepared(requests, number), int(connections), seconds).rate
    return rate, (server.cpu_seconds() + postgres_cpu_seconds(postgres_pid) - before) / (rate * seconds)


def interval(values: list[float]) -> tuple[float, float]:
    """Bootstrap 95 % interval of the median."""
    generator = random.Random(1)
    medians = sorted(statistics.median(generator.choices(values, k=len(values))) for _ in range(RESAMPLES))
    return medians[RESAMPLES * 25 // 1000], medians[RESAMPLES * 975 // 1000]


if __name__ == "__main__":
    main()
