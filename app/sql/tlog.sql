-- The log's tree and its checkpoints.

-- name: try_lock_tiles
-- One process at a time extends the tiles; the lock ends with its transaction.
SELECT pg_try_advisory_xact_lock(hashtextextended('datastorage.tiles', 0))

-- name: try_lock_publishing
-- One process at a time shows checkpoints to witnesses; the lock ends with its transaction.
SELECT pg_try_advisory_xact_lock(hashtextextended('datastorage.publisher', 0))

-- name: log_end
-- How many leaves the log has, when the last flush was written, and how many seconds ago that was. A time that it cannot have been
-- written at is NULL, and counts as long ago: it must neither prevent a heartbeat nor stop the signing.
WITH RECURSIVE tiled AS ({tiled_sizes}), anchor AS ({known_size}), {following_flushes},
log_end AS (
    SELECT first_index + greatest(count, 1) AS size,
        CASE WHEN flushed_at >= '2026-01-01Z' AND flushed_at < now() + interval '1 hour' THEN flushed_at END AS flushed_at
    FROM following ORDER BY first_index DESC LIMIT 1
)
SELECT size, flushed_at, coalesce(extract(epoch FROM now() - flushed_at)::float8, 'Infinity') AS silent_seconds FROM log_end

-- name: beyond_log
-- What lies beyond the log's end, or where no position is: a row of the log's tables or of an event that the service did not write.
-- ORDER BY, LIMIT: one look into each index, whatever the planner expects; as EXISTS it read whole tables, once a second.
WITH RECURSIVE tiled AS ({tiled_sizes}), anchor AS ({known_size}), {following_flushes},
log_end AS (SELECT first_index + greatest(count, 1) AS size FROM following ORDER BY first_index DESC LIMIT 1)
SELECT CASE
    WHEN (SELECT max(first_index) FROM log_flushes WHERE log_id = {log}) >= (SELECT size FROM log_end)
        OR (SELECT min(first_index) FROM log_flushes WHERE log_id = {log}) < -1
        OR (SELECT max(log_id) FROM log_flushes) > {log} OR (SELECT min(log_id) FROM log_flushes) < 0 THEN 'log_flushes'
    WHEN (SELECT log_index FROM audit_events WHERE log_index >= (SELECT size FROM log_end) AND {in_log} ORDER BY log_index LIMIT 1) >= 0
        OR (SELECT min(log_index) FROM audit_events) < 0 THEN 'audit_events'
END

-- name: leaves
-- Leaf hashes from position $1 up to, not including, $2, flush by flush. Of flushes with one position the first counts, so that those
-- that somebody inserts between hide no leaf: near the first position a few flushes are looked at.
SELECT GREATEST(first_index, $1) AS first,
    substring(leaves FROM LEAST(32 * (GREATEST(first_index, $1) - first_index) + 1, 2147483647)::int
                     FOR LEAST(32 * GREATEST(LEAST(first_index + count, $2) - GREATEST(first_index, $1), 0), 2147483647)::int) AS leaves
FROM log_flushes
WHERE log_id = {log} AND first_index > $1 - count AND first_index < $2 AND first_index >= COALESCE({first_flush_with}, $1)
ORDER BY first_index

-- name: leaves_at
-- The leaf hash at each of some positions, where the log has one.
SELECT position, substr(f.leaves, ((position - f.first_index) * 32 + 1)::int, 32) AS leaf
FROM unnest($1::bigint[]) AS position
CROSS JOIN LATERAL (
    SELECT first_index, count, leaves FROM (
        SELECT first_index, count, leaves FROM log_flushes
        WHERE log_id = {log} AND first_index <= position ORDER BY first_index DESC LIMIT 4
    ) near WHERE first_index >= 0 AND position - first_index < count ORDER BY first_index LIMIT 1
) f
WHERE position - f.first_index < least(f.count, octet_length(f.leaves) / 32)

-- name: position_of_leaf
-- The position of leaf $1 between positions $2 and $3; no row if it is not there.
SELECT first_index + (position($1::bytea in leaves) - 1) / 32 AS position FROM log_flushes
WHERE log_id = {log} AND first_index > $2 - count AND first_index <= $3 AND position($1::bytea in leaves) % 32 = 1

