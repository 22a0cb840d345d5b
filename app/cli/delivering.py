"""`datastorage sink`: where sinks are, and what an operator orders about them. Works on the database; only `test` sends anything."""

import argparse
import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from app.cli import output
from app.cli.exits import Exit
from app.cli.parser import Commands, add_group
from app.errors import Fatal, NotFound, Usage
from app.terminal import visible

if TYPE_CHECKING:
    from collections.abc import Sequence

    from app.db import Connection
    from app.events.log import Log
    from app.settings import Settings
    from app.stream.sink import Sink
    from app.stream.sink_orders import SinkOrder

_NOWHERE = "There is no sink, or none has delivered yet."


def add(commands: Commands) -> None:
    acts = add_group(commands, "sink", "where events are delivered to, and how far each destination is")
    listing = acts.add_parser("list", help="every sink: its state, its place, and how far it is behind")
    listing.description = (
        "Exit code 1: a destination does not confirm what it is sent, or the file of sinks is not valid."
    )
    listing.set_defaults(run=_list)
    output.add_output(listing)
    for name, run, text in (
        ("pause", _pause, "stop delivering; what is purged waits for it"),
        ("resume", _resume, "go on after a pause"),
        ("rewind", _rewind, "deliver again from a place, or from another one on"),
        ("remove", _remove, "forget how far a sink is, so that nothing waits for it any more"),
        ("test", _test, "send one made-up event, and show what the destination answers"),
    ):
        command = acts.add_parser(name, help=text)
        command.add_argument("name", help="of the sink")
        if name == "rewind":
            command.add_argument("to", metavar="PLACE", help="start, now, or LOG:POSITION, such as 0:4711")
        if name == "test":
            command.description = (
                "Needs DATASTORAGE_SINKS and its secrets, and no database. Exit code 1: not confirmed."
            )
        else:
            command.add_argument("--reason", help="why; it stands in the log")
            command.add_argument("--by", default="datastorage sink", help="who orders it; it stands in the log")
        output.add_output(command)
        command.set_defaults(run=run)


def _list(arguments: argparse.Namespace) -> Exit:
    from app.cli.database import settings_with_database

    settings = settings_with_database()
    configured, fault = _configured(settings)
    states = asyncio.run(_on_database(_states, settings))
    listed = [one.listed() for one in states]
    names = {one["name"] for one in listed}
    for one in listed:
        if configured is not None and one["name"] not in {sink.name for sink in configured}:
            one["state"] = "not configured"
    new = [sink for sink in configured or () if sink.name not in names]
    listed += [{"name": sink.name, "type": _type(sink), "address": sink.address, "state": "new"} for sink in new]

    def table(out: output.Output) -> None:
        head = ["sink", "type", "address", "state", "place", "behind", "for", "delivered", "last error"]
        out.table(head, [_row(one) for one in listed])

    output.show_list(arguments, listed, table, _NOWHERE)
    if fault:
        output.note(fault)
    is_failing = any(one["state"] == "failing" for one in listed)
    return Exit.DEFECT if fault or is_failing else Exit.AS_ASKED


def _row(one: dict[str, Any]) -> list[str]:
    events, seconds = one.get("lag_events"), one.get("lag_seconds")
    behind = "" if events is None else f"{events:,} events"
    delivered = one.get("delivered_at", "")[:19]
    return [
        *(one["name"], one["type"], one["address"], one["state"], one.get("place", ""), behind),
        *("" if seconds is None else f"{seconds:.0f} s", delivered, one.get("last_error", "")),
    ]


def _configured(settings: "Settings") -> "tuple[Sequence[Sink] | None, str]":
    """The sinks of the file, or None where this command knows of none; and what is wrong with it."""
    from app.stream.sinks import read_sinks

    if settings.sinks is None:
        return None, ""
    try:
        return read_sinks(settings.sinks), ""
    except Fatal as error:
        return None, error.detail


def _type(sink: "Sink") -> str:
    return str(getattr(sink, "type", ""))


async def _states(connection: "Connection", log: "Log") -> list[Any]:
    from app.stream.cursor import read_states

    del log
    return [*await read_states(connection)]


def _pause(arguments: argparse.Namespace) -> None:
    _set_paused(arguments, "Paused. Retention waits for it: nothing behind its place is purged.", paused=True)


def _resume(arguments: argparse.Namespace) -> None:
    _set_paused(arguments, "It goes on.", paused=False)


