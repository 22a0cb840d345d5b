"""JSON in and out: how a request body is parsed, and the canonical bytes that are hashed (docs/design.md, section 4).

A number becomes an int if it is integral, a float if `Decimal(repr(float(token))) == Decimal(token)`, else a Decimal.
Parsing and writing alter no value, and two different values never have the same canonical form.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from json.decoder import WHITESPACE  # type: ignore[attr-defined]  # missing from the stubs
from typing import Any, NoReturn, cast

import orjson

from app.errors import BadRequest

SIGNIFICANT_DIGITS_MAX = 100
EXPONENT_MAX = 308
NESTING_MAX = 200

_LONG_TOKEN = 16
_DIGITS_TO_ZERO = bytes.maketrans(b"123456789.E", b"0000000000e")
_LONG_DIGITS = b"0" * _LONG_TOKEN
_THREE_DIGIT_NEGATIVE_POWER = b"e-000"
_NUMBER = re.compile(r"(-?)([0-9]+)(?:\.([0-9]+))?(?:[eE]([+-]?)0*([0-9]*))?")
_TOKEN = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|[\[\]{},:]|[^\s\[\]{},:"]+', re.DOTALL)


@dataclass(slots=True)
class Document:
    """One JSON value."""

    value: Any
    plain: bool
    """orjson, with sorted keys, writes the canonical form of the value and of each part of it."""
    depth: int
    """Levels of arrays and objects: 0 for a scalar, 1 for `{}`."""


def parse(body: bytes) -> Document:
    """Parse the whole of `body` as one JSON value. BadRequest names the fault and its place."""
    try:
        document = _parse_quick(body)
    except orjson.JSONDecodeError:
        document = None
    if document is None:
        return _parse_exact(body)
    if document.depth > NESTING_MAX:
        raise _nesting_error()
    if b"\\" in body and b"\\u0000" in body:
        _raise_first_fault(document.value, "")
    return document


def parse_items(body: bytes) -> Iterator[Document]:
    """Yield the items of a JSON array one by one, each as `parse` returns it. A fault is raised when its place is reached."""
    wide_keys, bad_text = _may_have_wide_keys(body), _may_have_bad_text(body)
    text = _decode(body)
    del body
    index = _skip_whitespace(text, 0)
    if not text.startswith("[", index):
        raise BadRequest(f"body: expected a JSON array, got {kind_of(parse(text.encode()).value)}")
    index = _skip_whitespace(text, index + 1)
    number = 0
    closed = text.startswith("]", index)
    while not closed:
        value, end = _parse_value(text, index)
        yield _checked_document(value, f"/{number}", wide_keys=wide_keys, bad_text=bad_text)
        index = _skip_whitespace(text, end)
        closed = text.startswith("]", index)
        if not closed and not text.startswith(",", index):
            raise _syntax_error("Expecting ',' delimiter", text, index)
        index = index if closed else _skip_whitespace(text, index + 1)
        number += 1
    _expect_end(text, index + 1)


def parse_lines(body: bytes) -> Iterator[Document]:
    """Yield the lines of newline-delimited JSON one by one, each as `parse` returns it, which must not be empty except at the end.

    A fault is raised when its line is reached, with the pointer of the line among all, from 0.
    """
    start = number = 0
    while start < len(body):
        end = body.find(b"\n", start)
        line = body[start:] if end < 0 else body[start:end]
        if not line.strip() and not body[start:].strip():
            return
        try:
            document = parse(line)
        except BadRequest as error:
            raise _fault_of_line(error, f"/{number}") from None
        yield document
        start += len(line) + 1
        number += 1


def loads(text: str | bytes) -> Any:
    """Parse jsonb's text without loss, whatever its length and depth. ValueError if it is not JSON."""
    body = text.encode() if isinstance(text, str) else text
    try:
        document = _parse_quick(body)
    except orjson.JSONDecodeError:
        document = None
    if document is not None:
        return document.value
    decoded = body.decode()
    try:
        return _JSONB_DECODER.decode(decoded)
    except RecursionError:
        return _parse_deep_jsonb(decoded)


