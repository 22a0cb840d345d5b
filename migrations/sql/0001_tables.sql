-- Columns up to hash_algorithm are the platform's, column for column; the others are this service's own.
-- No CHECK may be added to this table: other programs insert and update rows by SQL.
CREATE TABLE audit_events (
    event_id uuid NOT NULL DEFAULT gen_random_uuid(),
    event_version varchar(10) NOT NULL DEFAULT '1.0',
    event_timestamp timestamptz NOT NULL DEFAULT now(),
    event_date date NOT NULL,
    event_type varchar(100) NOT NULL,
    event_category varchar(50) NOT NULL,
    event_action varchar(50) NOT NULL,
    event_outcome varchar(20) NOT NULL,
    actor_type varchar(50) NOT NULL,
    actor_id varchar(255) NOT NULL,
    actor_ip inet,
    resource_type varchar(100) NOT NULL,
    resource_id varchar(255) NOT NULL,
    resource_name varchar(255),
    correlation_id varchar(255) NOT NULL,
    parent_event_id uuid,
    parent_event_date date,
    trace_id varchar(255),
    span_id varchar(255),
    namespace varchar(253),
    cluster_id varchar(255),
    event_data jsonb NOT NULL,
    event_metadata jsonb,
    severity varchar(20),
    duration_ms integer,
    error_code varchar(50),
    error_message text,
    retention_days integer DEFAULT 2555
        CONSTRAINT audit_events_retention_days_check CHECK (retention_days BETWEEN 1 AND 2555),
    is_sensitive boolean DEFAULT false,
    event_hash text,
    previous_event_hash text,
    legal_hold boolean DEFAULT false,
    legal_hold_reason text,
    legal_hold_placed_by text,
    legal_hold_placed_at timestamptz,
    hash_algorithm varchar(20) NOT NULL DEFAULT 'sha256-unkeyed',
    recorded_at timestamptz NOT NULL DEFAULT now(),
    log_id smallint,
    log_index bigint,
    chain_index bigint,
    payload_salt bytea,
    payload_commitment bytea,
    PRIMARY KEY (event_id, event_date, correlation_id)
) PARTITION BY RANGE (event_date);

-- Every write pays for each of these: add one only with a query that needs it and its measured cost.
CREATE INDEX audit_events_correlation ON audit_events (correlation_id, event_timestamp);
CREATE INDEX audit_events_type ON audit_events (event_type, event_timestamp);
CREATE INDEX audit_events_timestamp ON audit_events (event_timestamp, event_id);
CREATE INDEX audit_events_log_index ON audit_events (log_index);
CREATE INDEX audit_events_parent ON audit_events (parent_event_id) WHERE parent_event_id IS NOT NULL;

-- left() keeps a long value from failing a valid event. `left(event_data->>'k', 200) = …` implies the predicate,
-- so that a query need not repeat it.
CREATE INDEX audit_events_target_resource ON audit_events (left(event_data->>'target_resource', 200))
    WHERE event_data->>'target_resource' IS NOT NULL;
CREATE INDEX audit_events_pre_spec_hash ON audit_events (left(event_data->>'pre_remediation_spec_hash', 200))
    WHERE event_data->>'pre_remediation_spec_hash' IS NOT NULL;
CREATE INDEX audit_events_post_spec_hash ON audit_events (left(event_data->>'post_remediation_spec_hash', 200))
    WHERE event_data->>'post_remediation_spec_hash' IS NOT NULL;

CREATE TABLE logs (
    log_id smallint PRIMARY KEY,
    name text NOT NULL UNIQUE
);

-- No trigger, and no foreign key to logs: both would be paid by every flush.
CREATE TABLE log_flushes (
    log_id smallint NOT NULL,
    first_index bigint NOT NULL,
    count integer NOT NULL,
    leaves bytea NOT NULL,
    flushed_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (log_id, first_index)
);
-- Hashes do not compress.
ALTER TABLE log_flushes ALTER COLUMN leaves SET STORAGE EXTERNAL;

-- Only length and hash are ever updated, and no index holds them: with room in the page such an update writes no index.
CREATE TABLE chain_heads (
    correlation_id varchar(255) PRIMARY KEY,
    length bigint NOT NULL,
    hash text NOT NULL
) WITH (fillfactor = 70);

CREATE TABLE claims (
    scope text NOT NULL,
    key text NOT NULL,
    body_digest bytea NOT NULL,
    event_ids uuid[] NOT NULL,
    answer jsonb,
    claimed_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz,
    PRIMARY KEY (scope, key)
);

-- The CHECKs take the union of what the platform's two validators know.
CREATE TABLE notification_audit (
    id bigserial PRIMARY KEY,
    remediation_id varchar(255) NOT NULL,
    notification_id varchar(255) NOT NULL UNIQUE,
    recipient varchar(255) NOT NULL,
    channel varchar(50) NOT NULL
        CHECK (channel IN ('slack', 'pagerduty', 'teams', 'console', 'file', 'log', 'email', 'webhook')),
    message_summary text NOT NULL,
    status varchar(50) NOT NULL
        CHECK (status IN ('sent', 'failed', 'acknowledged', 'escalated', 'pending')),
    sent_at timestamptz NOT NULL,
    delivery_status text,
    error_message text,
    escalation_level integer DEFAULT 0,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE audit_retention_policies (
    policy_id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    event_category varchar(50) NOT NULL UNIQUE,
    retention_days integer NOT NULL DEFAULT 2555,
    legal_hold_override boolean NOT NULL DEFAULT false,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE retention_operations (
    id bigserial PRIMARY KEY,
    run_id uuid NOT NULL DEFAULT gen_random_uuid(),
    scope text NOT NULL DEFAULT 'audit_events',
    period_start date,
    period_end date,
    rows_scanned bigint NOT NULL DEFAULT 0,
    rows_deleted bigint NOT NULL DEFAULT 0,
    partitions_dropped text[] NOT NULL DEFAULT '{}',
    status text NOT NULL DEFAULT 'running',
    error_message text,
    operation_start timestamptz NOT NULL DEFAULT now(),
    operation_end timestamptz,
    operation_duration_ms bigint,
    created_at timestamptz NOT NULL DEFAULT now()
);

-- One row of a small flush, as the writer sends it. An array of these costs half of an array for each column.
CREATE TYPE flush_row AS (
    event_id uuid, event_version text, event_timestamp timestamptz, event_date date, event_type text, event_category text,
    event_action text, event_outcome text, actor_type text, actor_id text, actor_ip inet, resource_type text,
    resource_id text, correlation_id text, parent_event_id uuid, parent_event_date date, namespace text, cluster_id text,
    severity text, duration_ms int, error_code text, error_message text, event_data jsonb, retention_days int,
    is_sensitive boolean, recorded_at timestamptz, payload_salt bytea, log_index bigint, chain_index bigint,
    previous_event_hash text, event_hash text
);

-- Payloads above 2 kB leave the row. Compressing them with pglz takes most of the time of a large batch, during which
-- nobody else's event is written; lz4 does it for next to nothing, and a build without it stores them as they are.
DO $$
BEGIN
    IF (SELECT 'lz4' = ANY(enumvals) FROM pg_settings WHERE name = 'default_toast_compression') THEN
        ALTER TABLE audit_events ALTER event_data SET COMPRESSION lz4;
    ELSE
        ALTER TABLE audit_events ALTER event_data SET STORAGE EXTERNAL;
    END IF;
END
$$;
