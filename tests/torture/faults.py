"""The kinds of fault. Each injects its fault while the replicas are under load; `World.heal` repairs everything afterwards."""

import asyncio
import random
import shutil
import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from tests.torture import delivery, failover
from tests.torture.postgres import Postgres, alive, send
from tests.torture.storm import Storm, failing_reads, storm
from tests.torture.world import Needs, NotPossible, Replica, World

_START_SECONDS = 120.0
Inject = Callable[[World, random.Random], Awaitable[None]]


@dataclass(frozen=True)
class Kind:
    """One kind: what it needs, and what it does."""

    name: str
    inject: Inject
    needs: Needs = field(default_factory=Needs)
    loses: bool = False
    """Whether it is expected to lose what was acknowledged."""
    own_world: bool = False
    """Whether every fault of this kind needs a world of its own."""


async def _note(world: World, replica: int | None = None) -> None:
    """Wait until enough requests are in flight, and note how many. The caller injects its fault right after this."""
    world.in_flight = max(world.in_flight, await world.load.full(replica))


def _pick(world: World, chance: random.Random) -> tuple[int, Replica]:
    number = chance.randrange(len(world.replicas))
    return number, world.replicas[number]


async def _outage(world: World, chance: random.Random, replica: Replica, seconds: float = 0.0) -> None:
    """Postgres is stopped or killed, and `replica` spools."""
    if chance.random() < 0.5:
        await world.postgres.stop()
    else:
        await world.postgres.kill()
    await world.spooled(replica)
    await asyncio.sleep(seconds)


async def killed_in_flush(world: World, chance: random.Random) -> None:
    number, replica = _pick(world, chance)
    await asyncio.sleep(chance.uniform(0, 0.3))
    await _note(world, number)
    await replica.kill()
    replica.launch()


async def killed_in_append(world: World, chance: random.Random) -> None:
    number, replica = _pick(world, chance)
    await _outage(world, chance, replica, chance.uniform(0, 0.4))
    await _note(world, number)
    await replica.kill()
    replica.launch()


async def killed_in_replay(world: World, chance: random.Random) -> None:
    number, replica = _pick(world, chance)
    await _outage(world, chance, replica, chance.uniform(0.5, 1.0))
    before = await replica.metric("datastorage_replayed_events_total") or 0
    await world.postgres.start()
    for _ in range(200):
        if (await replica.metric("datastorage_replayed_events_total") or 0) > before:
            break
        await asyncio.sleep(0.005)
    await asyncio.sleep(chance.uniform(0, 0.06))
    await _note(world, number)
    await replica.kill()
    replica.launch()


async def killed_in_migration(world: World, chance: random.Random) -> None:
    """Both replicas start on an empty database; the load is on the one that is not killed."""
    first, other = world.replicas
    first.launch(migrate=True, log_name="torture.example/datastorage")
    other.launch(migrate=True, log_name="torture.example/datastorage")
    await asyncio.sleep(chance.uniform(0.8, 2.0))
    await _note(world, 1)
    await first.kill()
    first.launch(migrate=True, log_name="torture.example/datastorage")


async def killed_in_shutdown(world: World, chance: random.Random) -> None:
    """The load is on both replicas; half of the time Postgres is away, so that what is left has to be spooled."""
    number, replica = _pick(world, chance)
    if chance.random() < 0.5:
        await _outage(world, chance, replica)
    await world.load.full(number)
    replica.signal(signal.SIGTERM)
    await asyncio.sleep(chance.choice((0, 0.005, 0.02, 0.05, 0.1, 0.3)))
    await _note(world, 1 - number)
    if replica.runs:
        await replica.kill()
    replica.launch()


async def shut_down(world: World, chance: random.Random) -> None:
    """Nothing but SIGTERM, under load."""
    number, replica = _pick(world, chance)
    if chance.random() < 0.5:
        await _outage(world, chance, replica)
    await _note(world, number)
    replica.signal(signal.SIGTERM)
    if (code := await replica.ended()) != 0:
        world.notes.append(f"a replica that was stopped by SIGTERM exits with {code}: {replica.log[-600:]}")
    replica.launch()


async def postgres_killed(world: World, chance: random.Random) -> None:
    await asyncio.sleep(chance.uniform(0, 0.3))
    await _note(world)
    if chance.random() < 0.25:
        await world.postgres.kill_backend()
        await asyncio.sleep(0.3)
    else:
        await world.postgres.kill()
    await world.postgres.start()


