-- name: delete_expired_claims
-- Deletes expired claims of Idempotency-Keys, a bounded number at a time. Claims of event ids never expire.
DELETE FROM claims WHERE (scope, key) IN (
    SELECT scope, key FROM claims WHERE expires_at < now() AND scope <> 'event' LIMIT 10000)

-- name: lock_holds
-- Holds are placed and released one at a time, since each marks rows in several steps. The lock ends with the connection.
SELECT pg_advisory_lock(hashtextextended('datastorage.holds', 0))

-- name: active_hold
-- The active hold with exactly this selector.
SELECT hold_id FROM holds
WHERE released_at IS NULL AND (correlation_id, actor_id, resource_type, resource_id, time_from, time_to)
    IS NOT DISTINCT FROM ($1::text, $2::text, $3::text, $4::text, $5::timestamptz, $6::timestamptz)

-- name: hold
-- One hold, active or released.
SELECT * FROM holds WHERE hold_id = $1

-- name: mark_rows
-- Marks the rows that a hold covers in one part of the log; the mark of a correlation's hold replaces any other. Returns how many
-- are marked now: a row that a purge has deleted while this statement waited for it is not marked, and not counted.
WITH covered AS MATERIALIZED (
    SELECT k.*, e.legal_hold IS TRUE AND ($1 IS NULL OR e.legal_hold_placed_at IS NOT DISTINCT FROM $11) AS marked
    FROM events_under($1, $2, $3, $4, $5, $6, {log}::smallint, $7, $8) k JOIN audit_events e USING (event_id, event_date, correlation_id)
), newly_marked AS (
    UPDATE audit_events e
    SET legal_hold = true, legal_hold_reason = $9, legal_hold_placed_by = $10, legal_hold_placed_at = $11
    FROM covered c
    WHERE e.event_id = c.event_id AND e.event_date = c.event_date AND e.correlation_id = c.correlation_id AND NOT c.marked
    RETURNING 1
)
SELECT (SELECT count(*) FROM newly_marked) + (SELECT count(*) FROM covered WHERE marked)

-- name: had_events
-- Whether the log has had an event of a correlation, whether or not it still has a row.
SELECT EXISTS (SELECT FROM chain_heads WHERE correlation_id = $1)

-- name: place_hold
-- The row of a hold, in one transaction with the event that records it.
INSERT INTO holds (correlation_id, actor_id, resource_type, resource_id, time_from, time_to, reason, placed_by, placed_at,
    hold_id, placed_index, placed_log)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, {log})

-- name: may_be_placed
-- Whether the log may record that a hold with this id, or of this correlation, was placed.
SELECT EXISTS (
    SELECT FROM audit_events WHERE event_type = 'datastorage.hold.placed' AND event_category = 'security'
        AND (event_data->>'hold_id' = $1 OR event_data->>'correlation_id' = $2)
)

-- name: put_back_hold
-- The row of a hold that the log records and that somebody has deleted; its selector is a JSON array of one object.
INSERT INTO holds (hold_id, correlation_id, actor_id, resource_type, resource_id, time_from, time_to, reason, placed_by, placed_at,
    placed_index, placed_log)
SELECT hold_id, correlation_id, actor_id, resource_type, resource_id, time_from, time_to, $2, $3,
    coalesce($4::text::timestamptz, (
        SELECT event_timestamp FROM audit_events
        WHERE log_index = $5 AND log_id = $6 AND event_type = 'datastorage.hold.placed' AND event_data->>'hold_id' = h.hold_id::text
    )), $5, $6
FROM jsonb_populate_recordset(NULL::holds, $1::text::jsonb) h
ON CONFLICT DO NOTHING

-- name: release_hold
-- Releases a hold, in one transaction with the event that records it.
UPDATE holds SET release_reason = $2, released_by = $3, released_at = $4, released_index = $5, released_log = {log}
WHERE hold_id = $1 AND released_at IS NULL

-- name: long_statement_timeout
-- For statements that read or change many rows while nobody has to wait for them.
SET LOCAL statement_timeout = '10min'

-- name: log_size
-- Number of positions in the log; the next event gets this position.
WITH RECURSIVE tiled AS ({tiled_sizes}), anchor AS ({known_size}), {following_flushes}
SELECT first_index + greatest(count, 1) FROM following ORDER BY first_index DESC LIMIT 1

