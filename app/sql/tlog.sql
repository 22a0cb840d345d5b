-- name: try_keeper
-- One process at a time keeps the tiles; the lock ends with its transaction.
SELECT pg_try_advisory_xact_lock(hashtextextended('datastorage.tiles', 0))

-- name: try_publisher
-- One process at a time shows checkpoints to witnesses.
SELECT pg_try_advisory_xact_lock(hashtextextended('datastorage.publisher', 0))

-- name: log_end
-- How many leaves the log has, and since when and for how long nothing was written to it.
SELECT first_index + count AS size, flushed_at, extract(epoch FROM now() - flushed_at)::float8 AS silent_seconds
FROM log_flushes WHERE log_id = 0 ORDER BY first_index DESC LIMIT 1

-- name: leaves
-- Leaf hashes from position $1 up to, not including, $2, flush by flush.
SELECT GREATEST(first_index, $1) AS first,
    substring(leaves FROM (32 * (GREATEST(first_index, $1) - first_index) + 1)::int
                     FOR (32 * (LEAST(first_index + count, $2) - GREATEST(first_index, $1)))::int) AS leaves
FROM log_flushes
WHERE log_id = 0 AND first_index + count > $1 AND first_index < $2 AND first_index >= COALESCE(
    (SELECT max(first_index) FROM log_flushes WHERE log_id = 0 AND first_index <= $1), $1)
ORDER BY first_index

-- name: tiles
-- Tiles of the higher levels, by pairs of level and index.
SELECT level, index, hashes FROM log_tiles
WHERE log_id = 0 AND (level, index) IN (SELECT * FROM unnest($1::smallint[], $2::bigint[]))

-- name: tile_end
-- How many hashes a higher level has.
SELECT index * 256 + octet_length(hashes) / 32 FROM log_tiles WHERE log_id = 0 AND level = $1 ORDER BY index DESC LIMIT 1

-- name: append_to_tile
-- Put $4 behind the $3 hashes that a tile has; no row comes back when it has another number of them.
INSERT INTO log_tiles AS t (log_id, level, index, hashes)
SELECT 0, $1, $2, $4 WHERE $3 = 0 OR EXISTS (SELECT FROM log_tiles WHERE log_id = 0 AND level = $1 AND index = $2)
ON CONFLICT (log_id, level, index) DO UPDATE SET hashes = t.hashes || excluded.hashes WHERE octet_length(t.hashes) = 32 * $3
RETURNING 1

-- name: lock_signer
-- One signer at a time, and what was signed last as far as the database knows.
SELECT note FROM log_signers WHERE log_id = 0 FOR UPDATE

-- name: newest_note
-- The largest checkpoint that is stored.
SELECT note FROM log_checkpoints WHERE log_id = 0 ORDER BY size DESC LIMIT 1

-- name: remember_signed
-- What was signed last.
INSERT INTO log_signers (log_id, note) VALUES (0, $1) ON CONFLICT (log_id) DO UPDATE SET note = excluded.note

-- name: store_checkpoint
-- Keep a checkpoint that was just signed. Of those of one hour the last stays, and whichever is still the newest published.
WITH forgotten AS (
    DELETE FROM log_checkpoints c
    WHERE c.log_id = 0 AND date_trunc('hour', c.signed_at) = date_trunc('hour', now())
        AND c.size < (SELECT max(size) FROM log_checkpoints WHERE log_id = 0 AND published_at IS NOT NULL)
)
INSERT INTO log_checkpoints (log_id, size, note) VALUES (0, $1, $2)

-- name: unpublished
-- The newest checkpoint, if no witness was asked yet. Older ones are not worth their time.
SELECT size, note FROM (
    SELECT size, note, published_at FROM log_checkpoints WHERE log_id = 0 ORDER BY size DESC LIMIT 1
) newest WHERE published_at IS NULL

-- name: publish
-- Show a checkpoint to everybody, with what witnesses signed.
UPDATE log_checkpoints SET cosignatures = $2, published_at = now() WHERE log_id = 0 AND size = $1

-- name: published
-- The checkpoint that is served.
SELECT size, note || cosignatures AS note FROM log_checkpoints
WHERE log_id = 0 AND published_at IS NOT NULL ORDER BY size DESC LIMIT 1

-- name: cosignatures
-- What witnesses signed last, to know how far each of them has come.
SELECT size, cosignatures FROM log_checkpoints WHERE log_id = 0 AND cosignatures <> '' ORDER BY size DESC LIMIT 1

-- name: sealed_row
-- The event that has an id, as far as its record and its commitment go.
SELECT event_id, event_version,
    CASE WHEN event_timestamp >= '0001-01-02Z' AND event_timestamp < '9999-12-31Z'
        THEN event_timestamp ELSE 'infinity' END AS event_timestamp,
    CASE WHEN recorded_at >= '0001-01-02Z' AND recorded_at < '9999-12-31Z'
        THEN recorded_at ELSE 'infinity' END AS recorded_at,
    event_type, event_category, event_action, event_outcome, actor_type, actor_id, actor_ip, resource_type, resource_id,
    resource_name, correlation_id, parent_event_id,
    CASE WHEN parent_event_date <= '0001-01-01' OR parent_event_date >= '9999-12-31'
        THEN 'infinity' ELSE parent_event_date END AS parent_event_date,
    trace_id, span_id, namespace, cluster_id, event_data::text, event_metadata::text, severity, duration_ms, error_code,
    error_message, is_sensitive, previous_event_hash, log_index, chain_index, payload_salt, payload_commitment
FROM audit_events WHERE event_id = $1
ORDER BY log_index NULLS LAST LIMIT 1
