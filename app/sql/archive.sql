-- Statements of the archive.

-- name: lock_archive
-- One run at a time. The lock ends with the connection.
SELECT pg_try_advisory_lock(hashtextextended('datastorage.archive', 0))

-- name: session
-- By what other sessions know this one.
SELECT pg_backend_pid()

-- name: has_locks
-- Whether a session still excludes other runs of the archive and of retention.
SELECT count(*) = 2 FROM pg_locks l, unnest(ARRAY['datastorage.archive', 'datastorage.retention']) name
WHERE locktype = 'advisory' AND pid = $1 AND granted AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
    AND objsubid = 1 AND (classid::bigint << 32 | objid::bigint) = hashtextextended(name, 0)

-- name: months
-- First days of the months that have a table, attached or not.
SELECT to_date(substr(relname, 14), 'YYYY_MM') AS month FROM pg_class
WHERE relkind = 'r' AND relnamespace = current_schema()::regnamespace AND relname ~ '^audit_events_[0-9]{4}_[0-9]{2}$'
ORDER BY 1

-- name: unsealed
-- How many rows between two days have no position.
SELECT count(*) FROM audit_events WHERE event_date >= $1 AND event_date < $2 AND log_index IS NULL

-- name: positions
-- Ranges of positions below $3 that rows of a log have between two days.
SELECT min(log_index) AS first, max(log_index) + 1 AS end FROM (
    SELECT log_index, log_index - dense_rank() OVER (ORDER BY log_index) AS island
    FROM audit_events WHERE event_date >= $1 AND event_date < $2 AND log_index >= 0 AND log_index < $3 AND {in_log}
) numbered GROUP BY island ORDER BY 1

-- name: sort_memory
-- Of the statement that sorts a part; what does not fit is sorted on disk.
SET LOCAL work_mem = '64MB'

-- name: rows
-- Rows of a log between two days and two positions, in the order of the archive's files.
SELECT {hashed_columns}, retention_days
FROM audit_events WHERE event_date >= $1 AND event_date < $2 AND log_index >= $3 AND log_index < $4 AND {in_log}
ORDER BY correlation_id COLLATE "C", audit_events.event_timestamp, log_index

-- name: newest_checkpoint
-- The newest published checkpoint of a log, up to a size.
SELECT size, note || cosignatures AS note FROM log_checkpoints
WHERE log_id = {log} AND published_at IS NOT NULL AND size <= $1 ORDER BY size DESC LIMIT 1

-- name: is_changed
-- Whether the log records that something was erased or purged, from a position of a log on.
SELECT EXISTS (
    SELECT FROM audit_events
    WHERE event_type IN ('datastorage.event.erased', 'datastorage.retention.purged') AND log_index >= $1 AND {in_log}
)

-- name: is_erased
-- Whether the log records that something was erased, from a position of a log on.
SELECT EXISTS (SELECT FROM audit_events WHERE event_type = 'datastorage.event.erased' AND log_index >= $1 AND {in_log})

-- name: removable
-- Rows of a log between two days and two positions, that may be removed once they are archived: not held, of an age that nothing forbids,
-- and nobody's parents. $5 is until when they have happened; the category's own end wins.
SELECT {hashed_columns}, {leaf_of_row} AS leaf FROM audit_events e
WHERE event_date >= $1 AND event_date < $2 AND log_index >= $3 AND log_index < $4 AND {in_log} AND legal_hold IS NOT TRUE
    AND (NOT (SELECT any_hold()) OR hold_of(correlation_id, actor_id, resource_type, resource_id, e.event_timestamp) IS NULL)
    AND e.event_timestamp < coalesce(
        (SELECT f.before FROM unnest($6::text[], $7::timestamptz[]) f(category, before) WHERE f.category = event_category), $5::timestamptz)
    AND event_type NOT IN ({judging_types})
    AND NOT EXISTS (SELECT FROM audit_events c WHERE c.parent_event_id = e.event_id)
ORDER BY log_index

-- name: begin_attempt
-- The row of a part that is begun.
INSERT INTO archive_attempts (archive_id, location) VALUES ($1, $2)

-- name: attempts
-- Parts that runs have begun, and not ended.
SELECT archive_id, location FROM archive_attempts ORDER BY began_at

-- name: lock_attempt
-- Waits for the transaction that may still be ending it. No row: that has ended it.
SELECT archive_id FROM archive_attempts WHERE archive_id = $1 FOR UPDATE

-- name: end_attempt
-- The end of a part, however it ends.
DELETE FROM archive_attempts WHERE archive_id = $1 RETURNING archive_id

-- name: pointer
-- Where the newest metadata of the archive's table is.
SELECT metadata_location FROM iceberg_tables WHERE catalog_name = 'datastorage' AND table_namespace = 'audit' AND table_name = 'events'

