-- name: long_statement_timeout
-- Sorting one chain may need longer than other statements. Each fetch has a timeout of its own.
SET LOCAL statement_timeout = '10min'

-- name: log_rows
-- Rows of a part of the log, in order.
SELECT {hashed_columns}
FROM audit_events
WHERE log_index >= $1 AND log_index < $2 AND {in_log}
ORDER BY log_index

-- name: unsealed_rows
-- Hashed unsealed rows of one correlation, and whether any row of it has the hash that they link to.
SELECT e.event_id, e.event_version,
    CASE WHEN e.event_timestamp >= '0001-01-02Z' AND e.event_timestamp < '9999-12-31Z'
        THEN e.event_timestamp ELSE 'infinity' END AS event_timestamp,
    e.event_type, e.event_category, e.event_action, e.event_outcome, e.actor_type, e.actor_id,
    format('%s', e.actor_ip) AS actor_ip, e.resource_type, e.resource_id, e.correlation_id, e.parent_event_id,
    CASE WHEN e.parent_event_date <= '0001-01-01' OR e.parent_event_date >= '9999-12-31'
        THEN 'infinity' ELSE e.parent_event_date END AS parent_event_date,
    e.namespace, e.cluster_id, e.event_data::text, e.severity, e.duration_ms, e.error_code, e.error_message,
    e.retention_days, e.is_sensitive, e.event_hash, e.previous_event_hash, e.hash_algorithm, p.event_hash IS NOT NULL AS linked
FROM audit_events e LEFT JOIN (
    SELECT DISTINCT event_hash FROM audit_events WHERE correlation_id = $1 AND event_hash IS NOT NULL
) p ON p.event_hash = e.previous_event_hash
WHERE e.correlation_id = $1 AND e.log_index IS NULL AND e.chain_index IS NULL AND e.event_hash IS NOT NULL
ORDER BY e.event_timestamp, e.event_id

-- name: count_unhashed
-- Unsealed rows of one correlation that have no hash, so that nothing of them can be verified.
SELECT count(*) FROM audit_events
WHERE correlation_id = $1 AND log_index IS NULL AND chain_index IS NULL AND event_hash IS NULL

-- name: chain_head
-- Length and last hash that one chain must have.
SELECT length, hash FROM chain_heads WHERE correlation_id = $1

-- name: all_flushes
-- The log from its beginning to its end, $1.
SELECT first_index, count, leaves FROM log_flushes WHERE log_id = {log} AND first_index >= -1 AND first_index < $1 ORDER BY first_index

-- name: outside_rows
-- Rows of audit_events that say that they are the log's, where the log of $1 events has no position; and, if $2, those that are of no log
-- or at no position of any. UNION ALL: an index for each.
SELECT {hashed_columns} FROM audit_events WHERE log_index >= $1 AND {in_log}
UNION ALL SELECT {hashed_columns} FROM audit_events WHERE log_index < 0 AND $2::boolean
UNION ALL SELECT {hashed_columns} FROM audit_events
WHERE log_index IS NULL AND num_nonnulls(log_id, chain_index, payload_salt, payload_commitment) > 0 AND $2

-- name: outside_flushes
-- Rows of the log's own tables that are no part of the log of $1 events; and, if $2, those of no log.
SELECT 'log_flushes' AS "table", log_id, first_index AS position FROM log_flushes
WHERE (log_id = {log} AND (first_index >= greatest($1::bigint, 0) OR first_index < -1)) OR (log_id NOT BETWEEN 0 AND {log} AND $2::boolean)
UNION ALL SELECT format('log_tiles for tile %s/%s', level, index), log_id, NULL FROM log_tiles
WHERE (log_id NOT BETWEEN 0 AND {log} AND $2)
    OR (log_id = {log} AND (level NOT BETWEEN 1 AND 5 OR index NOT BETWEEN 0 AND $1::bigint >> 8 * (level + 1)))
    OR (log_id = {log} AND level > 1 AND hashes = '')
UNION ALL SELECT 'log_checkpoints', log_id, size FROM log_checkpoints WHERE log_id NOT BETWEEN 0 AND {log} AND $2
UNION ALL SELECT 'log_timestamps', log_id, size FROM log_timestamps WHERE log_id NOT BETWEEN 0 AND {log} AND $2
UNION ALL SELECT 'log_signers', log_id, NULL FROM log_signers WHERE log_id NOT BETWEEN 0 AND {log} AND $2
UNION ALL SELECT 'logs', log_id, NULL FROM logs WHERE log_id NOT BETWEEN 0 AND {log} AND $2
ORDER BY 1, 2, 3 LIMIT 10000

