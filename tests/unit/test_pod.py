"""Several processes as one service: the plan, the relay, the metrics, and what crosses from one process to another."""

import asyncio
import os
import pickle
import select
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import fields
from pathlib import Path
from secrets import token_hex
from types import SimpleNamespace
from typing import Any, cast
from uuid import uuid4

import pytest
from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app import cores
from app.api.reading import Arrivals, Pace, ReadsBusy, ReadSlots, wait_reports
from app.errors import AuditError, DatabaseAway, DatabaseFailed, InboxFull, KeyBusy
from app.ingest.accept import Event
from app.ingest.claim import key_reused
from app.ingest.event_writer import OwnState
from app.ingest.store import MonthDetached, RowRefused
from app.ingest.submission import Submission, conflict
from app.ingest.writer import Writer
from app.pod import messages, plan, pod_metrics
from app.pod import relay as relay_module
from app.pod.member import Member
from app.pod.messages import Messages, listen
from app.pod.plan import Role, slots
from app.pod.pod_metrics import PodMetrics
from app.pod.relay import NobodyAnswers, Relay, RelayServer
from app.pod.remote_writer import RemoteWriter
from app.pod.state import shared_state
from app.pod.supervisor import SHOW_SIGNAL, STOP_SIGNAL, Supervisor
from app.pod.writer_link import WriterLink, decode_events, encode_events
from app.presence import Presence
from app.settings import PROCESSES_MAX, Settings


@pytest.mark.parametrize("processes", range(2, PROCESSES_MAX + 1))
def test_plan(processes: int) -> None:
    """A pod writes with two processes, has nobody who reads, or nobody who takes requests."""
    made = slots(processes)
    assert [slot.index for slot in made] == list(range(processes))
    roles = [slot.role for slot in made]
    assert (roles.count(Role.WRITER), roles[0]) == (1, Role.WRITER)
    assert roles.count(Role.READER) == (2 if processes >= 6 else 1)
    assert {slot.role for slot in made if slot.accepts} == {Role.WRITER if processes == 2 else Role.FRONT}
    assert len({slot.name for slot in made}) == processes
    assert all(len(slot.name) <= 15 for slot in made)  # what the kernel stores


