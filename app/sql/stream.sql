-- Reading the log in its order. Statements of one log: {log} is its id.

-- name: end_from
-- Where the flushes end that follow each other without a gap from position $1 on, looking at those that begin at most $2 positions
-- later. NULL if no flush has the position before $1: the log has not come that far.
WITH RECURSIVE following AS (
    (
        SELECT first_index, count FROM log_flushes
        WHERE log_id = {log} AND first_index < greatest($1::bigint, 1) AND first_index + greatest(count, 1) >= $1
        ORDER BY first_index DESC LIMIT 1
    )
    UNION ALL
    SELECT f.* FROM following p CROSS JOIN LATERAL (
        SELECT first_index, count FROM log_flushes
        WHERE log_id = {log} AND first_index = p.first_index + greatest(p.count, 1) LIMIT 1
    ) f WHERE p.first_index + greatest(p.count, 1) < $1 + $2
)
SELECT max(first_index + greatest(count, 1)) FROM following

-- name: absent
-- Ranges of positions from $1 up to, not including, $2 at which there is no row.
SELECT first, "end" FROM (
    SELECT log_index + 1 AS first, lead(log_index, 1, $2) OVER (ORDER BY log_index) AS "end" FROM (
        SELECT $1::bigint - 1 AS log_index
        UNION ALL SELECT log_index FROM audit_events WHERE log_index >= $1 AND log_index < $2 AND {in_log}
    ) present
) between_rows WHERE first < "end" ORDER BY first


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