async def answer_lost(world: World, chance: random.Random) -> None:
    """A few connections are cut between a flush's last message and its answer, or just before that message."""
    for _ in range(chance.choice((1, 2, 5))):
        number, _ = _pick(world, chance)
        between = world.proxies[number]
        await _note(world, number)
        if chance.random() < 0.75:
            between.lose_answer = True
        else:
            between.lose_question = True
        for _ in range(100):
            if not (between.lose_answer or between.lose_question):
                break
            await asyncio.sleep(0.005)
        await asyncio.sleep(chance.uniform(0, 0.15))


async def postgres_cut_off(world: World, chance: random.Random) -> None:
    """The answer is lost, and Postgres stays out of reach, so that the outcome is unknown when it is spooled."""
    for between in world.proxies:
        await _note(world)
        between.lose_answer = True
        for _ in range(50):
            if not between.lose_answer:
                break
            await asyncio.sleep(0.002)
        await between.refuse(True)
    await asyncio.sleep(chance.uniform(0.3, 2.0))


async def postgres_stopped(world: World, chance: random.Random) -> None:
    await _note(world)
    await world.postgres.stop(chance.choice((signal.SIGINT, signal.SIGQUIT)))
    await asyncio.sleep(world.stop_seconds)


async def postgres_frozen(world: World, chance: random.Random) -> None:
    """Postgres receives everything and answers nothing, for longer than a request waits."""
    await _note(world)
    world.postgres.freeze()
    await asyncio.sleep(chance.uniform(2, 4))


async def network_silent(world: World, chance: random.Random) -> None:
    """Nothing arrives any more on any connection, and none is closed."""
    await _note(world)
    for between in world.proxies:
        between.silent = True
        await asyncio.sleep(chance.choice((0, 0.3)))
    await asyncio.sleep(chance.uniform(1.5, 4))


async def postgres_disk_full(world: World, chance: random.Random) -> None:
    assert world.postgres_disk is not None
    await _note(world)
    world.postgres_disk.fill(chance.choice((0, 0, 64 << 10, 1 << 20)))
    await asyncio.sleep(chance.uniform(1, 2.5))


async def spool_disk_full(world: World, chance: random.Random) -> None:
    number, replica = _pick(world, chance)
    await _outage(world, chance, replica)
    await _note(world, number)
    for disk in world.spool_disks:
        disk.fill(chance.choice((0, 8 << 10, 64 << 10, 1 << 20)))
    await asyncio.sleep(chance.uniform(0.3, 1.2))
    if chance.random() < 0.3:
        await replica.kill()
        replica.launch()
    if chance.random() < 0.5:  # Postgres comes back first, and the disk is freed after the replay
        await world.postgres.start()
        await asyncio.sleep(chance.uniform(0, 1))


async def both_disks_full(world: World, chance: random.Random) -> None:
    assert world.postgres_disk is not None
    await _note(world)
    disks = [world.postgres_disk, *world.spool_disks]
    chance.shuffle(disks)
    for disk in disks:
        disk.fill(chance.choice((0, 16 << 10, 256 << 10)))
        await asyncio.sleep(chance.uniform(0, 0.5))
    await asyncio.sleep(chance.uniform(0.5, 1.5))
    chance.shuffle(disks)
    for disk in disks:
        disk.empty()
        await asyncio.sleep(chance.uniform(0, 0.5))


async def spool_disk_fails(world: World, chance: random.Random) -> None:
    """fsync and fdatasync of the spool's thread fail with EIO, once or for a while, while it appends or is replayed."""
    if shutil.which("strace") is None:
        raise NotPossible("there is no strace")
    number, replica = _pick(world, chance)
    await _outage(world, chance, replica)
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
        await _note(world, number)
        end = chance.choice(("in the outage", "in the outage", "at replay", "killed"))
        if end == "at replay":
            await world.postgres.start()
        for _ in range(100):
            if (await replica.metric("datastorage_spool_failures_total") or 0) > before:
                break
            await asyncio.sleep(0.02)
        else:
            world.in_flight = 0  # nothing failed
        await asyncio.sleep(chance.uniform(0, 0.5))
        if end == "killed":
            await replica.kill()
            replica.launch()
    finally:
        if tracer.returncode is None:
            tracer.terminate()
        output = await tracer.communicate()
    if end == "in the outage" and world.in_flight:
        await _is_used_again(world, replica)
    if b"ttach" in output[1] and b"not permitted" in output[1]:
        raise NotPossible(f"strace may not attach: {output[1].decode().strip()}")


