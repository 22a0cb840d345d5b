"""Lists of a service, page after page."""

from collections.abc import Iterator
from typing import Any

from app.cli import client
from app.cli.client import Service
from app.errors import Usage

_PAGE = 500


class Pages:
    """What a list has, page after page, and where it could go on when enough was taken."""

    def __init__(self, service: Service, path: str, parameters: client.Parameters, limit: int | None = None) -> None:
        if limit is not None and limit < 1:
            raise Usage("--limit: expected a number of at least 1")
        self.cursor: str | None = None
        """Where what was not taken begins; None if there is nothing more."""
        self.left_out: dict[str, Any] | None = None
        """What the last page says of events that are in the archive alone."""
        self._service, self._path, self._parameters, self._limit = service, path, parameters, limit

    def __iter__(self) -> Iterator[dict[str, Any]]:
        left, more, count, doing = self._limit, dict[str, str](), 0, ""
        while True:
            size = _PAGE if left is None else min(_PAGE, left)
            answer = self._service.json(self._path, {**self._parameters, **more, "limit": str(size)}, doing)
            pagination = answer["pagination"]
            self.cursor, self.left_out = pagination.get("next_cursor"), pagination.get("left_out")
            left = None if left is None else left - len(answer["data"])
            yield from answer["data"]
            if self.cursor is None or left == 0:
                return
            count += len(answer["data"])
            until = pagination.get("scanned_until")
            doing = f"{count:,} found{'' if until is None else f', looked back to {until}'} ..."
            more = {"cursor": self.cursor}
