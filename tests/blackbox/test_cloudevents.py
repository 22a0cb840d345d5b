"""CloudEvents of other senders, in each content mode: what is stored of them, and how their faults are named."""

import base64
import json
import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_URL, uuid4, uuid5

import httpx
import pytest
from cloudevents.core.bindings.http import to_binary_event, to_structured_event
from cloudevents.core.v1.event import CloudEvent

from tests.services import ROOT, Service

EVENTS = "/api/v1/audit/events"
BATCH = "/api/v1/audit/events/batch"
STRUCTURED = {"Content-Type": "application/cloudevents+json; charset=utf-8"}
MANY = {"Content-Type": "application/cloudevents-batch+json"}
DATA = {"rr_name": "rr-1", "namespace": "payments", "from_phase": "Pending", "to_phase": "Processing"}
TYPE = "orchestrator.lifecycle.transitioned"


@pytest.fixture
def client(service: Callable[..., Service]) -> Any:
    with httpx.Client(base_url=service().url, timeout=30) as client:
        yield client


def attributes(**more: Any) -> dict[str, Any]:
    return {
        "type": TYPE,
        "source": "/clusters/prod-eu-1/orchestrator",
        "id": str(uuid4()),
        "time": datetime.now(UTC).isoformat(),
        "subject": "rr-1",
        "correlationid": f"ce-{uuid4()}",
        "eventoutcome": "success",
    } | more


def stored(client: httpx.Client, answer: httpx.Response) -> dict[str, Any]:
    assert answer.status_code == 201, answer.text
    return dict(client.get(f"{EVENTS}/{answer.json()['event_id']}").json())


def test_structured_and_binary_of_the_package(client: httpx.Client) -> None:
    """An event that the CloudEvents package writes is refused, or means something else in one of the modes."""
    for write in (to_structured_event, to_binary_event):
        event = attributes(authtype="user", authid="ada é 100 %", datacontenttype="application/json")
        message = write(CloudEvent(event | {"time": datetime.now(UTC)}, DATA))
        found = stored(client, client.post(EVENTS, content=message.body, headers=message.headers))
        assert (found["event_id"], found["event_type"], found["version"]) == (event["id"], TYPE, "1.0")
        assert found["event_data"] == {"event_type": TYPE} | DATA
        assert (found["event_category"], found["event_action"]) == ("orchestration", "transitioned")
        assert (found["event_outcome"], found["correlation_id"]) == ("success", event["correlationid"])
        assert (found["actor_type"], found["actor_id"]) == ("user", "ada é 100 %")
        assert (found["resource_id"], found["resource_type"]) == ("rr-1", "orchestration")


def test_batch_of_the_package(client: httpx.Client) -> None:
    """Events of a batch are refused, lose their order, or cannot be sent again."""
    time = datetime.now(UTC)
    events = [
        CloudEvent(attributes(id=f"no-{n}", source="/s", correlationid="ce-batch") | {"time": time}, DATA)
        for n in range(3)
    ]
    body = b"[" + b",".join(to_structured_event(event).body for event in events) + b"]"
    answer = client.post(BATCH, content=body, headers=MANY)
    assert answer.status_code == 201, answer.text
    assert answer.json()["event_ids"] == [str(uuid5(NAMESPACE_URL, f"/s#no-{n}")) for n in range(3)]
    assert client.post(BATCH, content=body, headers=MANY).json() == answer.json()
    assert client.get(EVENTS, params={"correlation_id": "ce-batch"}).json()["pagination"]["total"] == 3


def test_cause_becomes_parent(client: httpx.Client) -> None:
    """The cause of an event is not found under the id that it was given."""
    cause = attributes(specversion="1.0", id="first", data=DATA)
    effect = attributes(specversion="1.0", causationid="first", data=DATA)
    orphan = client.post(EVENTS, json=effect, headers=STRUCTURED)
    assert set(orphan.json()["field_errors"]) == {"/causationid"}
    parent = stored(client, client.post(EVENTS, json=cause, headers=STRUCTURED))
    child = stored(client, client.post(EVENTS, json=effect, headers=STRUCTURED))
    assert child["parent_event_id"] == parent["event_id"]
    assert child["actor_id"] == effect["source"]


