"""Times that Python's datetime may not be able to represent: a row inserted by SQL can have the year 20000 or infinity.

They are read as the text that Postgres writes in UTC, answered as RFC 3339, and come back in a cursor as text.
"""

import re
from typing import Any

from sqlalchemy import ColumnElement, DateTime, Text, bindparam, cast, func, literal_column

_RFC3339 = re.compile(r"\d{4}-[\d:T .-]+$")
_UTC: ColumnElement[Any] = literal_column("'UTC'")


def rfc3339_or_none(text: str) -> str | None:
    """Postgres's text of a time in UTC as RFC 3339. None for NULL, infinity, and years that have no form there."""
    return text.replace(" ", "T", 1) + "Z" if _RFC3339.match(text) else None


def nearest_rfc3339(text: str) -> str:
    """As rfc3339_or_none(); a time that has no form there becomes the nearest one that has."""
    return rfc3339_or_none(text) or (
        "0001-01-01T00:00:00Z" if text.startswith("-") or text.endswith("BC") else "9999-12-31T23:59:59.999999Z"
    )


def utc_text(column: ColumnElement[Any]) -> ColumnElement[str]:
    """SQL: the time of `column` as Postgres's text in UTC."""
    return cast(func.timezone(_UTC, column), Text)


def utc_time(parameter: str) -> ColumnElement[Any]:
    """SQL: the time whose text in UTC is sent as the bind parameter of this name."""
    return func.timezone(_UTC, cast(cast(bindparam(parameter), Text), DateTime(timezone=False)))
