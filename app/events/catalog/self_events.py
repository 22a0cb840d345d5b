"""Self events: events that this service writes about itself, each under a correlation id of its own, `datastorage:<kind>:<uuid>`.

A client cannot post them, nor any other event under such a correlation id, because verification accepts a position as purged, or
a row as erased, if one of these records it.
`positions` are positions in the log, as text of a Postgres int8multirange: `{[0,5),[7,9)}`. `log_id` is the log of an event's positions
and sizes; without it they are of log 0.
"""

from typing import Any, Literal, NotRequired

from typing_extensions import TypedDict

from app.events import own
from app.events.catalog.value_types import Count, DateTime, Int32, Int64, Sha256Hex, Uuid

CATEGORY = own.CATEGORY


class HoldPlacedPayload(TypedDict):
    """Somebody put events under legal hold by one selector; nothing that fits it may be purged or erased from here on.

    The selector is one of correlation_id, actor_id, resource_type with resource_id, and time_from with time_to.
    """

    event_type: Literal["datastorage.hold.placed"]
    hold_id: Uuid
    correlation_id: NotRequired[str]
    actor_id: NotRequired[str]
    resource_type: NotRequired[str]
    resource_id: NotRequired[str]
    time_from: NotRequired[DateTime]
    time_to: NotRequired[DateTime]
    reason: str
    placed_by: str
    placed_at: NotRequired[DateTime]
    replaces: NotRequired[Uuid]


class HoldReleasedPayload(TypedDict):
    """A legal hold ended; what it alone held can be purged and erased again. Its selector is repeated."""

    event_type: Literal["datastorage.hold.released"]
    hold_id: NotRequired[Uuid]
    correlation_id: NotRequired[str]
    actor_id: NotRequired[str]
    resource_type: NotRequired[str]
    resource_id: NotRequired[str]
    time_from: NotRequired[DateTime]
    time_to: NotRequired[DateTime]
    reason: str
    released_by: str
    released_at: NotRequired[DateTime]


class HoldAdoptedPayload(TypedDict):
    """A hold of which the log had no event, as it was found when the log began to record all of them.

    placed_index and released_index are the positions, in the log log_id, of the events that recorded it, which are gone.
    """

    event_type: Literal["datastorage.hold.adopted"]
    hold_id: Uuid
    correlation_id: NotRequired[str]
    actor_id: NotRequired[str]
    resource_type: NotRequired[str]
    resource_id: NotRequired[str]
    time_from: NotRequired[DateTime]
    time_to: NotRequired[DateTime]
    reason: str
    placed_by: str
    placed_at: DateTime
    placed_index: Int64
    released_by: NotRequired[str]
    release_reason: NotRequired[str]
    released_at: NotRequired[DateTime]
    released_index: NotRequired[Int64]
    log_id: Count


class PolicySetPayload(TypedDict):
    """Somebody set how long events of one category stay: at least retention_days, within its bounds if it has any.

    adopted: it was found in the table when the log began to record policies.
    """

    event_type: Literal["datastorage.policy.set"]
    policy_id: Uuid
    category: str
    retention_days: Int32
    floor_days: NotRequired[Int32]
    ceiling_days: NotRequired[Int32]
    set_by: str
    reason: str
    adopted: NotRequired[bool]


class PolicyRemovedPayload(TypedDict):
    """Somebody removed the policy of one category: its events stay as long as they ask for, within the settings' bounds."""

    event_type: Literal["datastorage.policy.removed"]
    policy_id: Uuid
    category: str
    removed_by: str
    reason: str


class FollowedPolicy(TypedDict):
    """What decided about the purged events of one category, and the newest event_timestamp among them.

    retention_days are those of the category's policy, absent if it has none; the bounds are the policy's, else the settings'.
    """

    category: str
    retention_days: NotRequired[Int32]
    floor_days: Int32
    ceiling_days: Int32
    newest: DateTime


class ArchivedIn(TypedDict):
    """A part of the archive, and the SHA-256 of the manifest that it had when events of it were removed from Postgres."""

    archive_id: Uuid
    manifest_sha256: Sha256Hex


