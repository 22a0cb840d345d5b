"""The kinds of fault of a cluster under Patroni: each ends with another primary, or with one that nothing may be acknowledged from."""

import asyncio
import json
import os
import random
import signal
import sys
import time
import urllib.request
from contextlib import suppress
from urllib.error import HTTPError

from tests.services import ROOT
from tests.torture.patroni import Cluster, Node, Promotion
from tests.torture.postgres import send
from tests.torture.world import Replica, Unwell, World

NAMED_SECONDS = 5.0
"""How long a loss may stay unnamed after the promotion."""
_CONTINUE_SECONDS = 90.0
_FIRST_201_SECONDS = 150.0  # the next standby may have to be rewound first
_POLL_SECONDS = 0.05


def _cluster(world: World) -> Cluster:
    assert isinstance(world.postgres, Cluster)
    return world.postgres


async def _begin(world: World, chance: random.Random) -> tuple[Cluster, Node]:
    """The cluster and its primary, once enough requests are in flight and both standbys may be promoted."""
    cluster = _cluster(world)
    await cluster.start()
    primary = await cluster.primary()
    await asyncio.sleep(chance.uniform(0, 0.5))
    world.in_flight = max(world.in_flight, await world.load.full())
    return cluster, primary


async def _note_first_201(world: World, promotion: Promotion) -> Node:
    """Wait for the promotion, and for the first answer 201 after it."""
    node, at = await promotion.done()
    with suppress(TimeoutError):
        async with asyncio.timeout(_FIRST_201_SECONDS):
            while not (after := [one for one in world.load.committed if one > at]):
                await asyncio.sleep(_POLL_SECONDS)
            world.first_201.append(after[0] - at)
            return node
    world.notes.append(f"nothing is answered 201 for {_FIRST_201_SECONDS:.0f} s after a promotion")
    return node


async def primary_killed(world: World, chance: random.Random) -> None:
    """The whole node, or its Postgres alone, dies by SIGKILL."""
    cluster, primary = await _begin(world, chance)
    promotion = Promotion(cluster, primary)
    if chance.random() < 0.5:
        primary.kill()
        await cluster.expire()
    else:
        for pid in primary.postgres:
            send(pid, signal.SIGKILL)
    await _note_first_201(world, promotion)


async def primary_frozen(world: World, chance: random.Random) -> None:
    """The node stops, another one is promoted, and then it goes on where it was, with the connections that it had."""
    cluster, primary = await _begin(world, chance)
    promotion = Promotion(cluster, primary)
    primary.signal(signal.SIGSTOP)
    await cluster.expire()
    if chance.random() < 0.5:
        await _note_first_201(world, promotion)
        primary.signal(signal.SIGCONT)
    else:
        await promotion.done()
        await asyncio.sleep(chance.uniform(0, 1))
        primary.signal(signal.SIGCONT)
        await _note_first_201(world, promotion)
    await asyncio.sleep(chance.uniform(0.5, 2))


async def network_cut(world: World, chance: random.Random) -> None:
    """Standbys do not reach the primary, which clients do reach. Half of the time it does not notice, either, that another one is promoted."""
    cluster, primary = await _begin(world, chance)
    # A Patroni that sees its standbys go takes them out of those that may be promoted: then there is no failover at all.
    if unnoticed := chance.random() < 0.6:
        for pid in primary.patroni:
            send(pid, signal.SIGSTOP)
    if chance.random() < 0.5:
        primary.between.silent = True
    else:
        await primary.between.refuse(True)
    await asyncio.sleep(chance.uniform(0, 2))
    if not unnoticed:
        await asyncio.sleep(chance.uniform(0.5, 3))
        return
    promotion = Promotion(cluster, primary)
    await cluster.expire()
    await promotion.done()
    await asyncio.sleep(chance.uniform(0.5, 3))
    for pid in primary.patroni:
        send(pid, signal.SIGCONT)
    await _note_first_201(world, promotion)


async def standby_lags(world: World, chance: random.Random) -> None:
    """One standby, or both, stand still for a while."""
    cluster, primary = await _begin(world, chance)
    standbys = [node for node in cluster.nodes if node is not primary]
    frozen = chance.choice((standbys[:1], standbys[1:], standbys, standbys))
    for node in frozen:
        for pid in node.postgres:
            send(pid, signal.SIGSTOP)
    await asyncio.sleep(chance.choice((0.3, 1.5, 3, 6)))
    for node in frozen:
        node.signal(signal.SIGCONT)


async def switched_over(world: World, chance: random.Random) -> None:
    """`patronictl switchover`."""
    cluster, primary = await _begin(world, chance)
    promotion = Promotion(cluster, primary)
    await cluster.switch_over(primary)
    await _note_first_201(world, promotion)


async def dcs_away(world: World, chance: random.Random) -> None:
    """etcd stands still until Patroni has demoted its primary, or not quite as long."""
    cluster, _ = await _begin(world, chance)
    cluster.freeze_dcs()
    await asyncio.sleep(chance.choice((2, 8, 12)))
    cluster.thaw()


