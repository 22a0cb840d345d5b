"""Text of events on a page: what a reader could not see, or what would change the order of what they see, becomes visible."""

import re
import sys
import unicodedata

_INVISIBLE = frozenset({"Cc", "Cf", "Zl", "Zp", "Cs", "Co", "Cn"})
_HARD_TO_SEE = re.compile(r"[^\n\t -~]")
_PIECE = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|[\[\]{},:]|[^\s\[\]{},:"]+')
_INDENT = "  "


def visible(text: str) -> str:
    """`text` with an escape such as \\u202e for each character that is not printed: controls, directions, surrogates."""
    if text.isprintable():
        return text
    return _HARD_TO_SEE.sub(_escape_invisible, text)


def _escape_invisible(match: re.Match[str]) -> str:
    character = match[0]
    if unicodedata.category(character) not in _INVISIBLE:
        return character
    code = ord(character)
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def indented(json: str, most: int = sys.maxsize) -> str:
    """The same JSON over several lines. Numbers and strings stay as they are written: nothing is parsed.

    Of a long one the first `most` characters, and how many of `json` follow, which are not looked at.
    """
    parts, depth, before, size = list[str](), 0, "", 0
    for match in _PIECE.finditer(json):
        piece = match[0]
        is_end = piece in {"]", "}"}
        if before in {"[", "{"} and not is_end:
            depth += 1
            piece = "\n" + _INDENT * depth + piece
        elif is_end and before not in {"[", "{"}:
            depth -= 1
            piece = "\n" + _INDENT * depth + piece
        elif before == ",":
            piece = "\n" + _INDENT * depth + piece
        elif piece == ":":
            piece = ": "
        parts.append(piece)
        size += len(piece)
        if size > most:
            return _cut("".join(parts), most, len(json) - match.end())
        before = match[0]
    return "".join(parts)


def cut(text: str, most: int) -> str:
    """The first `most` characters, and how many more there are."""
    return _cut(text, most, 0)


def _cut(text: str, most: int, following: int) -> str:
    more = len(text) - most + following
    return text if more <= 0 else f"{text[:most]}… ({more:,} more characters)"
