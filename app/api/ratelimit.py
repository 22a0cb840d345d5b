"""How often one caller may read: counted in this process, shown in the RateLimit fields of the IETF httpapi draft."""

import math
import time

from limits import RateLimitItem, parse
from limits.aio.storage import MemoryStorage
from limits.aio.strategies import MovingWindowRateLimiter

from app.errors import Fatal, RateLimited


class ReadLimit:
    """A moving window for each caller."""

    def __init__(self, rate: str) -> None:
        self._rate = parse_rate(rate)
        self._limiter = MovingWindowRateLimiter(MemoryStorage())
        self._policy = f'"reads";q={self._rate.amount};w={self._rate.get_expiry()}'

    async def count(self, caller: str) -> dict[str, str]:
        """Count one read of `caller`. Returns header fields with what is left; RateLimited, with the same fields, at the limit."""
        is_allowed = await self._limiter.hit(self._rate, caller)
        reset, remaining = await self._limiter.get_window_stats(self._rate, caller)
        seconds = max(1, math.ceil(reset - time.time()))
        fields = {"RateLimit-Policy": self._policy, "RateLimit": f'"reads";r={remaining};t={seconds}'}
        if not is_allowed:
            raise RateLimited(
                f"More than {self._rate.amount} reads in {self._rate.get_expiry()} s: wait {seconds} s.",
                headers=fields | {"Retry-After": str(seconds)},
            )
        return fields


def parse_rate(rate: str) -> RateLimitItem:
    """The rate that a setting such as 600/minute means; Fatal if it is not a rate."""
    try:
        return parse(rate)
    except ValueError:
        raise Fatal(f"DATASTORAGE_READ_RATE: expected a rate such as 600/minute or 50/second, got {rate!r}") from None