def loads_strict(text: str | bytes) -> Any:
    """As `loads`, for JSON from outside that is verified: every reader has to find the same value in it.

    ValueError also if an object has a member twice, for NaN and infinities, and for lone surrogates in texts.
    """
    body = text.encode() if isinstance(text, str) else text
    try:
        value = loads(body)
    except IndexError:  # deeper than the standard library reads, and no JSON
        raise ValueError("expected JSON, got brackets that do not match") from None
    if not _loses_nothing(value, body):
        _check_strictly(value, body)
    return value


def canonical(value: Any, *, plain: bool = False) -> bytes:
    """The RFC 8785 form (JCS) of `value`, with exact digits for numbers that no double represents.

    `plain` is the flag of the Document that `value` is part of; without it the value is inspected first.
    """
    if not plain:
        depth, sort_alike, _, unsafe = _inspect([value], wide_keys=True)
        plain = sort_alike and not unsafe and depth <= NESTING_MAX
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS) if plain else canonical_exact(value)


def canonical_exact(value: Any) -> bytes:
    """The same bytes as `canonical`, never written by orjson: slow, for any value."""
    return _serialise(value, _sorted_as_utf16)


def sorted_json(text: str | bytes) -> bytes:
    """jsonb's text (or canonical JSON) as answers show it: compact, keys in byte order, no number altered in value."""
    body = text.encode() if isinstance(text, str) else text
    if _LONG_DIGITS not in body.translate(_DIGITS_TO_ZERO):
        try:
            return orjson.dumps(orjson.loads(body), option=orjson.OPT_SORT_KEYS)
        except (orjson.JSONDecodeError, orjson.JSONEncodeError):
            pass  # deeper than orjson reads or writes
    return _serialise(loads(body), sorted)


def depth_of(value: Any) -> int:
    """Levels of arrays and objects in `value`."""
    return _inspect([value], wide_keys=False)[0]