async def twice(world: World, chance: random.Random) -> None:
    """The new primary dies as soon as it is one, or somewhat later, while the first one comes back."""
    cluster, primary = await _begin(world, chance)
    promotion = Promotion(cluster, primary)
    primary.kill()
    await cluster.expire()
    second, _ = await promotion.done()
    cluster.launch()
    await asyncio.sleep(chance.choice((0, 0.3, 2, 5)))
    promotion = Promotion(cluster, second)
    if frozen := chance.random() < 0.5:
        second.signal(signal.SIGSTOP)
    else:
        second.kill()
    await cluster.expire()
    if not frozen:
        await asyncio.sleep(chance.uniform(0, 1))
        cluster.launch()
    elif chance.random() < 0.5:
        await promotion.done()  # continued earlier it takes its lock again, and nobody is promoted
        await asyncio.sleep(chance.uniform(0, 1))
        second.signal(signal.SIGCONT)
    await _note_first_201(world, promotion)


async def asynchronous(world: World, chance: random.Random) -> None:
    """The primary dies with what its standbys have not got, after some of it was signed: that has to be named, and there is a way on."""
    cluster, primary = await _begin(world, chance)
    alarms = [await _alarms(replica) for replica in world.replicas]
    primary.between.silent = True
    await asyncio.sleep(chance.uniform(1, 2))
    await _signed_more(world)
    promotion = Promotion(cluster, primary)
    primary.kill()
    await cluster.expire()
    _, at = await promotion.done()
    named = await asyncio.gather(*map(_named, world.replicas, alarms))
    world.named.append(max(named) - at)
    if world.named[-1] > NAMED_SECONDS:
        world.notes.append(f"the loss is named {world.named[-1]:.1f} s after the promotion")
    await cluster.start()
    await _continue(world)


async def _signed_more(world: World) -> None:
    """Wait for a checkpoint that covers what standbys have not got."""
    before = max([await replica.metric("datastorage_checkpoint_size") or 0 for replica in world.replicas])
    async with asyncio.timeout(60):
        while max([await replica.metric("datastorage_checkpoint_size") or 0 for replica in world.replicas]) <= before:
            await asyncio.sleep(_POLL_SECONDS)


async def _alarms(replica: Replica) -> float:
    return sum(float(line.rpartition(" ")[2]) for line in await replica.lines("datastorage_log_alarms_total{"))


async def _named(replica: Replica, alarms: float) -> float:
    """When the replica raises an alarm, of its writer or its signer."""
    try:
        async with asyncio.timeout(60):
            while await _alarms(replica) <= alarms:
                await asyncio.sleep(_POLL_SECONDS)
    except TimeoutError:
        raise Unwell(f"the loss is not named: {await _probe(replica)} {replica.log[-1500:]}") from None
    return time.monotonic()


async def _continuation_needed(replica: Replica) -> bool:
    return "continuation_needed" in await _probe(replica)


async def _probe(replica: Replica) -> dict[str, object]:
    return await asyncio.to_thread(_readyz, f"{replica.url}/readyz")


def _readyz(url: str) -> dict[str, object]:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            body: dict[str, object] = json.load(answer)
            return body
    except HTTPError as error:
        refusal: dict[str, object] = json.loads(error.read())
        return refusal
    except (OSError, ValueError):
        return {}


async def _continue(world: World) -> None:
    """`datastorage log continue`, as soon as signing is refused; then wait until the next log is signed."""
    replica, deadline = world.replicas[0], time.monotonic() + _CONTINUE_SECONDS
    while not any([await _continuation_needed(one) for one in world.replicas]):
        if time.monotonic() > deadline:
            raise Unwell(f"nothing contradicts what was signed: {replica.log[-1500:]}")
        await asyncio.sleep(_POLL_SECONDS)
    env = os.environ | {
        "DATASTORAGE_DATABASE_URL": world.database_url,
        "DATASTORAGE_RETENTION_URL": world.database_url,
        "DATASTORAGE_CHECKPOINT_KEY_FILE": str(world.key_file),
        "PYTHONPATH": str(ROOT),
    }
    words = ["log", "continue", "--reason", "torture", "--by", "torture"]
    for copies in (one.directory / "checkpoints" for one in world.replicas):
        if copies.exists():
            words += ["--checkpoint", str(copies)]
    while True:
        command = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "app", *words),
            cwd=replica.directory,
            env=env,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output, _ = await command.communicate()
        if command.returncode == 0:
            break
        if time.monotonic() > deadline:
            raise Unwell(f"the log cannot be continued: {output.decode()[-1500:]}")
        await asyncio.sleep(1)
    while any([await _continuation_needed(one) for one in world.replicas]):
        if time.monotonic() > deadline:
            raise Unwell(
                f"the next log is not signed: {[await _probe(one) for one in world.replicas]} {replica.log[-1500:]}"
            )
        await asyncio.sleep(_POLL_SECONDS)


async def forks(world: World) -> int:
    """How many replicas say that the log contradicts what was signed or seen of it."""
    found = 0
    for replica in world.replicas:
        alarms = await replica.lines("datastorage_log_alarms_total{")
        if any(float(line.rpartition(" ")[2]) for line in alarms):
            found += 1
            world.notes.append(f"alarms of the log: {alarms}")
    return found