def test_numbers_are_kept_exactly(client: httpx.Client) -> None:
    """A payload is altered because it came as a CloudEvent."""
    event = attributes(specversion="1.0", type="orchestrator.phase.transitioned", data={"n": "NUMBER"})
    body = json.dumps(event).replace('"NUMBER"', "0.1000000000000000055")
    answer = client.post(EVENTS, content=body, headers=STRUCTURED)
    assert answer.status_code == 201, answer.text
    assert '"event_data":{"n":0.1000000000000000055}' in client.get(f"{EVENTS}/{answer.json()['event_id']}").text


BAD: list[tuple[dict[str, Any], set[str]]] = [
    ({"specversion": "0.3"}, {"specversion"}),
    ({"id": ""}, {"id"}),
    ({"source": ""}, {"source"}),
    ({"source": "x" * 256}, {"source"}),
    ({"time": "yesterday"}, {"time"}),
    ({"time": "2020-01-01T00:00:00Z"}, {"time"}),
    ({"correlationid": None}, {"correlationid"}),
    ({"eventoutcome": None, "time": None}, {"eventoutcome", "time"}),
    ({"eventcategory": "none", "eventaction": "x" * 51}, {"eventcategory", "eventaction"}),
    ({"subject": "", "authid": "", "authtype": ""}, {"subject", "authid", "authtype"}),
    ({"dataschema": "", "datacontenttype": ""}, {"dataschema", "datacontenttype"}),
    ({"dataschema": "/schemas/1"}, {"dataschema"}),
    ({"dataschema": "https://example.org/a b"}, {"dataschema"}),
    ({"datacontenttype": "json"}, {"datacontenttype"}),
    ({"datacontenttype": "application/json;"}, {"datacontenttype"}),
    ({"source": "two words"}, {"source"}),
    ({"source": "1a:b"}, {"source"}),
    ({"source": "/%zz"}, {"source"}),
    ({"source": "a#b#c"}, {"source"}),
    ({"event_id": "x"}, {"event_id"}),
    ({"trace-parent": "x", "a.b": "y"}, {"trace-parent", "a.b"}),
    ({"subject": "x" * 256, "authid": "x" * 256, "authtype": "x" * 51}, {"subject", "authid", "authtype"}),
    ({"type": "nobody.knows.this"}, {"eventcategory", "data/event_type"}),
    ({"data": {"rr_name": 7}}, {"data/rr_name", "data/namespace"}),
    ({"data": {"event_type": "no"}}, {"data/event_type"}),
]


def test_faults_are_named_as_sent(client: httpx.Client) -> None:
    """The answer names a member of another format than the one that was sent."""
    for change, named in BAD:
        event = attributes(specversion="1.0", data=DATA) | change
        single = client.post(EVENTS, json=event, headers=STRUCTURED)
        many = client.post(BATCH, json=[attributes(specversion="1.0", data=DATA), event], headers=MANY)
        data = event.pop("data")
        headers = {f"ce-{name}": value for name, value in event.items() if value is not None}
        binary = client.post(EVENTS, json=data, headers=headers)
        for answer, names in (
            (single, {f"/{name}" for name in named}),
            (many, {f"/1/{name}" for name in named}),
            (binary, {name.removeprefix("data") if name.split("/")[0] == "data" else f"ce-{name}" for name in named}),
        ):
            if "specversion" in change and answer is binary:
                assert "ce-specversion" in answer.text
            assert answer.status_code == 400, (change, answer.text)
            assert set(answer.json()["field_errors"]) == names
            assert all(name in answer.json()["detail"] for name in names)


