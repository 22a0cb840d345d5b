"""Batches that ask to keep their good events, whatever their others are: `Prefer: handling=lenient`."""

import asyncio
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import httpx
import pytest

from tests.blackbox.test_outage import Outage
from tests.events import make_event
from tests.proxy import proxy
from tests.services import Service

EVENTS, BATCH = "/api/v1/audit/events", "/api/v1/audit/events/batch"
LENIENT = {"Prefer": "handling=lenient"}
ZERO = "0001-01-01T00:00:00Z"


@pytest.fixture
def client(service: Callable[..., Service]) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=service().url, timeout=30) as client:
        yield client


def post(client: httpx.Client, batch: list[Any], **headers: str) -> list[dict[str, Any]]:
    answer = client.post(BATCH, json=batch, headers=LENIENT | {k.replace("_", "-"): v for k, v in headers.items()})
    assert (answer.status_code, answer.headers["Preference-Applied"]) == (207, "handling=lenient"), answer.text
    items: list[dict[str, Any]] = answer.json()["items"]
    assert [item["index"] for item in items] == list(range(len(batch)))
    return items


def ids(items: list[dict[str, Any]]) -> list[str | None]:
    return [item.get("event_id") for item in items]


def total(client: httpx.Client) -> int:
    return int(client.get(EVENTS).json()["pagination"]["total"])


@pytest.mark.parametrize("processes", [1, 3])
def test_verdicts(service: Callable[..., Service], processes: int) -> None:
    """A good event is lost with the others, a bad one is stored, or its faults are not those of a whole batch."""
    with httpx.Client(base_url=service(processes=processes).url, timeout=30) as client:
        check_verdicts(client)


def check_verdicts(client: httpx.Client) -> None:
    taken = make_event(event_id=str(uuid4()))
    client.post(EVENTS, json=taken).raise_for_status()
    twice = make_event(event_id=str(uuid4()))
    old = (datetime.now(UTC) - timedelta(days=8)).isoformat()
    batch = [
        make_event(),
        make_event(event_outcome="x", correlation_id=""),
        taken | {"event_action": "other"},
        make_event(event_timestamp=old),
        make_event(parent_event_id=str(uuid4())),
        "text",
        twice,
        twice | {"event_action": "other"},
        make_event(event_timestamp=ZERO),
    ]
    strict = client.post(BATCH, json=batch)
    assert strict.status_code == 400
    items = post(client, batch)
    assert [item["status"] for item in items] == [201, 400, 409, 400, 400, 400, 201, 409, 201]
    assert items[1]["field_errors"].keys() == {"/1/event_outcome", "/1/correlation_id"}
    assert strict.json()["field_errors"] == items[1]["field_errors"] | items[5]["field_errors"]
    assert items[3]["field_errors"].keys() == {"/3/event_timestamp"}
    assert items[4]["field_errors"].keys() == {"/4/parent_event_id"}
    assert "differs in event_action" in items[2]["detail"]
    for item in items:
        if item["status"] == 201:
            assert client.get(f"{EVENTS}/{item['event_id']}").status_code == 200
    assert total(client) == 4
    assert client.post(BATCH, json=[], headers=LENIENT).status_code == 400
    assert [item["status"] for item in post(client, ["x", 1])] == [400, 400]
    text = client.get("/metrics").text
    assert 'datastorage_events_refused_total{reason="Conflict"} 1.0' in text
    assert 'datastorage_events_refused_total{reason="BadRequest"} 2.0' in text


def test_only_where_it_is_asked_for(client: httpx.Client) -> None:
    """A batch is taken apart that did not ask for it."""
    batch = [make_event(), {}]
    for header in ("handling=strict", "respond-async", "handling=strict, handling=lenient", "lenient", "handling"):
        assert client.post(BATCH, json=batch, headers={"Prefer": header}).status_code == 400, header
    for header in ('wait=5, Handling = "lenient"', "handling=lenient; foo=bar"):
        assert client.post(BATCH, json=batch, headers={"Prefer": header}).status_code == 207, header
    assert client.post(EVENTS, json={}, headers=LENIENT).status_code == 400


@pytest.mark.parametrize("timestamp", [None, ZERO])
def test_resends(client: httpx.Client, timestamp: str | None) -> None:
    """A good event is stored again when the batch is sent again, as it was or with its bad items corrected."""
    good = [make_event(**({"event_timestamp": timestamp} if timestamp else {})) for _ in range(3)]
    first = ids(post(client, [good[0], {}, good[1], {}]))
    assert ids(post(client, [good[0], {}, good[1], {}])) == first
    half = ids(post(client, [good[0], good[2], good[1], {}]))
    assert (half[0], half[2], half[3]) == (first[0], first[2], None)
    whole = [good[0], good[2], good[1], good[2]]
    mended = ids(post(client, whole))
    assert mended[:3] == half[:3]
    assert ids(post(client, whole)) == mended
    assert total(client) == 4
    plain = [make_event(**({"event_timestamp": timestamp} if timestamp else {})) for _ in range(2)]
    strict = client.post(BATCH, json=plain).json()["event_ids"]
    assert ids(post(client, plain)) == strict
    assert client.post(BATCH, json=plain).json()["event_ids"] == strict
    assert total(client) == 6


