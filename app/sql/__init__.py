"""Named SQL statements, one file for each station; asyncpg's `$1` parameters."""

import re
from importlib.resources import files

_NAME = re.compile(r"^-- name: (\w+)\n", re.MULTILINE)


def load(station: str) -> dict[str, str]:
    """Statements of `station`.sql by name. Each begins with `-- name: x` and a comment that says its purpose."""
    parts = _NAME.split(files(__package__).joinpath(f"{station}.sql").read_text("utf-8"))
    return {name: text.strip() for name, text in zip(parts[1::2], parts[2::2], strict=True)}
