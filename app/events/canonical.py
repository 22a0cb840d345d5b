"""JSON in and out: the one reading of a request body, and the byte form of it that is hashed (design section 4).

A number is an int when it is integral, a float when `Decimal(repr(float(token))) == Decimal(token)`, else a Decimal.
Nothing is altered on the way in or out, and two different values never share a canonical form.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from json.decoder import WHITESPACE  # type: ignore[attr-defined]  # missing from the stubs
from typing import Any, NoReturn

import orjson

from app.errors import BadRequest

SIGNIFICANT_DIGITS_MAX = 100
EXPONENT_MAX = 308
NESTING_MAX = 200

_LONG_TOKEN = 16
_SHAPE = bytes.maketrans(b"123456789.E", b"0000000000e")
_LONG_RUN = b"0" * _LONG_TOKEN
_TINY_POWER = b"e-000"
_PARTS = re.compile(r"(-?)([0-9]+)(?:\.([0-9]+))?(?:[eE]([+-]?)0*([0-9]*))?")
_TOKEN = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|[\[\]{},:]|[^\s\[\]{},:"]+', re.DOTALL)


@dataclass(slots=True)
class Document:
    """One JSON value. `plain` promises that orjson's sorted bytes of it, and of any part of it, are its canonical form."""

    value: Any
    plain: bool
    depth: int
    """Levels of arrays and objects: 0 for a scalar, 1 for `{}`."""


def parse(body: bytes) -> Document:
    """The whole of `body` as one JSON value. BadRequest says what is wrong, and where."""
    try:
        document = _quick(body)
    except orjson.JSONDecodeError:
        document = None
    if document is None:
        return _exact(body)
    if document.depth > NESTING_MAX:
        raise _too_deep()
    if b"\\" in body and b"\\u0000" in body:
        _refuse_faults(document.value, "")
    return document


def items(body: bytes) -> Iterator[Document]:
    """The items of a JSON array one by one, each as `parse` gives it. Errors come when their place is reached."""
    wide, escaped = _wide(body), _escaped(body)
    text = _decode(body)
    del body
    at = _skip(text, 0)
    if not text.startswith("[", at):
        raise BadRequest(f"body: expected a JSON array, got {kind_of(parse(text.encode()).value)}")
    at = _skip(text, at + 1)
    index = 0
    closed = text.startswith("]", at)
    while not closed:
        value, end = _scan(text, at)
        yield _checked(value, f"/{index}", wide=wide, escaped=escaped)
        at = _skip(text, end)
        closed = text.startswith("]", at)
        if not closed and not text.startswith(",", at):
            raise _broken("Expecting ',' delimiter", text, at)
        at = at if closed else _skip(text, at + 1)
        index += 1
    _expect_end(text, at + 1)


def loads(text: str | bytes) -> Any:
    """What Postgres's jsonb gives back, read exactly. Nothing is too long or too deep; ValueError if it is no JSON."""
    body = text.encode() if isinstance(text, str) else text
    try:
        document = _quick(body)
    except orjson.JSONDecodeError:
        document = None
    if document is not None:
        return document.value
    decoded = body.decode()
    try:
        return _STORED.decode(decoded)
    except RecursionError:
        return _read_deep(decoded)


def canonical(value: Any, *, plain: bool = False) -> bytes:
    """The JCS of `value`, with exact digits for numbers that no double holds. `plain` is its Document's promise."""
    if not plain:
        depth, narrow, _, odd = _survey([value], wide=True)
        plain = narrow and not odd and depth <= NESTING_MAX
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS) if plain else canonical_exact(value)


def canonical_exact(value: Any) -> bytes:
    """The same as `canonical` without its short cut: slow, for any value."""
    return _written(value, _by_utf16)


def readable(text: str | bytes) -> bytes:
    """jsonb's text (or canonical JSON) with keys in byte order, compact, and no number altered in value."""
    body = text.encode() if isinstance(text, str) else text
    if _LONG_RUN not in body.translate(_SHAPE):
        try:
            return orjson.dumps(orjson.loads(body), option=orjson.OPT_SORT_KEYS)
        except (orjson.JSONDecodeError, orjson.JSONEncodeError):
            pass  # deeper than orjson reads or writes
    return _written(loads(body), sorted)


def depth_of(value: Any) -> int:
    """Levels of arrays and objects in `value`."""
    return _survey([value], wide=False)[0]


