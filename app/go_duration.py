"""Durations as Go parses and prints them, as whole nanoseconds."""

import re

_PART = r"(?:([0-9]+)(?:\.([0-9]*))?|\.([0-9]+))(ns|us|µs|μs|ms|s|m|h)"  # both letters that look like a micro sign
_DURATION = re.compile(rf"([-+]?)((?:{_PART})+)")
_PARTS = re.compile(_PART)
_DAYS = re.compile(r"\+?([0-9]+)(?:\.([0-9]*))?d|\+?\.([0-9]+)d")
_NANOSECONDS = {
    "ns": 1,
    "us": 10**3,
    "µs": 10**3,
    "μs": 10**3,
    "ms": 10**6,
    "s": 10**9,
    "m": 60 * 10**9,
    "h": 3600 * 10**9,
}
_DAY = 24 * _NANOSECONDS["h"]
_INT64_MAX = 2**63 - 1


def parse_duration(text: str) -> int:
    """Parse `1h30m`, `1.5h`, `-100us`. ValueError for text that Go does not accept, or for more than 64 bits."""
    match = _DURATION.fullmatch(text)
    if match is None:
        if text.lstrip("+-") == "0" and len(text) <= 2:
            return 0
        raise ValueError(f"expected a duration such as 1h30m, got {text[:60]!r}")
    total: int = sum(
        _nanoseconds(whole, fraction or bare, _NANOSECONDS[unit])
        for whole, fraction, bare, unit in _PARTS.findall(match[2])
    )
    return -_in_64_bits(total, text) if match[1] == "-" else _in_64_bits(total, text)


def parse_window(text: str) -> int:
    """Parse a duration, or a number of days: `7d`."""
    match = _DAYS.fullmatch(text)
    if match is None:
        return parse_duration(text)
    return _in_64_bits(_nanoseconds(match[1], match[2] or match[3], _DAY), text)


def duration_text(nanoseconds: int) -> str:
    """The text that Go prints: `1h0m0s`, `1.5s`, `100ms`, `0s`."""
    sign, rest = ("-", -nanoseconds) if nanoseconds < 0 else ("", nanoseconds)
    if rest == 0:
        return "0s"
    for unit in ("ns", "µs", "ms"):
        if rest < _NANOSECONDS[unit] * 1000:
            return f"{sign}{_decimal(rest, _NANOSECONDS[unit])}{unit}"
    minutes, seconds = divmod(rest, _NANOSECONDS["m"])
    hours, minutes = divmod(minutes, 60)
    clock = (f"{hours}h" if hours else "") + (f"{minutes}m" if hours or minutes else "")
    return f"{sign}{clock}{_decimal(seconds, _NANOSECONDS['s'])}s"


def _nanoseconds(whole: str | None, fraction: str | None, unit: int) -> int:
    digits = fraction or "0"
    return int(whole or "0") * unit + int(digits) * unit // int(10 ** len(digits))


def _in_64_bits(total: int, text: str) -> int:
    """`total`, or ValueError if it does not fit into Go's 64 bits."""
    if total > _INT64_MAX:
        raise ValueError(f"expected a duration of at most 292 years, got {text[:60]!r}")
    return total


def _decimal(value: int, unit: int) -> str:
    whole, fraction = divmod(value, unit)
    digits = f"{fraction:0{len(str(unit)) - 1}d}".rstrip("0") if fraction else ""
    return f"{whole}.{digits}" if digits else str(whole)
