-- jsonb is read as text: the pool's connections would decode it into Python's floats, which lose digits.
-- Rows with equal times are ordered by their content, so that no answer depends on the order of arrival.

-- name: wide_members
-- What can be large of these events, which are named by id, date and correlation.
SELECT e.event_id, e.event_date::text, e.correlation_id, e.event_data::text AS payload, e.error_message
FROM unnest($1::uuid[], $2::text[], $3::text[]) AS wanted (event_id, event_date, correlation_id)
JOIN audit_events e ON e.event_id = wanted.event_id AND e.event_date = wanted.event_date::date
    AND e.correlation_id = wanted.correlation_id

-- name: first_of_types
-- One event of these types; NULL if there is none.
SELECT true FROM audit_events WHERE event_type = ANY($1) LIMIT 1

-- name: places
-- What an answer does not show of these events, which are named by id, date and correlation: where and when they were recorded.
SELECT e.event_id, e.event_date::text, e.correlation_id, e.log_id, e.log_index, e.chain_index, e.trace_id,
    timezone('UTC', e.recorded_at)::text AS recorded_at, left(e.event_metadata::text, 10000) AS event_metadata,
    coalesce(e.event_metadata->>'event_timestamp' = 'received', false) AS is_received, e.payload_commitment IS NOT NULL AS is_erased
FROM unnest($1::uuid[], $2::text[], $3::text[]) AS wanted (event_id, event_date, correlation_id)
JOIN audit_events e ON e.event_id = wanted.event_id AND e.event_date = wanted.event_date::date
    AND e.correlation_id = wanted.correlation_id

-- name: rows_with_id
-- All rows with an id, each with the leaf that the log has at its position, and the log's name.
SELECT {hashed_columns}, {leaf_of_row} AS leaf, (SELECT name FROM logs WHERE logs.log_id = 0) AS first_name,
    (SELECT max(log_id) FROM logs) AS last_log
FROM audit_events WHERE event_id = $1

-- name: log_ids
-- The logs of the database, the open one first.
SELECT log_id FROM logs ORDER BY log_id DESC

-- name: unknown_log
-- The lowest id of a log after $1 that a row names. While there is only one log no row is read: there is no index for it.
SELECT log_id FROM audit_events WHERE {has_later_logs} AND log_id > $1 AND log_id > 0 ORDER BY log_id LIMIT 1

-- name: whole_event
-- The rows with an id, those that the log has first, each with all its columns, the leaf that the log has at its position, and the
-- log's name.
SELECT {hashed_columns}, retention_days, hash_algorithm, legal_hold IS TRUE AS legal_hold, legal_hold_reason, legal_hold_placed_by,
    timezone('UTC', legal_hold_placed_at)::text AS held_at, {leaf_of_row} AS leaf,
    (SELECT name FROM logs WHERE logs.log_id = 0) AS first_name, (SELECT max(log_id) FROM logs) AS last_log
FROM audit_events WHERE event_id = $1
ORDER BY ({leaf_of_row} = event_hash) IS TRUE DESC, log_index, event_date, correlation_id
LIMIT 100

-- name: neighbours_in_chain
-- The events before and after one ($2) in the chain of its correlation.
SELECT event_id, event_type, event_outcome, chain_index AS position, previous_event_hash, event_hash
FROM (SELECT * FROM audit_events WHERE correlation_id = $1 OFFSET 0) AS e -- otherwise Postgres reads every row with these numbers
WHERE chain_index IN ($2::bigint - 1, $2::bigint + 1)
ORDER BY chain_index, log_index
LIMIT 100

-- name: neighbours_in_log
-- The events before and after a position ($1) of a log ($2).
SELECT event_id, event_type, event_outcome, log_index AS position
FROM audit_events WHERE log_index IN ($1::bigint - 1, $1::bigint + 1) AND log_id = $2
ORDER BY log_index, event_id
LIMIT 100

-- name: reconstruction
-- The events from which one lost RemediationRequest is rebuilt.
SELECT event_type, namespace, cluster_id, event_data::text AS payload, {on_log} AS sealed
FROM (SELECT * FROM audit_events WHERE correlation_id = $1 OFFSET 0) AS e -- otherwise Postgres reads every row of these types
WHERE event_type = ANY($2)
ORDER BY event_timestamp, event_type, event_data, cluster_id, namespace
LIMIT 1000