async def _is_used_again(world: World, replica: Replica) -> None:
    """A disk that works again is used again, however long Postgres stays away."""
    before = await replica.metric("datastorage_spooled_events_total") or 0
    for _ in range(400):
        if (await replica.metric("datastorage_spooled_events_total") or 0) > before:
            return
        await asyncio.sleep(0.02)
    world.notes.append("the spool is not used again after its disk failed")


async def replica_dies(world: World, chance: random.Random) -> None:
    """Its clients go to the other one; much later a new process opens its spool."""
    number, replica = _pick(world, chance)
    if chance.random() < 0.7:
        await _outage(world, chance, replica, chance.uniform(0, 0.5))
    await _note(world, number)
    await replica.kill()
    await asyncio.sleep(chance.uniform(0, 0.5))
    await world.postgres.start()
    await asyncio.sleep(chance.uniform(0.5, 1.5))


async def replica_frozen(world: World, chance: random.Random) -> None:
    """A replica is frozen in the middle of a flush, for less or for more than the server waits, and then continues."""
    number, replica = _pick(world, chance)
    await asyncio.sleep(chance.uniform(0, 0.2))
    await _note(world, number)
    replica.signal(signal.SIGSTOP)
    await asyncio.sleep(chance.choice((0.3, 1, 2, 4.5, 8)))
    replica.signal(signal.SIGCONT)


async def clients_time_out(world: World, chance: random.Random) -> None:
    """Postgres stalls longer than clients wait: they send to the other replica what the first one still has in flight."""
    world.load.timeout = chance.choice((0.2, 0.5, 1))
    try:
        for _ in range(chance.choice((1, 2))):
            await _note(world)
            if chance.random() < 0.5:
                world.postgres.freeze()
                await asyncio.sleep(chance.uniform(0.5, 2))
                world.postgres.thaw()
            else:
                _, replica = _pick(world, chance)
                replica.signal(signal.SIGSTOP)
                await asyncio.sleep(chance.uniform(0.5, 2))
                replica.signal(signal.SIGCONT)
            await asyncio.sleep(chance.uniform(0, 0.3))
    finally:
        world.load.timeout = 4.0


async def clock_jumps(world: World, chance: random.Random) -> None:
    """The clock jumps forward and back, by seconds or days, in one replica or in both, half of the time during an outage."""
    world.load.refusable = True
    if outage := chance.random() < 0.5:
        await _outage(world, chance, world.replicas[0])
    await _note(world)
    for replica in chance.choice((world.replicas[:1], world.replicas)):
        jump = chance.choice((-1, 1)) * chance.choice((2, 60, 1800, 7200, 86400, 6 * 86400, 40 * 86400))
        replica.clock.write_text(str(jump))
    await asyncio.sleep(chance.uniform(0.5, 1))
    if outage:
        await world.postgres.start()
    await asyncio.sleep(chance.uniform(0.3, 0.6))
    for replica in world.replicas:
        replica.clock.write_text("0")


async def server_turns_read_only(world: World, chance: random.Random) -> None:
    """Postgres takes no writes, by a setting or since it is a standby now; sometimes a replica starts meanwhile."""
    await _note(world)
    await (world.postgres.refuse_writes() if chance.random() < 0.5 else world.postgres.demote())
    await asyncio.sleep(chance.uniform(0.8, 3))
    if chance.random() < 0.3:
        _, replica = _pick(world, chance)
        await replica.kill()
        replica.launch()
    await asyncio.sleep(chance.uniform(0.3, 1.5))


async def started_without_postgres(world: World, chance: random.Random) -> None:
    """Replicas start on their spools while Postgres is away, take events, are killed and start again; Postgres comes last."""
    await _outage(world, chance, world.replicas[0])
    for replica in world.replicas:
        await replica.kill()
        replica.launch()
    number, replica = _pick(world, chance)
    for _ in range(chance.choice((1, 2, 3))):
        await _spools(world, replica)
        await asyncio.sleep(chance.uniform(0, 0.4))
        await _note(world, number)
        await replica.kill()
        replica.launch()
    if chance.random() < 0.7:
        await _spools(world, replica)
    world.postgres.launch()
    if chance.random() < 0.5:
        await asyncio.sleep(chance.uniform(0, 1))
        await replica.kill()
        replica.launch()


