"""Events that are right, nearly right or odd, made from the catalog that the service serves: what is accepted is read back equal.

Long form: `make fuzz`.
"""

import json
import os
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from ipaddress import ip_address
from random import randrange
from time import monotonic
from typing import Any

import httpx
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from tests.events import make_event
from tests.services import Service

TRIES = int(os.environ.get("FUZZ_TRIES", "600"))
LONG = "FUZZ_TRIES" in os.environ
EVENTS = "/api/v1/audit/events"
PAGE = 500
ROUND = 1_000
ONE_ROUND = settings(
    max_examples=min(TRIES, ROUND),
    deadline=None,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
JSON = {"Content-Type": "application/json"}

Json = Any
NUMBERS = st.one_of(
    st.integers(-10, 10),
    st.integers(-(2**70), 2**70),
    st.floats(allow_nan=False, allow_infinity=False),
    st.decimals(allow_nan=False, allow_infinity=False),
    st.sampled_from([Decimal(t) for t in ("-0", "5.0", "1E+22", "0.1000000000000000055", "1E-320", "1E+400", "5e0")]),
)
TEXTS = st.one_of(
    st.sampled_from(["", "a", "5", "true", "2026-01-31T12:00:00Z", "0195c3a0-7d2e-7b1c-9f0a-2f6f1d3b5a72", "é" * 300]),
    st.text(st.characters(codec="utf-8"), max_size=20),
    st.text(max_size=5),  # lone surrogates too
)
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(TEXTS, inner, max_size=4)),
    max_leaves=12,
)
MEMBERS: dict[str, list[Any]] = {
    "version": ["1.0", "", "12345678901"],
    "event_category": ["gateway", "security", "none"],
    "event_action": ["x", "", "x" * 51],
    "event_outcome": ["success", "failure", "pending", "ok"],
    "event_id": ["42", None, "0195C3A0-7d2e-7b1c-9f0a-2f6f1d3b5a79"],
    "actor_type": ["user", "", None],
    "actor_id": ["a", ""],
    "actor_ip": ["10.0.0.1", "::ffff:10.0.0.1", "2001:DB8::0:1", "10.0.0.0/8"],
    "resource_type": ["Pod", ""],
    "resource_id": ["x", ""],
    "parent_event_id": [None, "42"],
    "parent_event_date": [
        None,
        "2026-01-31T23:30:00-05:00",
        "yesterday",
        "0001-01-01T00:00:00Z",
        "0001-01-02T00:00:00Z",
    ],
    "namespace": [None, "", "n", "n" * 254],
    "cluster_id": [None, "", "c"],
    "cluster_name": [None, "", "old"],
    "severity": [None, "", "critical"],
    "duration_ms": [None, 0, 7, Decimal("5.0"), -1, 2**31],
    "error_code": [None, "E"],
    "error_message": [None, "", "m"],
    "retention_days": [None, 0, -5, 30, 2556],
    "is_sensitive": [None, True, False, "yes"],
    "brand_new": [None, {"a": 1}],
}
OFFSETS = ("Z", "+00:00", "-00:00", "+05:30", "-11:59")


@st.composite
def events(draw: Any, types: list[tuple[str, Json]], freeform: list[str]) -> Json:
    """An event: a payload of the catalog or a free one, changed in up to three places, in an envelope with odd members."""
    event = make_event()
    if draw(st.booleans()):
        event["event_type"], example = draw(st.sampled_from(types))
        event["event_data"] = json.loads(json.dumps(example))
    else:
        event["event_type"] = draw(st.sampled_from(freeform))
        event["event_data"] = draw(st.dictionaries(TEXTS, VALUES, max_size=6))
    for _ in range(draw(st.sampled_from([0, 0, 1, 1, 2, 3]))):
        change(draw, event["event_data"])
    for name in draw(st.lists(st.sampled_from(sorted(MEMBERS)), max_size=4)):
        event[name] = draw(
            st.one_of(st.sampled_from(MEMBERS[name]), SCALARS)
            if draw(st.booleans())
            else st.sampled_from(MEMBERS[name])
        )
    time = datetime.now(UTC) - timedelta(seconds=draw(st.integers(-600, 86_400)))
    fraction = draw(st.sampled_from(["", ".5", ".123456", ".1234569999"]))
    event["event_timestamp"] = f"{time:%Y-%m-%dT%H:%M:%S}{fraction}{draw(st.sampled_from(OFFSETS))}"
    if draw(st.integers(0, 19)) == 0:
        del event[draw(st.sampled_from(sorted(event)))]
    return event


def change(draw: Any, node: Json) -> None:
    """Replace, add or remove one member somewhere in `node`."""
    while True:
        below = [v for v in (node.values() if isinstance(node, dict) else node) if isinstance(v, (dict, list)) and v]
        if not below or draw(st.booleans()):
            break
        node = draw(st.sampled_from(below))
    if isinstance(node, list):
        node[draw(st.integers(0, len(node) - 1)) if node else slice(0)] = draw(VALUES) if node else [draw(VALUES)]
        return
    name = draw(st.one_of(st.sampled_from(sorted(node)), TEXTS) if node else TEXTS)
    if draw(st.booleans()):
        node[name] = draw(VALUES)
    else:
        node.pop(name, None)


