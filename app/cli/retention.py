"""`datastorage retention` and `erase`: what removes events, or what they say of people."""

import argparse
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from app.cli import client, output
from app.cli.client import Service
from app.cli.exits import Exit
from app.cli.parser import Commands, add_group
from app.errors import Usage
from app.terminal import visible

if TYPE_CHECKING:
    from app.retention.erase import SearchArchive
    from app.retention.space import Space
    from app.settings import Settings
    from app.tlog.orders import Difference, Policy

_POLICIES = "/api/v1/audit/retention-policies"
_BY = "datastorage retention"


def add(commands: Commands) -> None:
    acts = add_group(commands, "retention", "purge events whose time is over, or set how long they stay")
    plan = acts.add_parser("plan", help="show what a run would purge; changes nothing")
    output.add_output(plan)
    plan.set_defaults(run=_plan)
    run = acts.add_parser("run", help="purge what is due and not held")
    run.description = (
        "Exit code 1: holds or policies of the tables differ from the log, which is followed; or a sink has yet to be sent what is due, which "
        "stays then; the rest is purged."
    )
    run.set_defaults(run=_run)
    _add_policy(acts)
    _add_erase(commands)


def _add_policy(acts: Commands) -> None:
    policy = add_group(acts, "policy", "how long the events of a category stay")
    listing = policy.add_parser("list", help="the policies that runs follow, as the log records them")
    listing.set_defaults(run=_policy_list)
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
        command.add_argument("--by", help="who orders it; it is in the log; of a service, whoever the token is of")
    for command in (listing, setting, removal):
        command.description = (
            "Asks the service that --url or DATASTORAGE_URL names; without one, works on the database."
        )
        output.add_output(command)
        client.add_service(command)


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
    import asyncio

    from app.cli.database import settings_for_removal
    from app.retention import purge
    from app.retention.clock import agreed_time

    settings = settings_for_removal()
    plans, differences = asyncio.run(purge.plan(settings, asyncio.run(agreed_time(settings))))
    months = [
        {"month": f"{one.month.first:%Y-%m}", "events": one.contents.total, "due": one.contents.due}
        | {"held": one.contents.held, "not_due": one.contents.not_due, "goes_as_a_whole": one.whole}
        for one in plans
    ]
    with output.shown(arguments) as out:
        if out.is_json:
            for month in months:
                out.record(month)
        else:
            head = ["month", "events", "due", "held", "not due", "goes as a whole"]
            texts = [[*map(str, [*month.values()][:-1]), "yes" if month["goes_as_a_whole"] else ""] for month in months]
            out.table(head, texts)
    return _print_differences(differences)


def _run(arguments: argparse.Namespace) -> Exit:
    del arguments
    import asyncio

    from app.cli.database import settings_for_removal
    from app.retention import purge
    from app.retention.clock import agreed_time

    settings = settings_for_removal()
    done = asyncio.run(purge.run(settings, asyncio.run(agreed_time(settings))))
    print(f"Run {done.run_id}: {done.rows_deleted} of {done.rows_scanned} events purged.")
    for state, months in (("dropped", done.dropped), ("put back", done.restored)):
        if months:
            print(f"Months {state}: {', '.join(months)}")
    print_space(done.space)
    for sink in done.held_back_by:
        print(visible(f"{sink.message}."), file=sys.stderr)
    code = _print_differences(done.differences)
    return Exit.DEFECT if done.held_back_by else code


def print_space(space: "Space") -> None:
    """Print what months have given back to the file system."""
    for month, freed in space.freed.items():
        print(f"Of {month} {freed / 1e6:,.0f} MB were given back to the file system.")
    for month in space.waiting:
        print(f"The space of {month} is given back by a later run: others still read it.")


def _print_differences(differences: "Sequence[Difference]") -> Exit:
    """Print where holds and policies differ from the log. The exit code: a defect if any does."""
    for one in differences:
        print(visible(f"{one.message}."), file=sys.stderr)
    return Exit.DEFECT if differences else Exit.AS_ASKED


def _policy_list(arguments: argparse.Namespace) -> Exit:
    listed, code = _policies_of_service(arguments) if _asks_service(arguments) else _policies_of_database()
    with output.shown(arguments) as out:
        if out.is_json:
            for one in listed:
                out.record(one)
        else:
            out.table(["category", "policy", "set by", "on", "reason"], [_policy_row(one) for one in listed])
    return code


def _asks_service(arguments: argparse.Namespace) -> bool:
    return bool(arguments.url or os.environ.get("DATASTORAGE_URL"))