def kind_of(value: Any) -> str:
    """What `value` is in the words of JSON, with its article."""
    kinds = {dict: "an object", list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return kinds.get(type(value), "a number")


# Reading: orjson wherever a double holds every number, else the standard library with hooks that keep all digits.


def _quick(body: bytes) -> Document | None:
    """None when a number may have lost digits. orjson's error also stands for numbers that it calls infinite."""
    root = [orjson.loads(body)]
    depth, narrow, floats, odd = _survey(root, wide=_wide(body))
    # Integers within 64 bits are exact, longer ones come as floats; below 16 digits a double loses nothing unless
    # it underflows, which takes an exponent of three digits.
    if floats:
        shape = body.translate(_SHAPE)
        if _LONG_RUN in shape or (odd and _TINY_POWER in shape):
            return None
    settled = _settle(odd)  # first: it may replace the root itself
    return Document(root[0], settled and narrow, depth)


def _survey(root: list[Any], *, wide: bool) -> tuple[int, bool, bool, list[Any]]:  # noqa: C901 - every call costs
    """One walk: (depth below `root`, keys sort alike in UTF-8 and UTF-16, a float was seen, nodes that hold odd values).

    Odd is what orjson may write in another form than JCS. orjson's integers are right as far as 64 bits go, since
    up to 10^21 both forms of the design are plain digits. Without `wide`, keys are known to sort alike.
    """
    depth, narrow, floats = -1, True, False
    odd: list[Any] = []
    level: list[Any] = [root]
    while level:
        depth += 1
        below: list[Any] = []
        for node in level:
            values: Iterable[Any] = node
            if type(node) is dict:
                values = node.values()
                if wide and narrow:
                    narrow = _sorts_alike(node)
            for value in values:
                kind = type(value)
                if kind is str:
                    continue
                if kind is dict or kind is list:
                    below.append(value)
                    continue
                if kind is float:
                    floats = True
                    fits = (1e-5 <= value < 1e15 or -1e15 < value <= -1e-5) and not value.is_integer()
                elif kind is int:
                    fits = _in_64_bits(value)
                else:
                    fits = value is None or kind is bool
                if not fits and (not odd or odd[-1] is not node):
                    odd.append(node)
        level = below
    return depth, narrow, floats, odd


def _sorts_alike(node: dict[str, Any]) -> bool:
    keys = "".join(node)
    return keys.isascii() or max(keys) < "\ue000"


def _in_64_bits(value: int) -> bool:
    return -0x8000000000000000 <= value <= 0xFFFFFFFFFFFFFFFF


def _settle(odd: list[Any]) -> bool:
    """Turn the integral floats of these nodes into ints; whether nothing odd remains."""
    settled = True
    for node in odd:
        for key, value in node.items() if type(node) is dict else enumerate(node):
            if type(value) is float:
                if value.is_integer():
                    node[key] = whole = _whole(value)
                    settled = settled and _in_64_bits(whole)
                else:
                    settled = settled and 1e-5 <= abs(value) < 1e15
    return settled


def _whole(value: float) -> int:
    """The integer that was written, of a token with fewer than 16 digits: 10^23 for 1e23, whose double is less."""
    return int(value) if abs(value) < 2**53 else int(Decimal(repr(value)))


def _wide(body: bytes) -> bool:
    """Whether a key may hold characters from U+E000 on, which UTF-8 and UTF-16 sort differently."""
    if not body.isascii():
        return True
    return b"\\" in body and any(start in body for start in (b"\\ud", b"\\uD", b"\\ue", b"\\uE", b"\\uf", b"\\uF"))


def _escaped(body: bytes) -> bool:
    """Whether a NUL or a lone surrogate may stand in a string."""
    return b"\\" in body and any(start in body for start in (b"\\u0000", b"\\ud", b"\\uD"))


def _exact(body: bytes) -> Document:
    text = _decode(body)
    value, end = _scan(text, _skip(text, 0))
    _expect_end(text, end)
    return _checked(value, "", wide=_wide(body), escaped=_escaped(body))


def _decode(body: bytes) -> str:
    if not body:
        raise BadRequest("body: expected JSON, got nothing")
    if body.startswith(b"\xef\xbb\xbf"):
        raise BadRequest("body: expected JSON in UTF-8 without a byte order mark, got one at byte 0")
    try:
        return body.decode()
    except UnicodeDecodeError as error:
        raise BadRequest(f"body: expected JSON in UTF-8, got invalid bytes at byte {error.start}") from None


def _skip(text: str, at: int) -> int:
    return WHITESPACE.match(text, at).end()  # type: ignore[no-any-return]  # untyped


def _scan(text: str, at: int) -> tuple[Any, int]:
    """The value that starts at `at`, and where it ends."""
    try:
        return _REQUEST.raw_decode(text, at)
    except json.JSONDecodeError as error:
        raise _broken(error.msg, text, error.pos) from None
    except _NoNumberError as error:
        place = next(found.start() for found in _TOKEN.finditer(text, at) if found[0].startswith(error.token))
        raise _broken(f"{error.token} is no JSON number", text, place) from None
    except RecursionError:
        raise _too_deep() from None


def _checked(value: Any, pointer: str, *, wide: bool, escaped: bool) -> Document:
    depth, narrow, _, odd = _survey([value], wide=wide)
    if depth > NESTING_MAX:
        raise _too_deep(pointer)
    if odd or escaped:
        _refuse_faults(value, pointer)
    return Document(value, narrow and not odd, depth)


def _expect_end(text: str, at: int) -> None:
    at = _skip(text, at)
    if at != len(text):
        raise _broken("Extra data", text, at)


def _broken(message: str, text: str, at: int) -> BadRequest:
    error = json.JSONDecodeError(message, text, at)
    return BadRequest(f"body: expected JSON, got an error at line {error.lineno} column {error.colno}: {message}")


def _too_deep(pointer: str = "") -> BadRequest:
    return BadRequest(f"{pointer or 'body'}: expected a nesting of at most {NESTING_MAX} levels")


# Numbers.


@dataclass(slots=True)
class _Refused:
    """Stands in the value for a number beyond the limits, until a walk finds its pointer."""

    message: str


class _NoNumberError(Exception):
    def __init__(self, token: str) -> None:
        self.token = token
        super().__init__(token)


def _refuse_constant(token: str) -> NoReturn:
    raise _NoNumberError(token)


def _requested_int(token: str) -> Any:
    return int(token) if len(token) <= SIGNIFICANT_DIGITS_MAX else _limited(token)


def _requested_float(token: str) -> Any:
    value = float(token)
    if len(token) < _LONG_TOKEN and 1e-290 < abs(value) < 1e300:
        return _whole(value) if value.is_integer() else value
    return _limited(token)


def _limited(token: str) -> Any:
    sign, digits, exponent = _parts(token)
    if len(digits) <= SIGNIFICANT_DIGITS_MAX and (not digits or abs(len(digits) - 1 + exponent) <= EXPONENT_MAX):
        return _number(sign, digits, exponent)
    shown = token if len(token) <= 40 else token[:40] + "…"
    return _Refused(
        f"expected a number of at most {SIGNIFICANT_DIGITS_MAX} significant digits, the first of them "
        f"within 10^±{EXPONENT_MAX}, got {shown}"
    )


def _stored(token: str) -> Any:
    return _number(*_parts(token))


def _parts(token: str) -> tuple[str, str, int]:
    """Sign, significant digits with zeros stripped at both ends, and the power of ten of the last one."""
    match = _PARTS.fullmatch(token)
    assert match is not None
    sign, before, behind, power_sign, power = match.groups(default="")
    # A power of ten digits cannot be made up for by any body that fits into memory.
    exponent = int(power_sign + (power if len(power) < 10 else "9999999999")) if power else 0
    digits = (before + behind).lstrip("0")
    significant = digits.rstrip("0")
    return sign, significant, exponent - len(behind) + len(digits) - len(significant)


def _number(sign: str, digits: str, exponent: int) -> int | float | Decimal:
    if not digits:
        return 0
    # Python refuses to turn more than 4300 digits into an int; only jsonb can hold such a number, and it stays Decimal.
    if exponent >= 0 and len(digits) + exponent < 4000:
        return int(sign + digits + "0" * exponent)
    exact = Decimal(f"{sign}{digits}E{exponent}")
    double = float(exact)
    return double if Decimal(repr(double)) == exact else exact


_REQUEST = json.JSONDecoder(parse_int=_requested_int, parse_float=_requested_float, parse_constant=_refuse_constant)
_STORED = json.JSONDecoder(parse_int=_stored, parse_float=_stored)


def _read_deep(text: str) -> Any:
    """Valid JSON of any depth, without recursion: slow, for rows that others wrote by SQL."""
    nodes: list[list[Any]] = [[]]
    for match in _TOKEN.finditer(text):
        token = match[0]
        if token in ("[", "{"):
            nodes.append([])
        elif token in ("]", "}"):
            parts = nodes.pop()
            nodes[-1].append(parts if token == "]" else dict(zip(parts[::2], parts[1::2], strict=True)))  # noqa: S105 - a token of JSON
        elif token not in (",", ":"):
            nodes[-1].append(_STORED.decode(token))
    return nodes[0][0]


# Faults that need a pointer.


def _refuse_faults(root: Any, pointer: str) -> None:
    """BadRequest for the first NUL, lone surrogate or refused number, level by level, at its RFC 6901 pointer."""
    places: list[tuple[Any, Any, Any]] = [(root, None, None)]
    for place in places:
        node = place[0]
        fault = _fault(node)
        if fault:
            where = pointer + _pointer(place)
            raise BadRequest(f"{where or 'body'}: {fault}", field_errors={where: fault})
        if type(node) is dict:
            places.extend((value, place, key) for key, value in node.items())
        elif type(node) is list:
            places.extend((value, place, index) for index, value in enumerate(node))


def _fault(node: Any) -> str | None:
    if type(node) is _Refused:
        return node.message
    if type(node) is str:
        return _text_fault(node, "text")
    if type(node) is dict:
        return _text_fault("".join(node), "keys")
    return None


def _text_fault(text: str, what: str) -> str | None:
    if "\0" in text:
        return f"expected {what} without NUL characters"
    try:
        text.encode()
    except UnicodeEncodeError:
        return f"expected {what} without lone surrogates"
    return None


def _pointer(place: tuple[Any, Any, Any]) -> str:
    parts = []
    while place[1] is not None:
        _, above, key = place
        part = str(key) if len(str(key)) <= 100 else str(key)[:100] + "…"
        parts.append("/" + part.replace("~", "~0").replace("/", "~1"))
        place = above
    return "".join(reversed(parts))


# Writing.


class _Ready(bytes):
    """Text that waits to be written as it is."""


def _written(value: Any, order: Callable[[dict[str, Any]], list[str]]) -> bytes:
    """Compact JSON with keys in `order`, whatever the depth."""
    out: list[bytes] = []
    pending: list[Any] = [value]
    while pending:
        node = pending.pop()
        if isinstance(node, _Ready):
            out.append(node)
        elif isinstance(node, dict):
            pending.append(_Ready(b"}"))
            for key in reversed(order(node)):
                pending += (node[key], _Ready(orjson.dumps(key) + b":"), _COMMA)
            pending[-1:] = [_Ready(b"{")] if node else [_Ready(b"{}")]
        elif isinstance(node, list):
            pending.append(_Ready(b"]"))
            for item in reversed(node):
                pending += (item, _COMMA)
            pending[-1:] = [_Ready(b"[")] if node else [_Ready(b"[]")]
        else:
            out.append(_scalar(node))
    return b"".join(out)


_COMMA = _Ready(b",")


def _scalar(value: Any) -> bytes:
    if value is None or isinstance(value, (bool, str)):
        return orjson.dumps(value)
    if isinstance(value, (int, float, Decimal)):
        return _digits(value).encode()
    raise TypeError(f"{type(value).__name__} is no JSON value")


def _by_utf16(node: dict[str, Any]) -> list[str]:
    return sorted(node, key=lambda key: key.encode("utf-16-be"))


def _digits(number: float | Decimal) -> str:
    """The RFC 8785 form of a number that is a double, else its plain digits."""
    if isinstance(number, int) and abs(number) < 10**21:
        return str(number)
    exact = Decimal(repr(number)) if isinstance(number, float) else Decimal(number)
    if not exact.is_finite():
        raise ValueError(f"{number} is no JSON number")
    if not exact:
        return "0"
    double = float(exact)
    if (abs(double) >= 1e21 or abs(double) < 1e-6) and Decimal(repr(double)) == exact:
        mantissa, _, power = repr(double).partition("e")
        return f"{mantissa}e{int(power):+d}"
    digits = f"{exact:f}"
    return digits.rstrip("0").rstrip(".") if "." in digits else digits
