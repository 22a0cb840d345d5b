"""Text on a terminal, which would obey the control characters of a text, and turn it round at bidirectional ones."""


def one_line(text: str) -> str:
    """`text` with spaces for line breaks and control characters, as files that are to be read later have it."""
    return "".join(character if character.isprintable() else " " for character in text)


def visible(text: str) -> str:
    """`text` on one line, with an escape as of Python's for each character that prints nothing: \\x1b, \\n, \\u202e."""
    return text if text.isprintable() else "".join(c if c.isprintable() else _escape(c) for c in text)


def visible_json(text: str) -> str:
    """A JSON text with an escape of JSON's for each such character in its strings. Line breaks between its values stay."""
    return "".join(c if c.isprintable() or c == "\n" else _json_escape(c) for c in text)


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def _json_escape(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[i]:02x}{units[i + 1]:02x}" for i in range(0, len(units), 2))