def kind_of(value: Any) -> str:
    """The JSON type of `value` with its article, for messages."""
    kinds = {dict: "an object", list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return kinds.get(type(value), "a number")


# Parsing: orjson if a double represents every number, else the standard library with hooks that preserve all digits.


def _parse_quick(body: bytes) -> Document | None:
    """Parse by orjson. None if a number may have lost digits; JSONDecodeError also for numbers that orjson calls infinite."""
    root = [orjson.loads(body)]
    depth, sort_alike, floats, unsafe = _inspect(root, wide_keys=_may_have_wide_keys(body))
    # Integers within 64 bits are exact, longer ones come as floats; below 16 digits a double loses nothing unless
    # it underflows, which takes an exponent of three digits.
    if floats:
        shape = body.translate(_DIGITS_TO_ZERO)
        if _LONG_DIGITS in shape or (unsafe and _THREE_DIGIT_NEGATIVE_POWER in shape):
            return None
    all_safe = _make_integral(unsafe)  # first: it may replace the root itself
    return Document(root[0], all_safe and sort_alike, depth)


def _inspect(root: list[Any], *, wide_keys: bool) -> tuple[int, bool, bool, list[Any]]:  # noqa: C901 - every call costs
    """Walk once: (depth below `root`, keys sort alike in UTF-8 and UTF-16, a float occurs, nodes with unsafe values).

    Unsafe is a value that orjson may write in another form than the canonical one. It writes integers of 64 bits correctly,
    since below 10^21 the canonical form is plain digits. Without `wide_keys`, keys are known to sort alike.
    """
    depth, sort_alike, floats = -1, True, False
    unsafe: list[Any] = []
    level: list[Any] = [root]
    while level:
        depth += 1
        below: list[Any] = []
        for node in level:
            values: Iterable[Any] = node
            if type(node) is dict:
                values = node.values()
                if wide_keys and sort_alike:
                    sort_alike = _sorts_alike(node)
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
                if not fits and (not unsafe or unsafe[-1] is not node):
                    unsafe.append(node)
        level = below
    return depth, sort_alike, floats, unsafe


def _sorts_alike(node: dict[str, Any]) -> bool:
    keys = "".join(node)
    return keys.isascii() or max(keys) < "\ue000"


def _in_64_bits(value: int) -> bool:
    return -0x8000000000000000 <= value <= 0xFFFFFFFFFFFFFFFF


def _make_integral(unsafe: list[Any]) -> bool:
    """Replace the integral floats in these nodes by ints, and return whether orjson now writes every value canonically."""
    all_safe = True
    for node in unsafe:
        for key, value in node.items() if type(node) is dict else enumerate(node):
            if type(value) is float:
                if value.is_integer():
                    node[key] = whole = _integer(value)
                    all_safe = all_safe and _in_64_bits(whole)
                else:
                    all_safe = all_safe and 1e-5 <= abs(value) < 1e15
    return all_safe


def _integer(value: float) -> int:
    """The integer that a token of fewer than 16 digits denotes: 10^23 for 1e23, whose double is less."""
    return int(value) if abs(value) < 2**53 else int(Decimal(repr(value)))


def _may_have_wide_keys(body: bytes) -> bool:
    """Whether a key may contain characters from U+E000 on, which UTF-8 and UTF-16 sort differently."""
    if not body.isascii():
        return True
    return b"\\" in body and any(start in body for start in (b"\\ud", b"\\uD", b"\\ue", b"\\uE", b"\\uf", b"\\uF"))


def _may_have_bad_text(body: bytes) -> bool:
    """Whether a string may contain a NUL or a lone surrogate."""
    return b"\\" in body and any(start in body for start in (b"\\u0000", b"\\ud", b"\\uD"))


def _parse_exact(body: bytes) -> Document:
    text = _decode(body)
    value, end = _parse_value(text, _skip_whitespace(text, 0))
    _expect_end(text, end)
    return _checked_document(value, "", wide_keys=_may_have_wide_keys(body), bad_text=_may_have_bad_text(body))


def _decode(body: bytes) -> str:
    if not body:
        raise BadRequest("body: expected JSON, got nothing")
    if body.startswith(b"\xef\xbb\xbf"):
        raise BadRequest("body: expected JSON in UTF-8 without a byte order mark, got one at byte 0")
    try:
        return body.decode()
    except UnicodeDecodeError as error:
        raise BadRequest(f"body: expected JSON in UTF-8, got invalid bytes at byte {error.start}") from None


def _skip_whitespace(text: str, index: int) -> int:
    return WHITESPACE.match(text, index).end()  # type: ignore[no-any-return]  # untyped


def _parse_value(text: str, index: int) -> tuple[Any, int]:
    """The value that starts at `index`, and the index of its end."""
    try:
        return _REQUEST_DECODER.raw_decode(text, index)
    except json.JSONDecodeError as error:
        raise _syntax_error(error.msg, text, error.pos) from None
    except _NotANumber as error:
        position = next(match.start() for match in _TOKEN.finditer(text, index) if match[0].startswith(error.token))
        raise _syntax_error(f"{error.token} is not a JSON number", text, position) from None
    except RecursionError:
        raise _nesting_error() from None


def _checked_document(value: Any, pointer: str, *, wide_keys: bool, bad_text: bool) -> Document:
    depth, sort_alike, _, unsafe = _inspect([value], wide_keys=wide_keys)
    if depth > NESTING_MAX:
        raise _nesting_error(pointer)
    if unsafe or bad_text:
        _raise_first_fault(value, pointer)
    return Document(value, sort_alike and not unsafe, depth)


def _expect_end(text: str, index: int) -> None:
    index = _skip_whitespace(text, index)
    if index != len(text):
        raise _syntax_error("Extra data", text, index)


def _syntax_error(message: str, text: str, index: int) -> BadRequest:
    error = json.JSONDecodeError(message, text, index)
    return BadRequest(f"body: expected JSON, got an error at line {error.lineno} column {error.colno}: {message}")


def _fault_of_line(error: BadRequest, pointer: str) -> BadRequest:
    """The fault that `parse` has found in the line at `pointer`."""
    alone = {"": error.detail.removeprefix("body: ").replace("line 1 column", "column")}
    fields = cast("dict[str, str]", error.extra.get("field_errors", alone))
    return BadRequest(error.detail, field_errors={pointer + place: message for place, message in fields.items()})


def _nesting_error(pointer: str = "") -> BadRequest:
    return BadRequest(f"{pointer or 'body'}: expected a nesting of at most {NESTING_MAX} levels")


# Numbers.


@dataclass(slots=True)
class _NumberBeyondLimits:
    """Placeholder in the parsed value for a number beyond the limits, until `_raise_first_fault` finds its pointer."""

    message: str


class _NotANumber(Exception):
    def __init__(self, token: str) -> None:
        self.token = token
        super().__init__(token)


def _raise_not_a_number(token: str) -> NoReturn:
    raise _NotANumber(token)


def _int_of_request(token: str) -> Any:
    return int(token) if len(token) <= SIGNIFICANT_DIGITS_MAX else _number_within_limits(token)


def _float_of_request(token: str) -> Any:
    value = float(token)
    if len(token) < _LONG_TOKEN and 1e-290 < abs(value) < 1e300:
        return _integer(value) if value.is_integer() else value
    return _number_within_limits(token)


def _number_within_limits(token: str) -> Any:
    sign, digits, exponent = _number_parts(token)
    if len(digits) <= SIGNIFICANT_DIGITS_MAX and (not digits or abs(len(digits) - 1 + exponent) <= EXPONENT_MAX):
        return _exact_number(sign, digits, exponent)
    shown = token if len(token) <= 40 else token[:40] + "…"
    return _NumberBeyondLimits(
        f"expected a number of at most {SIGNIFICANT_DIGITS_MAX} significant digits, the first of them "
        f"within 10^±{EXPONENT_MAX}, got {shown}"
    )


def _number_of_jsonb(token: str) -> Any:
    return _exact_number(*_number_parts(token))


def _number_parts(token: str) -> tuple[str, str, int]:
    """Sign, significant digits without zeros at both ends, and the power of ten of the last digit."""
    match = _NUMBER.fullmatch(token)
    assert match is not None
    sign, whole, fraction, power_sign, power = match.groups(default="")
    # No body that fits into memory has the digits that would balance a power of ten digits or more.
    exponent = int(power_sign + (power if len(power) < 10 else "9999999999")) if power else 0
    digits = (whole + fraction).lstrip("0")
    significant = digits.rstrip("0")
    return sign, significant, exponent - len(fraction) + len(digits) - len(significant)


def _exact_number(sign: str, digits: str, exponent: int) -> int | float | Decimal:
    if not digits:
        return 0
    # Python refuses to convert more than 4300 digits to an int; only jsonb can contain such a number, which stays a Decimal.
    if exponent >= 0 and len(digits) + exponent < 4000:
        return int(sign + digits + "0" * exponent)
    exact = Decimal(f"{sign}{digits}E{exponent}")
    double = float(exact)
    return double if Decimal(repr(double)) == exact else exact


_REQUEST_DECODER = json.JSONDecoder(
    parse_int=_int_of_request, parse_float=_float_of_request, parse_constant=_raise_not_a_number
)
_JSONB_DECODER = json.JSONDecoder(parse_int=_number_of_jsonb, parse_float=_number_of_jsonb)


def _parse_deep_jsonb(text: str) -> Any:
    """Parse valid JSON of any depth without recursion: slow, for rows that others inserted by SQL."""
    nodes: list[list[Any]] = [[]]
    for match in _TOKEN.finditer(text):
        token = match[0]
        if token in ("[", "{"):
            nodes.append([])
        elif token in ("]", "}"):
            parts = nodes.pop()
            nodes[-1].append(parts if token == "]" else dict(zip(parts[::2], parts[1::2], strict=True)))  # noqa: S105 - a token of JSON
        elif token not in (",", ":"):
            nodes[-1].append(_JSONB_DECODER.decode(token))
    return nodes[0][0]


# What readers of JSON disagree about.


def _members_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"an object has the member {twice!r} twice")
    return members


