"""Answers of many megabytes, over HTTP."""

import socket
from collections.abc import Callable
from typing import Any

import httpx

from tests.services import Service
from tests.waiting import until

EVENTS = "/api/v1/audit/events"
INSERT = """
    INSERT INTO audit_events (event_timestamp, event_date, event_type, event_category, event_action, event_outcome,
        actor_type, actor_id, resource_type, resource_id, correlation_id, event_data)
    SELECT now() - number * interval '1 second', (now() - number * interval '1 second')::date, 't', 'gateway', 'a', 'success',
        '', '', '', '', 'wide',
        jsonb_build_object('text', (SELECT string_agg(md5(random()::text || n), '') FROM generate_series(1, 8000) AS n
            WHERE number > 0))
    FROM generate_series(1, 60) AS number
"""  # 15 MB


async def test_a_large_page(service: Callable[..., Service], connection: Any) -> None:
    """A page of large payloads has another form than a small one, or lacks events that were asked for by offset."""
    await connection.execute(INSERT)
    running = service()
    async with httpx.AsyncClient(base_url=running.url, timeout=60) as client:
        whole = await client.get(f"{EVENTS}?correlation_id=wide&limit=1000")
        assert (whole.status_code, whole.headers["content-type"]) == (200, "application/json")
        assert whole.text.startswith('{"data":[{"event_id":')
        assert whole.text.endswith('"pagination":{"limit":1000,"offset":0,"total":60,"has_more":false}}\n')
        assert "link" not in whole.headers
        events = whole.json()["data"]
        assert len({event["event_id"] for event in events}) == 60
        part = await client.get(f"{EVENTS}?correlation_id=wide&limit=50&offset=5")
        assert part.json()["data"] == events[5:55]
        assert part.json()["pagination"]["has_more"] is True
        assert 'rel="next"' in part.headers["link"]
        following = await client.get(
            f"{EVENTS}?correlation_id=wide&limit=50&cursor={part.json()['pagination']['next_cursor']}"
        )
        assert following.json()["data"] == events[55:]


async def test_a_page_that_fails_in_its_middle(service: Callable[..., Service], connection: Any) -> None:
    """A client takes a page for complete that is not, or the log does not say why it was cut."""
    await connection.execute(INSERT)
    running = service()
    port = int(running.url.rpartition(":")[2])
    with socket.socket() as raw:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16384)
        raw.settimeout(60)
        raw.connect(("127.0.0.1", port))
        raw.sendall(f"GET {EVENTS}?correlation_id=wide&limit=1000 HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        received = raw.recv(1024)
        assert received.startswith(b"HTTP/1.1 200")
        await connection.execute("ALTER TABLE audit_events RENAME COLUMN error_message TO gone")
        received += b"".join(iter(lambda: raw.recv(1 << 20), b""))
    await connection.execute("ALTER TABLE audit_events RENAME COLUMN gone TO error_message")
    assert not received.endswith(b"0\r\n\r\n")
    assert b'"pagination"' not in received
    until(lambda: "error_message does not exist" in running.log.read_text() or None)
