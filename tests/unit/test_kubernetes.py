"""Audit events of Kubernetes become events, whatever is in them."""

import json
import tracemalloc
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.errors import BadRequest
from app.events.canonical import depth_of, parse
from app.events.catalog import Catalog
from app.events.kubernetes import STAGES, Rules, event_id, read_audit_event
from app.events.kubernetes_list import Pause, items
from tests.kubernetes.audit import audit_event, event_list

RULES = Rules(6, 32 * 1024, frozenset({"secrets", "pods"}), "team", "prod", 365)
NOW = datetime.now(UTC)
CATALOG = Catalog(allow_self_events=True)
FACTS = json.loads((Path(__file__).parents[1] / "facts" / "kubernetes-audit.json").read_text("utf-8"))
WIDTHS = {"event_action": 50, "correlation_id": 255, "actor_type": 50, "actor_id": 255, "resource_type": 100}
WIDTHS |= {"resource_id": 255, "namespace": 253, "error_code": 50, "severity": 20}

TEXT = st.text(st.characters(codec=None), max_size=20) | st.sampled_from(
    ["secrets", "Secret", "", "x" * 3000, "\0", "\ud800"]
)
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(TEXT | st.sampled_from(["kind", "metadata", "managedFields"]), inner, max_size=4)
    ),
    max_leaves=40,
)
NAMES = (*audit_event(), "impersonatedUser", "event_type", "cut", "received_from", "kind", "new")
INNER = st.dictionaries(
    st.sampled_from(
        ["username", "resource", "name", "namespace", "subresource", "apiGroup", "code", "reason", "message", "team"]
    ),
    ANYTHING,
)


def read(item: Any) -> tuple[Any, dict[str, Any]]:
    event = read_audit_event(item, "/items/0", RULES, NOW, "webhook")
    return event, json.loads(event.payload)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.sampled_from(NAMES), ANYTHING | INNER, max_size=12), st.sampled_from([*STAGES]))
def test_whatever_is_in_one(members: dict[str, Any], stage: str) -> None:
    """Something in an audit event refuses it, or makes an event that Postgres or the catalog refuses."""
    item = audit_event() | members | {"stage": stage, "auditID": "a"}
    # As it comes: by way of JSON.
    [sent] = items(json.dumps(event_list(item)).encode())
    event, payload = read(sent)
    assert len(event.payload) <= RULES.bytes_max
    assert depth_of(parse(event.payload).value) <= RULES.depth_max
    CATALOG.check_payload(STAGES[stage], payload, "")
    posted = event.posted
    assert {name: len(str(posted.get(name) or "")) <= width for name, width in WIDTHS.items()} == dict.fromkeys(
        WIDTHS, True
    )
    assert all(posted[name] for name in ("event_action", "correlation_id", "actor_id", "resource_type", "resource_id"))
    assert "\0" not in json.dumps(posted, default=str).replace("\\u0000", "\0")
    assert event_id(event) == event_id(read(sent)[0])


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60) | st.text(max_size=60).map(lambda text: text.encode(errors="surrogatepass")))
def test_any_body(body: bytes) -> None:
    """A body that is no list is answered by a traceback."""
    for one in (body, b'{"kind":"EventList","items":[' + body, b'{"items":' + body + b',"kind":1}'):
        with pytest.raises(BadRequest):
            list(items(one))


def test_memory_for_hostile_bodies() -> None:
    """Some bytes of brackets, which gzip makes of almost none, take all memory of a process, or seconds of its event loop at once."""
    begin, end = b'{"kind":"EventList","apiVersion":"audit.k8s.io/v1","items":[', b"]}"
    wide = b"[" + b"[]," * 400_000 + b"[]]"
    deep = b"[" * 1_200_000
    quotes = b"[" * 2_000 + b'"' + b'\\"' * 300_000
    tracemalloc.start(1)
    try:
        for item in (deep, wide[:-1], quotes, b'{"a":' + quotes, b'{"a":' + b"1" * 2_000_000, b'{"a":' + deep):
            with pytest.raises(BadRequest):
                list(items(begin + item + end))
        listed = audit_event(auditID="a", requestObject="WIDE", responseObject="y" * 2_000_000)
        large = json.dumps(listed).encode().replace(b'"WIDE"', wide)
        found = list(items(begin + wide + b"," + large + b',{"last":1}' + end))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 80_000_000
    assert sum(isinstance(one, Pause) for one in found) > 20
    long, last = [one for one in found if isinstance(one, dict)]
    assert last == {"last": 1}
    event, payload = read(long)
    assert event_id(event) == event_id(read(listed)[0])
    assert payload["cut"] == [{"reason": "size", "count": 2, "members": ["/requestObject", "/responseObject"]}]
    with pytest.raises(BadRequest, match="levels"):
        list(items(begin + b'{"a":' + b"[" * 10_500 + b"]" * 10_500 + b"}" + end))


@pytest.mark.parametrize("number", range(len(FACTS)))
def test_recorded(number: int) -> None:
    """What a real kube-apiserver has written (1.37.2, by the documented policy) is cut, or is something else here."""
    recorded = FACTS[number]
    event, payload = read(recorded)
    assert payload.pop("received_from") == "webhook"
    assert payload.pop("event_type") == event.posted["event_type"]
    assert {one["reason"] for one in payload.pop("cut", [])} <= {"managed_fields", "secret", "text", "time"}
    assert payload == expected(recorded)
    assert (event.posted["event_outcome"] == "success") == (recorded["responseStatus"]["code"] < 400)
    assert event.posted["event_action"] == recorded["verb"]


def expected(recorded: dict[str, Any]) -> Any:
    def of(node: Any) -> Any:
        if isinstance(node, dict):
            return {key: of(value) for key, value in node.items() if key != "managedFields"}
        if isinstance(node, list):
            return [of(one) for one in node]
        return node.replace("\0", "\ufffd") if isinstance(node, str) else node

    made = of({name: value for name, value in recorded.items() if name not in {"kind", "apiVersion"}})
    if made["objectRef"]["resource"] == "secrets":  # what failed may be repeated there
        made["responseStatus"] = {k: v for k, v in made["responseStatus"].items() if k not in {"message", "details"}}
    return made


def test_facts_are_of_every_kind() -> None:
    """The recorded events show little of what there is."""
    assert {"create", "get", "list", "patch", "delete"} <= {one["verb"] for one in FACTS}
    assert any("impersonatedUser" in one for one in FACTS)
    assert any(one["responseStatus"]["code"] == 403 for one in FACTS)