-- name: flushes_between
-- The flushes that have leaves from position $1 up to, not including, $2.
SELECT first_index, count, leaves FROM log_flushes
WHERE log_id = {log} AND first_index < $2
    AND first_index >= coalesce({first_flush_with}, $1)
ORDER BY first_index

-- name: ids_outside_the_log
-- Rows that are not in the log of $1 events, or if $2 in no log, and whose id another row has too, and a correlation of that one.
-- UNION ALL: as above.
SELECT e.event_id, CASE WHEN e.event_timestamp >= '0001-01-02Z' AND e.event_timestamp < '9999-12-31Z'
        THEN e.event_timestamp ELSE 'infinity' END AS event_timestamp, e.correlation_id, e.log_index, e.previous_event_hash, o.correlation_id AS other
FROM (
    SELECT * FROM audit_events WHERE log_index IS NULL AND $2::boolean
    UNION ALL SELECT * FROM audit_events WHERE log_index >= $1 AND {in_log}
    UNION ALL SELECT * FROM audit_events WHERE log_index < 0 AND $2
) e CROSS JOIN LATERAL (
    SELECT correlation_id FROM audit_events
    WHERE event_id = e.event_id AND (event_date, correlation_id) <> (e.event_date, e.correlation_id) LIMIT 1
) o LIMIT 10000

-- name: ids_of_a_correlation
-- Events of one correlation whose id another row has too, and a correlation of that one.
SELECT e.event_id, CASE WHEN e.event_timestamp >= '0001-01-02Z' AND e.event_timestamp < '9999-12-31Z'
        THEN e.event_timestamp ELSE 'infinity' END AS event_timestamp, e.correlation_id, e.log_index, e.previous_event_hash, o.correlation_id AS other
FROM (SELECT * FROM audit_events WHERE correlation_id = $1 OFFSET 0) e CROSS JOIN LATERAL (
    SELECT correlation_id FROM audit_events
    WHERE event_id = e.event_id AND (event_date, correlation_id) <> (e.event_date, e.correlation_id) LIMIT 1
) o ORDER BY e.event_id LIMIT 10000

-- name: ids_of_events
-- Those of the events with these ids and correlations whose id another row has too.
SELECT e.event_id, CASE WHEN e.event_timestamp >= '0001-01-02Z' AND e.event_timestamp < '9999-12-31Z'
        THEN e.event_timestamp ELSE 'infinity' END AS event_timestamp, e.correlation_id, e.log_index, e.previous_event_hash, o.correlation_id AS other
FROM audit_events e CROSS JOIN LATERAL (
    SELECT correlation_id FROM audit_events
    WHERE event_id = e.event_id AND (event_date, correlation_id) <> (e.event_date, e.correlation_id) LIMIT 1
) o WHERE e.event_id = ANY($1::uuid[]) AND e.log_index >= 0

-- name: log_name
-- The log's name, which is part of every hash.
SELECT name FROM logs WHERE log_id = 0

-- name: last_flush
-- Where the last flush begins, whoever wrote it: about how long the log is.
SELECT max(first_index) FROM log_flushes

-- name: covered_size
-- The largest of the sizes $1, and of the tiles' if $2, up to which a flush reaches. No flush reaches a size that somebody invented.
SELECT coalesce(max(size), 0) FROM (
    SELECT unnest($1::bigint[]) AS size UNION ALL SELECT size FROM ({tiled_sizes}) tiled WHERE $2
) candidates CROSS JOIN LATERAL (
    SELECT first_index, count FROM log_flushes
    WHERE log_id = {log} AND first_index < candidates.size ORDER BY first_index DESC LIMIT 1
) f WHERE first_index + greatest(count, 1) >= size

-- name: log_end
-- The log's size: the end of the last flush that follows without a gap from the leaf before position $1.
WITH RECURSIVE anchor AS (SELECT $1::bigint AS size), {following_flushes}
SELECT first_index + greatest(count, 1) FROM following ORDER BY first_index DESC LIMIT 1

-- name: positions_without_rows
-- The positions before $1 that no row has, as the text of an int8multirange.
SELECT coalesce(range_agg(int8range(after, log_index)), '{}')::text FROM (
    SELECT log_index, lag(log_index, 1, -1::bigint) OVER (ORDER BY log_index) + 1 AS after FROM (
        SELECT log_index FROM audit_events WHERE log_index >= 0 AND log_index < $1 AND {in_log} UNION ALL SELECT $1::bigint
    ) positions
) steps WHERE log_index > after

-- name: flush_behind_lost_ones
-- Where the next flush behind position $1 begins, if every position before it has a row: then the flushes between were lost.
SELECT first_index FROM (
    SELECT first_index FROM log_flushes WHERE log_id = {log} AND first_index > $1 ORDER BY first_index LIMIT 1
) next
WHERE first_index - $1 = (SELECT count(DISTINCT log_index) FROM audit_events WHERE log_index >= $1 AND log_index < next.first_index AND {in_log})

