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
from app.events.kubernetes_list import BadNumber, Pause, TooLarge, items
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


@settings(max_examples=300)
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


@settings(max_examples=200)
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


BY_DEFAULT = Rules(20, 64 * 1024, frozenset({"secrets", "configmaps", "serviceaccounts/token"}), None, None, 365)
HIDDEN = "aHVudGVyMg=="
LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"


def stored(rules: Rules = BY_DEFAULT, **members: Any) -> dict[str, Any]:
    payload: dict[str, Any] = json.loads(
        read_audit_event(audit_event(auditID="a", **members), "", rules, NOW, "").payload
    )
    return payload


def test_what_only_names_a_secret_stays() -> None:
    """References to secrets are missing from the evidence, or somebody hides a part of an object by calling it a Secret."""
    reference = {"kind": "Secret", "name": "tls", "namespace": "payments", "spec": {"size": 1}, "status": "x"}
    body = {
        "metadata": {
            "labels": {"kind": "Secret", "team": "sre"},
            "ownerReferences": [reference],
            "annotations": {LAST_APPLIED: json.dumps(reference)},
        },
        "spec": {"certificateRefs": [reference], "hidden": {"kind": "SecretList", "items": {"image": "miner"}}},
    }
    status = {"code": 422, "message": "spec.certificateRefs: not found"}
    payload = stored(requestObject=body, responseObject=None, responseStatus=status)
    assert (payload["requestObject"], payload["responseStatus"]) == (body, status)
    assert "cut" not in payload


def test_contents_of_secrets_inside_of_others() -> None:
    """The value of a secret that stands in another object, or in a list of them, is stored."""
    contents = {"data": {"p": HIDDEN}, "stringData": {"p": HIDDEN}, "binaryData": HIDDEN, "spec": {"token": HIDDEN}}
    contents |= {"status": {"token": HIDDEN, "expires": "soon"}}
    contents |= {"metadata": {"name": "s", "annotations": {"team": "sre", LAST_APPLIED: HIDDEN}}}
    left = {"spec": {}, "status": {"expires": "soon"}, "metadata": {"name": "s", "annotations": {"team": "sre"}}}
    applied = {"kind": "App", "spec": {"template": {"kind": "Secret", "data": {"p": HIDDEN}}}}
    body = {
        "kind": "App",
        "metadata": {"annotations": {LAST_APPLIED: json.dumps(applied)}},
        "spec": {"template": {"kind": "Secret", **contents}, "listed": {"kind": "SecretList", "items": [contents, 5]}},
    }
    expected_body = {
        "kind": "App",
        "metadata": {"annotations": {}},
        "spec": {"template": {"kind": "Secret", **left}, "listed": {"kind": "SecretList", "items": [left, 5]}},
    }
    payload = stored(requestObject=body, responseObject=[{"kind": "TokenRequest", "status": {"token": HIDDEN}}])
    assert payload["requestObject"] == expected_body
    assert payload["responseObject"] == [{"kind": "TokenRequest", "status": {}}]
    [cut] = payload["cut"]
    assert (cut["reason"], cut["count"]) == ("secret", 14)
    assert cut["members"][0] == "/requestObject/metadata/annotations/" + LAST_APPLIED.replace("/", "~1")
    assert HIDDEN not in json.dumps(payload)


@pytest.mark.parametrize("body", [{"template": {"kind": "Secret", "data": {"p": HIDDEN}}}, TooLarge()])
def test_what_repeats_a_secret_inside_of_others(body: Any) -> None:
    """The value of a secret that stands in another object is stored with what a webhook or the status says about that one."""
    item = audit_event(
        requestObject=body,
        annotations={
            "patch.webhook.admission.k8s.io/round_0_index_0": HIDDEN,
            "authorization.k8s.io/decision": "allow",
        },
        responseStatus={"code": 422, "reason": "Invalid", "message": HIDDEN, "details": {"causes": [HIDDEN]}},
    )
    event = read_audit_event(item, "", BY_DEFAULT, NOW, "")
    payload = json.loads(event.payload)
    assert payload["annotations"] == {"authorization.k8s.io/decision": "allow"}
    assert payload["responseStatus"] == {"code": 422, "reason": "Invalid"}
    assert HIDDEN not in json.dumps([payload, event.posted], default=str)


def test_who_did_it_is_never_cut() -> None:
    """Who acts in the name of somebody makes a member so large that who it was is not stored, or what it was done to."""
    extra = {"scopes": ["x" * 200_000]}
    ref = {"resource": "pods", "namespace": "payments", "name": "api", "apiVersion": "v1", "uid": "u" * 40_000}
    long_keys = {str(n) + "\x01" * 300: [[[[[[[["\0"]]]]]]]] for n in range(30)}
    payload = stored(
        Rules(6, 32 * 1024, frozenset(), None, None, 365),
        user={"username": "mallory", "uid": "7", "extra": extra, "groups": ["g"] * 50_000},
        impersonatedUser={"username": "ada" + "\x01" * 5000, "groups": ["g" * 50_000]},
        objectRef=ref | {"more": {"a": "x" * 50_000}},
        requestObject=long_keys | {key + "0": {"metadata": {"managedFields": 1}} for key in long_keys},
        annotations={f"a{n}": "\0" for n in range(5_000)},
    )
    assert payload["user"] == {"username": "mallory", "uid": "7"}
    assert payload["impersonatedUser"] == {"username": "ada" + "\x01" * 997}
    assert payload["objectRef"] == ref | {"uid": "u" * 1000}
    [size] = [one for one in payload["cut"] if one["reason"] == "size"]
    assert size["count"] >= 4


def test_cuts_themselves_are_too_large() -> None:
    """Long keys in what is cut fill the event with pointers: it fails its list, or who did it is not stored."""
    odd = {"d": [[[[[[1]]]]]], "t": "\0", "m": {"metadata": {"managedFields": 1}}, "n": BadNumber("1e999")}
    odd["s"] = {"kind": "Secret", "data": 1}
    long = "\x01" * 100
    body = {long: {key + str(n) + long: odd[key] for key in odd for n in range(10)}}
    payload = stored(
        Rules(6, 32 * 1024, frozenset({"secrets"}), None, None, 365), requestObject=body, user={"username": "m"}
    )
    assert payload["user"] == {"username": "m"}
    assert {one["reason"] for one in payload["cut"]} >= {"depth"}


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
