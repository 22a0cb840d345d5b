"""The digest of a notification, which enters the log in its place (docs/design.md, section 5.11). Pure.

The salt is known to nobody who has only the log, so that a notification cannot be guessed from its digest; without the salt the digest
says nothing about it any more.
"""

from datetime import datetime
from hashlib import sha256

from app.events.canonical import canonical
from app.events.record import Row, time_text

COLUMNS = (
    *("remediation_id", "notification_id", "recipient", "channel", "message_summary", "status", "sent_at"),
    *("delivery_status", "error_message", "escalation_level", "created_at"),
)
SALT_BYTES = 16
STORED = "datastorage.notification.stored"
"""The type of the self event that has the digest."""


def notification_digest(salt: bytes, row: Row) -> str:
    """SHA-256 of the salt and the JCS of the columns, as hex."""
    return sha256(salt + notification_jcs(row)).hexdigest()


def notification_jcs(row: Row) -> bytes:
    """The JCS of the columns of a row, whose times are datetimes."""
    values = {name: row[name] for name in COLUMNS}
    return canonical({n: time_text(v) if isinstance(v, datetime) else v for n, v in values.items()})
