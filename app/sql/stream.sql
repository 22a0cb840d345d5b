-- Reading the log in its order. Statements of one log: {log} is its id.

-- name: end_from
-- The last of at most $2 flushes that follow each other from the one on that begins at $1, which is known to be the log's, and how many
-- they are. No row if that one is not there.
WITH RECURSIVE following AS (
    SELECT first_index, count FROM log_flushes WHERE log_id = {log} AND first_index = $1
    UNION ALL
    SELECT f.* FROM following p CROSS JOIN LATERAL (
        SELECT first_index, count FROM log_flushes
        WHERE log_id = {log} AND first_index = p.first_index + greatest(p.count, 1) LIMIT 1
    ) f
)
SELECT first_index, first_index + greatest(count, 1) AS "end", count(*) OVER () AS flushes
FROM (SELECT first_index, count FROM following LIMIT $2) f ORDER BY first_index DESC LIMIT 1

-- name: log_end
-- The last flush of the log, by those that follow each other from what is known of it.
WITH RECURSIVE tiled AS ({tiled_sizes}), anchor AS ({known_size}), {following_flushes}
SELECT first_index, first_index + greatest(count, 1) AS "end", 0 AS flushes FROM following ORDER BY first_index DESC LIMIT 1

-- name: absent
-- The first $3 ranges of positions from $1 up to, not including, $2 at which there is no row.
SELECT first, "end" FROM (
    SELECT log_index + 1 AS first, lead(log_index, 1, $2) OVER (ORDER BY log_index) AS "end" FROM (
        SELECT $1::bigint - 1 AS log_index
        UNION ALL SELECT log_index FROM audit_events WHERE log_index >= $1 AND log_index < $2 AND {in_log}
    ) present
) between_rows WHERE first < "end" ORDER BY first LIMIT $3

-- name: sealed_at
-- Those of these positions at which there is a row with the hash that the log has there.
SELECT DISTINCT log_index FROM audit_events
WHERE log_index = ANY($1::bigint[]) AND {in_log} AND event_hash = {leaf_of_row}

-- name: announce
SELECT pg_notify($1, '')

-- name: alive
SELECT

-- name: rows_at
-- Rows that say that they are at these positions.
SELECT {hashed_columns} FROM audit_events WHERE log_index = ANY($1::bigint[]) AND {in_log} ORDER BY log_index

-- name: positions_between
-- Positions from $1 up to, not including, $2 at which there is a row.
SELECT DISTINCT log_index FROM audit_events WHERE log_index >= $1 AND log_index < $2 AND {in_log}
