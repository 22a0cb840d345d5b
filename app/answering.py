"""Whether the network leads to Postgres already: asked before a connection is opened at the start, when the way there may be new too."""

import asyncio
import contextlib
import itertools
import socket
from time import monotonic
from typing import Any

from app.database_url import CannotConnect, parse

_AGAIN_SECONDS = 0.5


async def wait_for_an_answer(url: str, *, seconds: float) -> None:
    """Return once the only host of the URL takes a TCP connection or refuses it; at once if there are several hosts, or a socket.

    A network that is being set up loses packets, and TCP repeats the first one only after one second and after three. So another
    connection is begun each half second beside those that nothing has come of. For all else that fails at once the way is not what
    is missing: the one who connects finds out. Raises CannotConnect if nothing answers for the URL's connect_timeout, else for `seconds`.
    """
    target = parse(url)
    host, port = target.hosts[0]
    if len(target.hosts) > 1 or host.startswith("/"):
        return
    limit = seconds if target.connect_seconds is None else target.connect_seconds or None
    tries: set[asyncio.Task[bool]] = set()
    try:
        async with asyncio.timeout(limit):
            found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
            for family, _, _, _, address in itertools.cycle(found):
                tries.add(asyncio.create_task(_is_answered(family, address)))
                ended, tries = await asyncio.wait(tries, timeout=_AGAIN_SECONDS, return_when=asyncio.FIRST_COMPLETED)
                if any(one.result() for one in ended):
                    return
    except TimeoutError:
        raise CannotConnect(f"{host}:{port}: no answer within {limit:g} s") from None
    except socket.gaierror:
        return
    finally:
        for one in tries:
            one.cancel()


async def _is_answered(family: int, address: tuple[Any, ...]) -> bool:
    """False if it failed after a while, as where nobody on the way knows the host any more."""
    began = monotonic()
    with contextlib.closing(socket.socket(family, socket.SOCK_STREAM)) as knocking:
        knocking.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(knocking, address)
        except ConnectionRefusedError:
            return True
        except OSError:
            return monotonic() - began < _AGAIN_SECONDS
    return True
