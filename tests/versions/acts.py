"""What operators and clients do beside posting: begun at one release, and gone on with at the other one."""

import asyncio
import tempfile
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx

from tests.events import NOTIFICATION, make_event, make_freeform
from tests.kubernetes.audit import audit_event, event_list, micro_time
from tests.log_records import JSON, as_json, record, request
from tests.versions.side import CUSTOM_TYPE, DUE_DAYS, Side

EVENTS, HOLDS = "/api/v1/audit/events", "/api/v1/audit/legal-hold"
POLICIES = "/api/v1/audit/retention-policies"
_BY = {"X-User-ID": "ada"}


class Acts:
    """`round` does one of each; `wrong` has what did not come out as it should."""

    def __init__(self, side: Side) -> None:
        self.done: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.turn = 0
        self.held: list[str] = []
        """Correlations on which a hold stays, so that none of their events may be purged."""
        self._side = side

    async def round(self) -> None:
        """Begin at one replica, go on at the other; next time the other way round."""
        self.turn += 1
        first, second = (0, 1) if self.turn % 2 else (1, 0)
        async with self._side.client(first) as one, self._side.client(second) as other:
            for act in (self._hold, self._policy, self._resend, self._notification, self._page, self._files):
                await self._counted(act, one, other, second)
        for command in (self._purge, self._erase):
            await self._counted(command, first)

    async def newer_only(self, number: int) -> None:
        """What only this release can write, sent to a replica of it: twice, as its senders do."""
        sends = _received()
        async with self._side.client(number) as client:
            for _ in range(2):
                await self._counted(self._receive, client, sends)

    async def _counted(self, act: Any, *arguments: Any) -> None:
        name = act.__name__.removeprefix("_")
        try:
            await act(*arguments)
            self.done[name] += 1
        except (AssertionError, httpx.HTTPError) as error:
            releases = " and ".join(one.name for one in self._side.releases)
            self.wrong.append(f"{name} ({releases}, turn {self.turn}): {type(error).__name__} {str(error)[:600]}")

    async def _hold(self, one: httpx.AsyncClient, other: httpx.AsyncClient, _: int) -> None:
        """Placed at one, seen and released at the other one."""
        correlation = await self._post_old(one)
        await _ask(one, "POST", HOLDS, {"correlation_id": correlation, "reason": "versions"})
        listed = await _ask(other, "GET", HOLDS)
        assert correlation in {hold.get("correlation_id") for hold in listed["holds"]}, "the hold is not listed"
        if self.turn % 3:
            path = f"{HOLDS}/{correlation}"
            await _ask(other, "DELETE", path, {"release_reason": "over", "released_by": "ada"})
        else:
            self.held.append(correlation)

    async def _policy(self, one: httpx.AsyncClient, other: httpx.AsyncClient, _: int) -> None:
        for category in ("gateway", "kubernetes"):
            path = f"{POLICIES}/{category}"
            days = DUE_DAYS + self.turn % 4
            await _ask(one, "PUT", path, {"retention_days": days, "reason": f"turn {self.turn}"})
            listed = await _ask(other, "GET", POLICIES)
            found = {policy["event_category"]: policy["retention_days"] for policy in listed["policies"]}
            assert found.get(category) == days, found
            if self.turn % 2:
                await _ask(other, "DELETE", path, {"reason": f"turn {self.turn}"})

    async def _resend(self, one: httpx.AsyncClient, other: httpx.AsyncClient, _: int) -> None:
        """One event, one key, one batch at both: the same answer, and stored once (which the judge sees)."""
        key = {"Idempotency-Key": f'"{uuid4()}"'}
        cloud: dict[str, Any] = {"specversion": "1.0", "id": str(uuid4()), "source": "/versions", "type": CUSTOM_TYPE}
        cloud |= {"time": datetime.now(UTC).isoformat(), "correlationid": "c-versions", "eventoutcome": "success"}
        cloud |= {"data": {"event_type": CUSTOM_TYPE, "repository": "c-versions"}, "eventcategory": "security"}
        cloud |= {"eventaction": "pushed"}
        sends: list[tuple[str, Any, dict[str, str]]] = [
            (EVENTS, make_event(event_id=str(uuid4())), {}),
            (EVENTS, make_event(event_timestamp="0001-01-01T00:00:00Z"), key),
            (f"{EVENTS}/batch", [make_event(), make_freeform(), make_event()], {}),
            (EVENTS, cloud, {"Content-Type": "application/cloudevents+json"}),
        ]
        for path, body, headers in sends:
            answers = [await _ask(client, "POST", path, body, **headers) for client in (one, other, one)]
            ids = [answer.get("event_ids") or answer["event_id"] for answer in answers]
            assert ids[0] == ids[1] == ids[2], (path, ids)

    async def _notification(self, one: httpx.AsyncClient, other: httpx.AsyncClient, _: int) -> None:
        key, body = f'"{uuid4()}"', NOTIFICATION | {"notification_id": str(uuid4()), "remediation_id": f"n-{uuid4()}"}
        path = "/api/v1/audit/notifications"
        first = await _ask(one, "POST", path, body, **{"Idempotency-Key": key})
        again = await _ask(other, "POST", path, body, **{"Idempotency-Key": key})
        assert first == again, (first, again)
        listed = await _ask(other, "GET", f"{path}?remediation_id={body['remediation_id']}")
        assert body["notification_id"] in str(listed), listed

    async def _page(self, one: httpx.AsyncClient, other: httpx.AsyncClient, _: int) -> None:
        """Each page by another release: all events once."""
        correlation = f"p-{uuid4()}"
        await _ask(one, "POST", f"{EVENTS}/batch", [make_event(correlation_id=correlation) for _ in range(7)])
        for base in (f"{EVENTS}?correlation_id={correlation}", f"{EVENTS}?correlation_id={correlation}&order=log"):
            ids, cursor = [], ""
            for turn in range(9):
                path = f"{base}&limit=2" + (f"&cursor={cursor}" if cursor else "")
                answer = await _ask((one, other)[turn % 2], "GET", path)
                ids += [event["event_id"] for event in answer["data"]]
                cursor = answer["pagination"].get("next_cursor", "")
                if not cursor:
                    break
            assert len(ids) == len(set(ids)) == 7, (base, ids)

    async def _files(self, one: httpx.AsyncClient, other: httpx.AsyncClient, second: int) -> None:
        """Bundle, export, proof and checkpoint of one release, verified by the other's command."""
        release, correlation, event_id = self._side.releases[second], f"f-{uuid4()}", str(uuid4())
        event = make_event(correlation_id=correlation, event_id=event_id)
        await _ask(one, "POST", EVENTS, event)
        with tempfile.TemporaryDirectory(prefix="datastorage-versions-") as directory:
            key = Path(directory, "key")
            key.write_text((await other.get("/tlog/key")).text)
            paths = {
                "bundle": f"/api/v1/audit/correlations/{correlation}/bundle",
                "export": f"/api/v1/audit/export?format=ndjson&correlation_id={correlation}",
                "table": f"/api/v1/audit/export?format=csv&correlation_id={correlation}",
            }
            file = Path(directory, "file")
            name, path = list(paths.items())[self.turn % len(paths)]
            answer = await one.get(path)
            while answer.status_code == 503 and "Retry-After" in answer.headers:  # no checkpoint has it yet
                await asyncio.sleep(float(answer.headers["Retry-After"]))
                answer = await one.get(path)
            assert answer.status_code == 200, answer.text
            file.write_bytes(answer.content)
            code, output = await self._side.run(release, "verify-export", file, "--key", key)
            assert code == 0, (name, output)

    async def _purge(self, first: int) -> None:
        """What is due goes, what is held stays, whichever release runs it."""
        release = self._side.releases[first]
        async with self._side.client(first) as client:
            due = await self._post_old(client)
        for _ in range(3):
            code, output = await self._side.run(release, "retention", "run")
            if code == 0 or not ("Another" in output or "again" in output or "Sink" in output):
                break
        assert code == 0 or ("Sink" in output and "purged" in output), output
        if code == 0:
            async with self._side.client(first) as client:
                left = await _ask(client, "GET", f"{EVENTS}?correlation_id={due}")
                assert left["data"] == [], f"due events were not purged: {output}"
        async with self._side.client(1 - first) as client:
            for correlation in self.held:
                left = await _ask(client, "GET", f"{EVENTS}?correlation_id={correlation}")
                assert len(left["data"]) == 2, f"a hold did not count: {output}"

    async def _erase(self, first: int) -> None:
        correlation = f"e-{uuid4()}"
        async with self._side.client(first) as client:
            await _ask(client, "POST", EVENTS, make_event(correlation_id=correlation))
        arguments = ("--correlation-id", correlation, "--reason", "versions")
        code, output = await self._side.run(self._side.releases[first], "erase", *arguments)
        assert code == 0, output

    async def _receive(self, client: httpx.AsyncClient, sends: list[tuple[str, Any, str]]) -> None:
        for path, body, media_type in sends:
            await _ask(client, "POST", path, body, **{"Content-Type": media_type})

    async def _post_old(self, client: httpx.AsyncClient) -> str:
        """Two events that are due, of a new correlation."""
        correlation, old = f"d-{uuid4()}", (datetime.now(UTC) - timedelta(days=DUE_DAYS + 2)).isoformat()
        event = make_event(correlation_id=correlation, event_timestamp=old, event_category="gateway")
        await _ask(client, "POST", f"{EVENTS}/batch", [event, event | {"event_action": "again"}])
        return correlation