def text(value: Json) -> str:
    """`value` as JSON, each number spelled as it is."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{json.dumps(k)}:{text(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(text, value)) + "]"
    return str(value) if isinstance(value, Decimal) else json.dumps(value)


def exact(value: Json) -> Json:
    """`value` so that == compares numbers by what they are worth, and no number is a boolean."""
    if isinstance(value, dict):
        return {k: exact(v) for k, v in value.items()}
    if isinstance(value, list):
        return [exact(v) for v in value]
    if isinstance(value, (int, float, Decimal)) and not isinstance(value, bool):
        return ("number", Decimal(repr(value)) if isinstance(value, float) else Decimal(value))
    return value


def time_of(stamp: str) -> datetime:
    return datetime.fromisoformat(stamp).astimezone(UTC)


def expected(event: Json) -> Json:
    """What is read back, by docs/contract.md, sections 6.3, 9 and 29. Empty members are left out there."""
    get = event.get
    given = {
        **{name: get(name) for name in ("namespace", "error_code", "error_message", "duration_ms")},
        "event_type": event["event_type"],
        "version": event["version"],
        "event_category": event["event_category"],
        "event_action": event["event_action"],
        "event_outcome": event["event_outcome"],
        "correlation_id": event["correlation_id"],
        "actor_type": get("actor_type", "service"),
        "actor_id": get("actor_id", event["event_category"] + "-service"),
        "resource_type": get("resource_type", event["event_category"]),
        "resource_id": get("resource_id", event["correlation_id"]),
        "cluster_id": get("cluster_id", get("cluster_name")),
        "severity": get("severity", "info"),
    }
    days = get("retention_days")
    return {name: exact(value) for name, value in given.items() if value not in (None, "", 0)} | {
        "event_data": exact(event["event_data"]),
        "event_timestamp": time_of(event["event_timestamp"]),
        "actor_ip": ip_address(event["actor_ip"]).packed if "actor_ip" in event else None,
        "retention_days": exact(days if days is not None and days > 0 else 2555),
        "is_sensitive": bool(get("is_sensitive")),
        "parent_event_id": get("parent_event_id"),
        "parent_event_date": _parent_date(event),
    }


def read_back(stored: Json) -> Json:
    """The same members of an event as it was read."""
    names = {
        *("namespace", "error_code", "error_message", "duration_ms", "event_type", "version", "event_category"),
        *("event_action", "event_outcome", "correlation_id", "actor_type", "actor_id", "resource_type", "resource_id"),
        *("cluster_id", "severity"),
    }
    return {name: exact(value) for name, value in stored.items() if name in names} | {
        "event_data": exact(stored["event_data"]),
        "event_timestamp": time_of(stored["event_timestamp"]),
        "actor_ip": ip_address(stored["actor_ip"]).packed if "actor_ip" in stored else None,
        "retention_days": exact(stored["retention_days"]),
        "is_sensitive": stored["is_sensitive"],
        "parent_event_id": stored["parent_event_id"],
        "parent_event_date": _parent_date(stored),
    }


def _parent_date(event: Json) -> Any:
    """Of an event without parent; one that has a parent gets the parent's date."""
    date = event.get("parent_event_date")
    return time_of(date).date() if date and not event.get("parent_event_id") else None


class Accepted:
    """Events that were accepted, compared with what is read back, a page at a time."""

    def __init__(self, client: httpx.Client) -> None:
        self._client = client
        self._sent: dict[str, Json] = {}
        self.compared = 0
        self.correlation_id = "fuzz-0"
        """Of the page that is being filled."""

    def add(self, event_id: str, event: Json) -> None:
        self._sent[event_id] = event
        if len(self._sent) == PAGE:
            self.compare()

    def compare(self) -> None:
        page = self._client.get(EVENTS, params={"correlation_id": self.correlation_id, "limit": 1000})
        found = {stored["event_id"]: stored for stored in json.loads(page.text, parse_float=Decimal)["data"]}
        assert found.keys() == self._sent.keys()
        for event_id, event in self._sent.items():
            assert read_back(found[event_id]) == expected(json.loads(text(event), parse_float=Decimal)), text(event)
            assert event_id == (event.get("event_id") or event_id).lower()
        self.compared += len(self._sent)
        self.correlation_id = f"fuzz-{self.compared}"
        self._sent.clear()


def test_what_is_taken_comes_back(service: Callable[..., Service]) -> None:
    """An event makes the service fail, or is stored as another one."""
    with httpx.Client(base_url=service(access_log=False).url, timeout=30) as client:
        listed = client.get("/api/v1/audit/event-types").json()["event_types"]
        details = {one["name"]: client.get(f"/api/v1/audit/event-types/{one['name']}").json() for one in listed}
        types = [
            (name, one["example"])
            for name, one in details.items()
            if "event_type" in one["example"] and one["generation"] != "own"
        ]
        freeform = [one["name"] for one in listed if one["generation"] in ("both", "dec-2025")]
        statuses: Counter[int] = Counter()
        accepted = Accepted(client)
        first_seed, started = randrange(2**32) if LONG else 0, monotonic()

        def attempt(event: Json) -> None:
            if "correlation_id" in event:
                event["correlation_id"] = accepted.correlation_id
            answer = client.post(EVENTS, content=text(event), headers=JSON)
            statuses[answer.status_code] += 1
            assert answer.status_code in (201, 400, 409), (text(event), answer.text)
            if answer.status_code == 201:
                accepted.add(answer.json()["event_id"], event)
            else:
                assert answer.json()["detail"]

        # In rounds: hypothesis remembers every try of a run, and gets slower with them.
        for number in range(-(-TRIES // ROUND)):
            run = given(event=events(types, freeform))(attempt)
            seed(first_seed + number)(ONE_ROUND(run))()
            if number % 5 == 4:
                print(f"{statuses.total()} tries, {monotonic() - started:.0f} s, {dict(statuses)}", flush=True)
        accepted.compare()
    print(f"{statuses.total()} tries from seed {first_seed}: {dict(statuses)}; {accepted.compared} read back equal")
    assert accepted.compared > TRIES / 5
