"""Idempotency-Key and event_id: the same answer again, from any replica, and nothing stored twice."""

import asyncio
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import httpx
import pytest

from tests.events import make_event
from tests.proxy import proxy
from tests.services import Service

EVENTS, BATCH = "/api/v1/audit/events", "/api/v1/audit/events/batch"


@pytest.mark.every_pod
async def test_same_key_same_answer(service: Callable[..., Service], connection: Any) -> None:
    """A retry under its key is stored again, in another replica or in another spelling of the same JSON."""
    urls = [(await asyncio.to_thread(service)).url for _ in range(2)]
    event = make_event()
    batch = [make_event() for _ in range(3)]
    async with httpx.AsyncClient(timeout=30) as client:
        answers = []
        for url in (*urls, urls[0]):
            for path, body in ((EVENTS, event), (BATCH, batch)):
                shuffled = dict(reversed(body.items())) if isinstance(body, dict) else body
                answer = await client.post(url + path, json=shuffled, headers={"Idempotency-Key": '"retry-1"'})
                assert answer.status_code == 201
                answers.append(answer.json())
    assert answers[0::2] == [answers[0]] * 3
    assert answers[1::2] == [answers[1]] * 3
    assert await connection.fetchval("SELECT count(*) FROM audit_events") == 4
    assert await connection.fetchval("SELECT count(*) FROM claims WHERE expires_at > now() + interval '6 days'") == 2


async def test_another_body_under_a_key(service: Callable[..., Service], connection: Any) -> None:
    """A key that was used already hides that a new event was not stored."""
    url = (await asyncio.to_thread(service)).url
    async with httpx.AsyncClient(base_url=url, timeout=30) as client:
        key = {"Idempotency-Key": "retry-1"}
        assert (await client.post(EVENTS, json=make_event(), headers=key)).status_code == 201
        refused = await client.post(EVENTS, json=make_event(), headers=key)
        assert (refused.status_code, refused.json()["type"].rpartition("/")[2]) == (422, "idempotency-key-reused")
        assert (await client.post(BATCH, json=[make_event()], headers=key)).status_code == 201
        for bad in ("", "a\tb", "x" * 256):
            assert (await client.post(EVENTS, json=make_event(), headers={"Idempotency-Key": bad})).status_code == 400
        await connection.execute("UPDATE claims SET expires_at = now() WHERE scope <> 'event'")
        assert (await client.post(EVENTS, json=make_event(), headers=key)).status_code == 201
    assert await connection.fetchval("SELECT count(*) FROM audit_events") == 3


@pytest.mark.every_pod
async def test_key_whose_first_request_still_runs(service: Callable[..., Service], database_url: str) -> None:
    """A second request under a key is written beside the first, or waits without an answer."""
    async with proxy(database_url) as between:
        url = (await asyncio.to_thread(lambda: service(database_url=between.url))).url
        async with httpx.AsyncClient(base_url=url, timeout=30) as client:
            event, key = make_event(), {"Idempotency-Key": "retry-1"}
            between.silent = True
            first = asyncio.create_task(client.post(EVENTS, json=event, headers=key))
            await asyncio.sleep(0.3)
            second = await client.post(EVENTS, json=event, headers=key)
            assert (second.status_code, second.json()["type"].rpartition("/")[2]) == (409, "idempotency-key-in-use")
            assert (await first).status_code == 202
            between.silent = False
            await between.refuse(True)
            await between.refuse(False)
            for _ in range(200):
                again = await client.post(EVENTS, json=event, headers=key)
                if again.status_code == 201:
                    break
                await asyncio.sleep(0.05)
            assert again.json()["event_id"] == (await first).json()["event_id"]


async def test_conflict_names_the_difference(service: Callable[..., Service]) -> None:
    """A client whose id belongs to another event cannot find out what it sent differently."""
    url = (await asyncio.to_thread(service)).url
    async with httpx.AsyncClient(base_url=url, timeout=30) as client:
        event = make_event(event_id=str(uuid4()))
        assert (await client.post(EVENTS, json=event)).status_code == 201
        refused = await client.post(EVENTS, json=event | {"event_action": "other", "severity": "critical"})
        assert refused.status_code == 409
        assert "differs in event_action, severity" in refused.json()["detail"]
        unseen = await client.post(EVENTS, json=event | {"not_a_member": 1})
        assert "only in what is not stored" in unseen.json()["detail"]
