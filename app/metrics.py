"""Every metric of the service. Those of docs/contract.md, section 23, have the reference's names and labels; the others are ours."""

import threading

from prometheus_client import Counter, Gauge, Histogram, disable_created_metrics

disable_created_metrics()  # type: ignore[no-untyped-call]  # the Go client has no such metrics
_GO_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
"""The Go client's default buckets, which the platform's dashboards expect."""

WRITE_DURATION = Histogram(
    "datastorage_write_duration_seconds",
    "From the request's acceptance to its commit or failure.",
    ["table"],
    buckets=_GO_BUCKETS,
)
AUDIT_LAG = Histogram(
    "datastorage_audit_lag_seconds",
    "From event_timestamp to commit; single posts only.",
    ["service"],
    buckets=_GO_BUCKETS,
)
VALIDATION_FAILURES = Counter(
    "datastorage_validation_failures", "Requests refused before anything was written.", ["source", "reason"]
)
EVENTS_DROPPED = Counter("audit_events_dropped", "Events that were acknowledged and lost: always 0 here.", ["service"])
GOROUTINES = Gauge("go_goroutines", "Threads of this process; the name is what the platform's dashboards look for.")

REQUEST_DURATION = Histogram(
    "datastorage_http_request_duration_seconds", "Time to answer a request.", ["method", "route", "status"]
)
INBOX_EVENTS = Gauge("datastorage_inbox_events", "Events that are accepted and wait for their flush.")
FLUSH_EVENTS = Histogram(
    "datastorage_flush_events", "Events in one flush.", buckets=(1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 10000)
)
FLUSH_DURATION = Histogram("datastorage_flush_duration_seconds", "Time of one committed flush, repeats included.")
FLUSH_REPEATS = Counter("datastorage_flush_repeats", "Flushes that had to be sent again.", ["reason"])
COMMIT_WARNINGS = Counter(
    "datastorage_commit_warnings", "Commits that somebody has ended before a synchronous standby had them."
)
STANDBY_READS = Counter(
    "datastorage_standby_reads",
    "Reads that a standby was asked for: it has answered, or the primary had to, since the standby was behind or away, its recovery was in "
    "the way (conflict), or it failed.",
    ["outcome"],
)
STANDBY_LEFT_OUT = Gauge(
    "datastorage_read_standby_left_out",
    "Above 0 for a standby that answers no reads: it lags, is away, or is no standby.",
    ["standby"],
)
EVENTS_COMMITTED = Counter("datastorage_events_committed", "Events committed, resends not counted.")
RESENDS = Counter("datastorage_resends", "Events found stored already and answered as written.")
FREEFORM_WITH_TYPED_FORM = Counter(
    "datastorage_freeform_events", "Free-form events whose name also has a typed form.", ["event_type"]
)
FOREIGN_CATEGORY = Counter(
    "datastorage_foreign_category_events",
    "Events in another category than the catalog gives their type.",
    ["event_type"],
)
UNKNOWN_EVENT_TYPES = Counter(
    "datastorage_unknown_event_types", "Events of a type that is not known; only where the settings accept them."
)
LOG_RECORDS_REFUSED = Counter(
    "datastorage_log_records_refused", "OpenTelemetry's log records that were not stored; their senders were told why."
)
KUBERNETES_REFUSED = Counter(
    "datastorage_kubernetes_audit_refused_events",
    "Items of lists of audit events of Kubernetes that are not stored; the log says which, and why.",
    ["reason"],
)
KUBERNETES_CUT = Counter(
    "datastorage_kubernetes_audit_cut_events", "Audit events of Kubernetes of which something was cut.", ["reason"]
)
READS_REFUSED = Counter("datastorage_reads_refused", "Reads that were answered 503 since too many were running.")
STREAMS = Gauge("datastorage_streams", "Streams of events that clients follow now.")
STREAMS_REFUSED = Counter("datastorage_streams_refused", "Streams that were answered 503 since too many were open.")
STREAMS_ENDED = Counter(
    "datastorage_streams_ended",
    "Streams that have ended: because the client was gone or slow, by time, and so on.",
    ["reason"],
)
EVENTS_WITHOUT_TIME = Counter(
    "datastorage_events_without_time", "Events whose emitter set no time, so that it is the time of arrival."
)
DENIALS = Counter("datastorage_denials", "Requests that were not let in.", ["reason"])
AUTH_FAILURES = Counter(
    "datastorage_auth_failures", "Times that a judge of callers could not be asked, or its file not be read.", ["judge"]
)
LOG_ALARMS = Counter("datastorage_log_alarms", "The log is not as this process left it.", ["alarm"])
CONTINUATION_NEEDED = Gauge(
    "datastorage_log_continuation_needed", "1 while nothing is signed after a loss: run `datastorage log continue`."
)
# fmt: off
DEFECT_KINDS = (
    "edited", "removed", "inserted", "shadowed", "reordered", "truncated", "rolled back", "forged checkpoint", "wrong key",
    "unverifiable", "hold removed", "hold invented", "hold edited", "policy edited", "early purge",
)
# fmt: on
VERIFIER_POSITION = Gauge(
    "datastorage_verifier_position", "Position of the log that the background verifier has come to."
)
VERIFIER_ROUNDS = Counter("datastorage_verifier_rounds", "Times that the background verifier has seen the whole log.")
VERIFIED_EVENTS = Counter("datastorage_verifier_events", "Positions that the background verifier has looked at.")
VERIFIER_FINDINGS = Gauge("datastorage_verifier_findings", "What the background verifier still finds wrong.", ["kind"])
OPEN_FINDINGS = Gauge(
    "datastorage_open_findings",
    "Findings that the log records and nobody has acknowledged; every replica shows all of them.",
    ["kind"],
)
VERIFIER_DEFECTS = Counter("datastorage_verifier_defects", "What it found wrong for the first time.", ["kind"])
UNSEALED = Gauge(
    "datastorage_unsealed",
    "Rows that others inserted by SQL, and their correlations; absent until the background verifier has counted them.",
    ["what"],
)
CHECKPOINT_SIZE = Gauge("datastorage_checkpoint_size", "Leaves of the log in the last checkpoint that was signed.")
SIGNING_WAITS = Gauge(
    "datastorage_signing_waits",
    "1 while no checkpoint is signed since no standby is known to have what it would cover.",
)
WITNESS_FAILURES = Counter(
    "datastorage_witness_failures", "Checkpoints that a witness did not cosign, alarms not counted.", ["witness"]
)
CHECKPOINT_COPY_FAILURES = Counter(
    "datastorage_checkpoint_outside_failures", "Checkpoints that could not be kept outside the database.", ["where"]
)
TIMESTAMP_TIME = Gauge(
    "datastorage_timestamp_time_seconds",
    "When the timestamp authority has stamped a checkpoint last, by its clock; 0: never.",
)
SINK_EVENTS = Counter("datastorage_sink_events", "Events that the destination of a sink has confirmed.", ["sink"])
SINK_FAILURES = Counter("datastorage_sink_failures", "Tries after which the destination had not confirmed.", ["sink"])
SINK_REJECTED = Counter(
    "datastorage_sink_rejected_events",
    "Events that a receiver has rejected of portions that it has confirmed: they are not sent again.",
    ["sink"],
)
SINK_GAPS = Counter(
    "datastorage_sink_gap_positions",
    "Positions that were delivered as missing although the log does not know why: verification looks at them.",
    ["sink"],
)
SINK_LAG_EVENTS = Gauge("datastorage_sink_lag_events", "Events of the log that a sink has yet to come to.", ["sink"])
SINK_LAG_SECONDS = Gauge(
    "datastorage_sink_lag_seconds", "How long the first event that a sink has yet to come to is in the log.", ["sink"]
)
SINK_DELIVERED = Gauge(
    "datastorage_sink_delivered_timestamp_seconds",
    "When the destination of a sink has last confirmed; 0: never.",
    ["sink"],
)
SINK_PAUSED = Gauge("datastorage_sink_paused", "1 for a sink that somebody has paused.", ["sink"])
SINK_CONFIGURED = Gauge(
    "datastorage_sink_configured",
    "0 for a sink that has a cursor and is not in the file of sinks of this replica.",
    ["sink"],
)
SINKS_INVALID = Gauge(
    "datastorage_sinks_invalid", "1 while the file of sinks is not valid; what was valid before is delivered."
)
WORKER_FAILURES = Counter("datastorage_worker_failures", "Rounds of a background worker that failed.", ["worker"])