-- name: reconstruction_of_both
-- The same, with events that are in the archive alone.
SELECT event_type, namespace, cluster_id, event_data::text AS payload, sealed FROM (
    SELECT {stored_events}, {on_log} AS sealed FROM (SELECT * FROM audit_events WHERE correlation_id = $1 OFFSET 0) AS e
    UNION ALL {archived_events}
) AS e
WHERE event_type = ANY($2)
ORDER BY e.event_timestamp, event_type, event_data, cluster_id, namespace
LIMIT 1000

-- name: effectiveness
-- The assessments of one remediation, with those members of their payload that the report reads.
SELECT event_type, jsonb_build_object(
        'assessed', event_data->'assessed', 'score', event_data->'score', 'details', event_data->'details',
        'reason', event_data->'reason', 'hash_match', event_data->'hash_match',
        'pre_remediation_spec_hash', event_data->'pre_remediation_spec_hash',
        'post_remediation_spec_hash', event_data->'post_remediation_spec_hash'
    )::text AS payload, {on_log} AS sealed
FROM audit_events
WHERE correlation_id = $1 AND event_category = 'effectiveness'
ORDER BY event_timestamp, event_type, event_data
LIMIT 10000

-- name: effectiveness_of_both
-- The same, with events that are in the archive alone; $2 is not read.
SELECT event_type, jsonb_build_object(
        'assessed', event_data->'assessed', 'score', event_data->'score', 'details', event_data->'details',
        'reason', event_data->'reason', 'hash_match', event_data->'hash_match',
        'pre_remediation_spec_hash', event_data->'pre_remediation_spec_hash',
        'post_remediation_spec_hash', event_data->'post_remediation_spec_hash'
    )::text AS payload, sealed
FROM (
    SELECT {stored_events}, {on_log} AS sealed FROM audit_events e
    WHERE correlation_id = $1 AND event_category = 'effectiveness' AND $2::text[] IS NOT NULL
    UNION ALL {archived_events}
) AS e
ORDER BY e.event_timestamp, event_type, event_data
LIMIT 10000

-- name: remediations
-- Workflows created for one target within a window: of the newest, those whose spec hash before or after is the one asked for.
SELECT event_timestamp, correlation_id, payload::text FROM (
    SELECT event_timestamp, correlation_id,
        event_data->>'pre_remediation_spec_hash' AS before, jsonb_build_object(
            'signal_type', event_data->'signal_type', 'signal_fingerprint', event_data->'signal_fingerprint',
            'action_type', event_data->'action_type', 'outcome', event_data->'outcome',
            'pre_remediation_spec_hash', event_data->'pre_remediation_spec_hash'
        ) AS payload
    FROM audit_events
    WHERE event_type = 'remediation.workflow_created'
        AND left(event_data->>'target_resource', 200) = left($1, 200) AND event_data->>'target_resource' = $1
        AND ($2::text IS NULL OR cluster_id = $2) AND event_timestamp >= $3 AND event_timestamp < $4
    ORDER BY event_timestamp DESC
    LIMIT 10000
) AS candidate
WHERE before = $5 OR (
    SELECT true FROM (
        SELECT event_data FROM audit_events
        WHERE correlation_id = candidate.correlation_id AND event_category = 'effectiveness' LIMIT 10000
    ) AS assessment
    WHERE event_data->>'post_remediation_spec_hash' = $5
    LIMIT 1
)
ORDER BY event_timestamp, correlation_id, payload

-- name: assessments
-- The assessments of many remediations, the earliest first.
SELECT assessment.* FROM unnest($1::text[]) AS wanted (correlation_id) CROSS JOIN LATERAL (
    SELECT correlation_id, event_timestamp, event_type, jsonb_build_object(
            'assessed', event_data->'assessed', 'score', event_data->'score', 'reason', event_data->'reason',
            'post_remediation_spec_hash', event_data->'post_remediation_spec_hash',
            'health_checks', event_data->'health_checks', 'metric_deltas', event_data->'metric_deltas',
            'alert_resolution', event_data->'alert_resolution'
        )::text AS payload
    FROM audit_events
    WHERE correlation_id = wanted.correlation_id AND event_category = 'effectiveness'
    ORDER BY event_timestamp, event_type, event_data
    LIMIT $2
) AS assessment
ORDER BY event_timestamp, event_type, payload
LIMIT $2

