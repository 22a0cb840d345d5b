"""How often one caller may read: counted in this process, told in the RateLimit fields of the IETF draft."""

import math
import time

from limits import RateLimitItem, parse
from limits.aio.storage import MemoryStorage
from limits.aio.strategies import MovingWindowRateLimiter

from app.errors import Fatal, RateLimited


class ReadLimit:
    """A moving window for each caller."""

    def __init__(self, rate: str) -> None:
        self._rate = parsed(rate)
        self._limiter = MovingWindowRateLimiter(MemoryStorage())
        self._policy = f'"reads";q={self._rate.amount};w={self._rate.get_expiry()}'

    async def take(self, who: str) -> dict[str, str]:
        """The fields that tell `who` what is left. RateLimited, with the same fields, when nothing was."""
        taken = await self._limiter.hit(self._rate, who)
        reset, remaining = await self._limiter.get_window_stats(self._rate, who)
        seconds = max(1, math.ceil(reset - time.time()))
        fields = {"RateLimit-Policy": self._policy, "RateLimit": f'"reads";r={remaining};t={seconds}'}
        if not taken:
            raise RateLimited(
                f"More than {self._rate.amount} reads in {self._rate.get_expiry()} s: wait {seconds} s.",
                headers=fields | {"Retry-After": str(seconds)},
            )
        return fields


def parsed(rate: str) -> RateLimitItem:
    """What a setting such as 600/minute means; Fatal if nothing."""
    try:
        return parse(rate)
    except ValueError:
        raise Fatal(f"DATASTORAGE_READ_RATE: expected a rate such as 600/minute or 50/second, got {rate!r}") from None