-- name: tiles
-- Tiles of the levels above 0, by pairs of level and index.
SELECT level, index, hashes FROM log_tiles
WHERE log_id = {log} AND (level, index) IN (SELECT * FROM unnest($1::smallint[], $2::bigint[]))

-- name: level_size
-- How many hashes a level above 0 has. A tile behind a missing one, or behind one that is not full, counts for nothing.
SELECT index * 256 + octet_length(hashes) / 32 FROM (
    SELECT index, hashes, row_number() OVER (ORDER BY index) - 1 AS place,
        coalesce(bool_and(octet_length(hashes) = 8192) OVER (
            ORDER BY index ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING), true) AS follows
    FROM log_tiles WHERE log_id = {log} AND level = $1 AND index >= 0
) t WHERE index = place AND follows ORDER BY index DESC LIMIT 1

-- name: delete_tiles
-- Delete the tiles of a level from the one with index $2 on, those with a negative index, and those with parts of hashes: they are
-- made of the leaves again.
DELETE FROM log_tiles WHERE log_id = {log} AND level = $1 AND (index >= $2 OR index < 0 OR octet_length(hashes) % 32 <> 0) RETURNING index

-- name: begin_tile
-- Begin a tile of level 1 without hashes. Nobody can insert one there then.
INSERT INTO log_tiles (log_id, level, index, hashes) VALUES ({log}, 1, $1, '') ON CONFLICT DO NOTHING

-- name: append_to_tile
-- Append $4 to a tile that has $3 hashes; no row is returned if it has another number of them.
INSERT INTO log_tiles AS t (log_id, level, index, hashes)
SELECT {log}, $1, $2, $4 WHERE $3 = 0 OR EXISTS (SELECT FROM log_tiles WHERE log_id = {log} AND level = $1 AND index = $2)
ON CONFLICT (log_id, level, index) DO UPDATE SET hashes = t.hashes || excluded.hashes WHERE octet_length(t.hashes) = 32 * $3
RETURNING 1

-- name: lock_signer
-- One signer at a time, and the last signed checkpoint that the database knows.
SELECT note FROM log_signers WHERE log_id = {log} FOR UPDATE

-- name: newest_checkpoint
-- The largest checkpoint that is stored.
SELECT note FROM log_checkpoints WHERE log_id = {log} ORDER BY size DESC LIMIT 1

-- name: newest_notes
-- The last signed checkpoint that the database knows, and the largest that are stored: several, in case some are forged.
SELECT note FROM log_signers WHERE log_id = {log} AND note IS NOT NULL
UNION ALL (SELECT note FROM log_checkpoints WHERE log_id = {log} ORDER BY size DESC LIMIT 10)

-- name: record_signed
-- The last signed checkpoint is $1.
INSERT INTO log_signers (log_id, note) VALUES ({log}, $1) ON CONFLICT (log_id) DO UPDATE SET note = excluded.note

-- name: store_checkpoint
-- Store a checkpoint that was just signed. Of those of one hour the last one stays, and the newest published one always.
WITH superseded AS (
    DELETE FROM log_checkpoints c
    WHERE c.log_id = {log} AND date_trunc('hour', c.signed_at) = date_trunc('hour', now())
        AND c.size < (SELECT max(size) FROM log_checkpoints WHERE log_id = {log} AND published_at IS NOT NULL)
)
INSERT INTO log_checkpoints (log_id, size, note) VALUES ({log}, $1, $2)

-- name: unpublished_checkpoint
-- The newest checkpoint, if it is not published yet. Older ones are not published any more.
SELECT size, note FROM (
    SELECT size, note, published_at FROM log_checkpoints WHERE log_id = {log} ORDER BY size DESC LIMIT 1
) newest WHERE published_at IS NULL

-- name: publish_checkpoint
-- Publish the checkpoint of size $1 with the witnesses' cosignatures.
UPDATE log_checkpoints SET cosignatures = $2, published_at = now() WHERE log_id = {log} AND size = $1

-- name: published_checkpoint
-- The checkpoint that is served.
SELECT size, note || cosignatures AS note FROM log_checkpoints
WHERE log_id = {log} AND published_at IS NOT NULL ORDER BY size DESC LIMIT 1

