"""Sets of positions, compared with Python's own sets, and their text."""

import itertools
from random import Random

import pytest

from app.events.positions import Positions


@pytest.mark.parametrize("seed", range(50))
def test_like_a_set(seed: int) -> None:
    """A position is counted twice, or not, or beyond the range that was asked for."""
    random = Random(seed)
    first, second = (
        Positions((low, low + random.randint(0, 4)) for low in random.choices(range(40), k=random.randint(0, 9)))
        for _ in range(2)
    )
    one, other = ({n for low, high in p.ranges for n in range(low, high)} for p in (first, second))
    assert {n for n in range(-2, 50) if n in first} == one
    assert {n for low, high in first.without(second).ranges for n in range(low, high)} == one - other
    for low in range(-2, 50):
        for high in range(-2, 50):
            asked = one & set(range(low, high))
            assert first.count(low, high) == len(asked)
            assert [n for a, b in first.within(low, high) for n in range(a, b)] == sorted(asked)


def test_text_of_single_positions() -> None:
    """A self event names positions that were not purged, or leaves one out, or is too large for its payload."""
    for numbers in itertools.chain.from_iterable(itertools.combinations(range(7), size) for size in range(8)):
        positions = Positions.of(numbers)
        assert positions.size == Positions.parse(str(positions)).size == len(numbers)
        assert "".join(map(str, positions.portions())) == str(positions)
    assert str(Positions.of([3, 1, 2, 7])) == "{[1,4),[7,8)}"
    portions = list(Positions.of(range(0, 10_000, 2)).portions())
    assert [portion.size for portion in portions] == [2000, 2000, 1000]
