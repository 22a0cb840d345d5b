"""Text of events on a page: what a reader could not see, or what would change the order of what they see, becomes visible."""

import re
import unicodedata

_INVISIBLE = frozenset({"Cc", "Cf", "Zl", "Zp", "Cs", "Co", "Cn"})
_LINES = frozenset("\n\t")
_PIECE = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{},:]|[^\s\[\]{},:"]+')
_INDENT = "  "


def visible(text: str) -> str:
    """`text` with an escape such as \\u202e for each character that is not printed: controls, directions, surrogates."""
    if text.isprintable():
        return text
    return "".join(one if one in _LINES or not _is_invisible(one) else _escape(one) for one in text)


def _is_invisible(character: str) -> bool:
    return unicodedata.category(character) in _INVISIBLE


def _escape(character: str) -> str:
    code = ord(character)
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def indented(json: str) -> str:
    """The same JSON over several lines. Numbers and strings stay as they are written: nothing is parsed."""
    lines, depth, before = [""], 0, ""
    for piece in _PIECE.findall(json):
        if before in {"[", "{"} and piece not in {"]", "}"}:
            depth += 1
            lines.append(_INDENT * depth)
        elif piece in {"]", "}"} and before not in {"[", "{"}:
            depth -= 1
            lines.append(_INDENT * depth)
        elif before == ",":
            lines.append(_INDENT * depth)
        lines[-1] += ": " if piece == ":" else piece
        before = piece
    return "\n".join(lines)
