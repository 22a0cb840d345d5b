"""`datastorage simulate`: remediations are played, their events posted, and looked for. A client: it knows HTTP only."""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--remediations", type=_positive, default=20, metavar="N", help="lives to play (20)")
    parser.add_argument("--seed", type=int, default=1, metavar="S", help="the same seed plays the same lives (1)")
    parser.add_argument("--url", default="http://127.0.0.1:8080", help="of the service (http://127.0.0.1:8080)")
    parser.add_argument("--emitters", type=_positive, default=4, metavar="E", help="that post at the same time (4)")
    parser.add_argument("--hours", type=float, default=0.0, help="in which they happened, up to now, at most 24 (0)")
    parser.add_argument("--post-only", action="store_true", help="do not look for what was posted")
    parser.add_argument("--token", help="sent as a bearer token")


def run(arguments: argparse.Namespace) -> int:
    """Exit code: 1 when something was refused, something acknowledged is missing, or nobody answers."""
    import asyncio  # noqa: PLC0415 -- every command reads these arguments, only this one needs a client
    from datetime import timedelta  # noqa: PLC0415

    from app.simulate.play import Plan, play  # noqa: PLC0415

    plan = Plan(
        *(arguments.remediations, arguments.seed, arguments.url, arguments.emitters, arguments.token),
        *(timedelta(hours=min(24.0, max(0.0, arguments.hours))), not arguments.post_only),
    )
    return asyncio.run(play(plan))


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("expected a number of at least 1")
    return number
