-- name: tail
-- Where the log ends: the flush that is reached in at most $3 steps, each from one flush to the one that begins where it ends, from
-- the flush at $1 that ends at $2. Read before everything else that a flush relies on: a won compare-and-set then proves that all of
-- it is current. In the same snapshot, the positions at which holds last changed.
WITH RECURSIVE following AS (
    (
        SELECT first_index, count, 1 AS step FROM log_flushes
        WHERE log_id = {log} AND (first_index = $2 OR (first_index = $1 AND first_index + greatest(count, 1) = $2))
        ORDER BY first_index DESC LIMIT 1
    )
    UNION ALL
    SELECT f.*, p.step + 1 FROM following p CROSS JOIN LATERAL (
        SELECT first_index, count FROM log_flushes
        WHERE log_id = {log} AND first_index = p.first_index + greatest(p.count, 1) LIMIT 1
    ) f WHERE p.step < $3
)
SELECT first_index, greatest(count, 1) AS count, step,
    (SELECT max(placed_index) FROM holds WHERE placed_log = {log}) AS placed,
    (SELECT max(released_index) FROM holds WHERE released_log = {log}) AS released
FROM following ORDER BY first_index DESC LIMIT 1

-- name: flush_before
-- The flush that has the leaf before position $1, or is the last one before it.
SELECT first_index, first_index + greatest(count, 1) AS "end" FROM log_flushes
WHERE log_id = {log} AND (first_index < $1 OR first_index = -1) ORDER BY first_index DESC LIMIT 1

-- name: tiled_size
-- How far the tiles reach, which are made of flushes that follow each other.
SELECT coalesce(max(size), 0) FROM ({tiled_sizes}) tiled

-- name: is_end
-- Whether nothing is stored at position $1 or beyond it, neither a flush nor an event.
SELECT NOT EXISTS (SELECT FROM log_flushes WHERE log_id = {log} AND first_index >= $1)
    AND NOT EXISTS (SELECT FROM audit_events WHERE log_index >= $1 AND {in_log})

-- name: events_behind
-- Events from position $1 on although no flush has them; none where checkpoints are signed, which tell where the log ends.
SELECT {hashed_columns} FROM audit_events
WHERE log_index >= $1 AND log_index < 4611686018427387904 AND {in_log}
    AND NOT EXISTS (SELECT FROM log_signers WHERE log_id = {log} AND note IS NOT NULL)
ORDER BY log_index LIMIT 100

-- name: fill_hole
-- Flushes without leaves for the positions from $1 up to, not including, $2, whose flushes are lost: none of these is given again.
INSERT INTO log_flushes (log_id, first_index, count, leaves)
SELECT {log}, first, least($2::bigint - first, 2147483647)::integer, '' FROM generate_series($1::bigint, $2::bigint - 1, 2147483647) AS first
ON CONFLICT DO NOTHING

-- name: chain_heads
-- Heads of the chains of one flush. Not in the statement that waits for the lock, which would see the heads from before it.
SELECT correlation_id, length, hash FROM chain_heads WHERE correlation_id = ANY($1::text[])

-- name: active_holds
-- The holds that new events may fall under: those of correlations first, then in the order in which they were placed. A time that
-- Python cannot represent, which only SQL can have written, is read as the nearest that it can: nothing would be written otherwise.
SELECT correlation_id, actor_id, resource_type, resource_id,
    CASE WHEN time_from < '0001-01-02Z' THEN '0001-01-02Z' WHEN time_from >= '9999-12-31Z' THEN '9999-12-30Z' ELSE time_from END AS time_from,
    CASE WHEN time_to < '0001-01-02Z' THEN '0001-01-02Z' WHEN time_to >= '9999-12-31Z' THEN '9999-12-30Z' ELSE time_to END AS time_to,
    reason, placed_by,
    CASE WHEN placed_at < '0001-01-02Z' THEN '0001-01-02Z' WHEN placed_at >= '9999-12-31Z' THEN '9999-12-30Z' ELSE placed_at END AS placed_at
FROM holds WHERE released_at IS NULL ORDER BY correlation_id IS NULL, placed_log, placed_index

-- name: mark_held
-- Marks the events of this flush that fall under a hold.
UPDATE audit_events e
SET legal_hold = true, legal_hold_reason = h.reason, legal_hold_placed_by = h.placed_by, legal_hold_placed_at = h.placed_at
FROM unnest($1::uuid[], $2::date[], $3::text[], $4::text[], $5::text[], $6::timestamptz[])
    h(event_id, event_date, correlation_id, reason, placed_by, placed_at)
