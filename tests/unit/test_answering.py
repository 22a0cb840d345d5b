"""The way to Postgres at the start: whoever loses the first packet does not wait until TCP sends it again."""

import asyncio
import socket
from asyncio.selector_events import BaseSelectorEventLoop
from collections.abc import Iterator
from typing import Any

import pytest

from app.answering import wait_for_an_answer
from app.database_url import CannotConnect


@pytest.fixture
def lossy(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What becomes of connections, in turn: `lost`, `late` (no route after a while), else as ever. Empty: all are lost."""
    fates: list[str] = []
    connect = BaseSelectorEventLoop.sock_connect

    async def sock_connect(self: BaseSelectorEventLoop, sock: socket.socket, address: tuple[Any, ...]) -> None:
        fate = fates.pop(0) if fates else "lost"
        if fate == "lost":
            await asyncio.Event().wait()
        if fate == "late":
            await asyncio.sleep(0.6)
            raise OSError(113, "No route to host")
        await connect(self, sock, address)

    monkeypatch.setattr(BaseSelectorEventLoop, "sock_connect", sock_connect)
    return fates


@pytest.fixture
def listening() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.mark.parametrize("fates", [["ok"], ["lost", "ok"], ["late", "lost", "ok"]])
async def test_another_try_beside_those_without_answer(lossy: list[str], listening: int, fates: list[str]) -> None:
    """A packet that was lost, or a host that is not known any more, delays the start for as long as the network likes."""
    lossy += fates
    await wait_for_an_answer(f"postgresql://u@127.0.0.1:{listening}/d", seconds=60)
    assert not lossy


async def test_refusal_is_an_answer(lossy: list[str]) -> None:
    """The start waits for a Postgres that is known not to listen, instead of saying so."""
    lossy.append("ok")
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))  # and does not listen
        await wait_for_an_answer(f"postgresql://u@127.0.0.1:{silent.getsockname()[1]}/d", seconds=60)
    assert not lossy


@pytest.mark.usefixtures("lossy")
async def test_nothing_answers(listening: int) -> None:
    """The start waits for ever, and takes nothing into its spool."""
    with pytest.raises(CannotConnect, match=rf"127\.0\.0\.1:{listening}: no answer within 0\.7 s"):
        await wait_for_an_answer(f"postgresql://u@127.0.0.1:{listening}/d", seconds=0.7)


@pytest.mark.usefixtures("lossy")
@pytest.mark.parametrize("hosts", ["a,b", "", "host.invalid"])
async def test_nobody_is_asked(hosts: str) -> None:
    """Several hosts, a socket, or a name that nobody knows: the connection itself finds out, and says it in its words."""
    await wait_for_an_answer(f"postgresql://u@{hosts}/d" + ("" if hosts else "?host=/run/postgresql"), seconds=60)