-- name: create_namespace
-- The namespace of the archive's table, if there is none.
INSERT INTO iceberg_namespace_properties (catalog_name, namespace, property_key, property_value)
VALUES ('datastorage', 'audit', 'exists', 'true') ON CONFLICT DO NOTHING

-- name: create_pointer
-- The table, if there is none.
INSERT INTO iceberg_tables (catalog_name, table_namespace, table_name, metadata_location, iceberg_type)
VALUES ('datastorage', 'audit', 'events', $1, 'TABLE') ON CONFLICT DO NOTHING RETURNING 1

-- name: move_pointer
-- The table is what this metadata says from here on, if it was what that said.
UPDATE iceberg_tables SET metadata_location = $1, previous_metadata_location = metadata_location
WHERE catalog_name = 'datastorage' AND table_namespace = 'audit' AND table_name = 'events' AND metadata_location = $2 RETURNING 1

-- name: erased_rows
-- What erasures have left of rows of a log at some positions, of the month that begins at a day.
SELECT {hashed_columns} FROM audit_events
WHERE log_index = ANY($1::bigint[]) AND event_date >= $2 AND event_date < $2 + interval '1 month' AND payload_commitment IS NOT NULL AND {in_log}

-- name: has_until
-- Whether there is an event that is not later than a time.
SELECT EXISTS (SELECT FROM audit_events WHERE event_timestamp <= $1 AND event_date <= ($1 AT TIME ZONE 'UTC')::date)

-- name: record_version
-- What changes whenever the log records an event of some types, of which each is the service's own.
SELECT log_id, count(*), max(log_index) FROM audit_events
WHERE {is_logged_self_event}
GROUP BY log_id ORDER BY log_id

-- name: cutoffs
-- Until when events have happened that are over, by the rules of is_over, each with its category, type and own days, in microseconds since
-- 1970; NULL for types that are never over.
SELECT CASE WHEN is_over($1, '-infinity', kind, days, p, $2, $3) THEN (extract(epoch FROM $1::timestamptz - make_interval(days => LEAST(
        coalesce(p.ceiling_days, $3), GREATEST(coalesce(p.floor_days, $2), days, p.retention_days)
    ))) * 1000000)::bigint END AS before
FROM unnest($4::text[], $5::text[], $6::integer[]) WITH ORDINALITY AS e(category, kind, days, number)
LEFT JOIN followed_policies() p ON p.event_category = e.category
ORDER BY number

-- name: holds_on
-- Of events that have no row any more, by what they have said: the hold that covers each now, NULL if none does.
SELECT h.reason, h.placed_by, h.placed_at
FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::timestamptz[])
    WITH ORDINALITY AS e(correlation, actor, kind, resource, moment, number)
LEFT JOIN holds h ON h.hold_id = hold_of(correlation, actor, kind, resource, moment)
ORDER BY number

-- name: active_selectors
-- What the holds cover that hold_of() knows: those of the table, and those that this session adds. Times in microseconds since 1970.
SELECT hold_id::text, correlation_id, actor_id, resource_type, resource_id,
    CASE time_from WHEN '-infinity' THEN -9223372036854775808 WHEN 'infinity' THEN {position_max}
        ELSE (extract(epoch FROM time_from) * 1000000)::bigint END AS time_from,
    CASE time_to WHEN '-infinity' THEN -9223372036854775808 WHEN 'infinity' THEN {position_max}
        ELSE (extract(epoch FROM time_to) * 1000000)::bigint END AS time_to
FROM (
    SELECT * FROM holds WHERE released_at IS NULL
    UNION ALL SELECT * FROM jsonb_populate_recordset(NULL::holds, nullif(current_setting('datastorage.missing_holds', true), '')::jsonb)
) h ORDER BY hold_id

-- name: rows_that_end
-- How many rows of a log are at some positions, of the month that begins at a day, and are not of a type that is never over.
SELECT count(*) FROM audit_events
WHERE event_date >= $1 AND event_date < $1 + interval '1 month' AND log_index >= $2 AND log_index < $3 AND $4::text::int8multirange @> log_index
    AND {in_log} AND is_over(now(), '-infinity', event_type, 1, NULL::audit_retention_policies, 1, 1)

-- name: rows_without_end
-- The other ones, with the leaf that the log has at their position.
SELECT {hashed_columns}, {leaf_of_row} AS leaf FROM audit_events
WHERE event_date >= $1 AND event_date < $1 + interval '1 month' AND log_index >= $2 AND log_index < $3 AND $4::text::int8multirange @> log_index
    AND {in_log} AND NOT is_over(now(), '-infinity', event_type, 1, NULL::audit_retention_policies, 1, 1)
