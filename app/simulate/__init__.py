"""`datastorage simulate`: remediations are played, their events posted, and looked for. A client: it knows HTTP only."""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--remediations", type=_positive, default=20, metavar="N", help="lives to play (20)")
    parser.add_argument("--seed", type=int, default=1, metavar="S", help="the same seed plays the same lives (1)")
    parser.add_argument("--url", default="http://127.0.0.1:8080", help="of the service (http://127.0.0.1:8080)")
    parser.add_argument("--emitters", type=_positive, default=4, metavar="E", help="that post at the same time (4)")
    parser.add_argument("--token", help="sent as a bearer token")


def run(arguments: argparse.Namespace) -> int:
    """Exit code: 1 when something was refused, something acknowledged is missing, or nobody answers."""
    import asyncio  # noqa: PLC0415 -- every command reads these arguments, only this one needs a client

    from app.simulate.play import Plan, play  # noqa: PLC0415

    plan = Plan(arguments.remediations, arguments.seed, arguments.url, arguments.emitters, arguments.token)
    return asyncio.run(play(plan))


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("expected a number of at least 1")
    return number
