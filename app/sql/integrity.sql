-- A time or date that Python cannot hold comes out as infinity, which no event has: the row shows as edited.
-- jsonb comes as its text: the pool's connections would turn it into Python's numbers, which lose digits.

-- name: unhurried
-- Sorting one chain may take longer than other statements may; all of it is bounded by what each fetch may take.
SET LOCAL statement_timeout = '10min'

-- name: sealed_rows
-- The chain of one correlation in the order of its positions: what the record and the commitment need, and event_hash.
SELECT event_id, event_version,
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
    error_message, is_sensitive, event_hash, previous_event_hash, log_id, log_index, chain_index, payload_salt, payload_commitment
FROM audit_events
WHERE correlation_id = $1 AND (log_index IS NOT NULL OR chain_index IS NOT NULL)
ORDER BY chain_index NULLS LAST, log_index

-- name: unsealed_rows
-- Rows of one correlation that others inserted and hashed, and whether any row of it has the hash that they link to.
SELECT e.event_id, e.event_version,
    CASE WHEN e.event_timestamp >= '0001-01-02Z' AND e.event_timestamp < '9999-12-31Z'
        THEN e.event_timestamp ELSE 'infinity' END AS event_timestamp,
    e.event_type, e.event_category, e.event_action, e.event_outcome, e.actor_type, e.actor_id,
    format('%s', e.actor_ip) AS actor_ip, e.resource_type, e.resource_id, e.correlation_id, e.parent_event_id,
    CASE WHEN e.parent_event_date <= '0001-01-01' OR e.parent_event_date >= '9999-12-31'
        THEN 'infinity' ELSE e.parent_event_date END AS parent_event_date,
    e.namespace, e.cluster_id, e.event_data::text, e.severity, e.duration_ms, e.error_code, e.error_message,
    e.retention_days, e.is_sensitive, e.event_hash, e.previous_event_hash, e.hash_algorithm, p.event_hash IS NOT NULL AS linked
FROM audit_events e LEFT JOIN (
    SELECT DISTINCT event_hash FROM audit_events WHERE correlation_id = $1 AND event_hash IS NOT NULL
) p ON p.event_hash = e.previous_event_hash
WHERE e.correlation_id = $1 AND e.log_index IS NULL AND e.chain_index IS NULL AND e.event_hash IS NOT NULL
ORDER BY e.event_timestamp, e.event_id

-- name: unhashed_count
-- Rows of one correlation that nothing can be said about.
SELECT count(*) FROM audit_events
WHERE correlation_id = $1 AND log_index IS NULL AND chain_index IS NULL AND event_hash IS NULL

-- name: head
-- The end that one chain must have.
SELECT length, hash FROM chain_heads WHERE correlation_id = $1

-- name: flushes
-- The log from its beginning.
SELECT first_index, count, leaves FROM log_flushes WHERE log_id = 0 ORDER BY first_index

-- name: positions
-- What the rows say that the leaves of the log are.
SELECT log_index, event_id, event_hash, previous_event_hash FROM audit_events
WHERE log_index IS NOT NULL ORDER BY log_index

-- name: correlations
-- Every correlation that has a chain, or rows that belong to one.
SELECT correlation_id FROM chain_heads
UNION SELECT correlation_id FROM audit_events WHERE log_index IS NOT NULL OR chain_index IS NOT NULL
