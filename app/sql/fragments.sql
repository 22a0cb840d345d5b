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

-- fragment: held_rows
-- Rows of audit_events as e, each with the hold as h that covers it now, if one does.
SELECT e.event_id, e.event_date, e.correlation_id, h.reason, h.placed_by, h.placed_at
    FROM audit_events e
    LEFT JOIN holds h ON h.hold_id = hold_of(e.correlation_id, e.actor_id, e.resource_type, e.resource_id, e.event_timestamp)

-- fragment: unmark_held
-- Gives the rows of `held` the mark of the hold that covers them now; without one they are no longer held. Returns how many.
unmarked AS (
    UPDATE audit_events e
    SET legal_hold = h.placed_at IS NOT NULL,
        legal_hold_reason = coalesce(h.reason, concat(e.legal_hold_reason, ' [Released: ', $2::text, ']')),
        legal_hold_placed_by = coalesce(h.placed_by, e.legal_hold_placed_by),
        legal_hold_placed_at = coalesce(h.placed_at, e.legal_hold_placed_at)
    FROM held h
    WHERE e.event_id = h.event_id AND e.event_date = h.event_date AND e.correlation_id = h.correlation_id
    RETURNING e.legal_hold
)
SELECT count(*) FROM unmarked WHERE NOT legal_hold
