-- Standbys that answer reads.

-- name: end_of_log
-- The last event of the last log with the first bytes of its leaf, and how many bytes of WAL this server has on disk, if it is a primary.
SELECT log_id, first_index + count - 1 AS log_index, substr(leaves, greatest(length(leaves) - 31, 1), 8) AS leaf,
    CASE WHEN NOT pg_is_in_recovery() THEN (pg_current_wal_flush_lsn() - '0/0')::bigint END AS written
FROM log_flushes ORDER BY log_id DESC, first_index DESC LIMIT 1

-- name: progress
-- How many bytes of WAL this server has replayed, if it is a standby, and the first bytes of the leaf at each of these positions.
SELECT CASE WHEN pg_is_in_recovery() THEN (pg_last_wal_replay_lsn() - '0/0')::bigint END AS replayed,
    ARRAY(
        SELECT (
            SELECT CASE WHEN w.log_index < f.first_index + f.count
                THEN substr(f.leaves, least((w.log_index - f.first_index) * 32 + 1, 2147483647)::integer, 8) END
            FROM log_flushes f WHERE f.log_id = w.log_id AND f.first_index <= w.log_index ORDER BY f.first_index DESC LIMIT 1
        )
        FROM unnest($1::smallint[], $2::bigint[]) WITH ORDINALITY w(log_id, log_index, number) ORDER BY w.number
    ) AS leaves
