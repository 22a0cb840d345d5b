"""A request means what its bytes say: one answer for each, and nothing in a body is carried out."""

import asyncio
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from app.errors import AuditError
from tests.connections import Connection, serving
from tests.framing import nginx
from tests.framing.cases import HOLD, PROBE, SMUGGLED, WENT_ON, Case, cases, chunked, plain, sized
from tests.framing.wire import Answer, answers_to
from tests.services import Service

REFUSALS = {400, 417, 431, 501}
needs_nginx = pytest.mark.skipif(
    nginx.PROGRAM is None and not os.environ.get("DATASTORAGE_TEST_NGINX"), reason="there is no nginx"
)


def port_of(service: Service) -> int:
    return int(service.url.rpartition(":")[2])


def all_answers(port: int, table: Sequence[Case]) -> dict[str, list[Answer]]:
    """The answers by the case's name; several cases at a time."""
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda case: answers(port, case), table))
    return {case.name: got for case, got in zip(table, found, strict=True)}


def answers(port: int, case: Case) -> list[Answer]:
    return answers_to(port, case.sent + PROBE, methods=("HEAD",) if case.sent.startswith(b"HEAD") else ())


def holds(url: str) -> list[str]:
    return [str(hold) for hold in httpx.get(url + HOLD).json()["holds"]]


def test_directly(service: Callable[..., Service], processes: int) -> None:
    """A case of the table is answered otherwise, more than once or not at all, or a hold in a body is placed."""
    running, table = service(), list(cases())
    if processes > 1:  # a body that another process answers is read in any case
        table = [case for case in table if case.name != "100-continue of what has no route"]
    found = all_answers(port_of(running), table)
    expected = {case.name: [*case.answers, *([WENT_ON] if case.goes_on else [])] for case in table}
    assert {name: [one.status for one in got] for name, got in found.items()} == expected, running.log.read_text()[
        -6000:
    ]
    refused = [found[case.name][-1] for case in table if case.answers[-1] in REFUSALS and not case.goes_on]
    assert {(one.headers["content-type"], one.headers["connection"]) for one in refused} == {
        ("application/problem+json", "close")
    }
    assert all(one.headers["x-request-id"] and one.body.endswith(b"\n") for one in refused)
    assert holds(running.url) == []


@needs_nginx
@pytest.mark.parametrize("keeps_connections", [False, True])
def test_behind_nginx(service: Callable[..., Service], tmp_path: Path, keeps_connections: bool) -> None:
    """Through a proxy that forbids a path a body reaches it, or a request of the table gets more than its answers."""
    running = service()
    # To HTTP/0.9 a proxy answers without status and headers.
    table = [case for case in cases() if case.name not in {"request line: no version", "request line: HTTP/0.9"}]
    with nginx.nginx(tmp_path / "nginx", port_of(running), HOLD, keeps_connections=keeps_connections) as port:
        found = all_answers(port, table)
        assert answers_to(port, SMUGGLED + PROBE)[0].status == 403
    for case in table:
        statuses = [one.status for one in found[case.name]]
        # What comes after a request that nginx accepts, and the service would not, is for nginx a request like others.
        further = 1 if case.goes_on else 1 + case.sent.count(SMUGGLED)
        assert len([one for one in statuses if one >= 200]) <= len(case.answers) + further, (case.name, statuses)
        assert not {502, 504} & {*statuses}, (case.name, statuses)  # the service and nginx understand each other
        if case.via_proxy is not None:
            assert tuple(statuses[: len(case.via_proxy)]) == case.via_proxy, (case.name, statuses)
    assert holds(running.url) == []


class ByteByByte(Connection):
    """Hears one byte at a time, which is how a request may arrive."""

    def data_received(self, data: bytes) -> None:
        for byte in data:
            super().data_received(bytes([byte]))


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers 200 with the body, and what is no HTTP with the status of its refusal."""
    if refusal := scope["state"].get("refusal"):
        await PlainTextResponse(status_code=refusal.status)(scope, receive, send)
        return
    try:
        body = await Request(scope, receive).body()
    except AuditError as error:
        await PlainTextResponse(status_code=error.status)(scope, receive, send)
        return
    await PlainTextResponse(body)(scope, receive, send)


async def test_byte_by_byte() -> None:
    """What a request means depends on where the network has cut it."""
    failures = {}
    async with serving(echo, ByteByByte) as server:
        for case in cases():
            if case.name in {"many trailers", "100-continue of what is too large", "100-continue of what has no route"}:
                continue  # seconds long; refusals by the application
            got = [one.status for one in await asyncio.to_thread(answers, server.port, case)]
            expected = [status if status in {100, *REFUSALS} and not case.goes_on else 200 for status in case.answers]
            expected = [100 if status == 100 else new for status, new in zip(case.answers, expected, strict=True)]
            if got != [*expected, *([200] if case.goes_on else [])]:
                failures[case.name] = got
    assert failures == {}


def test_half_close(service: Callable[..., Service]) -> None:
    """A client that has nothing more to send closes its side, and never gets its answers."""
    port = port_of(service())
    for sent, statuses in {
        sized(): [201],
        chunked(): [201],
        sized() + plain("GET /nothing HTTP/1.1") + sized(): [201, 404, 201],
        sized() + sized()[:-1]: [201],  # the second one is not complete
        sized()[:-1]: [],
        plain("GET /healthz HTTP/1.1")[:-1]: [],
    }.items():
        assert [one.status for one in answers_to(port, sent, half_closes=True)] == statuses, sent
