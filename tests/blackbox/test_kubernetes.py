"""Audit events of Kubernetes, over HTTP: what is stored of them, what is never stored, and who sees them."""

import asyncio
import gzip
import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from tests.blackbox.test_outage import Outage
from tests.events import make_event
from tests.kubernetes.audit import audit_event, event_list, micro_time
from tests.proxy import proxy
from tests.services import Service
from tests.waiting import eventually

PATH, EVENTS = "/api/v1/audit/kubernetes", "/api/v1/audit/events"
ALL: dict[str, Any] = {"include": "kubernetes", "limit": 1000}
HIDDEN = "aHVudGVyMg=="


@pytest.fixture
def client(service: Callable[..., Service]) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=service().url, timeout=30) as client:
        yield client


def post(client: httpx.Client, *items: Any) -> dict[str, Any]:
    return answer_of(client.post(PATH, json=event_list(*items)))


def answer_of(answer: httpx.Response) -> dict[str, Any]:
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return {name: body[name] for name in ("stored", "refused")}


def stored(client: httpx.Client, **query: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = client.get(EVENTS, params=ALL | query).json()["data"]
    return found


@pytest.mark.every_pod
def test_stored(client: httpx.Client) -> None:
    """An audit event says something else here than in the cluster, or in a pod of several processes it is lost."""
    time = datetime.now(UTC)
    impersonated = audit_event(
        stageTimestamp=micro_time(time),
        requestReceivedTimestamp=micro_time(time - timedelta(milliseconds=250)),
        impersonatedUser={"username": "system:serviceaccount:payments:deployer", "groups": []},
        sourceIPs=["203.0.113.9", "10.0.0.7"],
    )
    assert post(client, impersonated) == {"stored": 1, "refused": 0}
    [event] = stored(client)
    data = event.pop("event_data")
    assert {name: event[name] for name in EXPECTED} == EXPECTED
    assert event["correlation_id"] == f"kubernetes:{impersonated['auditID']}"
    assert datetime.fromisoformat(event["event_timestamp"]) == datetime.fromisoformat(impersonated["stageTimestamp"])
    del impersonated["responseObject"]["metadata"]["managedFields"]
    cut = [{"reason": "managed_fields", "count": 1, "members": ["/responseObject/metadata/managedFields"]}]
    assert data == impersonated | {"event_type": EXPECTED["event_type"], "cut": cut}
    described = client.get(f"/api/v1/audit/event-types/{EXPECTED['event_type']}").json()
    assert (described["category"], described["generation"]) == ("kubernetes", "received")


EXPECTED = {
    "event_type": "kubernetes.audit.response_complete",
    "event_category": "kubernetes",
    "event_action": "patch",
    "event_outcome": "success",
    "actor_type": "service_account",
    "actor_id": "system:serviceaccount:payments:deployer",
    "actor_ip": "10.0.0.7",
    "resource_type": "deployments.apps",
    "resource_id": "api",
    "namespace": "payments",
    "duration_ms": 250,
    "retention_days": 365,
}


def test_stages(client: httpx.Client) -> None:
    """The outcome of a request is told before there is one, or a refusal looks like a success."""
    status = {"status": "Failure", "reason": "Forbidden", "message": "deployments.apps is forbidden", "code": 403}
    listed = [
        audit_event(auditID="a", stage="RequestReceived", responseStatus=None, responseObject=None),
        audit_event(auditID="b", stage="ResponseStarted"),
        audit_event(auditID="c", responseStatus=status),
        audit_event(auditID="d", stage="Panic", responseStatus={"code": 500}),
        audit_event(auditID="e", objectRef=None, requestURI="/healthz?verbose", user={"username": "system:anonymous"}),
        audit_event(
            auditID="f", objectRef={"resource": "pods", "subresource": "exec"}, user={"username": "system:node:n"}
        ),
    ]
    assert post(client, *listed) == {"stored": 6, "refused": 0}
    names = ("event_type", "event_outcome", "actor_type", "resource_type", "resource_id", "error_code", "error_message")
    assert {e["correlation_id"][-1]: tuple(e.get(n) for n in names) for e in stored(client)} == {
        "a": ("kubernetes.audit.request_received", "pending", "user", "deployments.apps", "api", None, None),
        "b": ("kubernetes.audit.response_started", "success", "user", "deployments.apps", "api", None, None),
        "c": (
            *("kubernetes.audit.response_complete", "failure", "user", "deployments.apps", "api"),
            *("Forbidden", "deployments.apps is forbidden"),
        ),
        "d": ("kubernetes.audit.panic", "failure", "user", "deployments.apps", "api", "500", None),
        "e": ("kubernetes.audit.response_complete", "success", "anonymous", "url", "/healthz", None, None),
        "f": ("kubernetes.audit.response_complete", "success", "node", "pods/exec", "*", None, None),
    }


def test_resends(client: httpx.Client) -> None:
    """A list that the webhook sends again is stored twice, or a new event beside resent ones is not stored."""
    midnight = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    times = [midnight - timedelta(microseconds=1), midnight, midnight + timedelta(microseconds=1)]
    first = [audit_event(auditID="one", stageTimestamp=micro_time(time)) for time in times]
    first += [audit_event(auditID="two", stage=stage) for stage in ("RequestReceived", "ResponseComplete")]
    assert post(client, *first, first[0]) == {"stored": 6, "refused": 0}
    assert post(client, *first) == {"stored": 5, "refused": 0}
    assert post(client, *reversed(first[2:]), audit_event(auditID="three")) == {"stored": 4, "refused": 0}
    as_in_log_file = {"kind": "Event", "apiVersion": "audit.k8s.io/v1"} | dict(reversed(first[0].items()))
    assert post(client, as_in_log_file) == {"stored": 1, "refused": 0}
    assert sorted(e["correlation_id"] for e in stored(client)) == [
        *["kubernetes:one"] * 3,
        "kubernetes:three",
        *["kubernetes:two"] * 2,
    ]


def test_one_audit_id_twice(client: httpx.Client) -> None:
    """Who chooses the Audit-ID of a request hides it behind another one of the same time."""
    time = micro_time(datetime.now(UTC))
    twins = [audit_event(auditID="x", stageTimestamp=time, verb=verb) for verb in ("get", "delete")]
    assert post(client, twins[0]) == post(client, twins[1]) == {"stored": 1, "refused": 0}
    assert {e["event_action"] for e in stored(client)} == {"get", "delete"}


def test_times_that_are_not_stored(client: httpx.Client) -> None:
    """An event of an apiserver with a wrong clock is lost, or is stored again with each send."""
    now = datetime.now(UTC)
    odd = [micro_time(now - timedelta(days=400)), micro_time(now + timedelta(days=2)), "yesterday", "9" * 100_000]
    listed = [audit_event(auditID=str(n), stageTimestamp=time) for n, time in enumerate(odd)]
    listed.append(audit_event(auditID="none", stageTimestamp=None))
    for _ in range(3):
        assert post(client, *listed) == {"stored": 5, "refused": 0}
    events = stored(client)
    assert len(events) == 5
    for event in events:
        assert event["event_timestamp"] >= micro_time(now - timedelta(minutes=1))
        assert "time" in {one["reason"] for one in event["event_data"]["cut"]}
    kept = {e["event_data"].get("stageTimestamp") for e in events}
    assert kept == {*odd[:3], None}


def test_bad_items(client: httpx.Client) -> None:
    """One item that is no audit event loses the others, or nobody hears of it."""
    good = audit_event(auditID="good")
    bad: list[Any] = [5, None, [], {}, audit_event(auditID=""), audit_event(auditID=7), audit_event(auditID="x" * 201)]
    bad += [audit_event(stage="Later"), audit_event(stage=None), audit_event(stage=["Panic"])]
    assert post(client, *bad, good) == {"stored": 1, "refused": len(bad)}
    assert [e["correlation_id"] for e in stored(client)] == ["kubernetes:good"]
    assert f'audit_refused_events_total{{reason="no_audit_event"}} {len(bad)}.0' in client.get("/metrics").text
    assert post(client) == {"stored": 0, "refused": 0}


def test_wrong_types(client: httpx.Client) -> None:
    """A member of another type than Kubernetes has fails the list, or is stored as what it is not."""
    wrong: dict[str, Any] = {
        **{name: {"a": 1} for name in ("verb", "level", "requestURI", "userAgent", "requestReceivedTimestamp")},
        **dict.fromkeys(("user", "impersonatedUser", "objectRef", "responseStatus", "annotations"), "text"),
        "sourceIPs": "10.0.0.7",
        "event_type": "gateway.signal.received",
        "cut": [],
        "received_from": "me",
    }
    assert post(client, audit_event(auditID="w", **wrong)) == {"stored": 1, "refused": 0}
    inner = {"user": {"username": 5}, "objectRef": {"resource": [], "name": 7}, "sourceIPs": [5, "fe80::1%eth0", "x"]}
    inner["responseStatus"] = {"code": "200", "reason": {}}
    assert post(client, audit_event(auditID="i", **inner)) == {"stored": 1, "refused": 0}
    outer, within = sorted(stored(client), key=lambda e: str(e["correlation_id"]), reverse=True)
    assert (outer["actor_id"], outer["event_type"]) == ("unknown", EXPECTED["event_type"])
    [cut] = [one for one in outer["event_data"]["cut"] if one["reason"] == "type"]
    assert cut["count"] == len(wrong)
    assert (within["actor_id"], within["event_outcome"], within.get("actor_ip")) == ("unknown", "pending", None)


@pytest.mark.every_pod
def test_hostile_bodies(client: httpx.Client) -> None:
    """What somebody has sent to the kube-apiserver keeps the events of others from being stored."""
    levels = [200, 990, 5_000]
    texts = [f'{{"deep":{"[" * n}{"]" * n}}}' for n in levels]
    texts += ['{"a":"x\\u0000y"}', '{"a\\u0000":"\\ud800"}', '{"n":[1e999,' + "9" * 5000 + ",-0.0,1e-400]}"]
    texts += ['{"__proto__":{"a":1},"a":1,"a":2}', json.dumps("\u202e\x07" * 10), '{"q":"\\"}],[{"}']
    markers = [json.dumps(f"BODY{n}") for n in range(len(texts))]
    items = [audit_event(auditID=str(n), requestObject=f"BODY{n}") for n in range(len(texts))]
    raw = json.dumps(event_list(audit_event(auditID="first"), *items, audit_event(auditID="last"))).encode()
    for marker, text in zip(markers, texts, strict=True):
        raw = raw.replace(marker.encode(), text.encode())
    raw = raw.replace(b'"auditID": "last"', b'"note": "\xff\xfe", "auditID": "last"')
    headers = {"Content-Type": "application/json"}
    assert answer_of(client.post(PATH, content=raw, headers=headers)) == {"stored": len(texts) + 2, "refused": 0}
    assert answer_of(client.post(PATH, content=raw, headers=headers)) == {"stored": len(texts) + 2, "refused": 0}
    events = {e["correlation_id"].partition(":")[2]: e["event_data"] for e in stored(client)}
    assert len(events) == len(texts) + 2
    reasons = {name: {one["reason"] for one in data.get("cut", ())} for name, data in events.items()}
    assert [reasons[str(n)] - {"managed_fields"} for n in range(len(texts))] == [
        *[{"depth"}] * 3,
        *[{"text"}] * 2,
        {"number"},
        *[set()] * 3,
    ]
    assert events["4"]["requestObject"] == {"a\ufffd": "\ufffd"}
    assert events["last"]["note"] == "\ufffd\ufffd"


def test_large(client: httpx.Client) -> None:
    """A large object fails its list, or is stored whole, or nobody sees that it is not."""
    large = {"data": "x" * 200_000, "spec": {"replicas": 3}}
    many = {f"member {n}": "y" * 50 for n in range(5_000)}
    listed = [
        audit_event(auditID="response", responseObject=large),
        audit_event(auditID="both", responseObject=large, requestObject=large | {"more": 1}),
        audit_event(auditID="uri", requestURI="/apis/" + "u" * 900_000),
        audit_event(auditID="others", **many),
        audit_event(auditID="names", user={"username": "n" * 400}, verb="v" * 60, objectRef={"resource": "r" * 300}),
    ]
    assert post(client, *listed) == {"stored": 5, "refused": 0}
    events = {e["correlation_id"].partition(":")[2]: e for e in stored(client)}
    cut = {
        name: {one["reason"]: (one["count"], one["members"]) for one in e["event_data"]["cut"]}
        for name, e in events.items()
    }
    assert cut["response"] == {"size": (1, ["/responseObject"])}
    assert set(cut["both"]["size"][1]) == {"/requestObject", "/responseObject"}
    assert len(events["uri"]["event_data"]["requestURI"]) == 1000
    assert (cut["others"]["size"][0], len(cut["others"]["size"][1])) == (5_000, 10)
    assert cut["names"]["length"] == (3, ["/event_action", "/actor_id", "/resource_type"])
    assert events["names"]["event_data"]["user"] == {"username": "n" * 400}


def test_secrets_are_never_stored(service: Callable[..., Service]) -> None:
    """The log of audit events, which many may read, has what only few may read in the cluster."""
    one = service()
    secret = {"kind": "Secret", "apiVersion": "v1", "metadata": {"name": "s"}, "data": {"password": HIDDEN}}
    status = {
        "code": 422,
        "reason": "Invalid",
        "message": f"bigger context ...|{HIDDEN}",
        "details": {"causes": [HIDDEN]},
    }
    patched = {"patch.webhook.admission.k8s.io/round_0_index_0": HIDDEN, "authorization.k8s.io/decision": "allow"}
    of = {"resource": "secrets", "namespace": "payments", "name": "s", "apiVersion": "v1"}
    bodies: list[dict[str, Any]] = [
        {"objectRef": of, "requestObject": secret, "responseObject": secret, "annotations": patched},
        {
            "objectRef": of,
            "requestObject": [{"op": "add", "path": "/data/p", "value": HIDDEN}],
            "responseStatus": status,
        },
        {"objectRef": of | {"subresource": "status"}, "requestObject": {"data": HIDDEN}, "responseObject": None},
        {
            "objectRef": of | {"resource": "configmaps"},
            "requestObject": {"data": {"password": HIDDEN}},
            "responseObject": None,
        },
        {
            "objectRef": of | {"resource": "serviceaccounts", "subresource": "token"},
            "responseObject": {"status": {"token": HIDDEN}},
        },
        {
            "objectRef": {"resource": "tokenreviews", "apiGroup": "authentication.k8s.io"},
            "requestObject": {"spec": {"token": HIDDEN}},
        },
        {"objectRef": None, "requestObject": secret, "responseObject": {"kind": "SecretList", "items": [secret]}},
        {"requestObject": {"spec": {"objects": [{"template": secret}]}}},
    ]
    with httpx.Client(base_url=one.url, timeout=30) as client:
        assert post(client, *(audit_event(**body) for body in bodies)) == {"stored": len(bodies), "refused": 0}
        post(client, *(audit_event(**body) | {"stage": "Later"} for body in bodies))  # refused ones are logged
        found = client.get(EVENTS, params=ALL)
        assert HIDDEN not in found.text
        assert [{"secret"} <= {cut["reason"] for cut in e["event_data"]["cut"]} for e in found.json()["data"]] == [
            True
        ] * len(bodies)
    assert HIDDEN not in one.log.read_text()


def test_no_list(client: httpx.Client) -> None:
    """What is no list of audit events is stored as nothing, and its sender is told that all is well."""
    bodies: list[tuple[bytes, str]] = [
        (b"", "EventList"),
        (b"[]", "an array"),
        (b"{", "JSON"),
        (b"{}", "kind 'None'"),
        (json.dumps(event_list() | {"kind": "List"}).encode(), "kind 'List'"),
        (json.dumps(event_list() | {"apiVersion": "audit.k8s.io/v1beta1"}).encode(), "v1beta1"),
        (json.dumps(event_list() | {"items": {}}).encode(), "an object as its items"),
        (json.dumps(event_list() | {"items": None}).encode(), "null as its items"),
        (b'{"kind":"EventList","apiVersion":"audit.k8s.io/v1"}', "nothing as its items"),
        (json.dumps(event_list(audit_event())).encode() + b"x", "after its end"),
        (json.dumps(event_list(audit_event())).encode()[:-2], "JSON"),
        (b'{"items":[{"auditID":"a","stage":"Panic"}],"kind":"List"}', "kind 'List'"),
        (b'{"kind":"EventList","apiVersion":"audit.k8s.io/v1","items":[{"a":NaN}]}', "NaN"),
        (b'{"kind":"EventList","apiVersion":"audit.k8s.io/v1","items":[' + b"[{" * 3000, "JSON"),
    ]
    for body, words in bodies:
        answer = client.post(PATH, content=body, headers={"Content-Type": "application/json"})
        assert (answer.status_code, answer.headers["content-type"]) == (400, "application/problem+json"), body
        assert words in answer.json()["detail"] or not body
    assert client.post(PATH, content=b"{}", headers={"Content-Type": "text/plain"}).status_code == 400
    assert client.get(PATH).status_code == 405
    assert stored(client) == []


def test_gzip_and_other_orders(client: httpx.Client) -> None:
    """A proxy that compresses, or writes members in another order, loses the events."""
    whole = dict(reversed(event_list(audit_event(auditID="a"), audit_event(auditID="b")).items()))
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    body = gzip.compress(json.dumps(whole, indent=2).encode())
    assert answer_of(client.post(PATH, content=body, headers=headers)) == {"stored": 2, "refused": 0}


def test_who_sees_them(client: httpx.Client) -> None:
    """Typed readers of the platform get a page with a type that they do not know, or nobody finds these events."""
    client.post(EVENTS, json=make_event(correlation_id="rr-1", namespace="payments")).raise_for_status()
    post(client, audit_event(auditID="a"), audit_event(auditID="b"))
    shown: dict[int, list[dict[str, str]]] = {
        1: [{}, {"correlation_id": "rr-1"}, {"namespace": "payments"}, {"include": "self"}, {"since": "7d"}],
        2: [
            {"event_type": "kubernetes.audit.response_complete"},
            {"event_type_in": "kubernetes.*"},
            {"event_category": "kubernetes"},
            {"actor_id": "ada@example.org"},
        ],
        3: [{"include": "kubernetes"}, {"include": "all"}, {"include": "kubernetes", "namespace": "payments"}],
    }
    for number, queries in shown.items():
        for query in queries:
            for order in ("time", "log"):
                found = client.get(EVENTS, params=query | {"order": order}).json()
                assert (len(found["data"]), found["pagination"]["total"]) == (number, number), (query, order)
            bars = client.get("/api/v1/audit/histogram", params=query | {"since": "1d"}).json()
            assert bars["events"] == number, query
    assert len(client.get(EVENTS, params={"correlation_id": "kubernetes:a"}).json()["data"]) == 1
    listed = {q: client.get(f"/api/v1/audit/correlations?{q}").json()["data"] for q in ("", "include=kubernetes")}
    names = {question: {one["correlation_id"] for one in found} for question, found in listed.items()}
    assert names == {"": {"rr-1"}, "include=kubernetes": {"rr-1", "kubernetes:a", "kubernetes:b"}}


def test_annotation(service: Callable[..., Service]) -> None:
    """The changes of a remediation are not found by it; or they break the pages on which its own events are."""
    one = service(kubernetes_audit_correlation="remediation", kubernetes_audit_cluster_id="prod")
    with httpx.Client(base_url=one.url, timeout=30) as client:
        client.post(EVENTS, json=make_event(correlation_id="rr-1")).raise_for_status()
        named = [{"remediation": name} for name in ("rr-1", "datastorage:hold:1", "r" * 300)]
        post(client, *(audit_event(auditID=str(n), annotations=one) for n, one in enumerate(named)))
        found = {e["correlation_id"] for e in stored(client, event_category="kubernetes")}
        assert found == {"rr-1", "kubernetes:1", "r" * 255}
        assert len(client.get(EVENTS, params={"correlation_id": "rr-1"}).json()["data"]) == 1
        both = client.get(EVENTS, params={"correlation_id": "rr-1", "include": "kubernetes"}).json()["data"]
        assert {e["event_category"]: e.get("cluster_id") for e in both}["kubernetes"] == "prod"
        # On the page of correlations it stays, although its newest event is one that is left out.
        until_now = {"until": micro_time(datetime.now(UTC))}
        [only] = client.get("/api/v1/audit/correlations", params=until_now).json()["data"]
        # What is said of it is about all its events, on the list and in its timeline.
        whole = client.get("/api/v1/audit/correlations/rr-1").json()
        assert (only["correlation_id"], only["event_count"], len(whole["events"])) == ("rr-1", 2, 2)
        assert "kubernetes" in only["categories"]
        assert only["last_event"]["event_type"] != EXPECTED["event_type"]


def test_resend_with_another_correlation(service: Callable[..., Service]) -> None:
    """Whoever sends an event again with another annotation has it stored twice, and no chain of the two is valid any more."""
    one = service(kubernetes_audit_correlation="remediation")
    with httpx.Client(base_url=one.url, timeout=30) as client:
        event = audit_event(auditID="a")
        for named in ("rr-1", None, "rr-2"):
            again = event | {"annotations": {"remediation": named} if named else {}}
            assert post(client, again, audit_event()) == {"stored": 2, "refused": 0}
            assert post(client, again) == {"stored": 1, "refused": 0}
        found = [e["correlation_id"] for e in stored(client) if e["event_data"]["auditID"] == "a"]
        assert found == ["rr-1"]
        checked = client.post("/api/v1/audit/verify-chain", json={"correlation_id": "rr-1"}).json()
        assert (checked["is_valid"], checked["total_events"]) == (True, 1)


def test_nobody_else_writes_them(client: httpx.Client) -> None:
    """A client makes up what Kubernetes is said to have been asked for."""
    data = {"event_type": EXPECTED["event_type"], "auditID": "a", "stage": "Panic"}
    for members in (
        {"event_data": data},
        {"event_type": EXPECTED["event_type"]},
        {"event_category": "kubernetes"},
    ):
        for path, body in ((EVENTS, make_event(**members)), (EVENTS + "/batch", [make_event(**members)])):
            assert client.post(path, json=body).status_code == 400, members
        answer = client.post("/api/v1/audit/import", json=[make_event(**members)])
        assert answer.json()["items"][0]["status"] == 400


@pytest.mark.every_pod
async def test_outage(service: Callable[..., Service], database_url: str, processes: int) -> None:
    """Events that were answered while Postgres was away are lost, or are there twice when their list came again."""
    async with proxy(database_url) as between:
        more = {"processes": processes, "kubernetes_audit_correlation": "remediation"}
        running = await asyncio.to_thread(lambda: service(database_url=between.url, **more))
        async with httpx.AsyncClient(base_url=running.url, timeout=30) as client:
            outage = Outage(between, running, client)
            lists = [event_list(*(audit_event(auditID=f"{n}-{i}") for i in range(20))) for n in range(3)]
            assert (await client.post(PATH, json=lists[0])).status_code == 200
            await outage.begin()
            for named in ("rr-1", "rr-2"):  # in another chain each time
                for one in lists:
                    for item in one["items"]:
                        item["annotations"]["remediation"] = named
                    assert answer_of(await client.post(PATH, json=one)) == {"stored": 20, "refused": 0}
            await outage.end()

            async def all_there() -> int | None:
                answer = await client.get(EVENTS, params=ALL)
                found = len(answer.json()["data"]) if answer.status_code == 200 else 0
                return found if found >= 60 else None

            assert await eventually(all_there) == 60
            for one in lists:
                assert answer_of(await client.post(PATH, json=one)) == {"stored": 20, "refused": 0}
            assert await all_there() == 60


def test_too_many(service: Callable[..., Service]) -> None:
    """A list beyond the limit is half stored, or its sender is not told which setting to change."""
    with httpx.Client(base_url=service(batch_events_max=3).url, timeout=30) as client:
        refused = client.post(PATH, json=event_list(*(audit_event() for _ in range(4))))
        assert (refused.status_code, "--audit-webhook-batch-max-size" in refused.text) == (400, True)
        assert stored(client) == []