class RetentionPurgedPayload(TypedDict):
    """Retention removed events that were past their time, or are archived; their leaves stay in the log, their rows do not.

    event_count is that of the positions; rows that others inserted by SQL have none, and are counted apart. An event whose
    count is 0 repeats the positions of older ones of this type that are removed, so that none is ever forgotten. policies are those that
    the run followed, one for each category of the events that it purged; an event from before December 2026 has none. archives are the
    parts of the archive that have these events, as the run has just read them: no policy had to be over, since the archive keeps them.
    """

    event_type: Literal["datastorage.retention.purged"]
    operation_id: Uuid
    positions: str
    log_id: NotRequired[Count]
    event_count: Count
    unsealed_count: NotRequired[Count]
    partition: NotRequired[str | None]
    cutoff: DateTime
    policies: NotRequired[list[FollowedPolicy]]
    archives: NotRequired[list[ArchivedIn]]


class RetentionRestoredPayload(TypedDict):
    """A month that was to be removed was put back, since something in it was held or too young after all.

    Takes back what the purge of the same operation says of these positions.
    """

    event_type: Literal["datastorage.retention.restored"]
    operation_id: Uuid
    positions: str
    log_id: NotRequired[Count]
    partition: NotRequired[str | None]
    reason: NotRequired[str]


class EventErasedPayload(TypedDict):
    """What these events said of people was erased on request; their records, hashes and places in the log stay.

    left has the SHA-256 of the neutral payload that each row was left with, in the order of positions.
    """

    event_type: Literal["datastorage.event.erased"]
    erasure_id: Uuid
    event_ids: list[Uuid]
    positions: str
    left: NotRequired[list[Sha256Hex]]
    log_id: NotRequired[Count]
    erased_by: str
    reason: str


class NotificationStoredPayload(TypedDict):
    """A notification was stored. The digest is over it and a salt that only its row has, so that it cannot be guessed from here.

    Recipient and text are not in this event; the two ids are, as correlation ids are in every record.
    """

    event_type: Literal["datastorage.notification.stored"]
    storing_id: Uuid
    notification_id: str
    remediation_id: str
    digest: Sha256Hex


class FindingRecordedPayload(TypedDict):
    """Verification, or the signing of a checkpoint, found something wrong. It stands until somebody acknowledges it.

    positions are those of the log log_id, near ones joined where there are many; subjects name what has none. defect_count is how
    many defects were found at once, alarm the alarm of the checkpoint worker.
    """

    event_type: Literal["datastorage.finding.recorded"]
    finding_id: Uuid
    kind: str
    alarm: NotRequired[str]
    log_id: Count
    positions: str
    subjects: NotRequired[list[str]]
    defect_count: Count
    correlation_ids: NotRequired[list[str]]
    detail: str


class FindingAcknowledgedPayload(TypedDict):
    """Somebody who may place holds has seen a finding and says what it was; it stands no longer."""

    event_type: Literal["datastorage.finding.acknowledged"]
    finding_id: Uuid
    acknowledged_by: str
    reason: str


class SinkOrderedPayload(TypedDict):
    """Somebody paused, resumed or removed a sink: its destination, at the address, gets events no longer, or gets them again.

    place is where the sink was then, as log and position: everything before it was delivered.
    """

    event_type: Literal["datastorage.sink.paused", "datastorage.sink.resumed", "datastorage.sink.removed"]
    order_id: Uuid
    sink: str
    address: str
    place: str
    ordered_by: str
    reason: NotRequired[str]


class SinkRewoundPayload(TypedDict):
    """Somebody moved the cursor of a sink from place to another one: its destination gets events again, or never gets those in between."""

    event_type: Literal["datastorage.sink.rewound"]
    order_id: Uuid
    sink: str
    address: str
    place: str
    to: str
    ordered_by: str
    reason: NotRequired[str]


class ExportCreatedPayload(TypedDict):
    """Somebody took a copy of events out of the service; which ones, and what the copy was when it left."""

    event_type: Literal["datastorage.export.created"]
    export_id: Uuid
    exported_by: str
    format: Literal["json", "ndjson", "csv", "bundle"]
    query_filters: dict[str, Any]
    event_count: Count
    redacted: NotRequired[bool]
    first_position: NotRequired[Count]
    last_position: NotRequired[Count]
    log_id: NotRequired[Count]
    file_sha256: NotRequired[Sha256Hex]


