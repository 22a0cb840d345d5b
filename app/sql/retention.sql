-- name: ensure_partitions
-- Makes the monthly partitions missing between two days and answers how many; the function runs with its owner's rights.
SELECT ensure_partitions($1, $2)

-- name: forget_expired_claims
-- Promises that are over, a bounded number at a time; ids that clients sent are kept for ever.
DELETE FROM claims WHERE (scope, key) IN (
    SELECT scope, key FROM claims WHERE expires_at < now() AND scope <> 'event' LIMIT 10000)

-- name: lock_holds
-- Those who place and release holds take turns, since each marks rows in several steps. Ends with the connection.
SELECT pg_advisory_lock(hashtextextended('datastorage.holds', 0))

-- name: active_hold
-- The active hold that has exactly this selector.
SELECT hold_id FROM holds
WHERE released_at IS NULL AND (correlation_id, actor_id, resource_type, resource_id, time_from, time_to)
    IS NOT DISTINCT FROM ($1::text, $2::text, $3::text, $4::text, $5::timestamptz, $6::timestamptz)

-- name: hold
-- One hold, whether it was released or not.
SELECT * FROM holds WHERE hold_id = $1

-- name: hold_rows
-- Marks the rows that a hold covers, in one part of the log. A correlation's hold is shown before any other. Answers how many it covers.
WITH covered AS MATERIALIZED (
    SELECT * FROM events_under($1, $2, $3, $4, $5, $6, $7, $8)
), marked AS (
    UPDATE audit_events e
    SET legal_hold = true, legal_hold_reason = $9, legal_hold_placed_by = $10, legal_hold_placed_at = $11
    FROM covered c
    WHERE e.event_id = c.event_id AND e.event_date = c.event_date AND e.correlation_id = c.correlation_id
        AND (e.legal_hold IS NOT TRUE OR ($1 IS NOT NULL AND e.legal_hold_placed_at IS DISTINCT FROM $11))
)
SELECT count(*) FROM covered

-- name: place_hold
-- The record of a hold, beside the event that tells of it.
INSERT INTO holds (correlation_id, actor_id, resource_type, resource_id, time_from, time_to, reason, placed_by, placed_at,
    hold_id, placed_index)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)

-- name: end_hold
-- Ends a hold, beside the event that tells of it.
UPDATE holds SET release_reason = $2, released_by = $3, released_at = $4, released_index = $5
WHERE hold_id = $1 AND released_at IS NULL

-- name: unhurried
-- For what reads or changes many rows without keeping anybody from the log.
SET LOCAL statement_timeout = '10min'

-- name: log_end
-- The position that the next event would take.
SELECT first_index + count FROM log_flushes WHERE log_id = 0 ORDER BY first_index DESC LIMIT 1

-- name: authorize_release
-- Lets this transaction drop what no other hold of the log covers.
SET LOCAL kubernaut.legal_hold_release = 'authorized'

-- name: release_correlation
-- Frees the held rows of a correlation, whoever held them; what another hold covers shows that one. Answers how many are free.
WITH held AS MATERIALIZED (
    SELECT e.event_id, e.event_date, e.correlation_id, h.reason, h.placed_by, h.placed_at
    FROM audit_events e
    LEFT JOIN holds h ON h.hold_id = hold_of(e.correlation_id, e.actor_id, e.resource_type, e.resource_id, e.event_timestamp)
    WHERE e.correlation_id = $1 AND e.legal_hold
), freed AS (
    UPDATE audit_events e
    SET legal_hold = h.placed_at IS NOT NULL,
        legal_hold_reason = coalesce(h.reason, concat(e.legal_hold_reason, ' [Released: ', $2::text, ']')),
        legal_hold_placed_by = coalesce(h.placed_by, e.legal_hold_placed_by),
        legal_hold_placed_at = coalesce(h.placed_at, e.legal_hold_placed_at)
    FROM held h
    WHERE e.event_id = h.event_id AND e.event_date = h.event_date AND e.correlation_id = h.correlation_id
    RETURNING e.legal_hold
)
SELECT count(*) FROM freed WHERE NOT legal_hold

-- name: release_marked
-- As release_correlation, for the rows that show one hold of another selector.
WITH held AS MATERIALIZED (
    SELECT e.event_id, e.event_date, e.correlation_id, h.reason, h.placed_by, h.placed_at
    FROM audit_events e
    LEFT JOIN holds h ON h.hold_id = hold_of(e.correlation_id, e.actor_id, e.resource_type, e.resource_id, e.event_timestamp)
    WHERE e.legal_hold AND e.legal_hold_placed_at = $1 AND e.legal_hold_placed_by = $3
), freed AS (
    UPDATE audit_events e
    SET legal_hold = h.placed_at IS NOT NULL,
        legal_hold_reason = coalesce(h.reason, concat(e.legal_hold_reason, ' [Released: ', $2::text, ']')),
        legal_hold_placed_by = coalesce(h.placed_by, e.legal_hold_placed_by),
        legal_hold_placed_at = coalesce(h.placed_at, e.legal_hold_placed_at)
    FROM held h
    WHERE e.event_id = h.event_id AND e.event_date = h.event_date AND e.correlation_id = h.correlation_id
    RETURNING e.legal_hold
)
SELECT count(*) FROM freed WHERE NOT legal_hold

-- name: marked_count
-- How many rows show one hold.
SELECT count(*) FROM audit_events WHERE legal_hold AND legal_hold_placed_at = $1 AND legal_hold_placed_by = $2

-- name: holds
-- Active holds with how many rows show them, and what SQL alone has held by its correlation. Newest first.
WITH marks AS (
    SELECT correlation_id, legal_hold_placed_by AS placed_by, legal_hold_placed_at AS placed_at, legal_hold_reason AS reason,
        count(*) AS events
    FROM audit_events WHERE legal_hold GROUP BY 1, 2, 3, 4
), known AS (
    SELECT h.hold_id, sum(m.events) AS events
    FROM holds h LEFT JOIN marks m ON m.placed_at = h.placed_at AND m.placed_by = h.placed_by AND m.reason = h.reason
        AND (h.correlation_id IS NULL OR h.correlation_id = m.correlation_id)
    WHERE h.released_at IS NULL OR $1::boolean
    GROUP BY h.hold_id
), listed AS (
    SELECT h.hold_id, h.correlation_id, h.actor_id, h.resource_type, h.resource_id, h.time_from, h.time_to, k.events,
        h.placed_by, h.placed_at, h.reason, h.release_reason, h.released_by, h.released_at
    FROM known k JOIN holds h USING (hold_id)
    UNION ALL
    SELECT NULL, m.correlation_id, NULL, NULL, NULL, NULL, NULL, m.events, m.placed_by, m.placed_at, m.reason, NULL, NULL, NULL
    FROM marks m
    WHERE NOT EXISTS (
        SELECT FROM holds h
        WHERE h.released_at IS NULL AND h.placed_at = m.placed_at AND h.placed_by = m.placed_by AND h.reason = m.reason
            AND (h.correlation_id IS NULL OR h.correlation_id = m.correlation_id)
    )
)
SELECT hold_id, correlation_id, actor_id, resource_type, resource_id, timezone('UTC', time_from)::text AS time_from,
    timezone('UTC', time_to)::text AS time_to, coalesce(events, 0)::bigint AS events, coalesce(placed_by, '') AS placed_by,
    coalesce(timezone('UTC', placed_at)::text, '') AS placed_at, coalesce(reason, '') AS reason, release_reason, released_by,
    timezone('UTC', released_at)::text AS released_at
FROM listed ORDER BY listed.placed_at DESC NULLS LAST, correlation_id