def _received() -> list[tuple[str, Any, str]]:
    """Audit events of Kubernetes, young and due; log records; a CloudEvent that only its type's file completes, with other attributes."""
    old = datetime.now(UTC) - timedelta(days=DUE_DAYS + 1)
    items = [
        audit_event(),
        audit_event(stageTimestamp=micro_time(old), requestReceivedTimestamp=micro_time(old)),
        audit_event(annotations={"kubernaut.ai/correlation-id": "c-versions"}, verb="delete"),
    ]
    cloud: dict[str, Any] = {"specversion": "1.0", "id": str(uuid4()), "source": "/versions", "type": CUSTOM_TYPE}
    cloud |= {"time": datetime.now(UTC).isoformat(), "data": {"event_type": CUSTOM_TYPE, "repository": "c-versions"}}
    cloud |= {"eventseverity": "warning", "eventactorip": "10.0.0.9"}
    return [
        ("/api/v1/audit/kubernetes", event_list(*items), "application/json"),
        ("/v1/logs", as_json(request(record(), record(time_unix_nano=0, observed_time_unix_nano=0))), JSON),
        (EVENTS, cloud, "application/cloudevents+json"),
    ]


async def _ask(client: httpx.AsyncClient, method: str, path: str, body: Any = None, **headers: str) -> Any:
    """The answer's JSON; AssertionError unless it is a success."""
    headers = {"Content-Type": "application/json"} | _BY | headers
    sent = httpx.Request(method, client.base_url.join(path), headers=headers, json=body) if body is not None else None
    if sent is None:
        answer = await client.request(method, path, headers=_BY)
    else:
        sent.headers["Content-Type"] = headers["Content-Type"]
        answer = await client.send(sent)
    assert answer.status_code in {200, 201, 202}, f"{method} {path}: {answer.status_code} {answer.text[:400]}"
    return answer.json() if answer.content else None