class ArchiveStoredPayload(TypedDict):
    """A part of the log was copied to the archive, read back and verified, row by row. Each of several events has some of the positions.

    month is that of the events' event_date; location is the part's folder, manifest_sha256 the digest of the manifest in it, and
    tree_size the size of the checkpoint in that. A part with replaces is the one of that archive_id, written again without the
    content of erased_count events that were erased since; the manifest names their erasures.
    """

    event_type: Literal["datastorage.archive.stored"]
    archive_id: Uuid
    log_id: Count
    month: str
    location: str
    manifest_sha256: Sha256Hex
    tree_size: Count
    positions: str
    event_count: Count
    replaces: NotRequired[Uuid]
    erased_count: NotRequired[Count]


class ArchiveExpiredPayload(TypedDict):
    """A part of the archive was over, so it is no longer there: its events are purged. Each of several events has some of the positions.

    manifest_sha256 is the digest of the part's manifest. positions are those of the events that are gone; what of the part is never
    purged has its row. cutoff and policies are those of datastorage.retention.purged. expiry_id is in the names of the table's
    files that were written without the part.
    """

    event_type: Literal["datastorage.archive.expired"]
    archive_id: Uuid
    expiry_id: Uuid
    log_id: Count
    month: str
    manifest_sha256: Sha256Hex
    positions: str
    event_count: Count
    cutoff: DateTime
    policies: list[FollowedPolicy]


class ArchiveLockedPayload(TypedDict):
    """The files of a part of the archive were set under legal hold in their bucket, since these holds cover events of it.

    A later event of the part says for which holds it is locked then. holds are at most 1,000.
    """

    event_type: Literal["datastorage.archive.locked"]
    archive_id: Uuid
    log_id: Count
    month: str
    manifest_sha256: Sha256Hex
    holds: list[Uuid]


class ArchiveUnlockedPayload(TypedDict):
    """The legal hold of the files of a part of the archive was lifted, since no hold covers events of it any more."""

    event_type: Literal["datastorage.archive.unlocked"]
    archive_id: Uuid
    log_id: Count
    month: str
    manifest_sha256: Sha256Hex


class ImportStoredPayload(TypedDict):
    """A portion of events from elsewhere was imported with their own times; each of them has `imported` in its event_metadata.

    The count includes those of the portion that were stored before.
    """

    event_type: Literal["datastorage.import.stored"]
    import_id: Uuid
    imported_by: str
    event_count: Count
    first_event_timestamp: DateTime
    last_event_timestamp: DateTime


class ReadAuditedPayload(TypedDict):
    """Somebody read events, on an installation that records this."""

    event_type: Literal["datastorage.read.audited"]
    read_by: str
    http_method: str
    http_path: str
    query_string: NotRequired[str]
    http_status: NotRequired[Count]
    event_count: NotRequired[Count]


class LogHeartbeatPayload(TypedDict):
    """Nobody wrote anything for a while, and this event proves that the silence was no loss."""

    event_type: Literal["datastorage.log.heartbeat"]
    tree_size: Count
    log_id: NotRequired[Count]
    silent_since: NotRequired[DateTime]
    root_hash: NotRequired[Sha256Hex]


class LogContinuedPayload(TypedDict):
    """The first event of a log that continues another one after a loss, which it admits.

    log_id and closed_log are the log that was closed, as are the positions: those without a row that were not purged, and those that
    were signed (checkpoint is the last note that was known) and may have other events now. Its tree as it stands has this root.
    """

    event_type: Literal["datastorage.log.continued"]
    continuation_id: Uuid
    log_id: Count
    closed_log: str
    size: Count
    tree_size: Count
    root_hash: Sha256Hex
    cause: Literal["rolled_back", "rewritten", "incomplete"]
    agreed_size: Count
    checkpoint: NotRequired[str]
    positions: str
    differing: str
    continued_by: str
    reason: str
