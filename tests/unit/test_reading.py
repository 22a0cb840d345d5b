"""Whose read runs next, and who waits in vain."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from starlette.types import Message

from app.api import reading
from app.api.body import ClientDisconnected
from app.api.reading import (
    HELD_SECONDS_MAX,
    WAIT_SECONDS,
    Arrivals,
    Pace,
    ReadsBusy,
    ReadSlots,
    Turn,
    is_long,
    needs_slot,
    read_slots,
)
from app.errors import BadRequest
from app.ingest.event_writer import OwnState
from app.pod.member import Member
from app.pod.plan import Role, slots
from app.pod.state import PodState
from app.settings import Settings
from tests.reading import Clock


async def waiting_client() -> Message:
    await asyncio.Event().wait()
    raise AssertionError


class Readers:
    """Reads of several callers; each runs until it is ended."""

    def __init__(self, slots: int) -> None:
        self.slots = ReadSlots(slots, Pace(2, OwnState()))
        self.running: list[str] = []
        self._ends: dict[str, asyncio.Event] = {}
        self._turns: dict[str, Turn] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}

    async def begin(self, *names: str, is_long: bool = False) -> None:
        """Reads by name; the first letter is the caller's."""
        for name in names:
            self._ends[name] = asyncio.Event()
            self.tasks[name] = asyncio.create_task(self._read(name, is_long=is_long))
            await settle()

    async def _read(self, name: str, *, is_long: bool) -> None:
        async with self.slots.slot(name[0], Arrivals(waiting_client), is_long=is_long) as turn:
            self.running.append(name)
            self._turns[name] = turn
            await self._ends[name].wait()
            self.running.remove(name)
            del self._turns[name]

    @property
    def cut(self) -> list[str]:
        """Those that have to end because others wait."""
        return [name for name, turn in self._turns.items() if turn.is_over]

    async def end(self, name: str) -> None:
        self._ends[name].set()
        await settle()


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


@asynccontextmanager
async def readers(slots: int) -> AsyncIterator[Readers]:
    made = Readers(slots)
    yield made
    for task in made.tasks.values():
        task.cancel()
    await asyncio.gather(*made.tasks.values(), return_exceptions=True)
    assert made.slots._free == slots
    assert not made.slots._running
    assert not made.slots._waiting


@pytest.fixture(autouse=True)
def long_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "WAIT_SECONDS", 60)


def test_long_reads_are_known_however_they_are_spelled() -> None:
    """A long read has the slot of a short one because its query is encoded."""
    assert is_long("/api/v1/audit/export", b"format=%6edjson")
    assert is_long("/ui/correlations/x", b"verif%79=true")
    assert not is_long("/api/v1/audit/export", b"format=json")
    assert is_long("/api/v1/audit/events", b"limit=1&archive=incl%75de")
    assert not is_long("/api/v1/audit/events", b"limit=1")


def test_large_pages_take_slots() -> None:
    """A crowd that opens the page of the API, half a megabyte each, keeps writers waiting; or signing in waits for a crowd."""
    assert all(needs_slot("GET", f"/ui/{name}") for name in ("api", "event-types", "event-types/x", "events", "trust"))
    assert not any(needs_slot("GET", f"/ui/{name}") for name in ("login", "static/x/pages.css", "login/callback"))


async def test_callers_take_turns() -> None:
    """Whoever sends most is answered most, or first."""
    async with readers(2) as reads:
        await reads.begin("a1", "b1", "a2", "a3", "b2", "c1", "a4")
        assert reads.running == ["a1", "b1"]
        for ended in ("a1", "b1", "a2", "b2", "c1", "a3"):
            await reads.end(ended)
            assert len(reads.running) == len({name[0] for name in reads.running})
        assert reads.running == ["a4"]


async def test_no_caller_has_all_slots() -> None:
    """A caller with many slow reads keeps out all others."""
    async with readers(3) as reads:
        await reads.begin("a1", "a2", "a3", "a4")
        assert reads.running == ["a1", "a2"]
        await reads.begin("b1")
        assert reads.running == ["a1", "a2", "b1"]


async def test_long_reads_leave_slots() -> None:
    """Exports and verifications of several callers keep out all queries, or a query waits after a long read that cannot start."""
    async with readers(4) as reads:
        await reads.begin("a1", "b1", "c1", "d1", is_long=True)
        assert reads.running == ["a1", "b1"]
        await reads.begin("c2")
        assert reads.running == ["a1", "b1", "c2"]


