-- Parts of statements, each written once. A statement of another file names one in braces.

-- A time or date that Python cannot represent is read as infinity, which no event has: the row then shows as edited.
-- jsonb is read as its text: the pool's connections would decode it into Python's numbers, which lose digits.

-- fragment: hashed_columns
-- What verification needs of a row of audit_events: everything that the record, the commitment and the chain are made of.
event_id, event_version,
    CASE WHEN event_timestamp >= '0001-01-02Z' AND event_timestamp < '9999-12-31Z'
        THEN event_timestamp ELSE 'infinity' END AS event_timestamp,
    CASE WHEN event_date > '0001-01-01' AND event_date < '9999-12-31' THEN event_date ELSE 'infinity' END AS event_date,
    CASE WHEN recorded_at >= '0001-01-02Z' AND recorded_at < '9999-12-31Z'
        THEN recorded_at ELSE 'infinity' END AS recorded_at,
    event_type, event_category, event_action, event_outcome, actor_type, actor_id, actor_ip, resource_type, resource_id,
    resource_name, correlation_id, parent_event_id,
    CASE WHEN parent_event_date <= '0001-01-01' OR parent_event_date >= '9999-12-31'
        THEN 'infinity' ELSE parent_event_date END AS parent_event_date,
    trace_id, span_id, namespace, cluster_id, event_data::text, event_metadata::text, severity, duration_ms, error_code,
    error_message, is_sensitive, event_hash, previous_event_hash, log_id, log_index, chain_index, payload_salt,
    payload_commitment
