"""What an audit event of Kubernetes becomes here (docs/receivers.md has the table).

The payload is the audit event with its own names. Bodies of secrets, their contents inside of others, `managedFields`, what is nested too deep and what is too large are
cut, and what canonical JSON cannot have is replaced; `cut` in the payload says where. Nothing of that refuses the event: its sender
would send it five times again and then drop it, with all that came in the same list.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal, cast

from app.errors import BadRequest
from app.events import ids, own
from app.events.canonical import canonical
from app.events.envelope import Outcome, PostedEvent, parse_timestamp, time_window_error
from app.events.explain import bad_fields, escape
from app.events.kubernetes_list import BadNumber, TooDeep, TooLarge
from app.events.record import ip_packed, ip_text

Category = Literal["kubernetes"]
CATEGORY: Category = own.KUBERNETES_CATEGORY
"""Of all these events and of no others: clients cannot send it. Unfiltered answers leave this category out."""
CORRELATIONS = "kubernetes:"
"""How the correlation ids begin that are made of an auditID, which who calls the kube-apiserver may choose (header Audit-ID)."""
STAGES = {
    "RequestReceived": "kubernetes.audit.request_received",
    "ResponseStarted": "kubernetes.audit.response_started",
    "ResponseComplete": "kubernetes.audit.response_complete",
    "Panic": "kubernetes.audit.panic",
}
"""The event type of each stage."""
AUDIT_ID_MAX = 200
UNKNOWN = "unknown"
_KINDS = {
    "secrets": ("Secret", "SecretList"),
    "configmaps": ("ConfigMap", "ConfigMapList"),
    "serviceaccounts/token": ("TokenRequest",),
    "tokenreviews.authentication.k8s.io": ("TokenReview",),
}
"""Kinds of the objects of a resource, which may also be inside of others."""
_LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"
_CONTENTS = (
    ("data",),
    ("stringData",),
    ("binaryData",),
    ("spec", "token"),
    ("status", "token"),
    ("metadata", "annotations", _LAST_APPLIED),
)
"""Where objects of these kinds have what is secret. The rest stays: what only refers to one has its kind too."""
_BODIES = ("requestObject", "responseObject")
_OF_BODIES = (
    "patch.webhook.admission.k8s.io/",
    "validation.policy.admission.k8s.io/",
    "mutation.webhook.admission.k8s.io/",
)
"""Annotations with parts of bodies, or with texts that were made of them."""
_STATUS_TEXTS = {"message", "details"}
_OURS = {"event_type", "cut", "received_from"}
_OF_LIST = {"kind", "apiVersion"}
"""Members that an audit event has in a log file, but not in a list."""
_TYPES: dict[str, type] = {
    **dict.fromkeys(("level", "requestURI", "verb", "userAgent", "requestReceivedTimestamp", "stageTimestamp"), str),
    **dict.fromkeys(("user", "impersonatedUser", "objectRef", "responseStatus", "annotations"), dict),
    "sourceIPs": list,
}
_WHO_AND_WHAT = {
    "user": ("username", "uid"),
    "impersonatedUser": ("username", "uid"),
    "objectRef": ("apiGroup", "apiVersion", "resource", "subresource", "namespace", "name", "uid", "resourceVersion"),
}
"""Members of an audit event of which these are left where they are too large."""
_NEEDED = {"event_type", "auditID", "stage", "stageTimestamp", "cut", "received_from"}
"""Members that are never cut for their size."""
_KNOWN = {*_TYPES, *_BODIES, *_NEEDED}
_TIME_MAX = 64
_BAD_TEXT = re.compile("[\0\ud800-\udfff]")
_TEXT_MAX = 1000
"""Characters that are left of a text that is cut for its size."""
_POINTER_MAX = 200
_MEMBERS_MAX = 10
_MILLISECOND = timedelta(milliseconds=1)
_DURATION_MAX = 2**31 - 1

Cuts = dict[str, tuple[int, list[str]]]
Path = tuple["Path", Any] | None
"""A place in an audit event: the place around it, and the key or index there."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What is stored of an audit event."""

    depth_max: int
    """Levels of the payload."""
    bytes_max: int
    """Of the payload in canonical form."""
    bodies_cut: frozenset[str]
    """Resources whose bodies are never stored: `secrets`, `deployments.apps`, `serviceaccounts/token`."""
    correlation_annotation: str | None
    """Which annotation of the audit event has the correlation id, if it has that one."""
    cluster_id: str | None
    retention_days: int


@dataclass(frozen=True, slots=True)
class KubernetesEvent:
    """An audit event that can be stored."""

    posted: PostedEvent
    payload: bytes
    """In canonical form."""
    timestamp: datetime | None
    """None if its own time is none that can be stored; it is then the time of arrival."""
    actor_ip: str | None
    id_time: datetime
    """The time in its id."""
    identity: str
    """What its id is computed from."""
    cuts: Cuts