-- name: chain_links
-- The links of the chains of some correlations, and their heads. A head without rows has a row here too.
SELECT correlation_id, chain_index, log_id, log_index, event_hash, previous_event_hash, event_id, event_timestamp, length, hash
FROM (
    SELECT correlation_id, chain_index, log_id, log_index, event_hash, previous_event_hash, event_id,
        CASE WHEN event_timestamp >= '0001-01-02Z' AND event_timestamp < '9999-12-31Z'
            THEN event_timestamp ELSE 'infinity' END AS event_timestamp
    FROM audit_events
    WHERE correlation_id >= $1 AND ($2::text IS NULL OR correlation_id < $2)
        AND (log_index IS NOT NULL OR chain_index IS NOT NULL)
) e FULL JOIN (
    SELECT correlation_id, length, hash FROM chain_heads
    WHERE correlation_id >= $1 AND ($2::text IS NULL OR correlation_id < $2)
) h USING (correlation_id)
ORDER BY correlation_id, chain_index NULLS LAST, log_id, log_index

-- name: heads
-- The next $2 heads from correlation $1 on, without that one if $3 is 1, and whether the last event of each chain is there. If not: how
-- many sealed events the chain has at least, by the last one, and its position. By the index, some heads at a time: one statement for
-- all of them would read every event, and end at its timeout in a large database.
SELECT h.correlation_id, h.length, h.hash, whole.chain_index IS NOT NULL AS is_whole, coalesce(last.chain_index, -1) + 1 AS rows,
    coalesce(last.log_id::bigint * 281474976710656 + last.log_index, -1) AS position
FROM (SELECT * FROM chain_heads WHERE correlation_id >= $1 ORDER BY correlation_id LIMIT $2 OFFSET $3) h
LEFT JOIN LATERAL (
    SELECT chain_index FROM audit_events e WHERE e.correlation_id = h.correlation_id AND e.chain_index = h.length - 1
    ORDER BY event_timestamp DESC LIMIT 1
) whole ON true
LEFT JOIN LATERAL (
    SELECT chain_index, log_id, log_index FROM audit_events e
    WHERE whole.chain_index IS NULL AND e.correlation_id = h.correlation_id AND chain_index >= 0 AND log_index >= 0
    ORDER BY chain_index DESC LIMIT 1
) last ON true
ORDER BY h.correlation_id

-- name: equal_heads
-- Heads that have the last hash of another chain's head, and how many of them have it.
SELECT correlation_id, number FROM chain_heads JOIN (
    SELECT hash, count(*) AS number FROM chain_heads GROUP BY hash HAVING count(*) > 1 LIMIT 1000
) doubled USING (hash) ORDER BY hash, correlation_id LIMIT 1000

-- name: sum_of_heads
-- How many events all chains have together.
SELECT coalesce(sum(length), 0)::bigint FROM chain_heads

-- name: log_part_starts
-- Positions that cut the log into parts of about $1 events. Counted by leaves, since a damaged flush may claim any position.
SELECT min(first_index) AS first FROM (
    SELECT first_index, sum(octet_length(leaves) / 32) OVER (ORDER BY first_index) / $1 AS part
    FROM log_flushes WHERE log_id = {log} AND first_index >= 0
) numbered GROUP BY part ORDER BY first

-- name: chain_part_starts
-- Correlations that cut the chains into parts of about $1 chains.
SELECT correlation_id FROM (
    SELECT correlation_id, row_number() OVER (ORDER BY correlation_id) AS number FROM chain_heads
) numbered WHERE number % $1 = 0 ORDER BY correlation_id

-- name: count_unsealed
-- How many unsealed rows there are, how many of them have no hash, and in how many correlations they are.
SELECT count(*) AS rows, count(*) FILTER (WHERE event_hash IS NULL) AS unhashed, count(DISTINCT correlation_id) AS correlations
FROM audit_events WHERE log_index IS NULL AND chain_index IS NULL

-- name: sealed_notifications
-- Notifications that say that the log has their digest.
SELECT {notification_columns} FROM notification_audit WHERE num_nonnulls(salt, log_id, log_index) > 0 ORDER BY id

-- name: notifications_with_ids
-- Those of the notifications with these ids that there are.
SELECT {notification_columns} FROM notification_audit WHERE notification_id = ANY($1::text[])

-- name: count_unsealed_notifications
-- How many notifications do not say that the log has their digest.
SELECT count(*) FROM notification_audit WHERE num_nonnulls(salt, log_id, log_index) = 0

