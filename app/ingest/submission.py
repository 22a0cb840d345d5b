"""What one request asks to write: whole or not at all."""

import asyncio
from collections.abc import Collection, Mapping, Sequence
from uuid import UUID

from app import tracing
from app.bookmark import Bookmark
from app.errors import AuditError, BadRequest, Conflict
from app.events.envelope import time_window_error
from app.events.explain import bad_fields
from app.ingest.accept import Acceptance, Draft, Event, accept
from app.ingest.claim import Claim
from app.ingest.notifications import PendingNotification

_SLICE = 500


class Submission:
    """The events of one request, and the future of its outcome: False when all are committed, True when all are spooled."""

    __slots__ = (
        "arrived",
        "bookmark",
        "claim",
        "events",
        "may_exist",
        "needs_lookup",
        "notification",
        "outcome",
        "payload_bytes",
        "refusals",
        "rejections",
        "stored_as",
        "trace_link",
    )

    def __init__(
        self,
        events: Sequence[Event],
        refusals: Mapping[UUID, BadRequest],
        *,
        may_exist: bool,
        claim: Claim | None = None,
        is_lenient: bool = False,
        notification: PendingNotification | None = None,
    ) -> None:
        self.events = events
        self.notification = notification
        """What is written in the same transaction: then the one event has its digest. It is never spooled as events are."""
        self.rejections: dict[UUID, AuditError] | None = {} if is_lenient else None
        """Of a lenient request: the events that are not written, and why. Else None: one such event fails the request."""
        self.trace_link = tracing.link()
        self.claim = claim
        self.arrived = asyncio.get_running_loop().time()
        self.refusals = refusals
        """Events that the rules of time and parent refuse, and why. It counts only for those that are not stored already."""
        self.may_exist = may_exist
        """Its ids may be stored already: they were computed from the body, or chosen by the client."""
        self.needs_lookup = bool(refusals) or claim is not None or any(event.digest for event in events)
        """Its ids and its claim have to be looked up in Postgres before it is sent. Else a unique violation reveals a resend."""
        self.bookmark: Bookmark | None = None
        """Of the flush that has committed it, where reads want one: None if it was stored before, or is spooled."""
        self.stored_as: dict[UUID, UUID] = {}
        """Of events that were found stored already, or spooled: the id under which each is."""
        self.payload_bytes = sum(event.payload_bytes for event in events)
        self.outcome: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

    def fails_without(self, ids: Collection[UUID]) -> bool:
        """Whether nothing is written if these events cannot be: the request is strict, or one is the self event about the others."""
        return self.rejections is None or any(
            event.id in ids and event.record["event_type"].startswith("datastorage.") for event in self.events
        )

    def reject(self, errors: Mapping[UUID, AuditError]) -> None:
        """Leave out the events with these ids if the request is lenient, else fail the whole request."""
        if self.fails_without(errors):
            for error in errors.values():
                self.fail(error)
        elif errors:
            assert self.rejections is not None
            self.rejections |= errors
            self.events = [event for event in self.events if event.id not in errors]

    @property
    def is_refused(self) -> bool:
        """Whether it was answered that nothing of it is stored."""
        if not self.outcome.done() or self.outcome.cancelled():
            return False
        error = self.outcome.exception()
        return isinstance(error, AuditError) and error.status < 500

    def fail(self, error: AuditError) -> None:
        if not self.outcome.done():
            self.outcome.set_exception(error)

    def finish(self, *, spooled: bool = False) -> None:
        if not self.outcome.done():
            self.outcome.set_result(spooled)


def conflict(event_id: UUID, difference: str = "") -> Conflict:
    """The refusal of an id under which other content is stored."""
    return Conflict(
        f"event_id {event_id} belongs to an event with other content{difference}: send the event that was sent first, "
        "or a new id",
        resource="audit_event",
        field="event_id",
        value=str(event_id),
    )


def unsealed_conflict(event_id: UUID) -> Conflict:
    """The refusal of an event whose id is that of a row which others inserted by SQL."""
    return Conflict(
        f"event_id {event_id} belongs to a row that is not in the log, so the event cannot be stored: ask the operator, whom an "
        "alarm has told",
        resource="audit_event",
        field="event_id",
        value=str(event_id),
    )


async def new_submission(
    drafts: Sequence[Draft],
    ids: Sequence[UUID],
    acceptance: Acceptance,
    claim: Claim | None = None,
    *,
    is_lenient: bool = False,
) -> Submission:
    """The submission of one request's drafts, with these ids.

    Equal items under one id are one event; different ones raise Conflict. A single event that cannot be a resend raises
    BadRequest when the rules of time or parent refuse it. Yields to the event loop between slices of a large batch.
    """
    unique, unique_ids = _without_duplicates(drafts, ids)
    may_exist = claim is not None or len(drafts) > 1 or drafts[0].event_id is not None or drafts[0].pointer != ""
    refusals = {}
    for draft, event_id in zip(unique, unique_ids, strict=True):
        if error := refusal(draft, acceptance):
            if not may_exist:
                raise error
            refusals[event_id] = error
    events = accept(unique[:_SLICE], unique_ids[:_SLICE], acceptance)
    for start in range(_SLICE, len(unique), _SLICE):
        await asyncio.sleep(0)
        events += accept(unique[start : start + _SLICE], unique_ids[start : start + _SLICE], acceptance)
    return Submission(events, refusals, may_exist=may_exist, claim=claim, is_lenient=is_lenient)


def _without_duplicates(drafts: Sequence[Draft], ids: Sequence[UUID]) -> tuple[Sequence[Draft], Sequence[UUID]]:
    if len(set(ids)) == len(ids):
        return drafts, ids
    first: dict[UUID, Draft] = {}
    for draft, event_id in zip(drafts, ids, strict=True):
        if first.setdefault(event_id, draft).digest != draft.digest:
            raise used_twice(draft, event_id)
    return list(first.values()), list(first)


def used_twice(draft: Draft, event_id: UUID) -> Conflict:
    """The refusal of an id that another item of the same request has."""
    return Conflict(
        f"{draft.pointer}/event_id: {event_id} is used twice in this request, with different content",
        resource="audit_event",
        field="event_id",
        value=str(event_id),
    )


def refusal(draft: Draft, acceptance: Acceptance) -> BadRequest | None:
    """Why the rules of time and parent refuse `draft`, or None."""
    is_import = acceptance.metadata is not None
    if (draft.timestamp is not None and not (is_import and draft.timestamp < acceptance.now)) and (
        error := time_window_error(draft.timestamp, acceptance.now, draft.pointer + "/event_timestamp")
    ):
        return error
    if draft.parent_id is not None and draft.parent_id not in acceptance.parents:
        pointer = draft.pointer + "/parent_event_id"
        return bad_fields(
            {pointer: f"expected the id of a stored event, but there is no parent {draft.parent_id}: send it first"}
        )
    return None