-- name: try_lock_timestamping
-- One process at a time asks the timestamp authority; the lock ends with its transaction.
SELECT pg_try_advisory_xact_lock(hashtextextended('datastorage.timestamping', {log}))

-- name: newest_timestamp
-- The timestamp of the largest checkpoint up to $1 events.
SELECT size, note, token FROM log_timestamps WHERE log_id = {log} AND size <= $1 ORDER BY size DESC LIMIT 1

-- name: timestamp_covering
-- The timestamp of the smallest checkpoint from $1 events on: the earliest that covers these.
SELECT size, note, token FROM log_timestamps WHERE log_id = {log} AND size >= $1 ORDER BY size LIMIT 1

-- name: store_timestamp
-- Store the token for a checkpoint of $1 events; one that is there already was not valid.
INSERT INTO log_timestamps (log_id, size, note, token) VALUES ({log}, $1, $2, $3)
ON CONFLICT (log_id, size) DO UPDATE SET note = excluded.note, token = excluded.token

-- name: last_cosignatures
-- The newest cosignatures: they show which size of the log each witness has seen.
SELECT size, cosignatures FROM log_checkpoints WHERE log_id = {log} AND cosignatures <> '' ORDER BY size DESC LIMIT 1

-- name: newest_signed
-- The newest published checkpoint, else the newest, with its times.
SELECT note, timezone('UTC', signed_at)::text AS signed_at, timezone('UTC', published_at)::text AS published_at FROM log_checkpoints
WHERE log_id = {log} ORDER BY published_at IS NOT NULL DESC, size DESC LIMIT 1

-- name: cosigned_checkpoints
-- The newest checkpoints that a witness has cosigned.
SELECT size, note || cosignatures AS note FROM log_checkpoints WHERE log_id = {log} AND cosignatures <> '' ORDER BY size DESC LIMIT 10

-- name: rows_with_id
-- All rows with an id, sealed ones first, each with the leaf that the log has at its position.
SELECT {hashed_columns}, {leaf_of_row} AS leaf FROM audit_events WHERE event_id = $1 ORDER BY log_index NULLS LAST

-- name: chain_rows
-- Sealed rows of some correlations, each chain in order.
SELECT {hashed_columns}
FROM audit_events
WHERE correlation_id = ANY($1) AND (log_index IS NOT NULL OR chain_index IS NOT NULL)
ORDER BY correlation_id, chain_index NULLS LAST, log_id, log_index

-- name: evidence
-- Sealed self events of some types, of all correlations or of some, each with the leaf that the log has at its position.
SELECT {hashed_columns}, {leaf_of_row} AS leaf
FROM audit_events
WHERE {is_logged_self_event}
    AND ($2::text[] IS NULL OR correlation_id = ANY($2))

-- name: recent_evidence
-- The same of some types, of all correlations, newest first.
SELECT {hashed_columns}, {leaf_of_row} AS leaf
FROM audit_events
WHERE {is_logged_self_event}
ORDER BY recorded_at DESC, log_index DESC

-- name: count_positions_with_rows
-- How many positions from $1 up to, not including, $2 have rows: of the purged positions $3, and of the others.
WITH purged AS MATERIALIZED (SELECT $3::text::int8multirange AS positions)
SELECT count(DISTINCT log_index) FILTER (WHERE positions @> log_index) AS purged,
    count(DISTINCT log_index) FILTER (WHERE NOT positions @> log_index) AS others
FROM audit_events, purged WHERE log_index >= $1 AND log_index < $2 AND {in_log}

-- name: later_logs
-- The logs after $1, each with whether the one before it is closed, and the newest notes that the database has of it.
SELECT l.log_id, l.name, EXISTS (SELECT FROM logs b WHERE b.log_id = l.log_id - 1 AND b.closed_at IS NOT NULL) AS follows, ARRAY(
        SELECT note FROM log_signers s WHERE s.log_id = l.log_id AND note IS NOT NULL
        UNION ALL (SELECT note FROM log_checkpoints c WHERE c.log_id = l.log_id ORDER BY size DESC LIMIT 10)
    ) AS notes