def read_audit_event(item: Any, pointer: str, rules: Rules, now: datetime, received_from: str) -> KubernetesEvent:
    """The event that an item of a list becomes. BadRequest only for what is no audit event: without auditID, or of no known stage."""
    if not isinstance(item, dict):
        raise bad_fields({pointer: "expected an audit event, an object"})
    faults = {}
    if not (isinstance(audit_id := item.get("auditID"), str) and 0 < len(audit_id) <= AUDIT_ID_MAX):
        faults[pointer + "/auditID"] = f"expected a text of 1 to {AUDIT_ID_MAX} characters"
    if not (isinstance(stage := item.get("stage"), str) and stage in STAGES):
        faults[pointer + "/stage"] = f"expected one of {', '.join(STAGES)}"
    if faults or not isinstance(stage, str):
        raise bad_fields(faults)
    reader = _Reader(rules)
    payload = reader.payload(item)
    payload["event_type"] = STAGES[stage]
    if received_from:
        payload["received_from"] = received_from
    time, received_at = _time_of(payload.get("stageTimestamp")), _time_of(payload.get("requestReceivedTimestamp"))
    timestamp = time
    if time is None or time_window_error(time, now, ""):
        timestamp = None
        reader.note("time", (None, "stageTimestamp"))
    actor_ip, identity = _address(payload.get("sourceIPs", ())), _identity(payload)
    posted = cast("PostedEvent", reader.envelope(payload) | _ending(payload, time, received_at))
    text = reader.fitting(payload)
    posted["event_data"] = {}  # the draft has the canonical form
    return KubernetesEvent(posted, text, timestamp, actor_ip, time or ids.EPOCH, identity, reader.cuts)


def event_id(event: KubernetesEvent) -> Any:
    """The id of an audit event, whoever sends it, when and in which list."""
    return ids.derived_event_id(event.id_time, "", (CATEGORY, event.identity), 0)


def _identity(payload: Mapping[str, Any]) -> str:
    """Auditing calls `auditID` and stage unique, but who calls the kube-apiserver may choose the one, and use it twice at the same time."""
    user = payload.get("user", {}).get("username")
    names = ("auditID", "stage", "stageTimestamp", "requestReceivedTimestamp", "verb", "requestURI")
    return canonical([*(payload.get(name) for name in names), user]).decode()


