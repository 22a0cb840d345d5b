"""The budget of bytes that all bodies share."""

import pytest

from app.api.body import SMALL_BYTES, ByteBudget, Reservation
from app.errors import BodiesFull

MIB = 1024 * 1024


def reserved(budget: ByteBudget, size: int) -> Reservation:
    made = Reservation(budget)
    made.add(size)
    return made


def fits(budget: ByteBudget, size: int) -> bool:
    try:
        reserved(budget, size)
    except BodiesFull:
        return False
    return True


def test_large_bodies_share_the_budget() -> None:
    """Withheld bodies fill the memory, or one that was refused or answered uses the budget for ever."""
    budget = ByteBudget(64 * MIB)
    held = [reserved(budget, 5 * MIB) for _ in range(11)]
    for _ in range(3):
        refused = Reservation(budget)
        with pytest.raises(BodiesFull):
            refused.add(5 * MIB)
        refused.release()
    held.pop().release()
    held.append(reserved(budget, 5 * MIB))
    for one in held:
        one.release()
        one.release()
    for _ in range(11):
        reserved(budget, 5 * MIB)


def test_a_large_body_that_is_alone_fits() -> None:
    """A batch that the limits allow is never accepted, since the budget is smaller, or small bodies are on their way."""
    budget = ByteBudget(MIB)
    small = reserved(budget, 1000)
    batch = reserved(budget, 50 * MIB)
    with pytest.raises(BodiesFull):
        reserved(budget, SMALL_BYTES + 1)
    reserved(budget, SMALL_BYTES).release()  # small ones go on
    batch.release()
    small.release()
    reserved(budget, 50 * MIB)


def test_small_bodies_find_space() -> None:
    """A few withheld bodies cost every event, or a crowd of small ones has no bound."""
    budget = ByteBudget(64 * MIB)
    for _ in range(11):
        reserved(budget, 5 * MIB)
    count = 0
    while fits(budget, SMALL_BYTES):
        count += 1
    assert count * SMALL_BYTES >= 8 * MIB
    assert 55 * MIB + count * SMALL_BYTES <= 64 * MIB


def test_a_body_that_grows() -> None:
    """A body of unknown length counts as small, or twice, once it has become large."""
    budget = ByteBudget(MIB)
    growing, other = Reservation(budget), reserved(budget, MIB)
    growing.add(SMALL_BYTES)
    with pytest.raises(BodiesFull):
        growing.add(1)
    assert growing.bytes == 0
    other.release()
    alone = Reservation(budget)
    for _ in range(100):
        alone.add(SMALL_BYTES)
    assert alone.bytes == 100 * SMALL_BYTES


def test_what_is_released_is_never_refused() -> None:
    """An answered request fails, since others use more than the budget."""
    budget = ByteBudget(MIB)
    small = [reserved(budget, SMALL_BYTES) for _ in range(16)]  # the whole budget
    reserved(budget, 50 * MIB)
    for one in small:
        one.release()
