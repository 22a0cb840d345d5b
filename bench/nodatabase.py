"""The same service without a database: it parses, validates, links and hashes all the same, and sends nothing.

It still looks for the schema at start and at the server twice a second, like the other one.
"""

from collections.abc import Sequence
from uuid import UUID

from app import logs, main
from app.ingest.accept import Event
from app.ingest.link import link
from app.ingest.store import Store
from app.serve import serve
from app.settings import load


class Nowhere(Store):
    """Gives every flush its place and its hashes, then drops it."""

    async def commit(self, events: Sequence[Event], deadline: float) -> None:
        del deadline
        self._remember(link(events, self._tail or (-1, 1), self._heads))

    async def stored(self, events: Sequence[Event]) -> dict[UUID, bool]:
        del events
        return {}


if __name__ == "__main__":
    main.Store = Nowhere  # type: ignore[misc]  # the one seam: what create_app wires
    settings = load()
    logs.configure(settings.log_level)
    serve(settings)