-- name: timeline
-- Every event of one correlation, or with $4 those that are sealed or are not, in the order of the log, without its payload; unsealed ones come last. The result is a JSON array
-- of objects without unknown members: Postgres writes it in a third of the time that Python needs. A time that Python cannot
-- represent becomes the nearest one. NULL: there are no events.
SELECT '[{' || string_agg(members, '},{') || '}]' FROM (
    SELECT concat_ws(',',
        '"event_id":"' || event_id || '"',
        '"event_timestamp":"' || CASE WHEN event_timestamp < '0001-01-01Z' THEN '0001-01-01T00:00:00' WHEN event_timestamp >= '10000-01-01Z'
            THEN '9999-12-31T23:59:59.999999' ELSE replace(timezone('UTC', event_timestamp)::text, ' ', 'T') END || 'Z"',
        '"event_type":' || to_json(event_type::text),
        '"recorded_at":"' || CASE WHEN recorded_at < '0001-01-01Z' THEN '0001-01-01T00:00:00' WHEN recorded_at >= '10000-01-01Z'
            THEN '9999-12-31T23:59:59.999999' ELSE replace(timezone('UTC', recorded_at)::text, ' ', 'T') END || 'Z"',
        '"log_index":' || log_index,
        '"chain_index":' || chain_index,
        '"event_category":' || to_json(event_category::text),
        '"event_action":' || to_json(event_action::text),
        '"event_outcome":' || to_json(event_outcome::text),
        '"actor_type":' || to_json(actor_type::text),
        '"actor_id":' || to_json(actor_id::text),
        '"resource_type":' || to_json(resource_type::text),
        '"resource_id":' || to_json(resource_id::text),
        '"severity":' || to_json(severity::text),
        '"duration_ms":' || duration_ms,
        '"error_code":' || to_json(error_code::text),
        '"parent_event_id":"' || parent_event_id || '"',
        '"event_metadata":' || CASE WHEN log_index IS NOT NULL THEN event_metadata::text END,
        CASE WHEN NOT {on_log} THEN '"sealed":false' END) AS members
    FROM (SELECT * FROM audit_events WHERE correlation_id = $1 OFFSET 0) AS e -- otherwise Postgres reads the log from its beginning
    WHERE $4::boolean IS NULL OR ({on_log}) = $4
    ORDER BY log_index, event_timestamp, event_id
    LIMIT $2 OFFSET $3
) AS event

-- name: extent
-- How many events one correlation has, the times of the first and the last, how many have or had a legal hold, how many have a position,
-- and the chain position after the last one that the background verifier has read, in whichever log it is.
SELECT count, CASE WHEN earliest < '0001-01-01Z' THEN '0001-01-01Z'
        WHEN earliest >= '10000-01-01Z' THEN '9999-12-31 23:59:59.999999Z' ELSE earliest END AS first,
    CASE WHEN latest < '0001-01-01Z' THEN '0001-01-01Z'
        WHEN latest >= '10000-01-01Z' THEN '9999-12-31 23:59:59.999999Z' ELSE latest END AS last, with_hold, verified, logged
FROM (
    SELECT count(*), min(event_timestamp) AS earliest, max(event_timestamp) AS latest,
        count(*) FILTER (WHERE legal_hold OR legal_hold_reason IS NOT NULL) AS with_hold,
        max(chain_index) FILTER (WHERE log_index < verified_end) + 1 AS verified,
        count(*) FILTER (WHERE log_index IS NOT NULL) AS logged
    FROM audit_events
    LEFT JOIN (SELECT log_id AS of_log, greatest(position, completed_end) AS verified_end FROM verifier) v ON of_log = coalesce(log_id, 0)
    WHERE correlation_id = $1 AND ($2::boolean IS NULL OR ({on_log}) = $2)
) AS totals

