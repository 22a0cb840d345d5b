"""SQLAlchemy Core tables, for queries. The SQL files of migrations/ create the schema itself; a test compares the two."""

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Boolean,
    Column,
    Date,
    DateTime,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    String,
    Table,
    Text,
    Uuid,
)
from sqlalchemy.dialects.postgresql import INET, JSONB, OID

metadata = MetaData()

# One row for each event. The columns from log_id on are this service's: NULL there marks an unsealed row, inserted by SQL.
audit_events = Table(
    "audit_events",
    metadata,
    Column("event_id", Uuid, primary_key=True),
    Column("event_version", String(10), nullable=False),
    Column("event_timestamp", DateTime(timezone=True), nullable=False),
    Column("event_date", Date, primary_key=True),
    Column("event_type", String(100), nullable=False),
    Column("event_category", String(50), nullable=False),
    Column("event_action", String(50), nullable=False),
    Column("event_outcome", String(20), nullable=False),
    Column("actor_type", String(50), nullable=False),
    Column("actor_id", String(255), nullable=False),
    Column("actor_ip", INET),
    Column("resource_type", String(100), nullable=False),
    Column("resource_id", String(255), nullable=False),
    Column("resource_name", String(255)),
    Column("correlation_id", String(255), primary_key=True),
    Column("parent_event_id", Uuid),
    Column("parent_event_date", Date),
    Column("trace_id", String(255)),
    Column("span_id", String(255)),
    Column("namespace", String(253)),
    Column("cluster_id", String(255)),
    Column("event_data", JSONB, nullable=False),
    Column("event_metadata", JSONB),
    Column("severity", String(20)),
    Column("duration_ms", Integer),
    Column("error_code", String(50)),
    Column("error_message", Text),
    Column("retention_days", Integer),
    Column("is_sensitive", Boolean),
    Column("event_hash", Text),
    Column("previous_event_hash", Text),
    Column("legal_hold", Boolean),
    Column("legal_hold_reason", Text),
    Column("legal_hold_placed_by", Text),
    Column("legal_hold_placed_at", DateTime(timezone=True)),
    Column("hash_algorithm", String(20), nullable=False),
    Column("recorded_at", DateTime(timezone=True), nullable=False),
    Column("log_id", SmallInteger),
    Column("log_index", BigInteger),
    Column("chain_index", BigInteger),
    Column("payload_salt", LargeBinary),
    Column("payload_commitment", LargeBinary),
)

# The name of each log is part of every record that is hashed: it is written once and never changes.
logs = Table(
    "logs",
    metadata,
    Column("log_id", SmallInteger, primary_key=True, autoincrement=False),
    Column("name", Text, nullable=False, unique=True),
    Column("closed_at", DateTime(timezone=True)),
)

# One row for each flush; `leaves` has `count` leaf hashes of 32 bytes, one after another. Rows are never removed.
log_flushes = Table(
    "log_flushes",
    metadata,
    Column("log_id", SmallInteger, primary_key=True, autoincrement=False),
    Column("first_index", BigInteger, primary_key=True, autoincrement=False),
    Column("count", Integer, nullable=False),
    Column("leaves", LargeBinary, nullable=False),
    Column("flushed_at", DateTime(timezone=True), nullable=False),
)

# Higher levels of the log's tree; level 0 is log_flushes.
log_tiles = Table(
    "log_tiles",
    metadata,
    Column("log_id", SmallInteger, primary_key=True, autoincrement=False),
    Column("level", SmallInteger, primary_key=True, autoincrement=False),
    Column("index", BigInteger, primary_key=True, autoincrement=False),
    Column("hashes", LargeBinary, nullable=False),
)

# Signed checkpoints: the newest, and the last one of each hour.
log_checkpoints = Table(
    "log_checkpoints",
    metadata,
    Column("log_id", SmallInteger, primary_key=True, autoincrement=False),
    Column("size", BigInteger, primary_key=True, autoincrement=False),
    Column("note", Text, nullable=False),
    Column("cosignatures", Text, nullable=False),
    Column("signed_at", DateTime(timezone=True), nullable=False),
    Column("published_at", DateTime(timezone=True)),
)

# The replica that signs the next checkpoint locks this row, which has the last one.
log_signers = Table(
    "log_signers",
    metadata,
    Column("log_id", SmallInteger, primary_key=True, autoincrement=False),
    Column("note", Text),
)

# The end of each correlation's chain: its number of events, and the hash of the last in lower-case hex.
chain_heads = Table(
    "chain_heads",
    metadata,
    Column("correlation_id", String(255), primary_key=True),
    Column("length", BigInteger, nullable=False),
    Column("hash", Text, nullable=False),
)