_STRICT_DECODER = json.JSONDecoder(
    object_pairs_hook=_members_once, parse_int=str, parse_float=str, parse_constant=_raise_not_a_number
)


def _loses_nothing(value: Any, body: bytes) -> bool:
    """Whether `value`, written again, is `body`: as quick as to parse it, and true of nearly all that the service has written."""
    try:
        return orjson.dumps(value) == body.strip()
    except orjson.JSONEncodeError:
        return False


def _check_strictly(value: Any, body: bytes) -> None:
    try:
        _STRICT_DECODER.decode(body.decode())
        if _may_have_bad_text(body):
            _raise_first_fault(value, "")
    except RecursionError:
        if _serialise(value, list) != body.strip():
            raise ValueError("it is nested too deep, and not in the form in which the service writes it") from None
    except _NotANumber as error:
        raise ValueError(f"{error.token} is not a JSON number") from None
    except BadRequest as error:
        raise ValueError(error.detail) from None


# Faults that are reported with a pointer.


def _raise_first_fault(root: Any, pointer: str) -> None:
    """Raise BadRequest for the first NUL, lone surrogate or number beyond the limits, level by level, with its RFC 6901 pointer."""
    places: list[tuple[Any, Any, Any]] = [(root, None, None)]
    for place in places:
        node = place[0]
        fault = _fault_of(node)
        if fault:
            where = pointer + _pointer(place)
            raise BadRequest(f"{where or 'body'}: {fault}", field_errors={where: fault})
        if type(node) is dict:
            places.extend((value, place, key) for key, value in node.items())
        elif type(node) is list:
            places.extend((value, place, index) for index, value in enumerate(node))


