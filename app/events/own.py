"""What tells the service's own events (self events) from those of clients. Verifiers need it without the catalog of all types."""

from typing import Final

CATEGORY = "security"
KUBERNETES_CATEGORY: Final = "kubernetes"
"""Of the events of receivers of Kubernetes' audit log: neither the service's nor clients'."""
CORRELATIONS = "datastorage:"
"""How the correlation ids begin that only the service itself uses."""
RESERVED = f"correlation ids that begin with {CORRELATIONS!r} are the service's own: use another"
"""What a client is told that sends such a correlation id."""


def correlation_of(event_type: str, about: object) -> str:
    """The correlation id of the self events of one type that are about the same thing."""
    return f"{CORRELATIONS}{event_type.split('.')[1]}:{about}"


_ABOUT = {
    "datastorage.retention.purged": "operation_id",
    "datastorage.retention.restored": "operation_id",
    "datastorage.event.erased": "erasure_id",
    "datastorage.notification.stored": "storing_id",
    "datastorage.finding.recorded": "finding_id",
    "datastorage.finding.acknowledged": "finding_id",
    "datastorage.log.continued": "continuation_id",
    "datastorage.hold.placed": "hold_id",
    "datastorage.hold.released": "hold_id",
    "datastorage.hold.adopted": "hold_id",
    "datastorage.policy.set": "policy_id",
    "datastorage.policy.removed": "policy_id",
    "datastorage.sink.paused": "order_id",
    "datastorage.sink.resumed": "order_id",
    "datastorage.sink.rewound": "order_id",
    "datastorage.sink.removed": "order_id",
    "datastorage.archive.stored": "archive_id",
    "datastorage.archive.expired": "archive_id",
    "datastorage.archive.locked": "archive_id",
    "datastorage.archive.unlocked": "archive_id",
}
"""By type, of the events that are evidence: the member of the payload that is part of the event's correlation."""


def agree(event_type: str, category: str, correlation_id: str, payload: object) -> bool:
    """Whether the columns of a self event that is evidence agree with its payload, as in all that the service writes and in no other event."""
    about = _ABOUT.get(event_type)
    if about is None or not isinstance(payload, dict) or payload.get("event_type") != event_type:
        return False
    value = payload.get(about)
    return isinstance(value, str) and category == CATEGORY and correlation_id == correlation_of(event_type, value)


def releases_no_hold(event_type: str, category: str, correlation_id: str, payload: object) -> bool:
    """As agree(), of a release of marks that SQL alone has placed: it has no hold_id, ends no hold, and is evidence of nothing."""
    return (
        isinstance(payload, dict)
        and event_type == payload.get("event_type") == "datastorage.hold.released"
        and "hold_id" not in payload
        and category == CATEGORY
        and correlation_id.startswith(correlation_of(event_type, ""))
    )
