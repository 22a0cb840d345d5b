"""The kinds of fault. Each finds the replicas under load, does its harm, and leaves the rest to `World.heal`."""

import asyncio
import random
import shutil
import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from tests.torture.postgres import Postgres
from tests.torture.world import Needs, NotPossible, Replica, World

Inject = Callable[[World, random.Random], Awaitable[None]]


@dataclass(frozen=True)
class Kind:
    """One kind: what it needs, and what it does."""

    name: str
    inject: Inject
    needs: Needs = field(default_factory=Needs)
    each_anew: bool = False
    """Whether every fault of it needs a world of its own."""


async def _note(there: World, replica: int | None = None) -> None:
    """Wait until enough is in flight, and remember how much; whoever calls strikes at once."""
    there.in_flight = max(there.in_flight, await there.load.full(replica))


def _pick(there: World, chance: random.Random) -> tuple[int, Replica]:
    number = chance.randrange(len(there.replicas))
    return number, there.replicas[number]


async def _outage(there: World, chance: random.Random, replica: Replica, seconds: float = 0.0) -> None:
    """Postgres is gone, in one of its ways, and `replica` spools."""
    if chance.random() < 0.5:
        await there.postgres.stop()
    else:
        await there.postgres.kill()
    await there.spooled(replica)
    await asyncio.sleep(seconds)


async def killed_in_flush(there: World, chance: random.Random) -> None:
    number, replica = _pick(there, chance)
    await asyncio.sleep(chance.uniform(0, 0.3))
    await _note(there, number)
    await replica.kill()
    replica.launch()


async def killed_in_append(there: World, chance: random.Random) -> None:
    number, replica = _pick(there, chance)
    await _outage(there, chance, replica, chance.uniform(0, 0.4))
    await _note(there, number)
    await replica.kill()
    replica.launch()


async def killed_in_replay(there: World, chance: random.Random) -> None:
    number, replica = _pick(there, chance)
    await _outage(there, chance, replica, chance.uniform(0.5, 1.0))
    before = await replica.metric("datastorage_replayed_events_total") or 0
    await there.postgres.start()
    for _ in range(200):
        if (await replica.metric("datastorage_replayed_events_total") or 0) > before:
            break
        await asyncio.sleep(0.005)
    await asyncio.sleep(chance.uniform(0, 0.06))
    await _note(there, number)
    await replica.kill()
    replica.launch()


async def killed_in_migration(there: World, chance: random.Random) -> None:
    """Both start on an empty database; the load is at the one that is left."""
    first, other = there.replicas
    first.launch(migrate=True, log_name="torture.example/datastorage")
    other.launch(migrate=True, log_name="torture.example/datastorage")
    await asyncio.sleep(chance.uniform(0.8, 2.0))
    await _note(there, 1)
    await first.kill()
    first.launch(migrate=True, log_name="torture.example/datastorage")


async def killed_in_shutdown(there: World, chance: random.Random) -> None:
    """The load is at both; half of the time Postgres is away, so that what is left has to be spooled."""
    number, replica = _pick(there, chance)
    if chance.random() < 0.5:
        await _outage(there, chance, replica)
    await there.load.full(number)
    replica.signal(signal.SIGTERM)
    await asyncio.sleep(chance.choice((0, 0.005, 0.02, 0.05, 0.1, 0.3)))
    await _note(there, 1 - number)
    if replica.runs:
        await replica.kill()
    replica.launch()


async def shut_down(there: World, chance: random.Random) -> None:
    """Nothing but SIGTERM, under load."""
    number, replica = _pick(there, chance)
    if chance.random() < 0.5:
        await _outage(there, chance, replica)
    await _note(there, number)
    replica.signal(signal.SIGTERM)
    if (code := await replica.ended()) != 0:
        there.notes.append(f"a replica that was told to stop exits with {code}: {replica.log[-600:]}")
    replica.launch()


async def postgres_killed(there: World, chance: random.Random) -> None:
    await asyncio.sleep(chance.uniform(0, 0.3))
    await _note(there)
    if chance.random() < 0.25:
        await there.postgres.kill_backend()
        await asyncio.sleep(0.3)
    else:
        await there.postgres.kill()
    await there.postgres.start()


async def answer_lost(there: World, chance: random.Random) -> None:
    """A few connections are cut between a flush's last message and its answer, or just before that message."""
    for _ in range(chance.choice((1, 2, 5))):
        number, _ = _pick(there, chance)
        between = there.proxies[number]
        await _note(there, number)
        if chance.random() < 0.75:
            between.lose_answer = True
        else:
            between.lose_question = True
        for _ in range(100):
            if not (between.lose_answer or between.lose_question):
                break
            await asyncio.sleep(0.005)
        await asyncio.sleep(chance.uniform(0, 0.15))


async def postgres_cut_off(there: World, chance: random.Random) -> None:
    """The answer is lost, and Postgres stays out of reach, so that the outcome is unknown when the spool takes it."""
    for between in there.proxies:
        await _note(there)
        between.lose_answer = True
        for _ in range(50):
            if not between.lose_answer:
                break
            await asyncio.sleep(0.002)
        await between.refuse(True)
    await asyncio.sleep(chance.uniform(0.3, 2.0))