# What was claimed under an id or an Idempotency-Key: the digest of the first body. expires_at is NULL where it never expires.
claims = Table(
    "claims",
    metadata,
    Column("scope", Text, primary_key=True),
    Column("key", Text, primary_key=True),
    Column("body_digest", LargeBinary, nullable=False),
    Column("event_ids", ARRAY(Uuid), nullable=False),
    Column("answer", JSONB),
    Column("claimed_at", DateTime(timezone=True), nullable=False),
    Column("expires_at", DateTime(timezone=True)),
)

notification_audit = Table(
    "notification_audit",
    metadata,
    Column("id", BigInteger, primary_key=True),
    Column("remediation_id", String(255), nullable=False),
    Column("notification_id", String(255), nullable=False, unique=True),
    Column("recipient", String(255), nullable=False),
    Column("channel", String(50), nullable=False),
    Column("message_summary", Text, nullable=False),
    Column("status", String(50), nullable=False),
    Column("sent_at", DateTime(timezone=True), nullable=False),
    Column("delivery_status", Text),
    Column("error_message", Text),
    Column("escalation_level", Integer),
    Column("created_at", DateTime(timezone=True), nullable=False),
    Column("updated_at", DateTime(timezone=True), nullable=False),
    Column("salt", LargeBinary),
    Column("log_id", SmallInteger),
    Column("log_index", BigInteger),
)

audit_retention_policies = Table(
    "audit_retention_policies",
    metadata,
    Column("policy_id", Uuid, primary_key=True),
    Column("event_category", String(50), nullable=False, unique=True),
    Column("retention_days", Integer, nullable=False),
    Column("legal_hold_override", Boolean, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False),
    Column("updated_at", DateTime(timezone=True), nullable=False),
    Column("floor_days", Integer),
    Column("ceiling_days", Integer),
)

# Legal holds, with one selector each. A released hold stays as history.
holds = Table(
    "holds",
    metadata,
    Column("hold_id", Uuid, primary_key=True),
    Column("correlation_id", String(255)),
    Column("actor_id", String(255)),
    Column("resource_type", String(100)),
    Column("resource_id", String(255)),
    Column("time_from", DateTime(timezone=True)),
    Column("time_to", DateTime(timezone=True)),
    Column("reason", Text, nullable=False),
    Column("placed_by", Text, nullable=False),
    Column("placed_at", DateTime(timezone=True), nullable=False),
    Column("placed_index", BigInteger, nullable=False),
    Column("release_reason", Text),
    Column("released_by", Text),
    Column("released_at", DateTime(timezone=True)),
    Column("released_index", BigInteger),
    Column("placed_log", SmallInteger, nullable=False),
    Column("released_log", SmallInteger, nullable=False),
)

# Whether holds and policies from before the log recorded them all are recorded.
adoptions = Table(
    "adoptions",
    metadata,
    Column("log_id", SmallInteger, primary_key=True),
    Column("adopted_index", BigInteger),
)

retention_operations = Table(
    "retention_operations",
    metadata,
    Column("id", BigInteger, primary_key=True),
    Column("run_id", Uuid, nullable=False),
    Column("scope", Text, nullable=False),
    Column("period_start", Date),
    Column("period_end", Date),
    Column("rows_scanned", BigInteger, nullable=False),
    Column("rows_deleted", BigInteger, nullable=False),
    Column("partitions_dropped", ARRAY(Text), nullable=False),
    Column("status", Text, nullable=False),
    Column("error_message", Text),
    Column("operation_start", DateTime(timezone=True), nullable=False),
    Column("operation_end", DateTime(timezone=True)),
    Column("operation_duration_ms", BigInteger),
    Column("created_at", DateTime(timezone=True), nullable=False),
)

# The progress of the background verifier, and its findings.
verifier = Table(
    "verifier",
    metadata,
    Column("log_id", SmallInteger, primary_key=True, autoincrement=False),
    Column("position", BigInteger, nullable=False),
    Column("completed_end", BigInteger, nullable=False),
    Column("completed_at", DateTime(timezone=True)),
    Column("round", BigInteger, nullable=False),
    Column("looked_at", DateTime(timezone=True), nullable=False),
)

verifier_findings = Table(
    "verifier_findings",
    metadata,
    Column("log_id", SmallInteger, primary_key=True, autoincrement=False),
    Column("position", BigInteger, primary_key=True, autoincrement=False),
    Column("kind", Text, primary_key=True),
    Column("message", Text, primary_key=True),
    Column("correlation_id", Text, nullable=False),
    Column("round", BigInteger, nullable=False),
    Column("found_at", DateTime(timezone=True), nullable=False),
)