@pytest.mark.parametrize("timestamp", [None, ZERO])
def test_resends_of_what_the_writer_refuses(client: httpx.Client, timestamp: str | None) -> None:
    """A good event is stored again when an item was corrected that only its time, its parent or its id was at fault."""
    taken, old = make_event(event_id=str(uuid4())), (datetime.now(UTC) - timedelta(days=8)).isoformat()
    client.post(EVENTS, json=taken).raise_for_status()
    bad = [
        make_event(event_timestamp=old),
        make_event(parent_event_id=str(uuid4())),
        taken | {"event_action": "other"},
    ]
    for item in bad:
        good = make_event(**({"event_timestamp": timestamp} if timestamp else {}))
        first = ids(post(client, [good, item]))
        assert (first[0] is None, first[1]) == (False, None)
        mended = ids(post(client, [good, corrected := make_event(event_id=str(uuid4()))]))
        assert mended == [first[0], corrected["event_id"]]
        assert ids(post(client, [good, make_event()]))[0] == first[0]
    assert total(client) == 1 + 3 * len(bad)


@pytest.mark.parametrize("timestamp", [None, ZERO])
def test_leniently_and_strictly(client: httpx.Client, timestamp: str | None) -> None:
    """A batch that is sent in both ways is stored twice, or refused because of itself; also when it is corrected in between."""

    def good() -> dict[str, Any]:
        return make_event(**({"event_timestamp": timestamp} if timestamp else {}))

    def strictly(batch: list[Any]) -> list[str | None]:
        answer = client.post(BATCH, json=batch)
        assert answer.status_code == 201, answer.text
        return [*answer.json()["event_ids"]]

    parent = str(uuid4())
    late = [good(), make_event(parent_event_id=parent), good()]
    first = ids(post(client, late))
    assert [one is None for one in first] == [False, True, False]
    corrected = [late[0], good(), late[2]]
    mended = ids(post(client, corrected))
    assert (mended[0], mended[2]) == (first[0], first[2])
    client.post(EVENTS, json=make_event(event_id=parent)).raise_for_status()
    strict = strictly(late)
    assert (strict[0], strict[2]) == (first[0], first[2])
    assert ids(post(client, late)) == strict
    assert (ids(post(client, corrected)), total(client)) == (mended, 5)

    for ways in (("lenient", "strict") * 2, ("strict", "lenient") * 2):
        batch = [good(), make_event(event_id=str(uuid4()))]
        answers = [ids(post(client, batch)) if way == "lenient" else strictly(batch) for way in ways]
        assert answers == [answers[0]] * 4
    other = [batch[0], batch[1] | {"event_action": "other"}]
    assert client.post(BATCH, json=other).status_code == 409
    assert [item["status"] for item in post(client, other)] == [201, 409]
    assert total(client) == 10


async def test_forged_alias(client: httpx.Client, connection: Any) -> None:
    """Whoever can write to the table of claims has an event acknowledged that is not stored."""
    wrong = (await asyncio.to_thread(client.post, EVENTS, json=make_event())).json()["event_id"]
    good = make_event()
    await asyncio.to_thread(post, client, [good, {}])
    await connection.execute("UPDATE claims SET event_ids = ARRAY[$1::uuid] WHERE scope = 'item'", wrong)
    [item, _] = await asyncio.to_thread(post, client, [good, {"other": 1}])
    assert item["status"] == 409
    assert "differs in" in item["detail"]


def test_under_a_key(client: httpx.Client) -> None:
    """A resend under its key is not recognised, its answer changes, or another body is taken for it."""
    batch = [make_event(), {}, make_event(event_timestamp=ZERO), make_event(parent_event_id=(parent := str(uuid4())))]
    first = post(client, batch, Idempotency_Key="k")
    assert [item["status"] for item in first] == [201, 400, 201, 400]
    assert ids(post(client, batch, Idempotency_Key="k")) == ids(first)
    changed = client.post(BATCH, json=[make_event(), {}], headers=LENIENT | {"Idempotency-Key": "k"})
    assert changed.status_code == 422
    client.post(EVENTS, json=make_event(event_id=parent)).raise_for_status()
    again = post(client, batch, Idempotency_Key="k")
    assert [item["status"] for item in again] == [201, 400, 201, 201]
    assert ids(again)[:3] == ids(first)[:3]
    assert total(client) == 4


async def test_through_the_spool(service: Callable[..., Service], database_url: str) -> None:
    """In an outage a resend is spooled beside the first, or one conflict refuses the whole batch."""
    async with proxy(database_url) as between:
        running = await asyncio.to_thread(lambda: service(database_url=between.url))
        async with httpx.AsyncClient(base_url=running.url, timeout=30) as client:
            outage = Outage(between, running, client)
            await outage.begin()
            own = make_event(event_id=str(uuid4()))
            good = [make_event(), make_event(event_timestamp=ZERO)]
            answer = (await client.post(BATCH, json=[good[0], {}, good[1], own], headers=LENIENT)).json()
            assert answer["message"].startswith("3 of 4 audit events accepted: ")
            first = answer["items"]
            assert [item["status"] for item in first] == [201, 400, 201, 201]
            other = own | {"event_action": "other"}
            mended = (await client.post(BATCH, json=[good[0], make_event(), good[1], other], headers=LENIENT)).json()[
                "items"
            ]
            assert [item["status"] for item in mended] == [201, 201, 201, 409]
            assert (ids(mended)[0], ids(mended)[2]) == (ids(first)[0], ids(first)[2])
            both = [make_event(), make_event(event_id=str(uuid4()))]
            lenient = ids((await client.post(BATCH, json=both, headers=LENIENT)).json()["items"])
            assert (await client.post(BATCH, json=both)).json()["event_ids"] == lenient
            await outage.end()
            await outage.drained()
            assert (await client.post(BATCH, json=both)).json()["event_ids"] == lenient
            again = await client.post(BATCH, json=[good[0], {}, good[1], {}], headers=LENIENT)
            assert (ids(again.json()["items"])[0], ids(again.json()["items"])[2]) == (ids(first)[0], ids(first)[2])
            assert (await client.get(EVENTS)).json()["pagination"]["total"] == 6
            assert await outage.balance() == 0
