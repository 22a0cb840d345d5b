"""Reads in a crowd, and reads that take too long, over HTTP."""

import asyncio
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from tests.events import make_event
from tests.services import Service

AUDIT = "/api/v1/audit/"
ID = "01a20e0c-7ce0-710e-bfce-35434f8305e9"
HISTORY = "/api/v1/remediation-history/context?targetKind=a&targetName=b&targetNamespace=c&currentSpecHash=d"
READS = (
    *(AUDIT + "events", AUDIT + f"events/{ID}", AUDIT + "correlations"),
    *(AUDIT + "correlations/here", AUDIT + "export", AUDIT + "remediation-requests/here/reconstruct"),
    *("/api/v1/effectiveness/here", HISTORY),
)


@pytest.mark.parametrize(
    "limits", [{"query_deadline_ms": 200}, {"statement_timeout_ms": 200, "query_deadline_ms": 2000}]
)
async def test_every_read_that_takes_too_long(
    service: Callable[..., Service], connection: Any, limits: dict[str, int]
) -> None:
    """A read that Postgres does not answer in time is 500, which clients do not send again."""
    running = await asyncio.to_thread(service, **limits)
    async with httpx.AsyncClient(base_url=running.url, timeout=60) as client, connection.transaction():
        await connection.execute("LOCK TABLE audit_events IN ACCESS EXCLUSIVE MODE")
        answers = [await client.get(path) for path in READS]
    for answer in answers:
        assert (answer.status_code, answer.headers.get("retry-after")) == (503, "1"), (answer.url, answer.text)
        assert answer.headers["content-type"] == "application/problem+json"


async def test_a_crowd_of_readers(service: Callable[..., Service], connection: Any) -> None:
    """Readers that wait for Postgres fail with 500 after ten seconds, keep out another caller, or cost a writer."""
    running = await asyncio.to_thread(service, reads_at_once_max=3, trusted_proxies="127.0.0.1", query_deadline_ms=5000)
    async with httpx.AsyncClient(base_url=running.url, timeout=60) as client:

        async def read(path: str, address: str) -> httpx.Response:
            return await client.get(AUDIT + path, headers={"X-Forwarded-For": address})

        async with connection.transaction():
            await connection.execute("LOCK TABLE notification_audit IN ACCESS EXCLUSIVE MODE")
            crowd = [asyncio.create_task(read("notifications", "10.0.0.1")) for _ in range(20)]
            await asyncio.wait(crowd, return_when=asyncio.FIRST_COMPLETED)  # one had to go
            other = await read("events", "10.0.0.2")
            posted = await client.post(AUDIT + "events", json=make_event())
            answers = await asyncio.gather(*crowd)
    assert (other.status_code, posted.status_code) == (200, 201)
    assert {(answer.status_code, answer.headers["retry-after"]) for answer in answers} == {(503, "1")}
    refused = sum("Too many reads" in answer.text for answer in answers)
    assert refused >= 15
    async with httpx.AsyncClient(base_url=running.url, timeout=60) as client:
        assert f"datastorage_reads_refused_total {refused:.1f}" in (await client.get("/metrics")).text
        assert (await client.get(AUDIT + "notifications")).status_code == 200  # their slots are free again