class _Reader:
    """Makes the payload of one audit event, and remembers what it has cut."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._kinds = {kind for name in rules.bodies_cut for kind in _KINDS.get(name, ())}
        self.cuts: Cuts = {}

    def note(self, reason: str, path: Path) -> None:
        """Remember that something is not stored as it was sent."""
        count, members = self.cuts.get(reason, (0, []))
        if len(members) < _MEMBERS_MAX:
            members.append(_pointer(path))
        self.cuts[reason] = count + 1, members

    def payload(self, item: dict[str, Any]) -> dict[str, Any]:
        """The members of the audit event that are stored."""
        is_secret = self._is_secret(item.get("objectRef"))
        payload: dict[str, Any] = {}
        for sent, value in item.items():
            path: Path = (None, sent)
            name = self._text(sent, path)
            if name in _OF_LIST or value is None:
                continue
            if isinstance(value, TooLarge):
                self.note("size", path)
            elif name in _OURS or not _fits_type(name, value):
                self.note("type", path)
            elif is_secret and name in _BODIES:
                self.note("secret", path)
            else:
                payload[name] = self._value(value, path, 2)
        if is_secret or "secret" in self.cuts or any(isinstance(item.get(name), TooLarge) for name in _BODIES):
            self._hide_repetitions(payload)
        if "sourceIPs" in payload:
            payload["sourceIPs"] = [one for one in payload["sourceIPs"] if isinstance(one, str)]
        return payload

    def _is_secret(self, of: Any) -> bool:
        """Whether bodies of what an audit event is about are never stored."""
        if isinstance(of, TooLarge):
            return True
        if not isinstance(of, dict):
            return False
        name, whole = _resource(of)
        return name in self._rules.bodies_cut or whole in self._rules.bodies_cut

    def _hide_repetitions(self, payload: dict[str, Any]) -> None:
        """Take out of the annotations and the status what may repeat a part of a body that has secrets, or that was not read."""
        for name, is_hidden in (("annotations", _may_repeat), ("responseStatus", _STATUS_TEXTS.__contains__)):
            members = payload.get(name, {})
            if hidden := [key for key in members if is_hidden(key)]:
                for key in hidden:
                    self.note("secret", ((None, name), key))
                payload[name] = {key: value for key, value in members.items() if not is_hidden(key)}

    def _without_contents(self, node: Any, path: Path) -> Any:
        """An object of one of the kinds without what is secret."""
        for names in _CONTENTS:
            node = self._without(node, path, names)
        return node

    def _without(self, node: Any, path: Path, names: tuple[str, ...]) -> Any:
        """The same without the member to which the names lead, if it has that one."""
        if not isinstance(node, dict) or names[0] not in node:
            return node
        place: Path = (path, names[0])
        if len(names) == 1:
            self.note("secret", place)
            return {key: value for key, value in node.items() if key != names[0]}
        return node | {names[0]: self._without(node[names[0]], place, names[1:])}

    def _value(self, node: Any, path: Path, level: int) -> Any:
        kind = type(node)
        if kind is str:
            return self._text(node, path)
        if kind is dict or kind is list:
            if level > self._rules.depth_max:
                self.note("depth", path)
                return None
            if kind is list:
                return [self._value(one, (path, index), level + 1) for index, one in enumerate(node)]
            return self._object(node, path, level)
        if kind is BadNumber:
            self.note("number", path)
            return node.token
        if kind is TooDeep:
            self.note("depth", path)
            return None
        return node

    def _object(self, node: dict[str, Any], path: Path, level: int) -> dict[str, Any]:
        if isinstance(kind := node.get("kind"), str) and kind in self._kinds:
            node = self._without_contents(node, path)
            # The items of a list need no kind of their own.
            if kind.endswith("List") and isinstance(listed := node.get("items"), list):
                place = (path, "items")
                node = node | {"items": [self._without_contents(one, (place, n)) for n, one in enumerate(listed)]}
        is_metadata = path is not None and path[1] == "metadata"
        made = {}
        for key, value in node.items():
            place = (path, key)
            if is_metadata and key == "managedFields":
                self.note("managed_fields", place)
            elif key == _LAST_APPLIED and self._names_kind(value):
                self.note("secret", place)
            else:
                made[self._text(key, place)] = self._value(value, place, level + 1)
        return made

    def _names_kind(self, text: Any) -> bool:
        """Whether an object as a text may have objects of the kinds inside, with what is secret of them."""
        return isinstance(text, str) and all(
            any(f'"{name}"' in text for name in names) for names in (self._kinds, [path[-1] for path in _CONTENTS])
        )

    def _text(self, text: str, path: Path) -> str:
        if (text.isascii() and "\0" not in text) or not _BAD_TEXT.search(text):
            return text
        self.note("text", path)
        return _BAD_TEXT.sub("\ufffd", text)

    def envelope(self, payload: Mapping[str, Any]) -> dict[str, Any]:
        """The members of the envelope but for those about the end of the request."""
        acting, of = payload.get("impersonatedUser") or payload.get("user", {}), payload.get("objectRef", {})
        name, uri = _string(acting, "username"), _string(payload, "requestURI").partition("?")[0]
        resource = _resource(of)[1] if _string(of, "resource") else "url"
        resource_id = _string(of, "name") or "*" if resource != "url" else uri or UNKNOWN
        rules = self._rules
        return {
            "version": "1.0",
            "event_type": payload["event_type"],
            "event_category": CATEGORY,
            "event_action": self._fit(_string(payload, "verb") or UNKNOWN, 50, "event_action"),
            "correlation_id": self._correlation(payload),
            "actor_type": _kind_of_actor(name),
            "actor_id": self._fit(name or UNKNOWN, 255, "actor_id"),
            "resource_type": self._fit(resource, 100, "resource_type"),
            "resource_id": self._fit(resource_id, 255, "resource_id"),
            "namespace": self._fit(_string(of, "namespace"), 253, "namespace") or None,
            "cluster_id": rules.cluster_id,
            "retention_days": rules.retention_days,
        }

    def _correlation(self, payload: Mapping[str, Any]) -> str:
        name = self._rules.correlation_annotation
        named = _string(payload.get("annotations", {}), name) if name else ""
        if named.startswith(own.CORRELATIONS):  # the service's own
            self.note("type", ((None, "annotations"), name))
            named = ""
        return self._fit(named or CORRELATIONS + payload["auditID"], 255, "correlation_id")

    def _fit(self, text: str, length_max: int, column: str) -> str:
        if len(text) > length_max:
            self.note("length", (None, column))
        return text[:length_max]

    def fitting(self, payload: dict[str, Any]) -> bytes:
        """The canonical form of the payload with its cuts, without its largest members if it is too large."""
        text = canonical(self._with_cuts(payload))
        if len(text) > self._rules.bytes_max:
            for name in payload.keys() - _KNOWN:
                self.note("size", (None, name))
                del payload[name]
            text = canonical(self._with_cuts(payload))
        while len(text) > self._rules.bytes_max:
            self._shorten(payload)
            text = canonical(self._with_cuts(payload))
        return text

    def _shorten(self, payload: dict[str, Any]) -> None:
        """Cut the largest member. Who did it and to what is reduced, and deleted only when nothing else is left."""
        rest = {name: value for name, value in payload.items() if name not in _NEEDED}
        others = {name: value for name, value in rest.items() if value != _reduced(name, value)}
        if not others and any(len(members) > 1 for _, members in self.cuts.values()):
            # The pointers may have keys that somebody has made long.
            self.cuts = {reason: (count, members[:1]) for reason, (count, members) in self.cuts.items()}
            return
        sizes = {name: len(canonical(value)) for name, value in (others or rest).items()}
        largest = max(sizes, key=sizes.__getitem__)
        self.note("size", (None, largest))
        value = payload[largest]
        if largest in others and largest in _WHO_AND_WHAT:
            payload[largest] = _reduced(largest, value)
        elif isinstance(value, str) and len(value) > _TEXT_MAX:
            payload[largest] = value[:_TEXT_MAX]
        else:
            del payload[largest]

    def _with_cuts(self, payload: dict[str, Any]) -> dict[str, Any]:
        if not self.cuts:
            return payload
        cuts = [{"reason": r, "count": count, "members": members} for r, (count, members) in self.cuts.items()]
        return payload | {"cut": cuts}


def _may_repeat(annotation: str) -> bool:
    return annotation.startswith(_OF_BODIES)


def _reduced(name: str, value: Any) -> Any:
    """What is left of who did it, or of what it was done to, where that is too large; None for another member."""
    if name not in _WHO_AND_WHAT:
        return None
    return {key: text[:_TEXT_MAX] for key in _WHO_AND_WHAT[name] if (text := _string(value, key))}


def _fits_type(name: str, value: Any) -> bool:
    if name.endswith("Timestamp") and isinstance(value, str) and len(value) > _TIME_MAX:
        return False
    return name not in _TYPES or isinstance(value, _TYPES[name])


def _resource(of: Mapping[str, Any]) -> tuple[str, str]:
    """The resource of an objectRef as kubectl writes it, and the same with its subresource: deployments.apps, deployments.apps/scale."""
    group, sub = _string(of, "apiGroup"), _string(of, "subresource")
    name = _string(of, "resource") + (f".{group}" if group else "")
    return name, f"{name}/{sub}" if sub else name


def _string(node: Mapping[str, Any], name: str) -> str:
    value = node.get(name)
    return value if isinstance(value, str) else ""


def _kind_of_actor(name: str) -> str:
    for prefix, kind in _ACTORS.items():
        if name.startswith(prefix):
            return kind
    return "user" if name else UNKNOWN


_ACTORS = {
    "system:serviceaccount:": "service_account",
    "system:node:": "node",
    "system:anonymous": "anonymous",
    "system:": "service",
}
"""By the beginning of the user's name."""


