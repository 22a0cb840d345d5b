"""Moments as Postgres writes them in UTC (`timezone('UTC', x)::text`): a row inserted by SQL may hold one that Python does not know."""

import re

_RFC3339 = re.compile(r"\d{4}-[\d:T .-]+$")


def zulu(moment: str) -> str | None:
    """RFC 3339, or None for what it has no form for: NULL, and the infinities and years that only SQL can write."""
    return moment.replace(" ", "T", 1) + "Z" if _RFC3339.match(moment) else None


def nearest(moment: str) -> str:
    """RFC 3339, for what it has no form for the time closest to it."""
    return zulu(moment) or (
        "0001-01-01T00:00:00Z" if moment.startswith("-") or moment.endswith("BC") else "9999-12-31T23:59:59.999999Z"
    )