def _fault_of(node: Any) -> str | None:
    if type(node) is _NumberBeyondLimits:
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


class _Fragment(bytes):
    """Bytes of the output among the values that are still to be serialised."""


def _serialise(value: Any, order: Callable[[dict[str, Any]], list[str]]) -> bytes:
    """Compact JSON with the keys of each object in `order`, for any depth."""
    out: list[bytes] = []
    pending: list[Any] = [value]
    while pending:
        node = pending.pop()
        if isinstance(node, _Fragment):
            out.append(node)
        elif isinstance(node, dict):
            pending.append(_Fragment(b"}"))
            for key in reversed(order(node)):
                pending += (node[key], _Fragment(orjson.dumps(key) + b":"), _COMMA)
            pending[-1:] = [_Fragment(b"{")] if node else [_Fragment(b"{}")]
        elif isinstance(node, list):
            pending.append(_Fragment(b"]"))
            for item in reversed(node):
                pending += (item, _COMMA)
            pending[-1:] = [_Fragment(b"[")] if node else [_Fragment(b"[]")]
        else:
            out.append(_serialise_scalar(node))
    return b"".join(out)


_COMMA = _Fragment(b",")


def _serialise_scalar(value: Any) -> bytes:
    if value is None or isinstance(value, (bool, str)):
        return orjson.dumps(value)
    if isinstance(value, (int, float, Decimal)):
        return _number_text(value).encode()
    raise TypeError(f"{type(value).__name__} is not a JSON value")


def _sorted_as_utf16(node: dict[str, Any]) -> list[str]:
    return sorted(node, key=lambda key: key.encode("utf-16-be"))


def _number_text(number: float | Decimal) -> str:
    """The RFC 8785 form of a number that is a double, else its plain digits."""
    if isinstance(number, int) and abs(number) < 10**21:
        return str(number)
    exact = Decimal(repr(number)) if isinstance(number, float) else Decimal(number)
    if not exact.is_finite():
        raise ValueError(f"{number} is not a JSON number")
    if not exact:
        return "0"
    double = float(exact)
    if (abs(double) >= 1e21 or abs(double) < 1e-6) and Decimal(repr(double)) == exact:
        mantissa, _, power = repr(double).partition("e")
        return f"{mantissa}e{int(power):+d}"
    digits = f"{exact:f}"
    return digits.rstrip("0").rstrip(".") if "." in digits else digits