def _address(addresses: Any) -> str | None:
    """The last one is that of the connection; those before it are what the client or a proxy says in headers."""
    for text in reversed(addresses):
        try:
            return ip_text(ip_packed(text))
        except ValueError:
            continue
    return None


def _ending(payload: Mapping[str, Any], time: datetime | None, received_at: datetime | None) -> dict[str, Any]:
    """How the request ended, if it has."""
    status, is_panic = payload.get("responseStatus", {}), payload["stage"] == "Panic"
    code = status.get("code")
    outcome: Outcome = "pending"
    if is_panic or (type(code) is int and code >= 400):
        outcome = "failure"
    elif type(code) is int and payload["stage"] != "RequestReceived":
        outcome = "success"
    ending: dict[str, Any] = {"event_outcome": outcome, "severity": "error" if is_panic else "info"}
    if outcome == "failure":
        ending["error_code"] = (_string(status, "reason") or str(code or ""))[:50] or None
        ending["error_message"] = _string(status, "message") or None
    if outcome != "pending" and time is not None and received_at is not None and time > received_at:
        ending["duration_ms"] = min((time - received_at) // _MILLISECOND, _DURATION_MAX)
    return ending


def _time_of(text: Any) -> datetime | None:
    try:
        return parse_timestamp(text, "") if isinstance(text, str) else None
    except BadRequest:
        return None


def _pointer(path: Path) -> str:
    parts = []
    while path is not None:
        path, key = path
        parts.append("/" + escape(_BAD_TEXT.sub("\ufffd", str(key))))
    return "".join(reversed(parts))[:_POINTER_MAX]