-- name: chain_head
-- Length and last hash that the chain of one correlation must have.
SELECT length, hash FROM chain_heads WHERE correlation_id = $1

-- name: stored_places
-- Where the logs have the events of one correlation that are stored. OFFSET 0: otherwise Postgres reads the log from its beginning.
SELECT log_id, log_index FROM (SELECT log_id, log_index FROM audit_events WHERE correlation_id = $1 OFFSET 0) AS e WHERE log_index IS NOT NULL

-- name: last_verdict
-- When the background verifier last wrote its result, of the logs that have rows of one chain the one of longest ago (of all logs, if
-- none has); and how many findings there are in all logs: of the chain, and without a correlation.
SELECT coalesce(
        min(looked_at) FILTER (WHERE log_id IN (SELECT coalesce(e.log_id, 0) FROM audit_events e WHERE e.correlation_id = $1)),
        min(looked_at)
    ) AS looked_at,
    (SELECT count(*) FROM verifier_findings WHERE correlation_id = $1) AS found,
    (SELECT count(*) FROM verifier_findings WHERE correlation_id = '') AS unclear
FROM verifier HAVING count(*) > 0

-- name: steps
-- The events of types that report phases ($2) or decisions ($3) of one correlation. Texts are cut so that all fits into memory.
-- OFFSET 0: the types are compared once for each row.
SELECT event_id::text, CASE WHEN e.event_timestamp < '0001-01-01Z' THEN '0001-01-01Z'
            WHEN e.event_timestamp >= '10000-01-01Z' THEN '9999-12-31 23:59:59.999999Z' ELSE e.event_timestamp END AS event_timestamp,
        event_type, actor_type, actor_id,
        left(phase->>'from_phase', 100) AS from_phase, left(phase->>'to_phase', 100) AS to_phase,
        left(decided->>'decision', 100) AS decision, left(decided->>'workflow_id', 255) AS decided_workflow,
        left(coalesce(decided->>'approved_by', decided->>'rejected_by', decided->>'decided_by', decided->>'modified_by',
            decided->>'cancelled_by'), 255) AS decided_by,
        left(coalesce(decided->>'rejection_reason', decided->>'decision_message', decided->>'message', decided->>'clear_reason',
            decided->>'block_message', decided->>'reason'), 1000) AS reason
FROM (
    SELECT event_id, event_timestamp, event_type, actor_type, actor_id,
        CASE WHEN event_type = ANY($2) THEN event_data END AS phase,
        CASE WHEN event_type = ANY($3) THEN event_data END AS decided
    FROM audit_events WHERE correlation_id = $1 AND ($4::boolean IS NULL OR ({on_log}) = $4) OFFSET 0
) AS e
WHERE phase IS NOT NULL OR decided IS NOT NULL
ORDER BY e.event_timestamp
LIMIT 10000

-- name: approvals
-- What was asked and answered about approval ($2: types) in one correlation, with what the payload says of confidence and reason;
-- sealed events first.
-- Texts are cut so that all fits into memory. OFFSET 0: the types are compared once for each row.
SELECT {approval_columns}
FROM (
    SELECT event_id, event_timestamp, event_type, event_outcome, actor_type, actor_id, event_data, {on_log} AS sealed
    FROM audit_events WHERE correlation_id = $1 AND event_type = ANY($2) OFFSET 0
) AS e
ORDER BY sealed DESC, event_timestamp, event_type, event_id
LIMIT 1000

-- name: approvals_of_both
-- The same, with events that are in the archive alone.
SELECT {approval_columns}
FROM (
    SELECT {stored_events}, {on_log} AS sealed FROM audit_events e WHERE correlation_id = $1 AND event_type = ANY($2)
    UNION ALL {archived_events}
) AS e
WHERE event_type = ANY($2)
ORDER BY sealed DESC, event_timestamp, event_type, event_id
LIMIT 1000

-- name: holds
-- Legal holds of one correlation as its rows have them, released ones too.
SELECT legal_hold IS TRUE AS active, left(legal_hold_reason, 1000) AS reason, left(legal_hold_placed_by, 255) AS placed_by,
    timezone('UTC', legal_hold_placed_at)::text AS placed_at, count(*) AS events