def test_json_under_another_name(client: httpx.Client) -> None:
    """Data that is JSON is refused because its media type is a special one or none, or because it came in base64."""
    whole = attributes(
        specversion="1.0", datacontenttype='application/json; a="b;c"', dataschema="urn:x:y#z", traceparent=""
    )
    binary = {f"ce-{name}": value for name, value in whole.items() if name not in {"datacontenttype", "id"}}
    body = b'{"n": 0.1000000000000000055, "rr_name": "rr-1", "namespace": "a", "from_phase": "A", "to_phase": "B"}'
    for media_type in (None, "application/vnd.example+json", "text/json", "Application/JSON; charset=utf-8"):
        headers = binary | {"ce-id": str(uuid4())} | ({"Content-Type": media_type} if media_type else {})
        found = client.post(EVENTS, content=body, headers=headers)
        assert found.status_code == 201, (media_type, found.text)
    encoded = whole | {"data_base64": base64.b64encode(body).decode()}
    answer = client.post(EVENTS, json=encoded, headers=STRUCTURED)
    assert stored(client, answer)["event_data"]["from_phase"] == "A"
    assert '"n":0.1000000000000000055' in client.get(f"{EVENTS}/{answer.json()['event_id']}").text
    assert client.post(BATCH, json=[encoded], headers=MANY).json()["event_ids"] == [answer.json()["event_id"]]
    deep = b'{"a":' * 11 + b"1" + b"}" * 11
    for value in (deep, b'{"event_type": "' + TYPE.encode() + b'", "rr_name": 7}'):
        event = encoded | {"id": str(uuid4()), "data_base64": base64.b64encode(value).decode()}
        answer = client.post(BATCH, json=[encoded, event], headers=MANY)
        assert answer.status_code == 400
        assert all(place.startswith("/1/data_base64") for place in answer.json()["field_errors"]), answer.text


def test_what_cannot_be_mapped(client: httpx.Client) -> None:
    """Data that is not a JSON object is stored as something else, or a body is read in a format that it does not have."""
    whole = attributes(specversion="1.0")
    for event, named in (
        ({"data": "text"}, "/data"),
        ({"data": None}, "/data"),
        ({"data_base64": "e30"}, "/data_base64"),
        ({"data_base64": 7}, "/data_base64"),
        ({"data_base64": "W10="}, "/data_base64"),
        ({"data_base64": "e30="}, "/data_base64/rr_name"),
        ({"data_base64": "eyJhIjoiXHUwMDAwIn0="}, "/data_base64"),
        ({"data_base64": "e30=", "data": DATA}, "/data_base64"),
        ({"data_base64": "e30=", "datacontenttype": "text/xml"}, "/data_base64"),
        ({}, "/data"),
        ({"data": {"a": "\0"}}, "/data/a"),
    ):
        answer = client.post(EVENTS, json=whole | event, headers=STRUCTURED)
        assert (answer.status_code, named in answer.json()["field_errors"]) == (400, True), answer.text
    headers = {f"ce-{name}": value for name, value in attributes(specversion="1.0").items()}
    for name, value, place in (
        ("subject", "%ff", "ce-subject"),
        ("subject", "%00", "ce-subject"),
        ("x", "%c3", "ce-x"),
        ("data_base64", "e30=", "ce-data_base64"),
        ("data", "{}", ""),
    ):
        answer = client.post(EVENTS, json=DATA, headers=headers | {f"ce-{name}": value})
        assert (answer.status_code, set(answer.json()["field_errors"])) == (400, {place})
    assert client.post(EVENTS, content=b"[]", headers=headers | {"Content-Type": "application/json"}).status_code == 400
    quoted = stored(client, client.post(EVENTS, json=DATA, headers=headers | {"ce-subject": '"a \\"b\\" %E2%82%AC"'}))
    assert quoted["resource_id"] == 'a "b" €'


def test_each_mode_has_its_route(client: httpx.Client) -> None:
    """A batch on the single route, or one event on the batch route, is read as something else, or the answer does not say where it belongs."""
    whole = attributes(specversion="1.0", data=DATA)
    binary = {f"ce-{name}": value for name, value in whole.items() if name != "data"}
    for path, body, headers, says in (
        (EVENTS, [whole], MANY, BATCH),
        (BATCH, whole, STRUCTURED, f"POST {EVENTS}"),
        (BATCH, [DATA], binary, f"POST {EVENTS}"),
        (EVENTS, DATA, binary | {"Content-Type": "text/plain"}, "application/cloudevents+json"),
        (BATCH, [whole], {"Content-Type": "application/cloudevents"}, "application/cloudevents-batch+json"),
    ):
        answer = client.post(path, json=body, headers=headers)
        assert (answer.status_code, says in answer.json()["detail"]) == (400, True), answer.text