async def test_a_slot_is_not_held_for_hours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two clients that read exports slowly keep out those of everybody else, or an export is cut for which nobody waits."""
    clock = Clock(monkeypatch)
    async with readers(4) as reads:
        await reads.begin("a1", "a2", is_long=True)
        clock.advance(HELD_SECONDS_MAX + 1, 0)
        await reads.begin("a3", is_long=True)
        await reads.begin("b1")
        assert reads.cut == []  # who waits is the same caller, or has a slot
        await reads.end("b1")
        await reads.begin("b2", is_long=True)
        await reads.begin("c1", is_long=True)
        assert reads.cut == ["a1"]
        await reads.end("a1")
        assert reads.running == ["a2", "b2"]
        await reads.begin("c2", is_long=True)
        assert reads.cut == ["a2"]  # b2 has its slot for a moment only


async def test_who_waits_for_a_page_has_one_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slow readers of large pages keep everybody else out for hours, or are cut by somebody who has as many slots."""
    clock = Clock(monkeypatch)
    async with readers(2) as reads:
        await reads.begin("a1", "b1")
        clock.advance(HELD_SECONDS_MAX - 1, 0)
        await reads.begin("c1")
        assert reads.cut == []
        clock.advance(2, 0)
        await reads.begin("b2")
        assert reads.cut == []
        await reads.begin("d1")
        assert reads.cut == ["a1"]


async def test_a_single_slot_is_used() -> None:
    """A service with one connection answers no read."""
    async with readers(1) as reads:
        await reads.begin("a1", is_long=True)
        assert reads.running == ["a1"]


async def test_waiting_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """A read without a slot is never answered, or takes one with it."""
    monkeypatch.setattr(reading, "WAIT_SECONDS", 0.01)
    async with readers(2) as reads:
        await reads.begin("a1", "b1", "c1")
        with pytest.raises(ReadsBusy):
            await reads.tasks["c1"]
        assert ReadsBusy.retry_after_seconds == 1


async def test_a_crowd_is_refused_at_once() -> None:
    """Hundreds of reads wait in vain and are all refused in one moment, or a crowd has those of others refused."""
    async with readers(1) as reads:
        await reads.begin("a0", *(f"a{number}" for number in range(1, 17)))
        await reads.begin("b1")
        with pytest.raises(ReadsBusy):
            await reads.tasks["a16"]
        assert not any(reads.tasks[name].done() for name in ("a15", "b1"))
        await reads.end("a0")
        await reads.end("a1")
        assert reads.running == ["b1"]


async def test_a_crowd_of_callers_does_not_refuse_who_is_next() -> None:
    """While ever more callers arrive, the one that has waited longest is refused instead of the one that has just come."""
    async with readers(1) as reads:
        await reads.begin("a0", *(f"{caller}1" for caller in "bcdefghijklmnopqr"))
        with pytest.raises(ReadsBusy):
            await reads.tasks["r1"]
        await reads.end("a0")
        assert reads.running == ["b1"]


async def test_a_client_that_is_gone_leaves() -> None:
    """A slot is given to a read for which nobody waits, or the request's body is lost while it waits."""
    async with readers(2) as reads:
        await reads.begin("a1", "b1")
        messages = asyncio.Queue[Message]()
        arrivals = Arrivals(messages.get)

        async def read() -> None:
            async with reads.slots.slot("c", arrivals, is_long=False):
                pass

        task = asyncio.create_task(read())
        messages.put_nowait({"type": "http.request", "body": b"{}"})
        await settle()
        assert not task.done()
        messages.put_nowait({"type": "http.disconnect"})
        with pytest.raises(ClientDisconnected):
            await task
        assert (await arrivals())["body"] == b"{}"


async def test_a_body_is_not_read_while_its_request_waits() -> None:
    """A request that waits for its turn fills the memory."""
    messages = asyncio.Queue[Message]()
    watch = asyncio.create_task(Arrivals(messages.get).disconnect())
    for _ in range(3):
        messages.put_nowait({"type": "http.request", "body": b"x", "more_body": True})
    await settle()
    assert messages.qsize() == 2
    watch.cancel()


def test_what_needs_a_slot() -> None:
    """A read escapes its bound, or a post, a probe or a page without database waits for readers."""
    audit = "/api/v1/audit/"
    for method, path in (
        *(
            ("GET", audit + "events"),
            ("GET", audit + "export"),
            ("GET", "/tlog/checkpoint"),
            ("GET", audit + "legal-hold"),
            ("GET", audit + "event-types"),
        ),
        *(("GET", "/api/v1/effectiveness/rr"), ("POST", audit + "remediation-requests/rr/reconstruct")),
    ):
        assert needs_slot(method, path), path
    for method, path in (
        *(("POST", audit + "events"), ("POST", audit + "events/batch"), ("POST", audit + "notifications")),
        *(("POST", audit + "legal-hold"), ("DELETE", audit + "legal-hold")),
        *(("GET", "/metrics"), ("GET", "/readyz"), ("GET", "/healthz"), ("GET", "/tlog/key"), ("GET", "/openapi.json")),
    ):
        assert not needs_slot(method, path), path
    assert is_long(audit + "export", b"format=ndjson")
    assert is_long(audit + "export", b"sealed=true&format=csv")
    assert not is_long(audit + "export", b"format=json&limit=1")
    assert is_long(audit + "correlations/rr", b"verify=true")
    assert not is_long(audit + "correlations", b"")


