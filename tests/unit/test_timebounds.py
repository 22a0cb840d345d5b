"""The forms in which a filter names a time."""

from datetime import UTC, datetime

import pytest

from app.query.timebounds import parse_time, parse_zone

NOW = datetime(2026, 3, 30, 0, 30, tzinfo=UTC)  # in Berlin the day after its clocks went forward
BERLIN = parse_zone("Europe/Berlin")
FORMS = {
    "2h": "2026-03-29T22:30:00",
    "3d": "2026-03-27T00:30:00",
    "1h30m": "2026-03-29T23:00:00",
    "2026-01-31": "2026-01-30T23:00:00",
    "2026-01-31T12:00:00": "2026-01-31T11:00:00",
    "2026-07-31T12:00:00.5": "2026-07-31T10:00:00.500000",
    "2026-01-31T12:00:00Z": "2026-01-31T12:00:00",
    "2026-01-31T12:00": "2026-01-31T11:00:00",
    "2026-01-31T12:00Z": "2026-01-31T12:00:00",
    "2026-01-31T12:00+05:30": "2026-01-31T06:30:00",
    "2026-01-31T12:00:00-05:00": "2026-01-31T17:00:00",
    "today": "2026-03-29T22:00:00",
    "yesterday": "2026-03-28T23:00:00",
}
ENDS = {
    "today": "2026-03-30T21:59:59.999999",
    "yesterday": "2026-03-29T21:59:59.999999",
    "2026-01-31": "2026-01-30T23:00:00",
}


def test_forms() -> None:
    """A time is read in the wrong zone, or a day that the clocks change on has the wrong length."""
    assert {text: f"{parse_time(text, NOW, BERLIN):%Y-%m-%dT%H:%M:%S.%f}" for text in FORMS} == {
        text: f"{datetime.fromisoformat(time):%Y-%m-%dT%H:%M:%S.%f}" for text, time in FORMS.items()
    }
    assert {text: parse_time(text, NOW, BERLIN, is_end=True) for text in ENDS} == {
        text: datetime.fromisoformat(time).replace(tzinfo=UTC) for text, time in ENDS.items()
    }
    assert parse_time("today", NOW) == datetime(2026, 3, 30, tzinfo=UTC)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "tomorrow",
        "Today",
        "2026-02-30",
        "2026-01-31 12:00:00",
        "2026-01-31T12",
        "2026-01-31T24:30",
        "1d12h",
        "0001-01-01",
        "9999999d",
        "-2d",
    ],
)
def test_no_time(text: str) -> None:
    """What nobody can mean as a time is read as one, or is an error that is answered 500."""
    with pytest.raises(ValueError, match="invalid time format"):
        parse_time(text, NOW, BERLIN)


@pytest.mark.parametrize(
    "name", ["Berlin", "../../etc/passwd", "/etc/localtime", "Europe", "Europe/", "", "a\nb", "CET/x"]
)
def test_no_zone(name: str) -> None:
    """The name of no zone reads a file, or is an error that is answered 500."""
    with pytest.raises(ValueError, match="expected the name of a time zone"):
        parse_zone(name)