def harbor_type() -> str:
    """The file in the documentation."""
    text = (ROOT / "docs/custom-types.md").read_text("utf-8")
    blocks: list[str] = re.findall(r"```json\n(.*?)```", text, re.DOTALL)
    return next(block for block in blocks if "harbor" in block)


KNATIVE = {
    "description": "An object of the cluster was changed, as Knative's ApiServerSource sends it.",
    "x-category": "orchestration",
    "type": "object",
    "properties": {
        "event_type": {"enum": [f"dev.knative.apiserver.resource.{verb}" for verb in ("add", "update", "delete")]}
    },
    "x-cloudevents": {
        "correlationid": {"from": ["/data/metadata/uid", "/subject"]},
        "eventoutcome": {"const": "success"},
        "eventresourcetype": {"from": "/kind"},
        "eventnamespace": {"from": "/namespace"},
    },
}


def test_foreign_emitters(service: Callable[..., Service], tmp_path: Path) -> None:
    """What Harbor and Knative send as it is is refused for want of attributes that only our own emitters have."""
    types = tmp_path / "types"
    types.mkdir()
    (types / "harbor.json").write_text(harbor_type())
    (types / "knative.json").write_text(json.dumps(KNATIVE))
    now = datetime.now(UTC).isoformat()
    pushed = {
        "specversion": "1.0",
        "id": "4b2f89a6-548d-4c12-9993-a1f5790b97d2",
        "source": "/projects/1/webhook/policies/3",
        "type": "harbor.artifact.pushed",
        "datacontenttype": "application/json",
        "time": now,
        "operator": "ada",
        "data": {
            "resources": [{"digest": "sha256:954b378c", "tag": "v2.0", "resource_url": "registry/library/alpine:v2.0"}],
            "repository": {
                "date_created": 1675405260,
                "name": "alpine",
                "namespace": "library",
                "repo_full_name": "library/alpine",
                "repo_type": "public",
            },
        },
    }
    knative = {
        "ce-specversion": "1.0",
        "ce-id": "c1f9c9d2-6a1e-4f8e-8ec9-1c7f2f0f1b7a",
        "ce-source": "https://10.96.0.1:443",
        "ce-type": "dev.knative.apiserver.resource.update",
        "ce-subject": "/apis/apps/v1/namespaces/payments/deployments/api",
        "ce-time": now,
        "ce-apiversion": "apps/v1",
        "ce-kind": "Deployment",
        "ce-name": "api",
        "ce-namespace": "payments",
        "Content-Type": "application/json",
    }
    deployment = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "api", "namespace": "payments", "uid": "u-7"},
    }
    with httpx.Client(base_url=service(event_types_dir=types).url, timeout=30) as client:
        found = stored(client, client.post(EVENTS, json=pushed, headers=STRUCTURED))
        assert (found["correlation_id"], found["event_outcome"], found["event_category"]) == (
            "library/alpine",
            "success",
            "security",
        )
        assert (found["actor_id"], found["actor_type"], found["event_action"]) == ("ada", "user", "pushed")
        assert (found["resource_id"], found["resource_type"]) == ("registry/library/alpine:v2.0", "artifact")
        failed = pushed | {"id": "2", "type": "harbor.scan.failed"}
        assert stored(client, client.post(EVENTS, json=failed, headers=STRUCTURED))["event_outcome"] == "failure"
        found = stored(client, client.post(EVENTS, json=deployment, headers=knative))
        assert (found["correlation_id"], found["resource_type"], found["namespace"]) == (
            "u-7",
            "Deployment",
            "payments",
        )
        assert found["resource_id"] == "/apis/apps/v1/namespaces/payments/deployments/api"
        del knative["ce-subject"], deployment["metadata"]
        refused = client.post(EVENTS, json=deployment, headers=knative | {"ce-id": "3"})
        assert refused.status_code == 400
        assert refused.json()["field_errors"] == {
            "ce-correlationid": "required, but missing, and nothing at /data/metadata/uid or /subject stands for it"
        }