WHERE e.event_id = h.event_id AND e.event_date = h.event_date AND e.correlation_id = h.correlation_id

-- name: lock_log
-- After a lost race, a replica locks the log for itself for one flush, however long that takes. Released by COMMIT. The INSERT writes
-- nothing: it locks the table first, in the order of every flush, so that `log continue`, which locks it against all, has only to wait.
WITH table_lock AS (INSERT INTO log_flushes SELECT * FROM log_flushes WHERE false)
SELECT pg_advisory_xact_lock(hashtextextended('datastorage.log', 0))

-- name: flush
-- One flush. The first CTE is the compare-and-set on the end of the log. Everything else selects from it, so that a lost race
-- writes nothing. Rows of a large flush follow by COPY; then $17 is empty. The shared lock waits for lock_log of another replica.
WITH won AS (
    INSERT INTO log_flushes (log_id, first_index, count, leaves)
    SELECT {log}, $2, $3, $4
    FROM pg_advisory_xact_lock_shared(hashtextextended('datastorage.log', 0)), log_flushes p
    WHERE p.log_id = {log} AND p.first_index = $1 AND p.first_index + greatest(p.count, 1) = $2
    RETURNING 1
), new_chains AS (
    INSERT INTO chain_heads (correlation_id, length, hash)
    SELECT h.correlation_id, h.length, h.hash
    FROM won, unnest($5::text[], $6::bigint[], $7::text[]) h(correlation_id, length, hash)
    RETURNING 1
), extended_chains AS (
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
        log_index, chain_index, previous_event_hash, event_hash, trace_id, span_id,
        event_metadata, log_id, hash_algorithm)
    SELECT r.*, {log}, 'sha256-rfc6962'
    FROM won, unnest($17::flush_row[], $18::text[], $19::text[], $20::jsonb[]) r
)
SELECT flush_guard((SELECT count(*) FROM won), (SELECT count(*) FROM new_chains) + (SELECT count(*) FROM extended_chains),
                   cardinality($5) + cardinality($8))

-- name: leaves
-- The leaves at the position of a flush of unknown outcome: its own, those of another replica, or none yet.
SELECT leaves FROM log_flushes WHERE log_id = {log} AND first_index = $1

-- name: stored_ids
-- Those of these ids that a row has, whatever its date and correlation, sealed or not.
SELECT DISTINCT event_id FROM audit_events WHERE event_id = ANY($1::uuid[])

-- name: rows_with_ids
-- All rows with these ids, each with the leaf that the log has at its position.
SELECT {hashed_columns}, {leaf_of_row} AS leaf FROM audit_events WHERE event_id = ANY($1::uuid[])

-- name: stored_event
-- The event with this id, the sealed one if there are several, to report to a client in which members its event differs.
SELECT event_version, event_timestamp, event_type, event_category, event_action, event_outcome, actor_type, actor_id,
    host(actor_ip) AS actor_ip, resource_type, resource_id, correlation_id, parent_event_id, namespace, cluster_id, severity,
    duration_ms, error_code, error_message, event_data::text AS event_data, retention_days, is_sensitive
FROM audit_events WHERE event_id = $1 ORDER BY {leaf_of_row} = event_hash DESC NULLS LAST LIMIT 1

-- name: event_claims
-- Claims of the ids that clients chose. A purge records in `answer` that the event was stored.
SELECT event_ids[1] AS event_id, body_digest, answer IS NOT NULL AS purged FROM claims WHERE scope = 'event' AND key = ANY($1::text[])

-- name: key_claims
-- Claims of these Idempotency-Keys. Those that have expired are deleted.
WITH requested AS (SELECT * FROM unnest($1::text[], $2::text[]) k(scope, key)),
expired AS (DELETE FROM claims c USING requested r WHERE c.scope = r.scope AND c.key = r.key AND c.expires_at <= now())
SELECT c.scope, c.key, c.body_digest FROM claims c JOIN requested USING (scope, key) WHERE c.expires_at > now()

-- name: aliases
-- The events that items of lenient batches became, by the ids of the items alone.
SELECT key::uuid AS alias, event_ids[1] AS event_id FROM claims WHERE scope = 'item' AND key = ANY($1::text[])

