"""The filters of events as options, and as the query string that the service reads."""

import argparse
from collections.abc import Sequence

from app.errors import Usage

_ANY = {
    "correlation": ("correlation_id", "of this remediation"),
    "type": ("event_type", "of this type; orchestrator.* is all that begin so"),
    "category": ("event_category", "of this category"),
    "outcome": ("event_outcome", "success, failure or pending"),
    "severity": ("severity", "of this severity"),
    "actor": ("actor_id", "by this person or program"),
    "actor-type": ("actor_type", "by this kind of actor, such as user"),
    "resource": (
        "resource_id",
        "about the resource of this name, without its type; `--q NAME` finds what payloads name, such as a Deployment",
    ),
    "resource-type": ("resource_type", "about this kind of resource, such as Deployment"),
    "namespace": ("namespace", "in this namespace"),
    "cluster": ("cluster_id", "in this cluster"),
    "action": ("event_action", "of this action"),
    "parent": ("parent_event_id", "caused by the event of this id"),
    "trace": ("trace_id", "of this trace"),
}
"""By option: the parameter, and what it means."""
_PREFIX = "*"


def add_filters(parser: argparse.ArgumentParser, times: str, *, unsealed: bool = True) -> None:
    """The options. `times` says which time of what is found --since and --until are about; `unsealed`: whether there is --unsealed."""
    filters = parser.add_argument_group(
        "which events", "An option that is repeated finds any of its values; --not-type and its like leave out."
    )
    for option, (_, text) in _ANY.items():
        filters.add_argument(f"--{option}", action="append", metavar="X", default=[], help=text)
        filters.add_argument(f"--not-{option}", action="append", metavar="X", default=[], help=argparse.SUPPRESS)
    forms = "2h, 3d, today, yesterday, 2026-01-31, 2026-01-31T14:00"
    filters.add_argument("--since", metavar="TIME", help=f"{times} is not before it: {forms}")
    filters.add_argument(
        "--until", metavar="TIME", help=f"{times} is not after it; today, yesterday: until the end of that day"
    )
    filters.add_argument(
        "--zone", help="in which times are meant and shown, such as Europe/Berlin, local: this machine's (UTC)"
    )
    filters.add_argument(
        "--q",
        metavar="TEXT",
        help="that stands in payload, message, type, action, actor or resource; with --since or --correlation",
    )
    filters.add_argument("--self", action="store_true", help="the service's own events too")
    filters.add_argument("--kubernetes", action="store_true", help="audit events of Kubernetes too")
    if unsealed:
        filters.add_argument("--unsealed", action="store_true", help="only those that others inserted by SQL")
    else:
        parser.set_defaults(unsealed=False)


Sent = dict[str, str | Sequence[str]]
"""A query string's parameters."""


def parameters_of(arguments: argparse.Namespace, zone: str | None) -> Sent:
    """The query string's parameters for the options. Times without a zone are meant in `zone`."""
    sent: Sent = {}
    for option, (name, _) in _ANY.items():
        attribute = option.replace("-", "_")
        values, left_out = getattr(arguments, attribute), getattr(arguments, f"not_{attribute}")
        if "" in values or "" in left_out:
            raise Usage(f"--{option} is empty")
        if len(values) == 1 and not values[0].endswith(_PREFIX):
            sent[name] = values[0]
        elif values:
            sent[f"{name}_in"] = values
        if left_out:
            sent[f"{name}_not"] = left_out
    if arguments.q is not None and arguments.since is None and not arguments.correlation:
        raise Usage("--q reads every payload: it needs --since or --correlation beside it, such as --since 7d")
    named = {"since": arguments.since, "until": arguments.until, "q": arguments.q, "zone": zone}
    sent |= {name: value for name, value in named.items() if value is not None}
    if arguments.self or arguments.kubernetes:
        sent["include"] = (
            "all" if arguments.self and arguments.kubernetes else "self" if arguments.self else "kubernetes"
        )
    if arguments.unsealed:
        sent["sealed"] = "false"
    return sent
