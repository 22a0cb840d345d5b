-- jsonb comes as its text: the pool's connections would turn it into Python's numbers, which lose digits.
-- Rows are ordered by what they say where their times are equal, so that the order of arrival changes no answer.

-- name: reconstruction
-- What one lost RemediationRequest is rebuilt from.
SELECT event_type, namespace, cluster_id, event_data::text AS payload
FROM audit_events
WHERE correlation_id = $1 AND event_type = ANY($2)
ORDER BY event_timestamp, event_type, event_data, cluster_id, namespace
LIMIT 1000

-- name: effectiveness
-- The assessments of one remediation, and of their payload no more than is read.
SELECT event_type, jsonb_build_object(
        'assessed', event_data->'assessed', 'score', event_data->'score', 'details', event_data->'details',
        'reason', event_data->'reason', 'hash_match', event_data->'hash_match',
        'pre_remediation_spec_hash', event_data->'pre_remediation_spec_hash',
        'post_remediation_spec_hash', event_data->'post_remediation_spec_hash'
    )::text AS payload
FROM audit_events
WHERE correlation_id = $1 AND event_category = 'effectiveness'
ORDER BY event_timestamp, event_type, event_data
LIMIT 10000

-- name: remediations
-- Workflows created for one target within a window: the newest, of which those are kept whose spec hash before or after is the
-- one asked for.
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
    SELECT true FROM audit_events assessment
    WHERE assessment.correlation_id = candidate.correlation_id AND assessment.event_category = 'effectiveness'
        AND assessment.event_data->>'post_remediation_spec_hash' = $5
    LIMIT 1
)
ORDER BY event_timestamp, correlation_id, payload

-- name: assessments
-- The assessments of many remediations, the earliest first.
SELECT found.* FROM unnest($1::text[]) AS wanted (correlation_id) CROSS JOIN LATERAL (
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
) AS found
ORDER BY event_timestamp, event_type, payload
LIMIT $2