async def postgres_stopped(there: World, chance: random.Random) -> None:
    await _note(there)
    await there.postgres.stop(chance.choice((signal.SIGINT, signal.SIGQUIT)))
    await asyncio.sleep(there.stop_seconds)


async def postgres_frozen(there: World, chance: random.Random) -> None:
    """It takes everything and answers nothing, longer than a request waits."""
    await _note(there)
    there.postgres.freeze()
    await asyncio.sleep(chance.uniform(2, 4))


async def network_silent(there: World, chance: random.Random) -> None:
    """Nothing arrives any more on any connection, and no end is told."""
    await _note(there)
    for between in there.proxies:
        between.silent = True
        await asyncio.sleep(chance.choice((0, 0.3)))
    await asyncio.sleep(chance.uniform(1.5, 4))


async def postgres_disk_full(there: World, chance: random.Random) -> None:
    assert there.postgres_disk is not None
    await _note(there)
    there.postgres_disk.fill(chance.choice((0, 0, 64 << 10, 1 << 20)))
    await asyncio.sleep(chance.uniform(1, 2.5))


async def spool_disk_full(there: World, chance: random.Random) -> None:
    number, replica = _pick(there, chance)
    await _outage(there, chance, replica)
    await _note(there, number)
    for disk in there.spool_disks:
        disk.fill(chance.choice((0, 8 << 10, 64 << 10, 1 << 20)))
    await asyncio.sleep(chance.uniform(0.3, 1.2))
    if chance.random() < 0.3:
        await replica.kill()
        replica.launch()
    if chance.random() < 0.5:  # Postgres first, and the disk when it has been replayed into
        await there.postgres.start()
        await asyncio.sleep(chance.uniform(0, 1))


async def both_disks_full(there: World, chance: random.Random) -> None:
    assert there.postgres_disk is not None
    await _note(there)
    disks = [there.postgres_disk, *there.spool_disks]
    chance.shuffle(disks)
    for disk in disks:
        disk.fill(chance.choice((0, 16 << 10, 256 << 10)))
        await asyncio.sleep(chance.uniform(0, 0.5))
    await asyncio.sleep(chance.uniform(0.5, 1.5))
    chance.shuffle(disks)
    for disk in disks:
        disk.empty()
        await asyncio.sleep(chance.uniform(0, 0.5))


