"""Texts as Postgres gives them for values of jsonb."""

import re
from collections.abc import Iterable
from decimal import Decimal
from typing import Any


def member_text(value: Any) -> str | None:
    """As jsonb's ->> gives a member."""
    return value if value is None or isinstance(value, str) else jsonb_text(value)


def jsonb_text(value: Any) -> str:
    """The text that Postgres gives for a value of jsonb."""
    return "".join(_jsonb_pieces(value))


def _jsonb_pieces(value: Any) -> Iterable[str]:
    """The pieces of the text, without recursion: whoever may post decides how deep a payload is."""
    waiting: list[Any] = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, _Text):
            yield one
        elif isinstance(one, dict):
            members = sorted(one.items(), key=lambda member: (len(member[0].encode()), member[0].encode()))
            waiting.append(_Text("}"))
            for number, (key, member) in reversed([*enumerate(members)]):
                waiting += [member, _Text(f"{', ' if number else ''}{_quoted(key)}: ")]
            waiting.append(_Text("{"))
        elif isinstance(one, list):
            waiting.append(_Text("]"))
            for number, element in reversed([*enumerate(one)]):
                waiting += [element, _Text(", " if number else "")]
            waiting.append(_Text("["))
        else:
            yield _scalar(one)


class _Text(str):
    """A piece that is text already."""

    __slots__ = ()


def _scalar(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return _quoted(value)
    return f"{Decimal(repr(value)) if isinstance(value, float) else Decimal(value):f}"


_ESCAPED = re.compile(r'["\\\x00-\x1f]')
_ESCAPES = {'"': '\\"', "\\": "\\\\", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t"}


def _quoted(text: str) -> str:
    escaped = _ESCAPED.sub(lambda found: _ESCAPES.get(found[0]) or f"\\u{ord(found[0]):04x}", text)
    return f'"{escaped}"'