async def test_bad_framing_while_a_read_waits() -> None:
    """A read with a body that is not HTTP gets no answer if all slots are taken when that shows."""

    async def receive() -> Message:
        raise BadRequest("not HTTP")

    async with readers(1) as those:
        await those.begin("a1")
        with pytest.raises(BadRequest, match="not HTTP"):
            async with those.slots.slot("b", Arrivals(receive), is_long=False):
                pass


@pytest.mark.parametrize("busy", [0.0, 0.1, 1.0])
async def test_slots_rest_while_the_writer_is_busy(busy: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Readers that do not pause keep more of the cores busy than their share, or are slowed down when nobody writes."""
    clock = Clock(monkeypatch)
    pace = Pace(2, clock.writer)
    pace.slots_in_use = 4
    one, other = (Turn(caller, is_long=False, pace=pace) for caller in "ab")
    clock.advance(1, busy)
    one.work()
    clock.advance(0.005, busy)
    other.work()
    clock.advance(0.02, busy)
    one.pause()
    clock.advance(0.025, busy)  # its client receives
    one.pause()
    other.pause()
    # Together 0.05 s of work, with four slots in use, for which reads may use a tenth of two cores.
    assert one.rest_owed == pytest.approx(0.015 * (4 / 0.2 - 1) * busy)
    assert other.rest_owed == pytest.approx(0.035 * (4 / 0.2 - 1) * busy)


@pytest.mark.parametrize("processes", [2, 5, 6, 8])
def test_readers_of_a_pod_share_what_reads_may_use(processes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two readers together keep twice as much of the cores busy as one may."""
    clock = Clock(monkeypatch)
    monkeypatch.setattr(reading, "granted_cores", lambda: 8.0)
    at_work = 0.0
    for slot in (one for one in slots(processes) if one.role is Role.READER):
        member = Member(slot, processes, PodState(), "")
        pace = read_slots(Settings(reads_at_once_max=6), clock.writer, member.alike)._pace
        pace.slots_in_use = 6
        clock.advance(1, 1)
        began = pace.begin()
        clock.advance(0.01, 1)
        at_work += 6 * 0.01 / (0.01 + pace.end(began))
    assert at_work == pytest.approx(0.1 * 8)


async def test_slots_rest_during_a_long_flush(monkeypatch: pytest.MonkeyPatch) -> None:
    """While a large batch is written, for seconds, reads take what its statements need."""
    clock = Clock(monkeypatch)
    pace = Pace(2, clock.writer)
    pace.slots_in_use = 4
    clock.advance(1, 0)
    clock.writer.busy_seconds -= clock.now  # as a writer that begins
    rests = []
    for seconds in (0.3, 0.01):
        began = pace.begin()
        clock.advance(seconds, 0)
        rests.append(pace.end(began))
    assert rests[1] == pytest.approx(0.01 * (4 / 0.2 - 1))
    clock.writer.busy_seconds += clock.now
    clock.advance(60, 0)
    began = pace.begin()
    clock.advance(0.01, 0)
    assert pace.end(began) < 0.01


async def test_no_rest_is_longer_than_a_client_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """One slow query closes its slot for minutes, or whoever asks alone is refused because of his own last question."""
    clock = Clock(monkeypatch)
    turn = Turn("a", is_long=False, pace=Pace(2, clock.writer))
    turn.pace.slots_in_use = 1
    for _ in ("the answer's head", "its body"):
        turn.work()
        clock.advance(60, 1)
        turn.pause()
    assert 0.5 < turn.rest_owed < WAIT_SECONDS


async def test_a_slot_is_taken_until_it_has_rested(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next read begins at once, and what reads may do is exceeded."""
    async with readers(1) as reads:
        clock = Clock(monkeypatch)
        reads.slots._pace = Pace(2, clock.writer)
        await reads.begin("a1", "a2")
        assert reads.slots._pace.slots_in_use == 1
        clock.advance(0.3, 1)
        await reads.end("a1")
        assert reads.running == []
        while reads.running != ["a2"]:  # noqa: ASYNC110 -- the loop's timer sets it
            await asyncio.sleep(0.01)
        clock.advance(1, 0)
        await reads.end("a2")
