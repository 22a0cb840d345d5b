-- The archive with the names of the API. archived_events is the table: docs/archive.md says how an engine has it under this name.
CREATE OR REPLACE TEMPORARY VIEW audit_events AS
SELECT CAST(event_id AS string) AS event_id, event_timestamp, CAST(event_timestamp AS date) AS event_date, event_type,
       event_version AS version, event_category, event_action, event_outcome, correlation_id,
       CAST(parent_event_id AS string) AS parent_event_id, parent_event_date, resource_type, resource_id, resource_name,
       namespace, cluster_id, severity, duration_ms, error_code, error_message, actor_id, actor_type, actor_ip, retention_days,
       is_sensitive, coalesce(lower(hex(previous_event_hash)), '') AS previous_event_hash, event_data, event_metadata, trace_id,
       span_id, recorded_at, log_id, log_index, chain_index, payload_commitment IS NOT NULL AS is_erased,
       event_category = 'security' AND event_type LIKE 'datastorage.%' AND event_type <> 'datastorage.ratelimit.denied'
           AS is_self_event,
       event_category = 'kubernetes' OR event_type LIKE 'kubernetes.audit.%' AS is_kubernetes
FROM archived_events;

-- 1. What happened in one remediation, in the order in which it was recorded?
SELECT event_timestamp, event_type, event_outcome, actor_id, event_data
FROM audit_events
WHERE correlation_id = :correlation_id
ORDER BY log_id, log_index;

-- 2. Who approved or rejected something, and when?
SELECT event_timestamp, correlation_id, event_type,
       coalesce(get_json_object(event_data, '$.approved_by'), get_json_object(event_data, '$.rejected_by'),
                get_json_object(event_data, '$.decided_by')) AS decided_by
FROM audit_events
WHERE event_type IN ('orchestrator.approval.approved', 'orchestrator.approval.rejected')
ORDER BY event_timestamp, event_id;

-- 3. What failed in some time, and why?
SELECT event_id, event_timestamp, event_type, resource_id, error_message
FROM audit_events
WHERE event_outcome = 'failure' AND event_timestamp BETWEEN :since AND :until AND NOT is_self_event AND NOT is_kubernetes
ORDER BY event_timestamp, event_id;

-- 4. What was done to one resource, by whom?
SELECT event_id, event_timestamp, event_type, event_action, actor_type, actor_id, previous_event_hash
FROM audit_events
WHERE resource_id = :resource_id AND NOT is_self_event AND NOT is_kubernetes
ORDER BY event_timestamp, event_id;

-- 5. How many events of each outcome had each day?
SELECT date_trunc('day', event_timestamp) AS day, event_outcome, count(*) AS events
FROM audit_events
WHERE event_timestamp BETWEEN :since AND :until AND NOT is_self_event AND NOT is_kubernetes
GROUP BY date_trunc('day', event_timestamp), event_outcome
ORDER BY day, event_outcome;

-- 6. Did remediations work? From 0 to 1, of those that were assessed once; 0 if the workload was changed again.
SELECT correlation_id,
       CASE WHEN max(drifted) = 1 THEN 0e0 ELSE round(sum(weight * score) / sum(weight), 6) END AS score
FROM (SELECT correlation_id, score, CASE WHEN get_json_object(event_data, '$.reason') = 'SpecDrift' THEN 1 ELSE 0 END AS drifted,
             CASE WHEN score IS NULL OR get_json_object(event_data, '$.assessed') <> 'true' THEN NULL
                  WHEN event_type = 'effectiveness.health.assessed' THEN 40
                  WHEN event_type = 'effectiveness.alert.assessed' THEN 35
                  WHEN event_type = 'effectiveness.metrics.assessed' THEN 25 END AS weight
      FROM (SELECT *, CAST(get_json_object(event_data, '$.score') AS double) AS score
            FROM audit_events
            WHERE event_type LIKE 'effectiveness.%') AS scored) AS weighted
GROUP BY correlation_id
ORDER BY correlation_id;

-- 7. Which remediations were there, from when to when, with how many events?
SELECT correlation_id, count(*) AS events, min(event_timestamp) AS first_event, max(event_timestamp) AS last_event
FROM audit_events
WHERE NOT is_self_event AND NOT is_kubernetes
GROUP BY correlation_id
ORDER BY correlation_id;

-- 8. Where does a payload say this?
SELECT event_id, correlation_id, version, namespace, cluster_id, event_data
FROM audit_events
WHERE get_json_object(event_data, '$.workflow_id') = :workflow_id AND NOT is_self_event AND NOT is_kubernetes
ORDER BY event_timestamp, event_id;

-- 9. Where does this text occur?
SELECT event_id, event_timestamp, severity, duration_ms
FROM audit_events
WHERE contains(lower(concat_ws(' | ', event_type, event_action, actor_id, resource_id, error_message, event_data)), lower(:text))
  AND event_timestamp >= :since AND NOT is_self_event AND NOT is_kubernetes
ORDER BY event_timestamp, event_id;

-- 10. Of which events was the payload erased?
SELECT event_id, event_timestamp, event_type, actor_id, resource_id, event_data
FROM audit_events
WHERE is_erased
ORDER BY event_timestamp, event_id;