-- name: notification_events
-- Events of type $2 at these positions, each with the leaf that the log has there.
SELECT {hashed_columns}, {leaf_of_row} AS leaf FROM audit_events WHERE log_index = ANY($1::bigint[]) AND event_type = $2

-- name: unsealed_correlations
-- Correlations that have hashed unsealed rows.
SELECT DISTINCT correlation_id FROM audit_events
WHERE log_index IS NULL AND chain_index IS NULL AND event_hash IS NOT NULL

-- name: stored_checkpoints
-- The signed checkpoints that the database has; the signer's last one without a size.
SELECT size, note FROM log_checkpoints WHERE log_id = {log}
UNION SELECT NULL, note FROM log_signers WHERE log_id = {log} AND note IS NOT NULL
ORDER BY size

-- name: last_signed_differs
-- Whether the checkpoint that was signed last is not the newest one that is stored. One transaction writes both.
SELECT count(*) <> 1 OR max(note) IS DISTINCT FROM (
    SELECT note FROM log_checkpoints WHERE log_id = {log} ORDER BY size DESC LIMIT 1
) FROM log_signers WHERE log_id = {log}

-- name: stored_timestamps
-- The checkpoints that a timestamp authority has stamped, with its tokens.
SELECT size, note, token FROM log_timestamps WHERE log_id = {log} ORDER BY size

-- name: timestamps_within
-- The checkpoints of sizes above $1 up to $2 that a timestamp authority has stamped, with its tokens.
SELECT size, note, token FROM log_timestamps WHERE log_id = {log} AND size > $1 AND size <= $2 ORDER BY size

-- name: timestamps_outside
-- Stamped checkpoints of no size that a log of $1 events can have had.
SELECT size, note FROM log_timestamps WHERE log_id = {log} AND (size > $1 OR size < 1) ORDER BY size LIMIT 100

-- name: checkpoints_within
-- The stored checkpoints of sizes above $1 up to $2.
SELECT size, note FROM log_checkpoints WHERE log_id = {log} AND size > $1 AND size <= $2 ORDER BY size

-- name: export_snapshot
-- This transaction's snapshot, for other connections.
SELECT pg_export_snapshot()

-- name: try_lock_verifier
-- One process at a time verifies the log in the background; the lock ends with its connection.
SELECT pg_try_advisory_lock(hashtextextended('datastorage.verifier', 0))

-- name: verifier_state
-- The next position to verify, the end of the last round, and the number of this round.
SELECT position, completed_end, round FROM verifier WHERE log_id = {log}

-- name: verifier_round
-- How far the background verifier is, and when its last round ended.
SELECT position, round, completed_end, timezone('UTC', looked_at)::text AS looked_at, timezone('UTC', completed_at)::text AS completed_at
FROM verifier WHERE log_id = {log}

-- name: set_verifier_position
-- The next position to verify is $1.
INSERT INTO verifier (log_id, position) VALUES ({log}, $1)
ON CONFLICT (log_id) DO UPDATE SET position = excluded.position, looked_at = now()

-- name: end_verifier_round
-- A round has ended at position $1, and the next one begins. Findings that the ended round did not find again are deleted.
WITH ended AS (
    UPDATE verifier SET position = 0, completed_end = $1, completed_at = now(), round = round + 1, looked_at = now()
    WHERE log_id = {log} RETURNING round
)
DELETE FROM verifier_findings f USING ended WHERE f.log_id = {log} AND f.round < ended.round - 1

-- name: store_finding
-- Store a finding; true if it is new.
INSERT INTO verifier_findings (log_id, position, kind, message, correlation_id, round) VALUES ({log}, $1, $2, $3, $4, $5)
ON CONFLICT (log_id, position, kind, message) DO UPDATE SET round = excluded.round
RETURNING xmax = 0 AS is_new

-- name: count_findings
-- How many findings there are of each kind, in all logs.
SELECT kind, count(*) AS count FROM verifier_findings GROUP BY kind

-- name: head_mismatches
-- Events of a part of the log that do not fit the heads of their chains: no head, a head that is too short, or another last hash.
SELECT e.log_index, e.correlation_id, e.chain_index, h.length FROM audit_events e LEFT JOIN chain_heads h USING (correlation_id)
WHERE e.log_index >= $1 AND e.log_index < $2 AND {in_log} AND (
    h.length IS NULL OR h.length <= e.chain_index OR (h.length = e.chain_index + 1 AND h.hash <> e.event_hash)
)
ORDER BY e.log_index LIMIT 100

-- name: correlations_of_hashes
-- The correlations of missing events by their hashes, which the next event or the head of the chain still has.
SELECT previous_event_hash AS hash, correlation_id FROM audit_events WHERE previous_event_hash = ANY($1)
UNION ALL SELECT hash, correlation_id FROM chain_heads WHERE hash = ANY($1)