-- name: delete_void_aliases
-- Deletes those of which the event is not stored any more.
DELETE FROM claims WHERE scope = 'item' AND key = ANY($1::text[])

-- name: delete_void_claims
-- Deletes claims of ids whose event is not stored: a claim counts only while its event exists, or after it was purged.
DELETE FROM claims c WHERE scope = 'event' AND key = ANY($1::text[])
AND NOT EXISTS (SELECT FROM audit_events e WHERE e.event_id = c.event_ids[1])

-- name: ensure_partitions
-- Creates the missing monthly partitions between two days and returns how many; the function runs with its owner's rights.
SELECT ensure_partitions($1, $2)

-- name: parents
-- Dates of the events that others name as their parent.
SELECT event_id, event_date FROM audit_events WHERE event_id = ANY($1::uuid[])

-- name: parents_that_stand_twice
-- The same, where one of them has several rows: the sealed one comes last.
SELECT event_id, event_date FROM audit_events WHERE event_id = ANY($1::uuid[])
ORDER BY {leaf_of_row} = event_hash NULLS FIRST

-- name: terminate_stalled_sessions
-- Terminates sessions of this service that have locked the log and wait for their client: a stopped process, a dead host.
-- While COPY waits for more rows, no timeout of the server ends it.
SELECT DISTINCT a.pid, pg_terminate_backend(a.pid)
FROM pg_stat_activity a JOIN pg_locks l ON l.pid = a.pid AND l.granted
WHERE l.relation = 'log_flushes'::regclass AND l.mode = 'RowExclusiveLock' AND a.pid <> pg_backend_pid()
    AND a.datname = current_database() AND a.usename = current_user AND a.application_name = current_setting('application_name')
    AND a.wait_event = 'ClientRead' AND a.xact_start < now() - interval '5 s'

-- name: retention_days_min
-- Events older than this may have been purged already: replaying them has to be asked for (--force).
SELECT COALESCE(min(retention_days), 2555) FROM audit_retention_policies

-- name: retention_policies
-- How long events of each category stay, so that none is imported whose retention is over.
SELECT event_category, retention_days, floor_days, ceiling_days FROM audit_retention_policies

-- name: durability
-- Settings of the server that are off and without which a commit may be lost.
SELECT name, setting FROM pg_settings WHERE name IN ('fsync', 'full_page_writes', 'synchronous_commit') AND setting = 'off'

-- name: notification
-- Stores one notification, with the claim of its Idempotency-Key if it has one, in the flush of the event at position $14 that has its
-- digest. Returns no row if its id or its key is stored already.
WITH claimed AS (
    INSERT INTO claims (scope, key, body_digest, event_ids, answer, expires_at)
    SELECT $15, $16, $17, '{}', jsonb_build_object('notification_id', $2::text), $18 WHERE $15::text IS NOT NULL
    ON CONFLICT DO NOTHING
    RETURNING 1
)
INSERT INTO notification_audit (remediation_id, notification_id, recipient, channel, message_summary, status, sent_at,
    delivery_status, error_message, escalation_level, created_at, updated_at, salt, log_id, log_index)
SELECT $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $11, $12, $13, $14 WHERE $15::text IS NULL OR EXISTS (SELECT FROM claimed)
ON CONFLICT (notification_id) DO NOTHING
RETURNING id

-- name: bound_locks
-- For the rest of the transaction, which has the log locked: what somebody else has locked is not waited for.
SET LOCAL lock_timeout = '100ms'

-- name: notification_claim
-- The notification that was stored under an Idempotency-Key. The claim counts until it expires, and only while that is stored.
WITH claim AS (
    SELECT c.scope, c.key, c.body_digest, c.expires_at > now() AS counts, n.id, n.created_at
    FROM claims c LEFT JOIN notification_audit n ON n.notification_id = c.answer->>'notification_id'
    WHERE c.scope = $1 AND c.key = $2
), deleted AS (
    DELETE FROM claims c USING claim v WHERE c.scope = v.scope AND c.key = v.key AND (v.id IS NULL OR NOT v.counts)
)
SELECT body_digest, id, created_at FROM claim WHERE id IS NOT NULL AND counts

-- name: stored_notification
-- The notification with this id, as it was sent.
SELECT remediation_id, notification_id, recipient, channel, message_summary, status, sent_at, delivery_status, error_message,
    escalation_level
FROM notification_audit WHERE notification_id = $1
