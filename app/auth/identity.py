"""What is known of a caller."""

from dataclasses import dataclass
from math import inf
from typing import Any, Literal, TypeGuard

SERVICE_ACCOUNT = "system:serviceaccount:"
NAME_MAX = 255
"""The width of the columns that the name is written to."""

Role = Literal["reader", "writer", "auditor", "admin"]
VERBS: dict[str, frozenset[str]] = {
    "reader": frozenset({"get"}),
    "writer": frozenset({"get", "create"}),
    "auditor": frozenset({"get"}),
    "admin": frozenset({"get", "create", "update"}),
}
ROLES = (*VERBS,)


@dataclass(frozen=True, slots=True)
class Identity:
    """An authenticated caller."""

    name: str
    verbs: frozenset[str] | None = frozenset()
    """What it may do; None where Kubernetes is asked for each verb."""
    person: bool = False
    """It is the actor of whatever it posts."""
    audited: bool = False
    """What it reads is written down, if the settings say so."""
    expires: float = inf
    """Unix time from which on it is nobody."""
    subject: Any = None
    """What Kubernetes said of it, handed back to Kubernetes as it came."""


def of_roles(name: str, roles: frozenset[str], *, person: bool, expires: float) -> Identity:
    """The identity that has every right of `roles`."""
    verbs = frozenset[str]().union(*(VERBS[role] for role in roles))
    return Identity(name, verbs, person=person, audited="auditor" in roles, expires=expires)


def is_name(name: object) -> TypeGuard[str]:
    """Whether `name` can be written down as who did it."""
    return isinstance(name, str) and 0 < len(name) <= NAME_MAX and name.isprintable()
