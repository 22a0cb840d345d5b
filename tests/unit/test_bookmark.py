"""Bookmarks as headers carry them."""

import pytest

from app.bookmark import NOW, Bookmark, parse

LEAF = bytes.fromhex("0123456789abcdef")


def test_bookmark_comes_back_as_it_was_sent() -> None:
    """A client is shown less than it knows, since its bookmark is read as another one."""
    one = Bookmark(3, 4711, LEAF)
    assert str(one) == "3.4711.0123456789abcdef"
    assert parse(str(one)) == one


def test_log_without_events_has_none() -> None:
    """The bookmark of an empty log is one that no server can have."""
    assert str(Bookmark(0, -1, b"")) == NOW


@pytest.mark.parametrize(
    "text",
    [
        *("", NOW, "0", "0.1", "0.1.0123", "0.-1.0123456789abcdef", "40000.1.0123456789abcdef"),
        *("0.1.0123456789ABCDEF", "0.1.0123456789abcdef ", "\u0661.1.0123456789abcdef", f"0.{10**15}.0123456789abcdef"),
    ],
)
def test_what_is_no_bookmark_counts_as_now(text: str) -> None:
    """A bookmark that cannot be read is an error, overflows a column, or has a standby answer that has nothing."""
    assert parse(text) == NOW


def test_later_bookmark_is_greater() -> None:
    """Of two reads the one that has seen less decides what the next one shows."""
    assert max(Bookmark(0, 10, LEAF), Bookmark(1, 0, LEAF), Bookmark(0, 9, b"\xff" * 8)) == Bookmark(1, 0, LEAF)
