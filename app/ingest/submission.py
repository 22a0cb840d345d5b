"""What one request wants written: whole or not at all."""

import asyncio
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from app import tracing
from app.errors import AuditError, BadRequest, Conflict, KeyReused
from app.events.envelope import time_window_error
from app.events.explain import bad_fields
from app.ingest.accept import Acceptance, Draft, Event, fix

_SLICE = 500


class Claim(NamedTuple):
    """What an Idempotency-Key promises: the same answer again for the same body, until it expires."""

    scope: str
    """Method, path and caller."""
    key: str
    digest: bytes
    """SHA-256 of the canonical form of the body."""
    expires_at: datetime


class Submission:
    """The events of one request, and the future that says when all of them are stored, or safe in the spool (then True)."""

    __slots__ = ("arrived", "claim", "done", "events", "known", "link", "lookup_done", "refusals", "size")

    def __init__(
        self,
        events: Sequence[Event],
        refusals: Mapping[UUID, BadRequest],
        *,
        known: bool,
        claim: Claim | None = None,
    ) -> None:
        self.events = events
        self.link = tracing.link()
        self.claim = claim
        self.arrived = asyncio.get_running_loop().time()
        self.refusals = refusals
        """Why the rules of time and parent refuse an event. Only what is not stored already is refused."""
        self.known = known
        """Its ids may be stored already: computed from the body, or chosen by the client."""
        self.lookup_done = not refusals and claim is None and not any(event.digest for event in events)
        """Whether nothing has to be looked up before it is sent."""
        self.size = sum(event.size for event in events)
        self.done: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

    def fail(self, error: AuditError) -> None:
        if not self.done.done():
            self.done.set_exception(error)

    def finish(self, *, spooled: bool = False) -> None:
        if not self.done.done():
            self.done.set_result(spooled)


def conflict(event_id: UUID, difference: str = "") -> Conflict:
    """The refusal of an id under which other content is stored."""
    return Conflict(
        f"event_id {event_id} is taken by an event with other content{difference}: send the event that was sent first, "
        "or a new id",
        resource="audit_event",
        field="event_id",
        value=str(event_id),
    )


def key_reused() -> KeyReused:
    """The refusal of a key under which another body was sent."""
    return KeyReused(resource="request", field="Idempotency-Key")


async def prepare(
    drafts: Sequence[Draft], ids: Sequence[UUID], acceptance: Acceptance, claim: Claim | None = None
) -> Submission:
    """The submission of one request's drafts. Raises Conflict, or the refusal of an event that cannot be a resend.

    Of an id that stands twice, equal items are one. Yields to the event loop between slices of a large batch.
    """
    unique, unique_ids = _collapse(drafts, ids)
    known = claim is not None or len(drafts) > 1 or drafts[0].event_id is not None or drafts[0].pointer != ""
    refusals = {}
    for item, event_id in zip(unique, unique_ids, strict=True):
        if refused := _refusal(item, acceptance):
            if not known:
                raise refused
            refusals[event_id] = refused
    events = fix(unique[:_SLICE], unique_ids[:_SLICE], acceptance)
    for start in range(_SLICE, len(unique), _SLICE):
        await asyncio.sleep(0)
        events += fix(unique[start : start + _SLICE], unique_ids[start : start + _SLICE], acceptance)
    return Submission(events, refusals, known=known, claim=claim)


def _collapse(drafts: Sequence[Draft], ids: Sequence[UUID]) -> tuple[Sequence[Draft], Sequence[UUID]]:
    if len(set(ids)) == len(ids):
        return drafts, ids
    first: dict[UUID, Draft] = {}
    for item, event_id in zip(drafts, ids, strict=True):
        if first.setdefault(event_id, item).digest != item.digest:
            raise Conflict(
                f"{item.pointer}/event_id: {event_id} stands twice in this request, with different content",
                resource="audit_event",
                field="event_id",
                value=str(event_id),
            )
    return list(first.values()), list(first)


def _refusal(item: Draft, acceptance: Acceptance) -> BadRequest | None:
    """Why the rules of time and parent refuse `item`, or None."""
    if refused := time_window_error(item.timestamp, acceptance.now, item.pointer + "/event_timestamp"):
        return refused
    if item.parent_id is not None and item.parent_id not in acceptance.parents:
        pointer = item.pointer + "/parent_event_id"
        return bad_fields(
            {pointer: f"expected the id of a stored event, but there is no parent {item.parent_id}: send it first"}
        )
    return None
