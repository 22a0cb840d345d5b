-- name: own_types
-- Types of the service's own events, found by skipping from one type to the next in the index: some 10 µs for each type
-- and partition. A range on the prefix would need the C collation.
WITH RECURSIVE types (event_type) AS (
    (SELECT event_type FROM audit_events ORDER BY event_type LIMIT 1)
    UNION ALL
    SELECT (SELECT e.event_type FROM audit_events e WHERE e.event_type > types.event_type ORDER BY e.event_type LIMIT 1)
    FROM types WHERE types.event_type IS NOT NULL
)
SELECT event_type FROM types
WHERE event_type LIKE 'datastorage.%' AND event_type <> 'datastorage.ratelimit.denied'