FROM audit_events
WHERE correlation_id = $1 AND (legal_hold OR legal_hold_reason IS NOT NULL) AND ($2::boolean IS NULL OR ({on_log}) = $2)
GROUP BY 1, 2, 3, 4
ORDER BY 4 NULLS FIRST, 3, 2, 1
LIMIT 1000

-- name: notifications
-- The notifications about one remediation.
SELECT id, remediation_id, notification_id, recipient, channel, left(message_summary, 1000) AS message_summary, status,
    timezone('UTC', sent_at)::text AS sent_at, left(delivery_status, 255) AS delivery_status,
    left(error_message, 1000) AS error_message, escalation_level, timezone('UTC', created_at)::text AS created_at,
    timezone('UTC', updated_at)::text AS updated_at, salt IS NOT NULL AND log_index IS NOT NULL AS sealed
FROM notification_audit
WHERE remediation_id = $1
ORDER BY notification_audit.sent_at, id
LIMIT 1000

-- name: use_generic_plans
-- Over many partitions planning takes longer than the scan, and the plans of a scan do not depend on its cursor. Such a plan stays: one that
-- was made of an empty month would read all of it when it is full, so an index is used wherever there is one.
SELECT set_config('plan_cache_mode', 'force_generic_plan', true), set_config('enable_seqscan', 'off', true)

-- name: follow_index
-- A scan reads an index in its order, as far as its LIMIT. Without this Postgres may read and sort a whole partition instead, on all cores: it
-- takes a LIMIT for none where it expects fewer rows, as it does of any range in a generic plan, and of a month without statistics.
SELECT set_config('enable_sort', 'off', true), set_config('max_parallel_workers_per_gather', '0', true)

-- name: scan
-- Events after a cursor ($1, $2), newest first, not older than $3. The first of a correlation is its newest, unless it has newer
-- events before the cursor.
{scanned_events}
ORDER BY event_timestamp DESC, event_id DESC
LIMIT $4

-- name: scan_named
-- The same, of some correlations ($4).
{scanned_events}
    AND correlation_id = ANY($4)
ORDER BY event_timestamp DESC, event_id DESC
LIMIT $5

-- name: may_sort
SET LOCAL enable_sort = on

-- name: newest
-- Which of these events are the newest of their correlation, by their number in the arrays, from 1. Self events count if $4, audit events
-- of Kubernetes if $5.
SELECT number
FROM unnest($1::text[], $2::text[], $3::uuid[]) WITH ORDINALITY AS candidate (correlation_id, timestamp, event_id, number)
WHERE (
    SELECT true FROM audit_events e
    WHERE e.correlation_id = candidate.correlation_id AND e.event_date >= candidate.timestamp::timestamp::date
        AND (e.event_timestamp, e.event_id) > (timezone('UTC', candidate.timestamp::timestamp), candidate.event_id)
        AND ($4 OR NOT (e.event_category = 'security' AND e.event_type LIKE 'datastorage.%'
            AND e.event_type <> 'datastorage.ratelimit.denied'))
        AND ($5 OR NOT (e.event_category = 'kubernetes' OR e.event_type LIKE 'kubernetes.audit.%'))
    LIMIT 1
) IS NULL

-- name: summaries
-- Of each correlation on the page: how many events it has, in which categories, and the first of them.
SELECT summary.correlation_id, summary.events, summary.categories, timezone('UTC', summary.first)::text AS first,
    first_event.event_id, first_event.event_type
FROM (
    SELECT correlation_id, sum(events)::bigint AS events, min(first) AS first,
        array_agg(event_category::text ORDER BY event_category) AS categories
    FROM (
        SELECT correlation_id, event_category, count(*) AS events, min(event_timestamp) AS first
        FROM audit_events WHERE correlation_id = ANY($1) GROUP BY correlation_id, event_category
    ) AS by_category
    GROUP BY correlation_id
) AS summary
LEFT JOIN LATERAL (
    SELECT event_id, event_type FROM audit_events e
    WHERE e.correlation_id = summary.correlation_id AND e.event_timestamp = summary.first
    ORDER BY event_id LIMIT 1
) AS first_event ON true
