"""Generated JSON that is hard to write in canonical form: the same ones for the same seed."""

import json
import os
import random
from decimal import Decimal
from typing import Any

COUNT = int(os.environ.get("FUZZ_PAYLOADS", "3000"))
# Texts that sort differently in UTF-8 and UTF-16, that some writer escapes, or that look like numbers.
_TEXTS = (
    *(
        "",
        "a",
        "b",
        "aa",
        "A",
        "é",
        "\u0080",
        "\u07ff",
        "\ud7ff",
        "\ue000",
        "\ufb33",
        "\uffff",
        "😀",
        "\U0010ffff",
        "𐀀",
    ),
    *(
        "\u0001",
        "\b\t\n\f\r\x0b\x1f",
        "\x7f",
        "\u2028",
        '"',
        "\\",
        "/",
        "<&>",
        "1",
        "10",
        "1e5",
        "12345678901234567890",
    ),
)
_DOUBLES = (
    *(0, -0.0, 0.0, 5.0, 0.1, 0.75, 1e21, 1e20, 1e22, 1e23, 1e-7, 1e-6, 9.9e-6, 1e-5, 1.5e-5, 1e15, 1e16, 1.5e300),
    *(2**53 - 1, 1 - 2**53, float(2**53), 999999999999999.9, 1234567890123456.5, 1e-300, 4.9e-308, 0.30000000000000004),
    *(1.7976931348623157e308, 2.2250738585072014e-308, 123456789012345680000.0, 333333333.33333329, -1e-27),
)
_BEYOND = (
    *("9007199254740993", "9223372036854775808", "18446744073709551616", "-9223372036854775809", "1" + "0" * 308),
    *("0.1000000000000000055", "12345678901234567890.5", "9e308", "2.2250738585072011e-308", "1000000000000000000001"),
)


def payloads(*, beyond: bool) -> list[tuple[Any, str]]:
    """Values and a spelling of each as JSON text. `beyond`: with numbers that are no doubles, which RFC 8785 has no form for."""
    rng = random.Random(8785)
    values = [_object(rng, rng.randrange(1, 11), beyond=beyond) for _ in range(COUNT)]
    return [(value, _spelled(value, rng)) for value in values]


def _object(rng: random.Random, depth: int, *, beyond: bool) -> dict[str, Any]:
    return {_text(rng): _value(rng, depth - 1, beyond=beyond) for _ in range(rng.randrange(5))} | (
        {_text(rng): _object(rng, depth - 1, beyond=beyond)} if depth > 1 else {}
    )


def _value(rng: random.Random, depth: int, *, beyond: bool) -> Any:
    kind = rng.randrange(8)
    if kind == 0 and depth > 0:
        return [_value(rng, depth - 1, beyond=beyond) for _ in range(rng.randrange(4))]
    if kind == 1:
        return rng.choice((None, True, False, {}, []) if depth > 0 else (None, True, False))
    return _text(rng) if kind < 4 else _number(rng, beyond=beyond)


def _text(rng: random.Random) -> str:
    return "".join(rng.choices(_TEXTS, k=rng.randrange(1, 4)))


def _number(rng: random.Random, *, beyond: bool) -> Any:
    kind = rng.randrange(10)
    if beyond and kind < 3:
        return Decimal(rng.choice(_BEYOND) if kind else f"{rng.randrange(10**40)}E{rng.randrange(-60, 20)}")
    if kind < 6:
        return rng.choice(_DOUBLES)
    if kind == 6:
        return rng.uniform(-1, 1) * 10.0 ** rng.randrange(-300, 300)
    return rng.randrange(1000) if kind < 9 else round(rng.uniform(-1000, 1000), rng.randrange(6))


def _spelled(value: Any, rng: random.Random) -> str:
    space = rng.choice(("", "", " ", "\n\t"))
    if isinstance(value, dict):
        members = (f"{_spelled(k, rng)}{space}:{_spelled(v, rng)}" for k, v in value.items())
        return f"{{{space}{f',{space}'.join(members)}{space}}}"
    if isinstance(value, list):
        return f"[{f'{space},'.join(_spelled(item, rng) for item in value)}{space}]"
    if isinstance(value, (int, float, Decimal)) and not isinstance(value, bool):
        return _respelled(Decimal(repr(value)) if isinstance(value, float) else Decimal(value), rng)
    return json.dumps(value, ensure_ascii=rng.random() < 0.5)


def _respelled(number: Decimal, rng: random.Random) -> str:
    """One of the ways to write the same number."""
    kind = rng.randrange(4)
    if kind == 0:
        sign, digits, exponent = number.as_tuple()
        return f"{'-' * sign}{''.join(map(str, digits))}{rng.choice('eE')}{int(exponent):+04d}"
    text = f"{number:f}"
    if kind == 1:
        return text + ("00" if "." in text else ".0")
    return text if kind == 2 else str(number)