async def _spools(world: World, replica: Replica) -> None:
    """Wait until a process that was just started takes events."""
    try:
        async with asyncio.timeout(_START_SECONDS):
            while not await replica.metric("datastorage_spooled_events_total"):
                await asyncio.sleep(0.02)
    except TimeoutError:
        world.notes.append("a replica with a spool takes no event before it has seen Postgres")


async def reader_storm(world: World, chance: random.Random) -> None:
    """Crowds read, and hang up, before, during and after another fault; afterwards every read is answered as ever."""
    async with storm(world, chance) as seen:
        await asyncio.sleep(chance.uniform(0.5, 1))
        number, replica = _pick(world, chance)
        await _note(world)
        match chance.randrange(5):
            case 0:
                await _outage(world, chance, replica, chance.uniform(0, 0.5))
            case 1:
                await replica.kill()
                replica.launch()
            case 2:
                world.postgres.freeze()
                await asyncio.sleep(chance.uniform(0.5, 3))
            case 3:
                replica.signal(signal.SIGSTOP)
                await asyncio.sleep(chance.uniform(0.5, 3))
            case 4:
                world.proxies[number].lose_answer = True
                await asyncio.sleep(chance.uniform(0.1, 0.5))
        await world.heal()
        await asyncio.sleep(chance.uniform(0, 0.5))
    await _reads_well(world, seen)


async def _reads_well(world: World, seen: Storm) -> None:
    world.notes += seen.wrong[:5]
    for replica in world.replicas:
        assert replica.url is not None
        if failing := await failing_reads(replica.url):
            world.notes.append(f"after the storm, small reads are answered {failing}")


async def pgbouncer_killed(world: World, chance: random.Random) -> None:
    """PgBouncer dies, ends, or stops, or Postgres dies after it; sometimes nothing is there for a while."""
    assert world.pgbouncer is not None
    await asyncio.sleep(chance.uniform(0, 0.3))
    await _note(world)
    match chance.randrange(6):
        case 0:
            world.pgbouncer.signal(signal.SIGTERM)
        case 1:
            world.pgbouncer.signal(signal.SIGSTOP)
        case 2:
            await world.postgres.kill()
        case _:
            world.pgbouncer.kill()
    await asyncio.sleep(chance.choice((0, 0.3, 1, 3)))


async def _processes(replica: Replica, role: str) -> list[int]:
    """A pod's processes of one role; one that has just died is started again soon."""
    async with asyncio.timeout(_START_SECONDS):
        while not (found := replica.processes(role)):
            await asyncio.sleep(0.02)
    return found


async def front_killed(world: World, chance: random.Random) -> None:
    """One front of a pod, or all of them, die, several times; the pod starts them again."""
    for _ in range(chance.choice((1, 2, 3))):
        number, replica = _pick(world, chance)
        await asyncio.sleep(chance.uniform(0, 0.4))
        fronts = await _processes(replica, "front")
        await _note(world, number)
        for pid in chance.choice((fronts[:1], fronts[-1:], fronts)):
            send(pid, signal.SIGKILL)
    _note_if_ended(world)


async def reader_killed(world: World, chance: random.Random) -> None:
    """A pod's reader dies in a storm of readers, several times; the pod starts it again."""
    async with storm(world, chance) as seen:
        for _ in range(chance.choice((1, 2, 3))):
            number, replica = _pick(world, chance)
            await asyncio.sleep(chance.uniform(0.2, 0.8))
            await _note(world, number)
            for pid in await _processes(replica, "reader"):
                send(pid, signal.SIGKILL)
        await world.heal()
        await asyncio.sleep(chance.uniform(0, 0.5))
    await _reads_well(world, seen)
    _note_if_ended(world)


def _note_if_ended(world: World) -> None:
    for replica in world.replicas:
        if not replica.runs:
            world.notes.append(f"a pod ends when it loses a process that does not write: {replica.log[-600:]}")


async def writer_killed(world: World, chance: random.Random) -> None:
    """A pod's writer dies, half of the time while it spools: the pod ends with it, and is started again."""
    number, replica = _pick(world, chance)
    if chance.random() < 0.5:
        await _outage(world, chance, replica, chance.uniform(0, 0.4))
    await asyncio.sleep(chance.uniform(0, 0.3))
    writers = await _processes(replica, "writer")
    await _note(world, number)
    await _ends_with(world, replica, writers)


