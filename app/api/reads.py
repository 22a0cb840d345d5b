"""Which server answers the reads of a request: a standby if its caller says by a bookmark what he knows, else the primary, as ever.

Pages ask for NOW: they show what the primary has, and have nothing to carry from one to the next.
"""

from collections.abc import Awaitable, Callable
from typing import TypeVar

from starlette.requests import Request

from app.api.service import Service, service_of
from app.bookmark import HEADER, NOW, Bookmark, Wanted, parse
from app.db import Pool
from app.query.sharing import SharedReads
from app.read_standbys import Answer

_T = TypeVar("_T")
_Question = TypeVar("_Question")
_PAGES = "/ui/"


class Reads:
    """The reads of one request. What one of them has seen, the next ones see too."""

    def __init__(self, request: Request, service: Service) -> None:
        self._standbys = service.standbys
        self._asked = _asked(request) if service.standbys.standbys else None
        self._wanted: Wanted = self._asked

    async def __call__(self, read: Callable[[Pool], Awaitable[_T]]) -> _T:
        """What `read` returns of a standby, or of the primary. It may be called twice."""
        return self._value(await self._standbys.read(self._wanted, read))

    async def ask(self, shared: SharedReads[tuple[_Question, Wanted], Answer[_T]], question: _Question) -> _T:
        """The answer to `question` that all share who ask it now and know as much."""
        return self._value(await shared.ask((question, self._wanted)))

    def see(self, bookmark: Bookmark) -> None:
        """What follows shows no less than this."""
        if self._wanted is None:
            return
        if not isinstance(self._wanted, Bookmark) or bookmark > self._wanted:
            self._wanted = bookmark

    @property
    def bookmark(self) -> Wanted:
        """What the caller knows with the answer; None if he does not say what he knows."""
        return self._wanted if isinstance(self._asked, Bookmark) else self._asked

    def _value(self, answer: Answer[_T]) -> _T:
        if answer.seen is not None:
            self.see(answer.seen)
        return answer.value


def reads_of(request: Request) -> Reads:
    """The reads of this request. Raises DatabaseAway before the database has been seen."""
    state = request.scope["state"]
    if "reads" not in state:
        state["reads"] = Reads(request, service_of(request))
    reads: Reads = state["reads"]
    return reads


def _asked(request: Request) -> Wanted:
    if request.scope["path"].startswith(_PAGES):
        return NOW
    text = request.headers.get(HEADER)
    return None if text is None else parse(text)
