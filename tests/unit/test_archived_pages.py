"""Pages of what is in Postgres and of what is in the archive alone, wherever either of them had to end."""

import random
from typing import Any
from uuid import UUID

from app.api.archived import merged
from app.archive.reading import ArchivedEvents, key_of
from app.query.cursor import Cursor
from app.query.page import KeyedEvent, KeyedPage, Page


def event(key: Cursor, **more: Any) -> dict[str, Any]:
    date = key.event_timestamp[:10]
    return {"event_id": str(key.event_id), "event_date": date, "correlation_id": "rr-1"} | more


def events_of(pick: random.Random, count: int) -> list[Cursor]:
    """Keys, newest first, several with the same time."""
    keys = {
        Cursor(f"2026-01-0{pick.randint(1, 3)}T00:00:0{pick.randint(0, 3)}", UUID(int=pick.getrandbits(128)))
        for _ in range(count)
    }
    return sorted(keys, key=key_of, reverse=True)


def walked(pick: random.Random, stored: list[Cursor], archived: list[Cursor], limit: int) -> list[tuple[UUID, bool]]:
    """The ids of all pages, and whether each is of the archive."""
    found, cursor = list[tuple[UUID, bool]](), None
    for _ in range(10_000):
        page = page_of(pick, stored, archived, limit, cursor)
        found += [(UUID(one["event_id"]), "archive_id" in one) for one in page.events]
        assert len(page.events) <= limit
        assert (page.scanned_until is not None) == (page.next_cursor is not None and len(page.events) < limit)
        if page.next_cursor is None:
            return found
        assert isinstance(page.next_cursor, Cursor)
        assert cursor is None or key_of(page.next_cursor) < key_of(cursor)
        cursor = page.next_cursor
    raise AssertionError("pages do not end")


def page_of(
    pick: random.Random, stored: list[Cursor], archived: list[Cursor], limit: int, cursor: Cursor | None
) -> Page:
    """A page, for which either reading may end early, as it pleases."""
    left = [one for one in stored if cursor is None or key_of(one) < key_of(cursor)]
    taken = left[: limit if pick.random() < 0.5 else pick.randint(1, limit)]
    page = KeyedPage(
        [KeyedEvent(one, event(one)) for one in taken],
        taken[-1] if len(taken) < len(left) else None,
        len(taken) < limit,
    )
    others = [
        one
        for one in archived
        if (cursor is None or key_of(one) < key_of(cursor)) and (page.end is None or key_of(one) >= key_of(page.end))
    ]
    some = others[: limit + 1 if pick.random() < 0.5 else pick.randint(1, limit)]
    end = some[-1] if len(some) < len(others) else None
    return merged(limit, page, ArchivedEvents([(one, event(one, archive_id="x")) for one in some], end))


def test_each_event_once_in_one_order() -> None:
    """An event is left out, or comes twice, where one of the two readings ended before the other."""
    for seed in range(300):
        pick = random.Random(seed)
        every = events_of(pick, pick.randint(0, 40))
        stored = [one for one in every if pick.random() < 0.6]
        archived = [one for one in every if one not in stored or pick.random() < 0.3]
        expected = [(one.event_id, one not in stored) for one in every]
        assert walked(pick, stored, archived, pick.randint(1, 12)) == expected, seed


def test_times_that_python_has_not() -> None:
    """A row of another age, which only SQL can have inserted, stands where Postgres has it, and no page ends there for ever."""
    odd = [Cursor("infinity", UUID(int=1)), Cursor("20000-01-01T00:00:00", UUID(int=9))]
    early = [Cursor("0044-03-15T00:00:00 BC", UUID(int=3)), Cursor("-infinity", UUID(int=2))]
    archived = [
        (
            Cursor("2026-01-01T00:00:00", UUID(int=5)),
            {**event(Cursor("2026-01-01T00:00:00", UUID(int=5))), "archive_id": "x"},
        )
    ]
    page = KeyedPage([KeyedEvent(one, event(one)) for one in [*odd, *early]], None, is_cut=False)
    found = merged(10, page, ArchivedEvents(archived, None))
    assert [UUID(one["event_id"]).int for one in found.events] == [1, 9, 5, 3, 2]
    assert found.next_cursor is None
    first = merged(1, page, ArchivedEvents(archived, None))
    assert first.next_cursor == odd[0]


def test_one_that_others_inserted_hides_nothing() -> None:
    """Whoever may insert rows hides an event of the archive behind one with its id."""
    key = Cursor("2026-01-01T00:00:00", UUID(int=5))
    archived = ArchivedEvents([(key, event(key, archive_id="x"))], None)
    for more, count in ({"sealed": False}, 2), ({}, 1):
        page = KeyedPage([KeyedEvent(key, event(key, **more))], None, is_cut=False)
        assert len(merged(10, page, archived).events) == count