async def spool_disk_fails(there: World, chance: random.Random) -> None:
    """fsync and fdatasync of the spool's thread fail with EIO, once or for a while, while it appends or is replayed."""
    if shutil.which("strace") is None:
        raise NotPossible("there is no strace")
    number, replica = _pick(there, chance)
    await _outage(there, chance, replica)
    thread = (replica.directory / "thread").read_text()
    first = chance.choice((1, 1, 2, 4))
    when = chance.choice((f"{first}", f"{first}..{first + 3}", f"{first}+"))
    inject = f"inject=fsync,fdatasync:error=EIO:when={when}"
    tracer = await asyncio.create_subprocess_exec(
        *("strace", "-q", "-o", "/dev/null", "-e", "trace=fsync,fdatasync", "-e", inject, "-p", thread),
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        before = await replica.metric("datastorage_spool_failures_total") or 0
        await _note(there, number)
        end = chance.choice(("in the outage", "in the outage", "at replay", "killed"))
        if end == "at replay":
            await there.postgres.start()
        for _ in range(100):
            if (await replica.metric("datastorage_spool_failures_total") or 0) > before:
                break
            await asyncio.sleep(0.02)
        else:
            there.in_flight = 0  # it did not come to a failure
        await asyncio.sleep(chance.uniform(0, 0.5))
        if end == "killed":
            await replica.kill()
            replica.launch()
    finally:
        if tracer.returncode is None:
            tracer.terminate()
        said = await tracer.communicate()
    if end == "in the outage" and there.in_flight:
        await _takes_again(there, replica)
    if b"ttach" in said[1] and b"not permitted" in said[1]:
        raise NotPossible(f"strace may not attach: {said[1].decode().strip()}")


async def _takes_again(there: World, replica: Replica) -> None:
    """A disk that is well again is used again, however long Postgres stays away."""
    before = await replica.metric("datastorage_spooled_events_total") or 0
    for _ in range(400):
        if (await replica.metric("datastorage_spooled_events_total") or 0) > before:
            return
        await asyncio.sleep(0.02)
    there.notes.append("the spool is not used again after its disk failed")


async def replica_dies(there: World, chance: random.Random) -> None:
    """Its clients go to the other one; much later its spool is taken up by a new process."""
    number, replica = _pick(there, chance)
    if chance.random() < 0.7:
        await _outage(there, chance, replica, chance.uniform(0, 0.5))
    await _note(there, number)
    await replica.kill()
    await asyncio.sleep(chance.uniform(0, 0.5))
    await there.postgres.start()
    await asyncio.sleep(chance.uniform(0.5, 1.5))


async def replica_frozen(there: World, chance: random.Random) -> None:
    """In mid-flush, for less or for more than the server waits; then it goes on as if nothing had been."""
    number, replica = _pick(there, chance)
    await asyncio.sleep(chance.uniform(0, 0.2))
    await _note(there, number)
    replica.signal(signal.SIGSTOP)
    await asyncio.sleep(chance.choice((0.3, 1, 2, 4.5, 8)))
    replica.signal(signal.SIGCONT)


async def clients_time_out(there: World, chance: random.Random) -> None:
    """Postgres stalls longer than clients wait: they go to the other replica with what the first one still holds."""
    there.load.timeout = chance.choice((0.2, 0.5, 1))
    try:
        for _ in range(chance.choice((1, 2))):
            await _note(there)
            if chance.random() < 0.5:
                there.postgres.freeze()
                await asyncio.sleep(chance.uniform(0.5, 2))
                there.postgres.thaw()
            else:
                _, replica = _pick(there, chance)
                replica.signal(signal.SIGSTOP)
                await asyncio.sleep(chance.uniform(0.5, 2))
                replica.signal(signal.SIGCONT)
            await asyncio.sleep(chance.uniform(0, 0.3))
    finally:
        there.load.timeout = 4.0


async def clock_jumps(there: World, chance: random.Random) -> None:
    """Forward and back, by seconds or by days, in one replica or in both, half of the time around an outage."""
    there.load.refusable = True
    if outage := chance.random() < 0.5:
        await _outage(there, chance, there.replicas[0])
    await _note(there)
    for replica in chance.choice((there.replicas[:1], there.replicas)):
        jump = chance.choice((-1, 1)) * chance.choice((2, 60, 1800, 7200, 86400, 6 * 86400, 40 * 86400))
        replica.clock.write_text(str(jump))
    await asyncio.sleep(chance.uniform(0.5, 1))
    if outage:
        await there.postgres.start()
    await asyncio.sleep(chance.uniform(0.3, 0.6))
    for replica in there.replicas:
        replica.clock.write_text("0")


async def several_at_once(there: World, chance: random.Random) -> None:
    """Harm upon harm, before the last one is over."""
    await _note(there)
    for _ in range(chance.choice((3, 4, 6))):
        number, replica = _pick(there, chance)
        between = there.proxies[number]
        match chance.randrange(4):
            case 0:
                await _harm_postgres(there.postgres, chance)
            case 1:
                between.lose_answer = True
            case 2:
                await between.refuse(chance.random() < 0.6)
            case 3:
                replica.signal(chance.choice((signal.SIGSTOP, signal.SIGCONT, signal.SIGTERM, signal.SIGKILL)))
        await asyncio.sleep(chance.uniform(0, 0.8))
        if not replica.runs:
            replica.launch()


async def _harm_postgres(postgres: Postgres, chance: random.Random) -> None:
    match chance.randrange(4):
        case 0:
            await postgres.kill()
        case 1:
            await postgres.stop(signal.SIGQUIT)
        case 2:
            postgres.freeze()
        case 3:
            postgres.thaw()
    postgres.launch()


_IMPATIENT = Needs(settings={"single_deadline_ms": 1500, "batch_deadline_ms": 2500})
_SMALL = 176  # MiB, for data, WAL and a recovery
KINDS = {
    kind.name: kind
    for kind in (
        Kind("service killed in a flush", killed_in_flush),
        Kind("service killed while it spools", killed_in_append),
        Kind("service killed in replay", killed_in_replay),
        Kind("service killed in migration", killed_in_migration, Needs(postgres_only=True), each_anew=True),
        Kind("service killed in shutdown", killed_in_shutdown),
        Kind("service told to stop", shut_down),
        Kind("postgres killed", postgres_killed),
        Kind("answer lost", answer_lost, Needs(proxies=True)),
        Kind("answer lost, then cut off", postgres_cut_off, Needs(proxies=True)),
        Kind("postgres stopped", postgres_stopped),
        Kind("postgres frozen", postgres_frozen, _IMPATIENT),
        Kind("network silent", network_silent, Needs(proxies=True, settings=_IMPATIENT.settings)),
        Kind("postgres disk full", postgres_disk_full, Needs(postgres_disk_mib=_SMALL)),
        Kind("spool disk full", spool_disk_full, Needs(spool_disk_mib=96)),
        Kind("spool disk really full", spool_disk_full, Needs(spool_disk_mib=24, inside=True, reserve_bytes=0)),
        Kind(
            "both disks full",
            both_disks_full,
            Needs(postgres_disk_mib=_SMALL, spool_disk_mib=24, inside=True, reserve_bytes=0),
        ),
        Kind("spool disk fails", spool_disk_fails, Needs(inside=True)),
        Kind("replica dies", replica_dies),
        Kind("replica frozen", replica_frozen),
        Kind("clients time out", clients_time_out),
        Kind("clock jumps", clock_jumps, Needs(inside=True)),
        Kind("several at once", several_at_once, Needs(proxies=True)),
    )
}