# The spool. The names with dlq are the platform's; its two streams are events and notifications.
ACCEPTED = Counter("datastorage_events_accepted", "Events handed to the writer; each ends in one of the next counters.")
REFUSED = Counter("datastorage_events_refused", "Events refused after they were handed to the writer.", ["reason"])
SPOOLED = Counter("datastorage_spooled_events", "Events kept in the spool since Postgres could not take them.")
REPLAYED = Counter("datastorage_replayed_events", "Events taken from the spool that are stored in Postgres now.")
QUARANTINED = Counter("datastorage_quarantined_events", "Spooled events that Postgres refuses for their content.")
SPOOL_FAILURES = Counter("datastorage_spool_failures", "Failures of the spool's disk.")
SPOOL_EVENTS = Gauge("datastorage_spool_events", "Events that wait in the spool.")
SPOOL_BYTES = Gauge("datastorage_spool_bytes", "Bytes of the requests in the spool, quarantined ones too.")
SPOOL_QUARANTINED = Gauge("datastorage_spool_quarantined_events", "Events in the spool's quarantine.")
SPOOL_OLDEST = Gauge("datastorage_spool_oldest_age_seconds", "How long the oldest event of the spool has waited.")
SPOOL_FREE = Gauge("datastorage_spool_disk_free_bytes", "Room on the spool's disk.")
PARENTS_UNCHECKED = Counter(
    "datastorage_parents_unchecked", "Parents taken as sent since Postgres was away and they wait in no spool."
)
DLQ_XADD = Counter("datastorage_dlq_stream_xadd", "Events kept in the spool, or put into its quarantine.", ["stream"])
DLQ_PENDING = Gauge("datastorage_dlq_pel_pending", "Events that wait in the spool.")
DLQ_WARNING = Gauge("datastorage_dlq_warning", "1 while the spool is 80 to 90 % full.", ["stream"])
DLQ_CRITICAL = Gauge("datastorage_dlq_critical", "1 while the spool is at least 90 % full.", ["stream"])
DLQ_TRIM = Counter("datastorage_dlq_trim", "Events that a full spool has dropped: always 0 here.", ["stream"])
DLQ_REFUSED = Counter(
    "datastorage_dlq_validation_failures", "Events put into the spool's quarantine.", ["audit_type", "reason"]
)
DLQ_DRAIN = Counter("datastorage_dlq_drain_batch", "Portions of the spool that were replayed.")

