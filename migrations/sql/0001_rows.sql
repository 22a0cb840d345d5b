-- The flush before the first: it ends at -1, so that the first event takes position 0.
INSERT INTO log_flushes (log_id, first_index, count, leaves) VALUES (0, -1, 1, '');

INSERT INTO audit_retention_policies (event_category, retention_days)
SELECT category, 2555
FROM unnest(ARRAY['gateway', 'workflow', 'remediation', 'analysis', 'notification', 'apifrontend']) AS category;

SELECT ensure_partitions((today - interval '9 months')::date, (today + interval '3 months')::date)
FROM (SELECT (now() AT TIME ZONE 'UTC')::date AS today) AS clock;
