"""How severe an item of a stream is, as a number of syslog (RFC 5424, table 2), which other forms compute theirs from."""

from app.stream.portion import Absent, Item, StreamedEvent

CRITICAL, ERROR, WARNING, NOTICE, INFORMATIONAL, DEBUG = range(2, 8)
_BY_TEXT = {
    **dict.fromkeys(("critical", "fatal", "emergency", "alert"), CRITICAL),
    **dict.fromkeys(("high", "error", "major"), ERROR),
    **dict.fromkeys(("medium", "warning", "warn", "moderate"), WARNING),
    **dict.fromkeys(("low", "notice", "minor"), NOTICE),
    **dict.fromkeys(("info", "informational", "none"), INFORMATIONAL),
    "debug": DEBUG,
}


def syslog_severity(item: Item) -> int:
    """2 (critical) to 7 (debug): what the event says of itself, and at least a warning for a failure or events that are missing."""
    if isinstance(item, StreamedEvent):
        severity = _BY_TEXT.get((item.event["severity"] or "").lower(), INFORMATIONAL)
        return min(severity, WARNING) if item.event["event_outcome"] == "failure" else severity
    is_missing = isinstance(item, Absent) and item.reason != "purged"
    return WARNING if is_missing else INFORMATIONAL