# Names that the platform's dashboards expect, of things that do not happen in this process.
Histogram(
    "datastorage_workflow_validation_duration_seconds", "Never observed.", ["phase", "result"], buckets=_GO_BUCKETS
)
Counter("datastorage_shutdown_dlq_drain_errors", "Always 0: what a shutdown leaves in the spool is replayed later.")
Counter("datastorage_retention_purge", "Always 0: `datastorage retention run` purges, in a process of its own.")
Gauge("datastorage_retention_enabled", "Always 0, for the same reason.")

# Categories that share the label value `other` in the lag histogram (docs/contract.md, section 23).
LAG_OTHER_CATEGORIES = frozenset({"apifrontend", "agentsession"})

GOROUTINES.set_function(threading.active_count)
# Dashboards and alerts expect a time series before its first event.
for _table in ("audit_events", "audit_events_batch", "notification_audit"):
    WRITE_DURATION.labels(table=_table)
for _stream in ("audit_events", "notifications", "dead_letter_audit_events", "dead_letter_notifications"):
    DLQ_XADD.labels(stream=_stream)
for _kind in DEFECT_KINDS:
    VERIFIER_FINDINGS.labels(kind=_kind)
    OPEN_FINDINGS.labels(kind=_kind)
    VERIFIER_DEFECTS.labels(kind=_kind)
for _outcome in ("answered", "behind", "away", "conflict", "failed"):
    STANDBY_READS.labels(outcome=_outcome)
for _stream in ("events", "notifications"):
    DLQ_WARNING.labels(stream=_stream)
    DLQ_CRITICAL.labels(stream=_stream)
    DLQ_TRIM.labels(stream=_stream)
for _reason in ("authentication_failed", "authorization_denied", "review_failed", "rate_limited"):
    DENIALS.labels(_reason)
VALIDATION_FAILURES.labels(source="openapi_middleware", reason="validation_error")
