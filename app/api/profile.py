"""A profile of this process: stacks sampled for some seconds, in the format that speedscope and flamegraph.pl read."""

import asyncio
import sys
import threading
import time
from collections import Counter
from types import FrameType
from typing import Annotated

from pydantic import BaseModel, Field, ValidationError
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

PATH = "/debug/profile"
_INTERVAL_SECONDS = 0.005
_one_at_a_time = asyncio.Lock()


class Profile(BaseModel):
    """The parameters."""

    seconds: Annotated[float, Field(ge=0.1, le=60)] = 5


async def profile(request: Request) -> Response:
    """One line for each stack and how often it was seen. Meanwhile the process goes on, a few percent slower."""
    try:
        parameters = Profile(**request.query_params)
    except ValidationError:
        return PlainTextResponse("seconds: expected a number from 0.1 to 60\n", 400)
    async with _one_at_a_time:
        samples = await asyncio.to_thread(_sample, parameters.seconds)
    return PlainTextResponse("".join(f"{stack} {count}\n" for stack, count in samples.most_common()))


def _sample(seconds: float) -> Counter[str]:
    samples: Counter[str] = Counter()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for thread, frame in sys._current_frames().items():  # noqa: SLF001 -- the standard library has no other way
            if thread != threading.get_ident():
                samples[_stack(frame)] += 1
        time.sleep(_INTERVAL_SECONDS)
    return samples


def _stack(frame: FrameType | None) -> str:
    names: list[str] = []
    while frame is not None:
        names.append(f"{frame.f_globals.get('__name__', '?')}.{frame.f_code.co_name}")
        frame = frame.f_back
    return ";".join(reversed(names))
