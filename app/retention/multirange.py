"""Sets of positions in the log as Postgres writes an int8multirange: `{[0,5),[7,9)}`."""

from collections.abc import Iterable, Iterator

RANGES_MAX = 2_000
"""In one event, so that its payload stays well below its limit."""


def of(positions: Iterable[int]) -> str:
    """The multirange of single positions, in any order."""
    ranges: list[list[int]] = []
    for position in sorted(positions):
        if ranges and ranges[-1][1] == position:
            ranges[-1][1] = position + 1
        else:
            ranges.append([position, position + 1])
    return "{" + ",".join(f"[{first},{end})" for first, end in ranges) + "}"


def portions(text: str) -> Iterator[str]:
    """`text` in multiranges of at most RANGES_MAX ranges; an empty one is one portion."""
    ranges = text.strip("{}").replace("),[", ") [").split()
    for start in range(0, max(1, len(ranges)), RANGES_MAX):
        yield "{" + ",".join(ranges[start : start + RANGES_MAX]) + "}"


def count(text: str) -> int:
    """How many positions are in it."""
    pairs = (one.strip("[)").split(",") for one in text.strip("{}").replace("),[", ") [").split())
    return sum(int(end) - int(first) for first, end in pairs)
