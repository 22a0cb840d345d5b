"""Ids of events: random for a single event, derived for a request that can be sent again (docs/design.md, section 6)."""

import hashlib
from datetime import UTC, datetime, timedelta
from uuid import UUID

import orjson
from asyncpg.pgproto import pgproto

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)
_ARRIVAL_WINDOW = timedelta(minutes=10)
_48_BITS = (1 << 48) - 1


def random_event_id(now_ms: int, random: bytes) -> UUID:
    """UUIDv7 of `now_ms` (Unix milliseconds) and ten random bytes."""
    return _assemble(now_ms, random, version=7)


def derived_event_id(event_timestamp: datetime, caller: str, source: tuple[str, str], index: int) -> UUID:
    """UUIDv8 of item `index` of a request that can be sent again: the same in any replica, at any time, for the same caller.

    `source` is ("body", hex SHA-256 of the canonical form of the whole body), ("item", the same of the item alone) or ("key",
    the Idempotency-Key). The seed is
    the hash of a JSON array, so that texts that are split differently give different seeds. This never changes.
    """
    seed = hashlib.sha256(orjson.dumps([1, caller, *source, index])).digest()
    return _assemble((event_timestamp - EPOCH) // _MILLISECOND, seed, version=8)


def arrival_times(source: tuple[str, str], now: datetime) -> tuple[datetime, ...]:
    """What stands for the time in the ids of an item without one that arrives at `now`: in its own, then in those of other sends.

    Under an Idempotency-Key always 1970; else the start of the ten-minute window of arrival. Other sends of the same item may
    have arrived in the window before, or by another replica's clock in the one after. This never changes.
    """
    if source[0] == "key":
        return (EPOCH,)
    window = now - (now - EPOCH) % _ARRIVAL_WINDOW
    return window, window - _ARRIVAL_WINDOW, window + _ARRIVAL_WINDOW


def _assemble(ms: int, seed: bytes, version: int) -> UUID:
    """48 bits of time, then the first 74 bits of `seed` around version and variant 10."""
    bits = int.from_bytes(seed[:10], "big") >> 6
    high = (ms & _48_BITS) << 16 | version << 12 | bits >> 62
    low = 2 << 62 | bits & ((1 << 62) - 1)
    return pgproto.UUID((high << 64 | low).to_bytes(16, "big"))
