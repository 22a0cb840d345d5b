"""A notification through the pod's writer: one flush with the event that has its digest, with others that wait."""

from app.db import Engine
from app.ingest.claim import Claim
from app.ingest.notifications import (
    GeneratedColumns,
    Notification,
    NotificationStored,
    PendingNotification,
    id_conflict,
    is_stored,
    stored_under,
)
from app.ingest.self_events import self_event
from app.ingest.submission import Submission
from app.ingest.writer import Writer


async def write(
    engine: Engine, writer: Writer, notification: Notification, claim: Claim | None, deadline: float
) -> GeneratedColumns:
    """Write a notification and return when it is committed. A resend under a claim gets what was stored the first time.

    Raises Conflict when the notification_id is stored already, KeyReused when the key was sent with another body, and what
    Writer.submit() raises. After DatabaseAway, at `deadline` (the event loop's clock), the outcome is unknown.
    """
    standbys = writer.requires_standby
    if claim is not None and (stored := await stored_under(engine, claim, standbys=standbys)) is not None:
        return stored
    pending = PendingNotification(notification, claim)
    event = self_event(writer.store.log.name, pending.payload(), about=pending.storing_id)
    try:
        await writer.submit(Submission([event], {}, may_exist=False, notification=pending), deadline)
    except NotificationStored:
        if claim is not None and (stored := await stored_under(engine, claim, standbys=standbys)) is not None:
            return stored
        if standbys:  # the refusal says that it is stored
            await is_stored(engine, notification, standbys=True)
        raise id_conflict(notification) from None
    return GeneratedColumns(pending.number, pending.created_at)
