-- name: tail
-- End of the log. Read before everything that a flush relies on: the compare-and-set on it then proves that all of it still holds.
-- In one snapshot with it, the position at which the holds last changed.
SELECT first_index, count, (SELECT max(placed_index) FROM holds) AS placed, (SELECT max(released_index) FROM holds) AS released
FROM log_flushes WHERE log_id = 0 ORDER BY first_index DESC LIMIT 1

-- name: tail_and_last
-- End of the log, and the last position that a row has, in one snapshot. Positions beyond 2^62 are not the service's.
SELECT first_index, count, (SELECT max(placed_index) FROM holds) AS placed, (SELECT max(released_index) FROM holds) AS released,
    (SELECT max(log_index) FROM audit_events WHERE log_index < 4611686018427387904) AS last
FROM log_flushes WHERE log_id = 0 ORDER BY first_index DESC LIMIT 1

-- name: chain_heads
-- Ends of the chains of one flush. A later statement than the one that waited for the lock: READ COMMITTED would show old ends.
SELECT correlation_id, length, hash FROM chain_heads WHERE correlation_id = ANY($1::text[])

-- name: active_holds
-- What new events may fall under: the correlation's hold first, then in the order in which they were placed.
SELECT correlation_id, actor_id, resource_type, resource_id, time_from, time_to, reason, placed_by, placed_at
FROM holds WHERE released_at IS NULL ORDER BY correlation_id IS NULL, placed_index

-- name: hold_written
-- Marks the events of this flush that fall under a hold.
UPDATE audit_events e
SET legal_hold = true, legal_hold_reason = h.reason, legal_hold_placed_by = h.placed_by, legal_hold_placed_at = h.placed_at
FROM unnest($1::uuid[], $2::date[], $3::text[], $4::text[], $5::text[], $6::timestamptz[])
    h(event_id, event_date, correlation_id, reason, placed_by, placed_at)
WHERE e.event_id = h.event_id AND e.event_date = h.event_date AND e.correlation_id = h.correlation_id

-- name: lock_log
-- A replica that lost a race has the log to itself for one flush, however long that takes. Released by COMMIT.
SELECT pg_advisory_xact_lock(hashtextextended('datastorage.log', 0))

-- name: flush
-- One flush. The first CTE is the compare-and-set, and everything else selects from it, so that a loser writes nothing.
-- Rows of a large flush follow by COPY; then $17 is empty. The shared lock waits for a replica that has the log to itself.
WITH won AS (
    INSERT INTO log_flushes (log_id, first_index, count, leaves)
    SELECT 0, $2, $3, $4
    FROM pg_advisory_xact_lock_shared(hashtextextended('datastorage.log', 0)), log_flushes p
    WHERE p.log_id = 0 AND p.first_index = $1 AND p.first_index + p.count = $2
    RETURNING 1
), begun AS (
    INSERT INTO chain_heads (correlation_id, length, hash)
    SELECT h.correlation_id, h.length, h.hash
    FROM won, unnest($5::text[], $6::bigint[], $7::text[]) h(correlation_id, length, hash)
    RETURNING 1
), grown AS (
    UPDATE chain_heads c SET length = h.length, hash = h.hash
    FROM won, unnest($8::text[], $9::bigint[], $10::bigint[], $11::text[]) h(correlation_id, expected, length, hash)
    WHERE c.correlation_id = h.correlation_id AND c.length = h.expected
    RETURNING 1
), claimed AS (
    INSERT INTO claims (scope, key, body_digest, event_ids, expires_at)
    SELECT c.scope, c.key, c.body_digest, c.event_ids::uuid[], c.expires_at
    FROM won, unnest($12::text[], $13::text[], $14::bytea[], $15::text[], $16::timestamptz[])
        c(scope, key, body_digest, event_ids, expires_at)
), written AS (
    INSERT INTO audit_events (
        event_id, event_version, event_timestamp, event_date, event_type, event_category, event_action,
        event_outcome, actor_type, actor_id, actor_ip, resource_type, resource_id, correlation_id,
        parent_event_id, parent_event_date, namespace, cluster_id, severity, duration_ms, error_code,
        error_message, event_data, retention_days, is_sensitive, recorded_at, payload_salt,
        log_index, chain_index, previous_event_hash, event_hash, trace_id, span_id, log_id, hash_algorithm)
    SELECT r.*, 0, 'sha256-rfc6962'
    FROM won, unnest($17::flush_row[], $18::text[], $19::text[]) r
)
SELECT flush_guard((SELECT count(*) FROM won), (SELECT count(*) FROM begun) + (SELECT count(*) FROM grown),
                   cardinality($5) + cardinality($8))

-- name: leaves
-- What stands at the position of a flush whose outcome is unknown: ours, another's, or nothing yet.
SELECT leaves FROM log_flushes WHERE log_id = 0 AND first_index = $1

-- name: stored_ids
-- Which of these ids events have, whatever their date and correlation.
SELECT DISTINCT event_id FROM audit_events WHERE event_id = ANY($1::uuid[])

