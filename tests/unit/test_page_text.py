"""What templates make of texts: nothing of an event is hidden, changed or lost on its way to a page."""

import json
from typing import Any
from unicodedata import category

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.pages.chart import HEIGHT, bars
from app.pages.login import target_of
from app.pages.text import indented, visible

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(JSON)
def test_indented_is_the_same_json(value: object) -> None:
    """Indenting changes a number, a string, or the order of members."""
    compact = json.dumps(value, ensure_ascii=False)
    assert json.loads(indented(compact)) == value
    assert indented(compact) == json.dumps(value, ensure_ascii=False, indent=2)


def test_indented_leaves_numbers_alone() -> None:
    """A number of the payload is rounded."""
    assert indented('{"a":1.10,"b":123456789012345678901234567890,"c":1E+400}').count("1.10") == 1
    assert "123456789012345678901234567890" in indented('{"b":123456789012345678901234567890}')


@given(JSON, st.integers(0, 100))
def test_indented_begins_the_same(value: object, most: int) -> None:
    """The beginning of a payload is another text than the whole has, or longer than asked; or nobody says that there is more."""
    compact = json.dumps(value, ensure_ascii=False)
    whole, beginning = indented(compact), indented(compact, most)
    assert beginning == whole if len(whole) <= most else beginning.startswith(f"{whole[:most]}… (")


def test_indented_looks_at_the_beginning_alone() -> None:
    """A table of large payloads is indented to their ends, while nobody else is answered."""
    json = f"[{'1,' * 1_000_000}1]"
    assert indented(json, 100).endswith("  1,\n  1… (1,999,963 more characters)")


@given(st.text())
def test_visible_hides_nothing(text: str) -> None:
    """A control, a direction or a surrogate reaches the page; or a text that anybody can see is changed."""
    shown = visible(text)
    assert {c for c in shown if not c.isprintable() and c not in "\n\t" and category(c) != "Zs"} == set()
    if text.isprintable():
        assert shown == text


def test_visible_escapes() -> None:
    """What turns a line around is not escaped."""
    assert visible("a\u202eb\x1b[31m\U000e0041") == "a\\u202eb\\u001b[31m\\U000e0041"


@given(st.lists(st.dictionaries(st.sampled_from(["success", "failure", "pending", ""]), st.integers(1, 10**6))))
def test_bars_fit(groups: list[dict[str, int]]) -> None:
    """A bar leaves the picture, or events of an outcome have no part in it."""
    buckets: list[dict[str, Any]] = [
        {"start": None, "end": _Time(), "events": sum(one.values()), "groups": one} for one in groups
    ]
    for bar, bucket in zip(bars(buckets), [one for one in buckets if one["events"]], strict=True):
        assert {part.name for part in bar.parts} >= {*bucket["groups"]} - {""}
        assert all(-0.01 <= part.y <= HEIGHT and part.height > 0 for part in bar.parts)
        assert sum(part.height for part in bar.parts) <= HEIGHT + 0.1


class _Time:
    def __sub__(self, other: object) -> "_Time":
        return self


@pytest.mark.parametrize(
    "sent",
    [
        *(
            "//evil.example",
            "https://evil.example/ui/",
            "/ui\\evil",
            "/ui/login?next=/ui/login",
            "/uix",
            "",
            "/ui/\n//x",
        ),
        *("/ui/../other", "/ui/events/..", "/ui/%2e%2E//evil.example/", "/ui/./../x?y", "/ui/.%2e"),
    ],
)
def test_nobody_is_sent_elsewhere(sent: str) -> None:
    """Who signs in ends up on another host, or on the form again."""
    assert target_of(sent) == "/ui"
    assert target_of("/ui/events?q=a/../b") == "/ui/events?q=a/../b"
