"""`datastorage retention` and `erase`: what removes events, or what they say of people."""

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from app.cli.exits import Exit
from app.cli.parser import Commands, add_group
from app.errors import Usage
from app.terminal import visible

if TYPE_CHECKING:
    from app.tlog.orders import Difference


def add(commands: Commands) -> None:
    acts = add_group(commands, "retention", "purge events whose time is over, or set how long they stay")
    acts.add_parser("plan", help="show what a run would purge; changes nothing").set_defaults(run=_plan)
    run = acts.add_parser("run", help="purge what is due and not held")
    run.description = (
        "Exit code 1: holds or policies of the tables differ from the log, which is followed; the rest is purged."
    )
    run.set_defaults(run=_run)
    _add_policy(acts)
    _add_erase(commands)


def _add_policy(acts: Commands) -> None:
    policy = add_group(acts, "policy", "how long the events of a category stay")
    policy.add_parser("list", help="the policies that runs follow, as the log records them").set_defaults(
        run=_policy_list
    )
    setting = policy.add_parser("set", help="set the policy of a category, from the next run on")
    setting.add_argument("--days", type=int, required=True, metavar="N", help="for at least so many days")
    for bound, text in (("floor", "whatever else is set, never for fewer days"), ("ceiling", "never for more days")):
        setting.add_argument(f"--{bound}", type=int, metavar="N", help=f"{text}; the setting's, if absent")
    setting.set_defaults(run=_policy_set)
    removal = policy.add_parser("remove", help="leave the events of a category to their own days and the settings")
    removal.set_defaults(run=_policy_remove)
    for command in (setting, removal):
        command.add_argument("category", help="an event_category")
        command.add_argument("--reason", required=True, help="why; it is in the log")
        command.add_argument("--by", default="datastorage retention", help="who orders it; it is in the log")


def _add_erase(commands: Commands) -> None:
    erase = commands.add_parser("erase", help="erase what events say of people; their hashes and proofs stay")
    selector = erase.add_mutually_exclusive_group(required=True)
    selector.add_argument("--event-id", action="append", help="one event; may be repeated")
    selector.add_argument("--actor", help="every event of this actor_id")
    selector.add_argument("--correlation-id", help="every event of this correlation")
    erase.add_argument("--reason", required=True, help="why; it stands in the log")
    erase.add_argument("--by", default="datastorage erase", help="who wants it; it stands in the log")
    erase.add_argument("--dry-run", action="store_true", help="only say how many events there are")
    erase.set_defaults(run=_erase)


def _plan(arguments: argparse.Namespace) -> Exit:
    del arguments
    import asyncio
    from datetime import UTC, datetime

    from app.cli.database import settings_for_removal
    from app.retention import purge

    plans, differences = asyncio.run(purge.plan(settings_for_removal(), datetime.now(UTC)))
    print("MONTH    EVENTS  DUE  HELD  NOT DUE")
    for one in plans:
        rows = one.contents
        note = "  goes as a whole" if one.whole else ""
        print(f"{one.month.first:%Y-%m}  {rows.total}  {rows.due}  {rows.held}  {rows.not_due}{note}")
    return _print_differences(differences)


def _run(arguments: argparse.Namespace) -> Exit:
    del arguments
    import asyncio
    from datetime import UTC, datetime

    from app.cli.database import settings_for_removal
    from app.retention import purge

    done = asyncio.run(purge.run(settings_for_removal(), datetime.now(UTC)))
    print(f"Run {done.run_id}: {done.rows_deleted} of {done.rows_scanned} events purged.")
    for state, months in (("dropped", done.dropped), ("put back", done.restored)):
        if months:
            print(f"Months {state}: {', '.join(months)}")
    return _print_differences(done.differences)


def _print_differences(differences: "Sequence[Difference]") -> Exit:
    """Print where holds and policies differ from the log. The exit code: a defect if any does."""
    for one in differences:
        print(visible(f"{one.message}."), file=sys.stderr)
    return Exit.DEFECT if differences else Exit.AS_ASKED


def _policy_list(arguments: argparse.Namespace) -> Exit:
    del arguments
    import asyncio

    from app.cli.database import settings_for_removal
    from app.retention import policies

    recorded, differences = asyncio.run(policies.list_from(settings_for_removal()))
    for category, change in recorded.items():
        who = f"  set by {change.by}, {change.at:%Y-%m-%d}: {change.reason}" if change.at is not None else ""
        print(visible(f"{category}  {change.policy}{who}"))
    return _print_differences(differences)


def _policy_set(arguments: argparse.Namespace) -> None:
    import asyncio

    from app.cli.database import settings_for_removal
    from app.retention import policies
    from app.tlog.orders import Policy

    policy = Policy(arguments.days, arguments.floor, arguments.ceiling)
    order = policies.PolicyOrder(arguments.by, arguments.reason)
    asyncio.run(policies.change_from(settings_for_removal(), arguments.category, policy, order))
    print(f"{visible(arguments.category)}: {policy}, from the next retention run on.")


def _policy_remove(arguments: argparse.Namespace) -> None:
    import asyncio

    from app.cli.database import settings_for_removal
    from app.retention import policies

    order = policies.PolicyOrder(arguments.by, arguments.reason)
    asyncio.run(policies.change_from(settings_for_removal(), arguments.category, None, order))
    print(f"{visible(arguments.category)} has no policy any more.")


def _erase(arguments: argparse.Namespace) -> None:
    import asyncio
    from uuid import UUID

    from app.cli.database import settings_for_removal
    from app.main import create_catalog
    from app.retention import erase

    try:
        ids = arguments.event_id and [UUID(text) for text in arguments.event_id]
    except ValueError as error:
        raise Usage(f"--event-id: {error}") from None
    settings = settings_for_removal()
    erasure = erase.Erasure(arguments.reason, arguments.by, ids, arguments.actor, arguments.correlation_id)
    done = asyncio.run(erase.erase(settings, create_catalog(settings), erasure, dry_run=arguments.dry_run))
    _print_differences(done.differences)
    result = "would be erased" if arguments.dry_run else f"erased by erasure {done.erasure_id}"
    print(f"{len(done.events)} event(s) {result}.")
    if done.unsealed:
        print(
            f"{len(done.unsealed)} row(s) that others inserted by SQL are unchanged: they have no proof; change them by SQL."
        )
