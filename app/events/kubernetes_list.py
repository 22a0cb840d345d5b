"""Reads an EventList item by item, so that what is bad in one of them loses none of the others.

What people send to a kube-apiserver stands in its audit events as they sent it: texts with NUL or half a character, numbers that no
double has, objects a thousand levels deep. Each is read as something that app/events/kubernetes.py can replace and name.
"""

import json
import re
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from json.decoder import WHITESPACE  # type: ignore[attr-defined]  # missing from the stubs
from math import isinf
from typing import Any, NoReturn

from app.errors import BadRequest
from app.events.canonical import NESTING_MAX, SIGNIFICANT_DIGITS_MAX, kind_of, parse

KIND, API_VERSION = "EventList", "audit.k8s.io/v1"
_TOKEN = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[\[\]{},:"]|[^\s\[\]{},:"]+', re.DOTALL)
_STRUCTURE = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[\[\]{}"]', re.DOTALL)
"""In both, a quotation mark alone is of a text without an end: nothing behind it is looked at."""
_PARTS = 64 * 1024, 1024 * 1024
"""Characters that are parsed at once: most values end within the first number, and none is parsed that is longer than the second."""
_MEMBER_PARTS = 64 * 1024, 256 * 1024
"""The same for the members of a longer item."""
_MEMBERS_MAX = 4 * 1024 * 1024
"""Characters of such members together."""
_NESTING_READ_MAX = 10_000
"""Levels of a list; Kubernetes reads no more either."""
_TOKENS_AT_ONCE = 20_000
_TOKEN_MAX = 100
_LONG_TOKEN = 16
_UNDERFLOW = 1e-290
"""As in app/events/canonical.py: with fewer characters and above that a double loses nothing."""


@dataclass(frozen=True, slots=True)
class BadNumber:
    """A number beyond the limits of canonical JSON."""

    token: str


class TooDeep:
    """An array or object below the level that any JSON of ours may have."""


class TooLarge:
    """A value that is too long to be parsed."""


class Pause:
    """Not an item: what `items` yields while it looks for the end of a long one, so that others can run."""


def items(body: bytes) -> Iterator[Any]:
    """The items of the EventList, of any JSON type, and Pauses. Of an item of more than 1 MiB long members are TooLarge. Texts may have NUL and lone surrogates, and a byte that is not UTF-8 is one.

    BadRequest when the body turns out to be no EventList, or no JSON; that may be after some items.
    """
    try:
        text = body.decode()
    except UnicodeDecodeError:
        text = body.decode(errors="surrogateescape")
    index = _skip(text, 0)
    if not text.startswith("{", index):
        raise _no_list(f"got {kind_of(parse(body).value)}")
    found: dict[str, Any] = {}
    index = _skip(text, index + 1)
    while not text.startswith("}", index):
        key, index = _short(text, index)
        index = _expect(":", text, index)
        if key == "items" and text.startswith("[", index):
            _check(found, is_end=False)
            index = yield from _elements(text, index + 1)
            found[key] = []
        else:
            found[str(key)], index = _short(text, index)
        index = _skip(text, index)
        if not text.startswith("}", index):
            index = _expect(",", text, index)
    if _skip(text, index + 1) != len(text):
        raise BadRequest("body: expected JSON, got something after its end")
    _check(found, is_end=True)


def _elements(text: str, index: int) -> Generator[Any, None, int]:
    """Yields the elements of the array of which `index` is the inside, and returns the index of its end."""
    index = _skip(text, index)
    while not text.startswith("]", index):
        short = _value(text, index, _PARTS)
        value, index = short or (yield from _long_item(text, index))
        yield value
        index = _skip(text, index)
        if not text.startswith("]", index):
            index = _expect(",", text, index)
    return index + 1


def _check(found: dict[str, Any], *, is_end: bool) -> None:
    for name, expected in (("kind", KIND), ("apiVersion", API_VERSION)):
        if (is_end or name in found) and found.get(name) != expected:
            raise _no_list(f"got {name} {str(found.get(name))[:60]!r}")
    if is_end and found.get("items") != []:
        raise _no_list(f"got {kind_of(found['items']) if 'items' in found else 'nothing'} as its items")


def _no_list(got: str) -> BadRequest:
    return BadRequest(f"body: expected an {KIND} of {API_VERSION}, as a kube-apiserver's audit webhook sends it, {got}")


def _skip(text: str, index: int) -> int:
    return WHITESPACE.match(text, index).end()  # type: ignore[no-any-return]  # untyped


def _expect(character: str, text: str, index: int) -> int:
    """The index of what follows this character."""
    index = _skip(text, index)
    if not text.startswith(character, index):
        raise BadRequest(f"body: expected JSON, got no {character!r} at character {index}")
    return _skip(text, index + 1)


def _short(text: str, index: int) -> tuple[Any, int]:
    if (found := _value(text, index, _PARTS)) is None:
        raise BadRequest(f"body: expected at most {_PARTS[-1]} characters, got more in the value at character {index}")
    return found


def _value(text: str, index: int, parts: tuple[int, ...]) -> tuple[Any, int] | None:
    """The value at `index`, and the index of its end; None if it is longer than the last of `parts`."""
    for length in parts:
        part = text[index : index + length]
        try:
            try:
                value, end = _DECODER.raw_decode(part)
            except RecursionError:
                value, end = _deep_value(part)
        except (ValueError, IndexError) as error:
            if index + length >= len(text):
                raise BadRequest(
                    f"body: expected JSON, got an error in the value at character {index}: {error}"
                ) from None
        else:
            return value, index + end
    return None


def _deep_value(text: str) -> tuple[Any, int]:
    """The value at the beginning, without recursion, with TooDeep for what no JSON of ours may have. Of what is inside nothing is kept."""
    nodes: list[list[Any]] = [[]]
    below = 0
    for match in _TOKEN.finditer(text):
        token = match[0]
        if token in {"[", "{"}:
            if len(nodes) <= NESTING_MAX:
                nodes.append([])
                continue
            below += 1
            _check_nesting(below + NESTING_MAX)
        elif token in {"]", "}"}:
            if below:
                below -= 1
                if not below:
                    nodes[-1].append(TooDeep())
                continue
            parts = nodes.pop()
            nodes[-1].append(parts if token == "]" else _object(parts))  # noqa: S105 -- a token of JSON
            if len(nodes) == 1:
                return nodes[0][0], match.end()
        elif token == '"':  # noqa: S105 -- a token of JSON
            break
        elif token not in {",", ":"} and not below:
            nodes[-1].append(_DECODER.decode(token))
    raise ValueError("it has no end")


def _check_nesting(levels: int) -> None:
    if levels > _NESTING_READ_MAX:
        raise BadRequest(f"body: expected at most {_NESTING_READ_MAX} levels of arrays and objects, got more")


def _long_item(text: str, start: int) -> Generator[Any, None, tuple[Any, int]]:
    """The item at `start`, with TooLarge in place of its long members. What comes after too many members is not read."""
    if not text.startswith("{", start):
        return TooLarge(), (yield from _end(text, start))
    found: dict[str, Any] = {}
    room = _MEMBERS_MAX
    index = _skip(text, start + 1)
    while not text.startswith("}", index):
        key, end = _value(text, index, _MEMBER_PARTS) or (None, index)
        if not isinstance(key, str) or room < 0:
            found[""] = TooLarge()
            return found, (yield from _end(text, start))
        end = _expect(":", text, end)
        short = _value(text, end, _MEMBER_PARTS)
        if short is None:
            found[key] = TooLarge()
            room -= end - index
            end = yield from _end(text, end)
        else:
            found[key], end = short
            room -= end - index
        index = _skip(text, end)
        if not text.startswith("}", index):
            index = _expect(",", text, index)
    return found, index + 1


def _end(text: str, index: int) -> Generator[Pause, None, int]:
    """The index of the end of the value at `index`, of which only texts and brackets are looked at."""
    depth = 0
    if text[index] in '[{"':
        for number, match in enumerate(_STRUCTURE.finditer(text, index), 1):
            token = match[0]
            if token == '"':  # noqa: S105 -- a token of JSON
                break
            if token in {"[", "{"}:
                depth += 1
                _check_nesting(depth)
            elif token in {"]", "}"}:
                depth -= 1
            if not depth:
                return match.end()
            if not number % _TOKENS_AT_ONCE:
                yield Pause()
    raise BadRequest(f"body: expected JSON, got no end of the value at character {index}")


def _object(parts: list[Any]) -> dict[str, Any]:
    members = dict(zip(parts[::2], parts[1::2], strict=True))
    if not all(isinstance(key, str) for key in members):
        raise ValueError("a key is no text")
    return members


def _integer(token: str) -> Any:
    return int(token) if len(token) <= SIGNIFICANT_DIGITS_MAX else _number(token)


def _number(token: str) -> Any:
    value = float(token)
    if isinf(value):  # before the parser's slow refusal, of which a body may have a million
        return BadNumber(token[:_TOKEN_MAX])
    if len(token) < _LONG_TOKEN and abs(value) > _UNDERFLOW and not value.is_integer():
        return value
    try:
        return parse(token.encode()).value
    except BadRequest:
        return BadNumber(token[:_TOKEN_MAX])


def _refuse(token: str) -> NoReturn:
    raise ValueError(f"{token} is no number")


_DECODER = json.JSONDecoder(parse_int=_integer, parse_float=_number, parse_constant=_refuse)