@pytest.mark.parametrize(
    ("files", "granted"),
    [
        ({}, 8),
        ({"cpu.max": "max 100000"}, 8),
        ({"cpu.max": "400000 100000"}, 4),
        ({"pod/cpu.max": "150000 100000", "cpu.max": "400000 100000"}, 1.5),
        ({"pod/cpu.max": "max 100000", "cpu.max": "300000 100000"}, 3),
        ({"cpu/cpu.cfs_quota_us": "200000", "cpu/cpu.cfs_period_us": "100000"}, 2),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 8),
    ],
)
def test_cores(files: dict[str, str], granted: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pod that is granted two cores of sixty-four starts eight processes."""
    (tmp_path / "pod").mkdir()
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    monkeypatch.setattr(cores, "_MOUNT", tmp_path)
    monkeypatch.setattr(cores, "_own_group", lambda: "pod")
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    assert cores.granted_cores() == granted
    assert plan.process_count(Settings(processes=3)) == 3


def test_shares() -> None:
    """Readers of one pod open twice the connections that the settings allow."""
    settings = Settings(pool_connections_max=8)
    made = [plan.settings_of(slot, settings, 8) for slot in slots(8)]
    assert [one.pool_connections_max for one in made] == [4, 4, 4, 4, 4, 4, 4, 4]
    assert made[0].inbox_bytes_max == settings.inbox_bytes_max
    assert (
        sum(one.inbox_bytes_max for one, slot in zip(made, slots(8), strict=True) if slot.accepts)
        <= settings.inbox_bytes_max
    )


def test_fewest_connections() -> None:
    """A front lets others go first that take no connections, so that each connection of a client begins late."""
    state, plan_of_four = shared_state(), slots(4)
    writer, reader, one, other = (Member(slot, 4, state, "") for slot in plan_of_four)
    writer.connections = reader.connections = 0
    one.connections = 5
    assert not one.has_most_connections  # the other is not there yet
    other.connections = 6
    assert (one.has_most_connections, other.has_most_connections) == (False, True)


@pytest.mark.parametrize("fronts", [(), (13,)])
def test_stop_while_a_front_starts_again(fronts: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """A stop signals a process that is not there, which is the whole process group, leaves the writer running, or does not reach
    readers, whose streams the fronts wait for.
    """
    supervisor = Supervisor(Settings(), 4, shared_state(), Presence(), [])
    writer, reader, *accepting = supervisor._children
    for child, pid in zip((writer, reader, *accepting), (11, 12, *fronts), strict=False):
        child.pid = pid
    sent: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "kill", lambda pid, number: sent.append((pid, number)))
    supervisor._stop()
    supervisor._stop()
    orders = [(13, STOP_SIGNAL), (11, SHOW_SIGNAL), (12, SHOW_SIGNAL), (13, STOP_SIGNAL)]
    assert sent == (orders if fronts else [(11, SHOW_SIGNAL), (12, SHOW_SIGNAL), (11, STOP_SIGNAL)])


def test_events_cross() -> None:
    """A member of an event is lost between the process that accepts it and the one that writes it."""
    event_id = uuid4()
    event = Event(event_id, "rr-1", (event_id, 1), {"log": "x"}, b"digest", 7, b"{}", (uuid4(),), uuid4())
    assert all(getattr(event, field.name) != field.default for field in fields(Event))
    assert decode_events(pickle.loads(pickle.dumps(encode_events([event])))) == [event]


async def test_writer_that_does_not_read() -> None:
    """A batch of many parts waits longer than its deadline for a writer that hangs, and leaves its parts there for ever."""
    loop = asyncio.get_running_loop()
    event = Event(uuid4(), "rr-1", (), {"log": "x"}, None, 1024 * 1024, bytes(1024 * 1024))
    remote = RemoteWriter(shared_state())
    link = WriterLink(lambda: None, PodMetrics(), name := token_hex(16))
    with listen(name):
        await remote.connect(name)
        with pytest.raises(DatabaseAway):
            await remote.submit(Submission([event] * 8, {}, may_exist=True), loop.time() + 0.2)
    await remote.close()
    sender = Messages(lambda *_: None, lambda _: None)
    for message in (("part", 1, encode_events([event])), ("forget", 1)):
        link.on_message(sender, message)
    assert not link._parts


async def test_writer_that_hangs_is_sent_little() -> None:
    """What clients send again and again to a pod whose writer hangs gathers in the front until it is out of memory."""
    loop = asyncio.get_running_loop()
    event = Event(uuid4(), "rr-1", (), {"log": "x"}, None, 1024, bytes(512 * 1024))
    remote = RemoteWriter(shared_state())
    with listen(name := token_hex(16)):
        await remote.connect(name)
        for _ in range(8):
            with pytest.raises(DatabaseAway):
                await remote.submit(Submission([event], {}, may_exist=True), loop.time() + 0.05)
        transport = remote._messages._transport
        assert transport is not None
        assert transport.get_write_buffer_size() < 2 * 512 * 1024
    await remote.close()


async def test_connection_to_the_writer_is_lost() -> None:
    """A front without a writer answers 503 to every event until somebody starts the pod again."""
    loop = asyncio.get_running_loop()
    cut, closed = asyncio.Event(), asyncio.Event()
    remote, other = RemoteWriter(shared_state(), cut.set), RemoteWriter(shared_state(), closed.set)
    with listen(name := token_hex(16)) as server:
        await remote.connect(name)
        accepted, _ = await loop.sock_accept(server)
        await other.connect(name)
        await other.close()
        accepted.close()
        await cut.wait()
    assert not closed.is_set()
    event = Event(uuid4(), "rr-1", (), {"log": "x"}, None, 1)
    with pytest.raises(DatabaseAway):
        await remote.submit(Submission([event], {}, may_exist=True), loop.time() + 60)


async def test_submission_of_which_a_part_is_missing() -> None:
    """It is answered as stored although some of its events are not."""
    event = Event(uuid4(), "rr-1", (uuid4(),), {"log": "x"}, None, 1)
    link = WriterLink(lambda: cast("Writer", SimpleNamespace(store=SimpleNamespace(log_name="x"))), PodMetrics(), "")
    with pytest.raises(DatabaseAway):
        await link._submit([event], 2, {"refusals": {}, "may_exist": True}, 0.0)


@pytest.mark.parametrize(
    "error",
    [
        *(DatabaseAway(), InboxFull(), KeyBusy(), RowRefused("no"), MonthDetached(), key_reused()),
        *(DatabaseFailed("why", slug="query-error", instance="/x"), conflict(uuid4(), ", which differs")),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_cross(error: AuditError) -> None:
    """A refusal of the writer loses a member of its problem document on the way to the front."""
    arrived = pickle.loads(pickle.dumps(error))
    assert type(arrived) is type(error)
    assert vars(arrived) == vars(error)


async def test_metrics_are_summed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A counter falls when a process ends, a gauge of a process that is gone stays, or a new label is lost."""
    registry = CollectorRegistry()
    counter, gauge = Counter("c", "", ["l"], registry=registry), Gauge("g", "", registry=registry)
    histogram = Histogram("h", "", buckets=(1,), registry=registry)
    counter.labels("a").inc()
    gauge.set(5)
    histogram.observe(0.5)
    monkeypatch.setattr(pod_metrics, "REGISTRY", registry)
    counted = pod_metrics.samples()
    counted["c"]["c_total", (("l", "b"),)] = 7.0
    together = PodMetrics()
    together.add("other", lambda: together.update("other", counted))
    text = (await together.text()).decode()
    assert all(
        line in text for line in ('c_total{l="a"} 2.0', 'c_total{l="b"} 7.0', "g 10.0", 'h_bucket{le="1.0"} 2.0')
    )
    together.remove("other")
    text = (await together.text()).decode()
    assert all(line in text for line in ('c_total{l="a"} 2.0', 'c_total{l="b"} 7.0', "g 5.0", "h_count 2.0"))
    together.add("hangs", lambda: None)
    assert 'c_total{l="b"} 7.0' in (await together.text()).decode()
    assert REGISTRY is not registry


@asynccontextmanager
async def _relayed(app: ASGIApp) -> AsyncIterator[Relay]:
    name = f"test-{token_hex(8)}"
    server = RelayServer(app, name)
    await server.start()
    relay = Relay([name], by_caller=False)
    try:
        yield relay
    finally:
        relay.close()
        await server.close()


async def test_slow_client_holds_the_answer_back() -> None:
    """An answer that its client does not read is gathered in memory, in one process or the other."""
    made = 0
    ended = asyncio.Event()

    async def endless(_: Scope, receive: Receive, send: Send) -> None:
        nonlocal made
        gone = asyncio.create_task(_wait_for_disconnect(receive))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while not gone.done():
            made += 1
            await send({"type": "http.response.body", "body": bytes(100_000), "more_body": True})
        ended.set()

    client = _Client([{"type": "http.request", "body": b"", "more_body": False}])
    async with _relayed(endless) as relay:
        request = asyncio.create_task(relay(_SCOPE, client.receive, client.send))
        client.reads.set()
        while len(client.sent) < 20:  # noqa: ASYNC110 -- of another task
            await asyncio.sleep(0)
        client.reads.clear()
        before = -1
        while made != before:  # until the answer makes no progress any more
            before = made
            await asyncio.sleep(0.1)
        assert made * 100_000 - sum(len(one.get("body", b"")) for one in client.sent) < 2_000_000
        client.gone.set()
        client.reads.set()
        await request
        await ended.wait()


async def test_client_that_receives_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever has an answer cut for reading too slowly still has a request in both processes, for as long as he likes."""
    monkeypatch.setattr(relay_module, "_SEND_SECONDS_MAX", 0.2)
    gave_up = asyncio.Event()

    async def cut(_: Scope, receive: Receive, send: Send) -> None:
        del receive
        await send({"type": "http.response.start", "status": 200, "headers": []})
        with suppress(TimeoutError):
            async with asyncio.timeout(0.1):
                while True:
                    await send({"type": "http.response.body", "body": bytes(100_000), "more_body": True})
        gave_up.set()

    client = _Client([{"type": "http.request", "body": b"", "more_body": False}])
    async with _relayed(cut) as relay:
        await relay(_SCOPE, client.receive, client.send)  # although the client never reads
        await gave_up.wait()
        assert relay._idle == []


async def test_connections_are_used_again() -> None:
    """Each relayed request opens a connection, or one that was not read to its end serves the next one a wrong body."""
    scopes = []

    async def echo(scope: Scope, receive: Receive, send: Send) -> None:
        scopes.append(scope)
        body = b""
        if scope["path"] != "/early":
            while True:
                message = await receive()
                body += message["body"]
                if not message.get("more_body"):
                    break
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})

    async with _relayed(echo) as relay:
        for path, answer in (("/a", b"onetwo"), ("/early", b""), ("/b", b"onetwo"), ("/c", b"onetwo")):
            client = _Client(
                [
                    {"type": "http.request", "body": b"one", "more_body": True},
                    {"type": "http.request", "body": b"two", "more_body": False},
                ]
            )
            client.reads.set()
            await relay({**_SCOPE, "path": path}, client.receive, client.send)
            assert b"".join(one.get("body", b"") for one in client.sent) == answer
    assert [scope["path"] for scope in scopes] == ["/a", "/early", "/b", "/c"]
    assert "state" not in scopes[0]


async def test_application_that_stops_waiting() -> None:
    """A wait for the client's disconnect, cancelled with the answer, takes the next request, or ends the connection."""

    async def cancels(_: Scope, receive: Receive, send: Send) -> None:
        gone = asyncio.create_task(_wait_for_disconnect(receive))
        await asyncio.sleep(0.01)
        gone.cancel()
        await send({"type": "http.response.start", "status": 503, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    connections = set()
    async with _relayed(cancels) as relay:
        for _ in range(3):
            client = _Client([{"type": "http.request", "body": b"", "more_body": False}])
            client.reads.set()
            await relay(_SCOPE, client.receive, client.send)
            assert client.sent[0]["status"] == 503
            connections |= set(relay._idle)
    assert len(connections) == 1


@pytest.mark.parametrize(
    ("path", "tells", "is_refused"),
    [
        ("/api/v1/audit/events", (), True),  # nobody reads the request
        ("/api/v1/audit/events", ("works", "waits"), True),  # nobody refuses it
        ("/api/v1/audit/events", ("works",), False),
        ("/api/v1/audit/events", ("works", "waits", "works"), False),
        ("/tlog/key", (), False),  # takes no slot
    ],
)
async def test_read_that_waits(
    path: str, tells: tuple[str, ...], is_refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A read that waits for a starved process is refused late, or one that is being answered is refused."""
    monkeypatch.setattr("app.pod.relay.WAIT_SECONDS", 0.1)
    is_gone = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for what in tells:
            writer.write(messages.pack({"type": f"datastorage.{what}"}))
        with suppress(TimeoutError):
            async with asyncio.timeout(None if is_refused else 0.5):
                await reader.read()
                is_gone.set()
        writer.write(messages.pack({"type": "http.response.start", "status": 200, "headers": []}))
        writer.write(messages.pack({"type": "http.response.body", "body": b""}))
        can_be_used_again = False
        writer.write(messages.pack(can_be_used_again))
        writer.close()

    name = f"test-{token_hex(8)}"
    async with await asyncio.start_unix_server(answer, sock=listen(name)):
        asked = Relay([name], by_caller=False)(
            {**_SCOPE, "path": path}, (client := _reading_client()).receive, client.send
        )
        if not is_refused:
            await asked
            assert client.sent[0]["status"] == 200
            return
        with pytest.raises(ReadsBusy):
            await asked
        assert client.sent == []
        await is_gone.wait()


async def test_who_waits_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that takes a read late says nothing of it, so that the read is refused while it runs, or waits for seconds."""
    read_slots, begun, may_end = ReadSlots(1, Pace(2, OwnState())), asyncio.Event(), asyncio.Event()

    async def reads(scope: Scope, receive: Receive, send: Send) -> None:
        arrivals = Arrivals(receive)
        async with read_slots.slot("a", arrivals, is_long=False, report=wait_reports(scope, send)):
            begun.set()
            await may_end.wait()
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b""})

    scope = {**_SCOPE, "path": "/api/v1/audit/events"}
    async with _relayed(reads) as relay:
        first, second = _reading_client(), _reading_client()
        runs = asyncio.create_task(relay(scope, first.receive, first.send))
        await begun.wait()
        monkeypatch.setattr("app.pod.relay.WAIT_SECONDS", 0.1)
        with pytest.raises(ReadsBusy):
            await relay(scope, second.receive, second.send)
        may_end.set()
        await runs
    assert first.sent[0]["status"] == 200


async def test_process_that_fails(caplog: pytest.LogCaptureFixture) -> None:
    """An answer that breaks off looks complete, or one of which nothing was sent is not refused."""

    async def fails(scope: Scope, _: Receive, send: Send) -> None:
        if scope["path"] == "/never":
            return
        if scope["path"] != "/at-once":
            await send({"type": "http.response.start", "status": 200, "headers": []})
        if scope["path"] == "/later":
            await send({"type": "http.response.body", "body": b"half", "more_body": True})
        raise RuntimeError

    async with _relayed(fails) as relay:
        for path in ("/begun", "/at-once", "/never"):
            with pytest.raises(NobodyAnswers):
                await relay({**_SCOPE, "path": path}, (client := _reading_client()).receive, client.send)
            assert client.sent == []
        await relay({**_SCOPE, "path": "/later"}, (client := _reading_client()).receive, client.send)
    assert client.sent[-1]["more_body"]
    (record,) = (
        one for one in caplog.records if one.message == "an answer was cut by the process that gave it, or by its end"
    )
    assert record.exc_info is None


@pytest.mark.parametrize("more_body", [False, True])
async def test_process_that_ends_before_it_has_the_body(more_body: bool) -> None:
    """A process that is gone when the body is sent to it is taken for a client that is gone: nobody answers, nobody refuses."""
    name = f"test-{token_hex(8)}"
    with listen(name) as listening:
        client = _reading_client()

        async def receive() -> Message:
            with suppress(BlockingIOError):  # of the second piece
                listening.accept()[0].close()
            return {"type": "http.request", "body": b"x", "more_body": more_body}

        with pytest.raises(NobodyAnswers):
            await Relay([name], by_caller=False)(_SCOPE, receive, client.send)
    assert client.sent == []


@pytest.mark.parametrize(
    ("method", "closed", "is_answered"),
    [
        *(("GET", "before", True), ("POST", "before", True)),
        *(("GET", "unread", True), ("POST", "unread", False)),
        *(("GET", "read", False), ("POST", "read", False)),
    ],
)
async def test_idle_connection_that_is_closed(method: str, closed: str, is_answered: bool) -> None:
    """A request is refused because a process restarted since the one before, or is sent twice although it may be carried out already."""
    name, scope = f"test-{token_hex(8)}", {**_SCOPE, "method": method}
    answer = b"".join(
        messages.pack(one)
        for one in (
            {"type": "http.response.start", "status": 200, "headers": []},
            {"type": "http.response.body", "body": b"x"},
            True,
        )
    )
    with listen(name) as listening:
        relay = Relay([name], by_caller=False)

        async def ask() -> list[Message]:
            await relay(scope, (client := _reading_client()).receive, client.send)
            return client.sent

        async def take() -> socket.socket:
            connection, _ = await asyncio.get_running_loop().sock_accept(listening)
            assert [(await _message(connection))["type"] for _ in range(2)] == ["http", "http.request"]
            return connection

        first = asyncio.create_task(ask())
        connection = await take()
        connection.sendall(answer)
        assert (await first)[-1]["body"] == b"x"
        if closed == "before":
            connection.close()
        second = asyncio.create_task(ask())
        if closed != "before":
            await _message(connection)
            if closed == "read":
                await _message(connection)
            else:  # what is unread when it is closed resets it
                await asyncio.to_thread(select.select, [connection], [], [])
            connection.close()
        if is_answered:
            taken = asyncio.create_task(take())
            await asyncio.wait({second, taken}, return_when=asyncio.FIRST_COMPLETED)
            assert not second.done(), second.result()
            with await taken as connection:
                connection.sendall(answer)
                assert (await second)[-1]["body"] == b"x"
        else:
            with pytest.raises(NobodyAnswers):
                await second
            with pytest.raises(BlockingIOError):
                listening.accept()
        relay.close()


async def _message(connection: socket.socket) -> Any:
    """The next message, of which no more than its bytes are read."""
    data = b""
    while len(data) < 4 or len(data) < 4 + int.from_bytes(data[:4], "little"):
        rest = 4 - len(data) if len(data) < 4 else 4 + int.from_bytes(data[:4], "little") - len(data)
        piece = await asyncio.get_running_loop().sock_recv(connection, rest)
        assert piece
        data += piece
    return pickle.loads(data[4:])


def _reading_client() -> "_Client":
    client = _Client([{"type": "http.request", "body": b"", "more_body": False}])
    client.reads.set()
    return client


async def _wait_for_disconnect(receive: Callable[[], Awaitable[Message]]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


_SCOPE: dict[str, Any] = {"type": "http", "method": "GET", "path": "/", "headers": [], "state": {"not": "sent"}}


class _Client:
    """A client that sends `messages`, reads only while it wants to, and may go away."""

    def __init__(self, messages: list[Message]) -> None:
        self.sent: list[Message] = []
        self.reads, self.gone = asyncio.Event(), asyncio.Event()
        self._messages = messages

    async def receive(self) -> Message:
        if self._messages:
            return self._messages.pop(0)
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        await self.reads.wait()
        self.sent.append(message)


@pytest.mark.parametrize(("pid", "other_user", "is_own"), [(1, 0, True), (1, 1, False), (0, 0, False)])
def test_who_may_send_messages(pid: int, other_user: int, is_own: bool) -> None:
    """Another user, or a container beside this one that has its user (65532 is common) and network, is unpickled."""

    class Peer:
        def getsockopt(self, *_: int) -> bytes:
            return struct.pack("3i", pid, os.geteuid() + other_user, 0)

    sock: Any = Peer()
    assert messages._is_own(sock) == is_own