-- name: stored_event
-- The event that has an id, to tell a client in what another one under the same id differs.
SELECT event_version, event_timestamp, event_type, event_category, event_action, event_outcome, actor_type, actor_id,
    host(actor_ip) AS actor_ip, resource_type, resource_id, correlation_id, parent_event_id, namespace, cluster_id, severity,
    duration_ms, error_code, error_message, event_data::text AS event_data, retention_days, is_sensitive
FROM audit_events WHERE event_id = $1 LIMIT 1

-- name: claims
-- What clients promised about the events whose ids they chose. A purge leaves word in `answer`.
SELECT event_ids[1] AS event_id, body_digest, answer IS NOT NULL AS purged FROM claims WHERE scope = 'event' AND key = ANY($1::text[])

-- name: key_claims
-- What was promised under these Idempotency-Keys. A promise that has expired makes room for another one.
WITH asked AS (SELECT * FROM unnest($1::text[], $2::text[]) k(scope, key)),
expired AS (DELETE FROM claims c USING asked WHERE c.scope = asked.scope AND c.key = asked.key AND c.expires_at <= now())
SELECT c.scope, c.key, c.body_digest FROM claims c JOIN asked USING (scope, key) WHERE c.expires_at > now()

-- name: void_claims
-- A claim counts only while its row exists, or once it was purged.
DELETE FROM claims c WHERE scope = 'event' AND key = ANY($1::text[])
AND NOT EXISTS (SELECT FROM audit_events e WHERE e.event_id = c.event_ids[1])

-- name: parents
-- Dates of the events that others name as their parent.
SELECT event_id, event_date FROM audit_events WHERE event_id = ANY($1::uuid[])

-- name: seed
-- Rows of the log were removed or changed: begin anew behind everything that flushes, rows and heads know.
INSERT INTO log_flushes (log_id, first_index, count, leaves)
SELECT 0, GREATEST(
    (SELECT max(first_index) + 1 FROM log_flushes WHERE log_id = 0),
    (SELECT max(log_index) FROM audit_events WHERE log_index < 4611686018427387904),
    (SELECT LEAST(sum(length), 4611686018427387904)::bigint - 1 FROM chain_heads WHERE length BETWEEN 1 AND 4611686018427387904),
    -1), 1, ''
ON CONFLICT DO NOTHING

-- name: end_frozen
-- Ends sessions of this service that hold the log and have been waiting for their client: a stopped process, a dead host.
-- While COPY waits for more, no timeout of the server's ends it.
SELECT DISTINCT a.pid, pg_terminate_backend(a.pid)
FROM pg_stat_activity a JOIN pg_locks l ON l.pid = a.pid AND l.granted
WHERE l.relation = 'log_flushes'::regclass AND l.mode = 'RowExclusiveLock' AND a.pid <> pg_backend_pid()
    AND a.datname = current_database() AND a.usename = current_user AND a.application_name = 'datastorage'
    AND a.wait_event = 'ClientRead' AND a.xact_start < now() - interval '5 s'

-- name: retention_days_min
-- Events older than this may have been removed already: whoever writes them now has to want it.
SELECT COALESCE(min(retention_days), 2555) FROM audit_retention_policies

-- name: durability
-- Settings of the server without which a commit may be lost.
SELECT name, setting FROM pg_settings WHERE name IN ('fsync', 'full_page_writes', 'synchronous_commit') AND setting = 'off'

-- name: notification
-- One notification, and the promise under its Idempotency-Key if it came with one. If its id is taken, no row comes back.
WITH written AS (
    INSERT INTO notification_audit (remediation_id, notification_id, recipient, channel, message_summary, status, sent_at,
        delivery_status, error_message, escalation_level)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
    ON CONFLICT (notification_id) DO NOTHING
    RETURNING id, notification_id, created_at
), claimed AS (
    INSERT INTO claims (scope, key, body_digest, event_ids, answer, expires_at)
    SELECT $11, $12, $13, '{}', jsonb_build_object('notification_id', notification_id), $14
    FROM written WHERE $11::text IS NOT NULL
)
SELECT id, created_at FROM written

-- name: notification_claim
-- What was promised under an Idempotency-Key. It counts until it expires, and only while its notification is there.
WITH promised AS (
    SELECT c.scope, c.key, c.body_digest, c.expires_at > now() AS counts, n.id, n.created_at
    FROM claims c LEFT JOIN notification_audit n ON n.notification_id = c.answer->>'notification_id'
    WHERE c.scope = $1 AND c.key = $2
), void AS (
    DELETE FROM claims c USING promised p WHERE c.scope = p.scope AND c.key = p.key AND (p.id IS NULL OR NOT p.counts)
)
SELECT body_digest, id, created_at FROM promised WHERE id IS NOT NULL AND counts

-- name: stored_notification
-- The notification that has an id, as it was sent.
SELECT remediation_id, notification_id, recipient, channel, message_summary, status, sent_at, delivery_status, error_message,
    escalation_level
FROM notification_audit WHERE notification_id = $1