# How far each sink has come. A place is a position among those of all logs.
sinks = Table(
    "sinks",
    metadata,
    Column("name", Text, primary_key=True),
    Column("type", Text, nullable=False),
    Column("address", Text, nullable=False),
    Column("place", BigInteger, nullable=False),
    Column("sent_up_to", BigInteger),
    Column("revision", BigInteger, nullable=False),
    Column("paused", Boolean, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False),
    Column("delivered_at", DateTime(timezone=True)),
    Column("failures", BigInteger, nullable=False),
    Column("last_error", Text),
    Column("last_error_at", DateTime(timezone=True)),
)

# Where the archive's table is: the pointer to the newest metadata of each Iceberg table, as Java's JdbcCatalog has it.
iceberg_tables = Table(
    "iceberg_tables",
    metadata,
    Column("catalog_name", String(255), primary_key=True),
    Column("table_namespace", String(255), primary_key=True),
    Column("table_name", String(255), primary_key=True),
    Column("metadata_location", String(1000)),
    Column("previous_metadata_location", String(1000)),
    Column("iceberg_type", String(5)),
)
iceberg_namespace_properties = Table(
    "iceberg_namespace_properties",
    metadata,
    Column("catalog_name", String(255), primary_key=True),
    Column("namespace", String(255), primary_key=True),
    Column("property_key", String(255), primary_key=True),
    Column("property_value", String(1000)),
)

# Parts of the archive that are being written, or were when a run ended early.
archive_attempts = Table(
    "archive_attempts",
    metadata,
    Column("archive_id", Uuid, primary_key=True),
    Column("location", Text, nullable=False),
    Column("began_at", DateTime(timezone=True), nullable=False),
)

# One row: the oldest release that may write to this schema, by the last migration that it knows.
schema_min_writer = Table("schema_min_writer", metadata, Column("revision", Text, nullable=False))

# The roll-up: counts of sealed events that follow the log.
rollup_logs = Table(
    "rollup_logs",
    metadata,
    Column("log_id", SmallInteger, primary_key=True, autoincrement=False),
    Column("position", BigInteger, nullable=False),
    Column("tail", BigInteger),
    Column("tail_xmin", Text),
)

# A view: each log, and whether it still has what was counted.
rollup_log_progress = Table(
    "rollup_log_progress",
    metadata,
    Column("log_id", SmallInteger),
    Column("position", BigInteger),
    Column("is_same_log", Boolean),
)

rollup_months = Table(
    "rollup_months",
    metadata,
    Column("month", OID, primary_key=True, autoincrement=False),
    Column("first_day", Date, nullable=False),
    Column("identity", Text, nullable=False),
    Column("building", BigInteger),
    Column("building_log", SmallInteger, nullable=False),
)

rollup_counts = Table(
    "rollup_counts",
    metadata,
    Column("span", Text, nullable=False),
    Column("start", DateTime(timezone=True), nullable=False),
    Column("month", OID, nullable=False),
    Column("event_type", String(100), nullable=False),
    Column("event_category", String(50), nullable=False),
    Column("event_outcome", String(20), nullable=False),
    Column("severity", String(20)),
    Column("events", BigInteger, nullable=False),
)

rollup_scopes = Table(
    "rollup_scopes",
    metadata,
    Column("span", Text, nullable=False),
    Column("start", DateTime(timezone=True), nullable=False),
    Column("month", OID, nullable=False),
    Column("cluster_id", String(255)),
    Column("namespace", String(253)),
    Column("event_outcome", String(20), nullable=False),
    Column("is_self_event", Boolean, nullable=False),
    Column("events", BigInteger, nullable=False),
)

# Sums of both, by the value of one of their columns, whose name is `dimension`.
rollup_marginals = Table(
    "rollup_marginals",
    metadata,
    Column("dimension", Text, nullable=False),
    Column("span", Text, nullable=False),
    Column("start", DateTime(timezone=True), nullable=False),
    Column("month", OID, nullable=False),
    Column("value", String(255)),
    Column("is_self_event", Boolean, nullable=False),
    Column("events", BigInteger, nullable=False),
)

rollup_changes = Table(
    "rollup_changes",
    metadata,
    Column("month", OID, nullable=False),
    Column("log_index", BigInteger, nullable=False),
    Column("event_timestamp", DateTime(timezone=True), nullable=False),
    Column("event_type", String(100), nullable=False),
    Column("event_category", String(50), nullable=False),
    Column("event_outcome", String(20), nullable=False),
    Column("severity", String(20)),
    Column("events", SmallInteger, nullable=False),
    Column("cluster_id", String(255)),
    Column("namespace", String(253)),
    Column("log_id", SmallInteger),
)

# A view: the attached monthly tables, and what each is known by.
rollup_tables = Table(
    "rollup_tables",
    metadata,
    Column("month", OID),
    Column("first_day", Date),
    Column("identity", Text),
)