async def supervisor_killed(world: World, chance: random.Random) -> None:
    """The process that was started dies alone: all others of the pod die with it."""
    number, replica = _pick(world, chance)
    await asyncio.sleep(chance.uniform(0, 0.3))
    await _note(world, number)
    await _ends_with(world, replica, replica.family[:1])


async def _ends_with(world: World, replica: Replica, killed: list[int]) -> None:
    family = replica.family
    for pid in killed:
        send(pid, signal.SIGKILL)
    await replica.ended()
    for _ in range(500):
        if not (left := [pid for pid in family if alive(pid)]):
            break
        await asyncio.sleep(0.02)
    else:
        world.notes.append(f"processes of a pod outlive it: {left}")
    replica.launch()


async def process_frozen(world: World, chance: random.Random) -> None:
    """One process of a pod stands still for a while, and then continues."""
    number, replica = _pick(world, chance)
    role = chance.choice(("front", "reader", "writer", "supervisor"))
    frozen = replica.family[:1] if role == "supervisor" else (await _processes(replica, role))[:1]
    await asyncio.sleep(chance.uniform(0, 0.3))
    await _note(world, number)
    for pid in frozen:
        send(pid, signal.SIGSTOP)
    await asyncio.sleep(chance.choice((0.3, 1, 2, 4.5, 8)))
    for pid in frozen:
        send(pid, signal.SIGCONT)


async def several_at_once(world: World, chance: random.Random) -> None:
    """Several faults, each before the last one is over."""
    await _note(world)
    for _ in range(chance.choice((3, 4, 6))):
        number, replica = _pick(world, chance)
        between = world.proxies[number]
        match chance.randrange(4):
            case 0:
                await _harm_postgres(world.postgres, chance)
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
_POD = Needs(settings={"processes": 4})  # a writer, a reader and two fronts
_SYNCHRONOUS = Needs(cluster="synchronous", settings={"require_synchronous_standby": True})
_SMALL = 176  # MiB, for data, WAL and a recovery
_SINK = Needs(sink=True)
KINDS = {
    kind.name: kind
    for kind in (
        Kind("service killed in a flush", killed_in_flush),
        Kind("service killed while it spools", killed_in_append),
        Kind("service killed in replay", killed_in_replay),
        Kind("service killed in migration", killed_in_migration, Needs(postgres_only=True), own_world=True),
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
        Kind("reader storm", reader_storm, Needs(proxies=True)),
        Kind("pgbouncer killed", pgbouncer_killed, Needs(pgbouncer=True)),
        Kind("postgres turns read-only", server_turns_read_only),
        Kind("started without postgres", started_without_postgres),
        Kind("front killed", front_killed, _POD),
        Kind("reader killed", reader_killed, _POD),
        Kind("writer killed", writer_killed, _POD),
        Kind("supervisor killed", supervisor_killed, _POD),
        Kind("process frozen", process_frozen, _POD),
        Kind("several at once", several_at_once, Needs(proxies=True)),
        Kind("delivery: destination killed", delivery.destination_killed, _SINK),
        Kind("delivery: destination answers late", delivery.destination_late, _SINK),
        Kind("delivery: destination lies", delivery.destination_lies, _SINK),
        Kind("delivery: deliverer killed", delivery.deliverer_killed, _SINK),
        Kind("delivery: Postgres failed over", failover.primary_killed, Needs(cluster="synchronous", sink=True)),
        Kind("failover: primary killed", failover.primary_killed, _SYNCHRONOUS),
        Kind("failover: primary frozen", failover.primary_frozen, _SYNCHRONOUS),
        Kind("failover: network cut", failover.network_cut, _SYNCHRONOUS),
        Kind("failover: standby lags", failover.standby_lags, _SYNCHRONOUS),
        Kind("failover: switchover", failover.switched_over, _SYNCHRONOUS),
        Kind("failover: etcd away", failover.dcs_away, _SYNCHRONOUS),
        Kind("failover: twice", failover.twice, _SYNCHRONOUS),
        Kind("failover: asynchronous", failover.asynchronous, Needs(cluster="asynchronous"), loses=True),
    )
}