def _set_paused(arguments: argparse.Namespace, text: str, *, paused: bool) -> None:
    from app.cli.database import settings_with_database
    from app.stream import sink_orders

    settings = settings_with_database()

    async def order(_: "Connection", log: "Log") -> bool:
        return await sink_orders.set_paused(settings, log, _order(arguments), paused=paused)

    if asyncio.run(_on_database(order, settings)):
        _show(arguments, text)
    else:
        _show(arguments, "It is paused already." if paused else "It was not paused.")


def _rewind(arguments: argparse.Namespace) -> None:
    from app.cli.database import settings_with_database
    from app.stream import sink_orders
    from app.stream.place import parse_place, place_text
    from app.stream.portion import LogReader
    from app.tlog.continued import find_log

    settings, to = settings_with_database(), arguments.to
    if to not in {"start", "now"}:
        try:
            parse_place(to)
        except ValueError as error:
            raise Usage(f"PLACE: {error}, start or now") from None

    async def order(connection: "Connection", log: "Log") -> str:
        end = await LogReader(log, find_log(settings)).end(connection)
        place = {"start": 0, "now": end}.get(to)
        place = parse_place(to) if place is None else place
        if place > end:
            raise Usage(f"PLACE: the log ends at {place_text(end)}")
        await sink_orders.rewind(settings, log, _order(arguments), place)
        return place_text(place)

    place = asyncio.run(_on_database(order, settings))
    _show(arguments, f"It goes on from {place}. What was purged from there on is delivered as absent.", place=place)


def _remove(arguments: argparse.Namespace) -> None:
    from app.cli.database import settings_with_database
    from app.stream import sink_orders

    settings = settings_with_database()

    async def order(_: "Connection", log: "Log") -> None:
        await sink_orders.remove(settings, log, _order(arguments))

    asyncio.run(_on_database(order, settings))
    _show(arguments, "Forgotten. If it is still in the file of sinks, it begins anew, where its `from` says.")


def _order(arguments: argparse.Namespace) -> "SinkOrder":
    from app.stream.sink_orders import SinkOrder

    return SinkOrder(arguments.name, arguments.by, arguments.reason)


def _show(arguments: argparse.Namespace, text: str, **members: str) -> None:
    with output.shown(arguments) as out:
        if out.is_json:
            out.document({"name": arguments.name} | members)
        else:
            out.line(f"{arguments.name}: {text}")


async def _on_database(work: "Callable[[Connection, Log], Awaitable[Any]]", settings: "Settings") -> Any:
    async with _database(settings) as (connection, log):
        return await work(connection, log)


@asynccontextmanager
async def _database(settings: "Settings") -> "AsyncIterator[tuple[Connection, Log]]":
    from app import db
    from app.retention.logged import read_open_log

    connection = await db.connect(settings)
    try:
        yield connection, await read_open_log(connection, settings)
    finally:
        await connection.close()


def _test(arguments: argparse.Namespace) -> Exit:
    from app.events.log import Log
    from app.settings import load
    from app.stream.made_up import made_up_delivery
    from app.stream.sinks import read_sinks

    settings = load()
    if settings.sinks is None:
        raise Usage("DATASTORAGE_SINKS names no file of sinks.")
    sinks = {sink.name: sink for sink in read_sinks(settings.sinks)}
    if arguments.name not in sinks:
        raise NotFound(f"{settings.sinks} has no sink {visible(arguments.name)}, only {', '.join(sinks) or 'none'}.")
    sink = sinks[arguments.name]
    delivery = made_up_delivery(sink, Log(0, settings.log_name or "test"))
    failure = asyncio.run(_try(sink, delivery))
    with output.shown(arguments) as out:
        if out.is_json:
            out.document(
                {"name": sink.name, "address": sink.address, "id": delivery.id, "confirmed": not failure} | failure
            )
        else:
            answer = f"not confirmed: {failure['error']}" if failure else f"confirmed, as {delivery.id}"
            out.line(f"{sink.name} ({sink.address}): {answer}")
    return Exit.DEFECT if failure else Exit.AS_ASKED


async def _try(sink: "Sink", delivery: Any) -> dict[str, str]:
    """Send it once. What went wrong, as `error`; empty if nothing did."""
    from app.stream.deliver import reason

    destination = sink.destination()
    try:
        await destination.deliver(delivery)
    except Exception as error:  # noqa: BLE001 -- a destination's library may raise anything; here it is the answer
        return {"error": reason(error)}
    finally:
        await destination.close()
    return {}
