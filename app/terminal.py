"""Text on a terminal."""


def one_line(text: str) -> str:
    """`text` with spaces for line breaks and control characters: it comes from clients, and a terminal would obey it."""
    return "".join(character if character.isprintable() else " " for character in text)
