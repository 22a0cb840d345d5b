"""`datastorage simulate`: makes remediations, posts their events, and queries the service for them. A client: HTTP only.

In: the options of the command. Out: requests to a running service, a table on stdout, an exit code. Guaranteed: the same seed
makes the same events, apart from their times and the prefix of their correlation ids.

orchestrator.py  which events a remediation has: those of the RemediationOrchestrator, phase by phase
controllers.py   the events of the other controllers in it
remediation.py   one remediation while its events are made
client.py        posts the events, queries them again, counts
output.py        progress line and table
"""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--remediations", type=_positive, default=20, metavar="N", help="lives to play (20)")
    parser.add_argument("--seed", type=int, default=1, metavar="S", help="the same seed plays the same lives (1)")
    parser.add_argument("--emitters", type=_positive, default=4, metavar="E", help="that post at the same time (4)")
    parser.add_argument("--hours", type=float, default=0.0, help="in which they happened, up to now, at most 24 (0)")
    parser.add_argument("--post-only", action="store_true", help="do not look for what was posted")


def run(arguments: argparse.Namespace) -> int:
    """Returns the exit code: 1 if an event was refused or an acknowledged one is missing, 2 if no service answers.

    `arguments` has, besides what add_arguments() adds, `url`, `token` and `trusted` of the service.
    """
    import asyncio  # noqa: PLC0415 -- every command reads these arguments, only this one needs a client
    from datetime import timedelta  # noqa: PLC0415

    from app.simulate.client import Options, run_simulation  # noqa: PLC0415

    options = Options(
        *(arguments.remediations, arguments.seed, arguments.url, arguments.emitters, arguments.token),
        *(timedelta(hours=min(24.0, max(0.0, arguments.hours))), not arguments.post_only, arguments.trusted),
    )
    return asyncio.run(run_simulation(options))


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("expected a number of at least 1")
    return number
