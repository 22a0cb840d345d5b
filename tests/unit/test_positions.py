"""Sets of positions, held against Python's own sets."""

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