def _policies_of_service(arguments: argparse.Namespace) -> tuple[list[dict[str, Any]], Exit]:
    policies: list[dict[str, Any]] = Service.of(arguments).json(_POLICIES)["policies"]
    return policies, Exit.AS_ASKED


def _policies_of_database() -> tuple[list[dict[str, Any]], Exit]:
    """The policies, in the form of the service's answer. Where tables differ from the log is printed."""
    import asyncio

    from app.cli.database import settings_for_removal
    from app.retention import policies

    recorded, differences = asyncio.run(policies.list_from(settings_for_removal()))
    return [policies.listed(*one) for one in recorded.items()], _print_differences(differences)


def _policy_row(one: dict[str, Any]) -> list[str]:
    bounds = [f"{name} {one[f'{name}_days']}" for name in ("floor", "ceiling") if f"{name}_days" in one]
    policy = ", ".join([f"{one['retention_days']} days", *bounds])
    return [one["event_category"], policy, one.get("set_by", ""), one.get("set_at", "")[:10], one.get("reason", "")]


def _policy_set(arguments: argparse.Namespace) -> None:
    from app.retention.policies import days_of
    from app.tlog.orders import Policy

    policy = Policy(arguments.days, arguments.floor, arguments.ceiling)
    done = _change(arguments, policy, "PUT", days_of(policy))
    _print_change(arguments, done, f"{arguments.category}: {policy}, from the next retention run on.")


def _policy_remove(arguments: argparse.Namespace) -> None:
    done = _change(arguments, None, "DELETE", {})
    _print_change(arguments, done, f"{arguments.category} has no policy any more.")


def _change(
    arguments: argparse.Namespace, policy: "Policy | None", method: str, days: dict[str, int]
) -> dict[str, Any]:
    """Order a policy, or with None its end; what the service answers about it."""
    category, reason = arguments.category, arguments.reason
    if _asks_service(arguments):
        if arguments.by is not None:
            raise Usage("--by: a service writes down whoever the token is of")
        path = f"{_POLICIES}/{client.segment(category)}"
        done: dict[str, Any] = Service.of(arguments).send(method, path, days | {"reason": reason})
        return done
    import asyncio

    from app.cli.database import settings_for_removal
    from app.retention import policies

    order = policies.PolicyOrder(arguments.by or _BY, reason)
    asyncio.run(policies.change_from(settings_for_removal(), category, policy, order))
    return {"event_category": category} | days | {"reason": reason, "set_by" if policy else "removed_by": order.by}


def _print_change(arguments: argparse.Namespace, done: dict[str, Any], text: str) -> None:
    with output.shown(arguments) as out:
        if out.is_json:
            out.document(done)
        else:
            out.line(text)


def _erase(arguments: argparse.Namespace) -> None:
    import asyncio
    from uuid import UUID

    from app.archive.recorded import count_in_archive
    from app.cli.database import settings_for_removal
    from app.main import create_catalog
    from app.retention import erase

    try:
        ids = arguments.event_id and [UUID(text) for text in arguments.event_id]
    except ValueError as error:
        raise Usage(f"--event-id: {error}") from None
    settings = settings_for_removal()
    erasure = erase.Erasure(arguments.reason, arguments.by, ids, arguments.actor, arguments.correlation_id)
    search = _archive_search(settings)
    done = asyncio.run(
        erase.erase(settings, create_catalog(settings), erasure, dry_run=arguments.dry_run, search_archive=search)
    )
    _print_differences(done.differences)
    result = "would be erased" if arguments.dry_run else f"erased by erasure {done.erasure_id}"
    print(f"{len(done.events)} event(s) {result}.")
    if done.archived:
        print(f"{done.archived} of them are in the archive only.")
    archived = 0 if arguments.dry_run else asyncio.run(count_in_archive(settings, done.erasure_id))
    if archived:
        print(f"{archived} of them are in the archive until the next `datastorage archive run`.")
    if done.unsealed:
        print(
            f"{len(done.unsealed)} row(s) that others inserted by SQL are unchanged: they have no proof; change them by SQL."
        )


def _archive_search(settings: "Settings") -> "SearchArchive | None":
    """What finds events that are in the archive only; None without an archive. Fatal without the packages that it needs."""
    if settings.archive_url is None:
        return None
    from app.cli.archiving import needing_extra

    with needing_extra():
        from app.archive.finding import archive_search
    return archive_search(settings)