FROM logs l WHERE l.log_id > $1 ORDER BY l.log_id

-- name: first_events
-- The rows that say that they are the first event of the log, each with the leaf that the log has there.
SELECT {hashed_columns}, {leaf_of_row} AS leaf FROM audit_events WHERE log_index = 0 AND log_id = {log}

-- name: index_later_logs
-- What finds rows of later logs among those of the first one; writing waits while it is built.
CREATE INDEX IF NOT EXISTS audit_events_later_logs ON audit_events (log_id, log_index) WHERE log_id > 0

-- name: open_next_log
-- Closes log $1 and opens the one after it, named $2. From now on only releases that know the migration $3 may write.
SELECT open_next_log($1, $2, $3)

-- name: last_end
-- Where the last flush ends that a closed log has.
SELECT first_index + greatest(count, 1) FROM log_flushes WHERE log_id = {log} ORDER BY first_index DESC LIMIT 1

-- name: published_up_to
-- The last published checkpoint of a log of at most $1 events.
SELECT size, note || cosignatures AS note FROM log_checkpoints
WHERE log_id = {log} AND published_at IS NOT NULL AND size <= $1 ORDER BY size DESC LIMIT 1

-- name: orders_version
-- What changes when the log has another hold or policy, except some events, or when the row of an active hold is another one.
SELECT concat_ws(' ',
    (SELECT concat_ws(' ', count(*), max(log_id), max(log_index)) FROM audit_events
        WHERE {is_logged_self_event} AND log_index + 0 >= 0 AND event_id <> ALL($2::uuid[])),
    (SELECT md5(string_agg(concat_ws(' ', hold_id, correlation_id, actor_id, resource_type, resource_id, extract(epoch FROM time_from),
        extract(epoch FROM time_to), reason, placed_by, extract(epoch FROM placed_at), placed_index, placed_log), ',' ORDER BY hold_id))
    FROM holds WHERE released_at IS NULL))

-- name: has_adoptions
-- Whether the schema has the table that says whether holds and policies were adopted.
SELECT to_regclass('adoptions') IS NOT NULL

-- name: is_adopted
-- Whether the log records all holds and policies, also those from before it recorded them.
SELECT coalesce((SELECT adopted_index IS NOT NULL FROM adoptions WHERE log_id = 0), true)

-- name: stored_holds
-- Every hold of the table, and whether the event of its release is gone, as that of its placing can be where another release has
-- purged or erased it. Times as text, since SQL can write some that are none for Python.
SELECT hold_id::text, correlation_id, actor_id, resource_type, resource_id,
    to_char(timezone('UTC', time_from), 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') AS time_from,
    to_char(timezone('UTC', time_to), 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') AS time_to, reason, placed_by,
    to_char(timezone('UTC', placed_at), 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') AS placed_at, placed_index, placed_log, release_reason, released_by,
    to_char(timezone('UTC', released_at), 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') AS released_at, released_index, released_log,
    released_at IS NOT NULL AS is_released, NOT EXISTS (
        SELECT FROM audit_events e WHERE e.log_index = h.released_index AND e.log_id = h.released_log AND e.payload_commitment IS NULL
    ) AS is_release_gone
FROM holds h ORDER BY placed_index

-- name: stored_policies
-- Every retention policy of the table.
SELECT event_category, retention_days, floor_days, ceiling_days FROM audit_retention_policies

-- name: unmarked_rows
-- Sealed rows of a part of the log that a hold covers and that do not show it. An erased row has no actor and no resource any more.
SELECT event_id, correlation_id, log_index FROM audit_events
WHERE log_index >= $1 AND log_index < $2 AND {in_log} AND legal_hold IS NOT TRUE AND (
    correlation_id = ANY($3::text[])
    OR (payload_commitment IS NULL AND actor_id = ANY($4::text[]))
    OR (payload_commitment IS NULL AND (resource_type, resource_id) IN (SELECT * FROM unnest($5::text[], $6::text[])))
    OR EXISTS (SELECT FROM unnest($7::text[], $8::text[]) t(first, last) WHERE event_timestamp BETWEEN first::timestamptz AND last::timestamptz)
) ORDER BY log_index LIMIT 1000