-- name: authorize_release
-- Allows this transaction to unmark rows that no other hold covers.
SET LOCAL kubernaut.legal_hold_release = 'authorized'

-- name: release_correlation
-- Unmarks the held rows of a correlation, also those marked by SQL alone; rows under another hold get its mark. Returns how many
-- are no longer held.
WITH held AS MATERIALIZED (
    {held_rows}
    WHERE e.correlation_id = $1 AND e.legal_hold
), {unmark_held}

-- name: release_marked
-- As release_correlation, for the rows with the mark of one hold of another selector.
WITH held AS MATERIALIZED (
    {held_rows}
    WHERE e.legal_hold AND e.legal_hold_placed_at = $1 AND e.legal_hold_placed_by = $3
), {unmark_held}

-- name: marked_count
-- How many rows have the mark of one hold.
SELECT count(*) FROM audit_events WHERE legal_hold AND legal_hold_placed_at = $1 AND legal_hold_placed_by = $2

-- name: holds
-- Active holds, or all of them, with how many rows have their mark; and, by correlation, rows that are held by SQL alone.
-- Newest first.
WITH marks AS (
    SELECT correlation_id, legal_hold_placed_by AS placed_by, legal_hold_placed_at AS placed_at, legal_hold_reason AS reason,
        count(*) AS events
    FROM audit_events WHERE legal_hold GROUP BY 1, 2, 3, 4
), counted AS (
    SELECT h.hold_id, sum(m.events) AS events
    FROM holds h LEFT JOIN marks m ON m.placed_at = h.placed_at AND m.placed_by = h.placed_by AND m.reason = h.reason
        AND (h.correlation_id IS NULL OR h.correlation_id = m.correlation_id)
    WHERE h.released_at IS NULL OR $1::boolean
    GROUP BY h.hold_id
), listed AS (
    SELECT h.hold_id, h.correlation_id, h.actor_id, h.resource_type, h.resource_id, h.time_from, h.time_to, k.events,
        h.placed_by, h.placed_at, h.reason, h.release_reason, h.released_by, h.released_at
    FROM counted k JOIN holds h USING (hold_id)
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

-- name: lock_retention
-- One retention run at a time. The lock ends with the connection.
SELECT pg_try_advisory_lock(hashtextextended('datastorage.retention', 0))

-- name: months
-- The monthly tables: attached, half detached, or left detached by a run that was interrupted.
SELECT c.relname AS name, i.inhrelid IS NOT NULL AS attached, i.inhdetachpending IS TRUE AS detaching
FROM pg_class c LEFT JOIN pg_inherits i ON i.inhrelid = c.oid AND i.inhparent = 'audit_events'::regclass
WHERE c.relkind = 'r' AND c.relnamespace = current_schema()::regnamespace AND c.relname ~ '^audit_events_[0-9]{4}_[0-9]{2}$'
ORDER BY c.relname

-- name: month_contents
-- What one month contains. The function calls `young` what is not due yet.
SELECT total, unsealed, held, young, positions::text FROM month_contents($1::text::regclass, $2, $3, $4)

-- name: due_events
-- The next rows of one month that may be purged.
SELECT d.*, e.log_id FROM due_events($1::text::regclass, $2, $3, $4, $5, $6) d
JOIN audit_events e USING (event_id, event_date, correlation_id) ORDER BY d.log_index

-- name: holds_version
-- The positions at which holds last changed.
SELECT (SELECT max(placed_index) FROM holds WHERE placed_log = {log}) AS placed,
    (SELECT max(released_index) FROM holds WHERE released_log = {log}) AS released

-- name: follow
-- Has the functions of this session, or of this transaction only, follow what the log records: holds that the table has not, and policies.
SELECT set_config('datastorage.missing_holds', $1, $3), set_config('datastorage.policies', $2, $3)

-- name: purged_categories
-- The categories of the sealed rows among some, and the newest event of each.
SELECT event_category AS category, to_char(timezone('UTC', max(event_timestamp)), 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') AS newest
FROM unnest($1::uuid[], $2::date[], $3::text[]) k(event_id, event_date, correlation_id)
JOIN audit_events USING (event_id, event_date, correlation_id) WHERE log_index IS NOT NULL
GROUP BY 1 ORDER BY 1

-- name: month_categories
-- The same of one month.
SELECT event_category AS category, to_char(timezone('UTC', max(event_timestamp)), 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') AS newest
FROM audit_events WHERE event_date >= $1 AND event_date < $2 AND log_index IS NOT NULL
GROUP BY 1 ORDER BY 1

-- name: mark_month
-- Marks the rows of a month that a hold covers and that nobody could mark while it was detached.
WITH covered AS MATERIALIZED (
    SELECT e.event_id, e.event_date, e.correlation_id,
        hold_of(e.correlation_id, e.actor_id, e.resource_type, e.resource_id, e.event_timestamp) AS hold_id
    FROM audit_events e WHERE event_date >= $1 AND event_date < $2 AND legal_hold IS NOT TRUE AND any_hold()
)
UPDATE audit_events e
SET legal_hold = true, legal_hold_reason = h.reason, legal_hold_placed_by = h.placed_by, legal_hold_placed_at = h.placed_at
FROM covered c JOIN holds h USING (hold_id)
WHERE e.event_id = c.event_id AND e.event_date = c.event_date AND e.correlation_id = c.correlation_id

-- name: write_policy
-- Writes the policy that the event with this id sets or removes.
SELECT write_policy($1)

-- name: policy_id
-- The id of a category's policy.
SELECT policy_id FROM audit_retention_policies WHERE event_category = $1

-- name: end_adoption
-- The log records all holds and policies from here on. No row is returned if it did before.
UPDATE adoptions SET adopted_index = $1 WHERE log_id = 0 AND adopted_index IS NULL RETURNING 1

-- name: purge
-- Deletes the rows that the purge event of this transaction names, except rows that are held by now. Returns how many.
WITH deleted AS (
    DELETE FROM audit_events e USING unnest($1::uuid[], $2::date[], $3::text[]) k(event_id, event_date, correlation_id)
    WHERE e.event_id = k.event_id AND e.event_date = k.event_date AND e.correlation_id = k.correlation_id
        AND e.legal_hold IS NOT TRUE
        AND (NOT (SELECT any_hold()) OR hold_of(e.correlation_id, e.actor_id, e.resource_type, e.resource_id, e.event_timestamp) IS NULL)
    RETURNING e.event_id
), claims_marked AS (
    UPDATE claims SET answer = '{"purged": true}'
    FROM deleted WHERE scope = 'event' AND key = deleted.event_id::text
)
SELECT count(*) FROM deleted

-- name: still_stored
-- Positions that are still stored in a month, attached or not, although purge events name them.
SELECT (positions * purged_positions($1))::text FROM month_contents($1::text::regclass, $2, $3, $4)

-- name: single_positions
-- Those of some positions that one row of a log has, with the log.
SELECT log_id, log_index FROM audit_events WHERE log_index = ANY($1) GROUP BY 1, 2 HAVING count(*) = 1

-- name: rows_at_positions
-- How many rows have one of these positions, in any month.
WITH named AS MATERIALIZED (SELECT $1::text::int8multirange AS positions)
SELECT count(*) FROM audit_events, named
WHERE log_index >= lower(positions) AND log_index < upper(positions) AND positions @> log_index

-- name: purges_in_month
-- Correlations of the due events of a month that may be purge events, so that the event of their own purge can repeat their positions.
SELECT DISTINCT correlation_id
FROM due_events($1::text::regclass, $2, $3, $4, -1, 2147483647) WHERE starts_with(correlation_id, 'datastorage:retention:')

-- name: purges_of_month
-- Correlations of what may be purges of one whole month.
SELECT DISTINCT correlation_id FROM audit_events
WHERE event_type = 'datastorage.retention.purged' AND event_data->>'partition' = $1 AND log_index IS NOT NULL
    AND starts_with(correlation_id, 'datastorage:retention:')

-- name: begin_run
-- The row of a run that begins.
INSERT INTO retention_operations (run_id) VALUES ($1)

-- name: end_run
-- The result of a run.
UPDATE retention_operations
SET status = $2, error_message = $3, rows_scanned = $4, rows_deleted = $5, partitions_dropped = $6, period_start = $7,
    period_end = $8, operation_end = now(),
    operation_duration_ms = (extract(epoch FROM now() - operation_start) * 1000)::bigint
WHERE run_id = $1

-- name: month_unchanged
-- Whether no event of a month was held or written since its contents were read.
SELECT NOT EXISTS (SELECT FROM audit_events WHERE event_date >= $1 AND event_date < $2 AND legal_hold)
    AND NOT EXISTS (SELECT FROM audit_events WHERE event_date >= $1 AND event_date < $2 AND log_index >= $3 AND {in_log})
    AND (SELECT max(placed_index) FROM holds WHERE placed_log = {log}) IS NOT DISTINCT FROM $4::bigint
    AND (SELECT max(released_index) FROM holds WHERE released_log = {log}) IS NOT DISTINCT FROM $5::bigint

-- name: nearly_empty_months
-- Months of at least $1 pages and at most $2 rows, two a page or fewer, as VACUUM has found them: each with its index by time, all that
-- it takes, and whether every transaction sees the same rows.
SELECT c.relname AS name, x.relname AS by_time, pg_total_relation_size(c.oid) AS bytes,
    c.relallvisible >= 0.95 * c.relpages AS all_visible
FROM pg_inherits i
JOIN pg_class c ON c.oid = i.inhrelid
JOIN pg_index d ON d.indrelid = c.oid
JOIN pg_inherits j ON j.inhrelid = d.indexrelid AND j.inhparent = 'audit_events_timestamp'::regclass
JOIN pg_class x ON x.oid = d.indexrelid
WHERE i.inhparent = 'audit_events'::regclass AND NOT i.inhdetachpending AND c.relname ~ '^audit_events_[0-9]{4}_[0-9]{2}$'
    AND c.relpages >= $1 AND c.reltuples BETWEEN 0 AND least($2, 2 * c.relpages)
ORDER BY 1

-- name: bytes_of_month
-- All that a month takes: rows, what is stored apart, indexes.
SELECT pg_total_relation_size($1::text::regclass)

-- name: drop_month
-- Drops a detached month unless something in it has to stay. Returns whether it was dropped.
SELECT drop_month($1, $2, $3, $4)

-- name: attach_month
-- Attaches a detached month again.
SELECT attach_month($1)

-- name: erasable
-- The events that an erasure names and that are not erased yet, except those that others are judged by; and whether each is held.
SELECT event_id, correlation_id, log_index, legal_hold IS TRUE
    OR hold_of(correlation_id, actor_id, resource_type, resource_id, event_timestamp) IS NOT NULL AS held
FROM audit_events
WHERE (event_id = ANY($1::uuid[]) OR actor_id = $2 OR correlation_id = $3) AND payload_commitment IS NULL
    AND event_type NOT IN ({judging_types})
ORDER BY log_index

-- name: stored_ids
-- Which of some events have a row.
SELECT event_id FROM audit_events WHERE event_id = ANY($1::uuid[])

-- name: held_archived
-- Of events that have no row any more, by what they have said: whether a hold covers each, and whether others are judged by it.
SELECT hold_of(correlation, actor, kind, resource, moment) IS NOT NULL AS held, event_type IN ({judging_types}) AS judging
FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::timestamptz[], $6::text[])
    WITH ORDINALITY AS e(correlation, actor, kind, resource, moment, event_type, number)
ORDER BY number

-- name: to_erase
-- These events, each with the leaf that the log has at its position.
SELECT {hashed_columns}, {leaf_of_row} AS leaf FROM audit_events WHERE event_id = ANY($1::uuid[]) AND log_index IS NOT NULL AND payload_commitment IS NULL
ORDER BY log_index

-- name: erase
-- Erases events. Returns their ids.
SELECT erase_events($1, $2, $3)

-- name: has_events
-- Whether a correlation has any event, sealed or not.
SELECT EXISTS (SELECT FROM audit_events WHERE correlation_id = $1) AS has_events

-- name: sink_places
-- Where each sink is, those that are farthest behind first.
SELECT name, place, paused, (place >> 48) || ':' || (place & 281474976710655) AS place_text FROM sinks ORDER BY place, name

-- name: lock_sinks
-- Until this transaction ends no cursor moves, and no sink is made or removed.
LOCK TABLE sinks IN SHARE MODE
