"""What is known of a caller, and which verbs the roles have."""

from dataclasses import dataclass
from math import inf
from typing import Any, Literal, TypeGuard

SERVICE_ACCOUNT = "system:serviceaccount:"
NAME_MAX = 255
"""The width of the columns that names are written to."""

Role = Literal["reader", "writer", "auditor", "importer", "admin"]
ROLE_VERBS: dict[str, frozenset[str]] = {
    "reader": frozenset({"get"}),
    "writer": frozenset({"get", "create"}),
    "auditor": frozenset({"get"}),
    "importer": frozenset({"get", "import"}),
    "admin": frozenset({"get", "create", "update"}),
}
ROLES = (*ROLE_VERBS,)


@dataclass(frozen=True, slots=True)
class Identity:
    """An authenticated caller."""

    name: str
    verbs: frozenset[str] | None = frozenset()
    """Its verbs; None where Kubernetes is asked about each verb."""
    person: bool = False
    """A human: the actor of everything it posts, also if the body names another one."""
    audited: bool = False
    """Its reads are recorded, if the settings ask for it."""
    expires: float = inf
    """Unix time from which the token is not valid any more."""
    subject: Any = None
    """What TokenReview answered about it, passed unchanged to SubjectAccessReview."""


def identity_with_roles(name: str, roles: frozenset[str], *, person: bool, expires: float) -> Identity:
    """The identity that has every verb of `roles`."""
    verbs = frozenset[str]().union(*(ROLE_VERBS[role] for role in roles))
    return Identity(name, verbs, person=person, audited="auditor" in roles, expires=expires)


def is_usable_name(name: object) -> TypeGuard[str]:
    """Whether `name` can be recorded as the name of a caller."""
    return isinstance(name, str) and 0 < len(name) <= NAME_MAX and name.isprintable()
