-- The cursors of sinks.

-- name: try_lock
-- Whether this session delivers for a sink from now on; the lock ends with it.
SELECT pg_try_advisory_lock(hashtextextended('datastorage.sink.' || $1, 0))

-- name: create
-- The cursor of a new sink. Its revision, microseconds of the clock, was never used before by a sink of that name.
INSERT INTO sinks (name, type, address, place, revision)
VALUES ($1, $2, $3, $4, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint) ON CONFLICT DO NOTHING

-- name: cursor
-- Where a sink is; $2 is what was recorded when that was found to be beyond the end of the log.
SELECT place, sent_up_to, revision, paused, coalesce(last_error = $2, false) AS is_beyond_end FROM sinks WHERE name = $1

-- name: describe
-- What a sink delivers to, when that has changed.
UPDATE sinks SET type = $2, address = $3 WHERE name = $1 AND (type, address) <> ($2, $3)

-- name: send
-- The portion from $4 up to $5 is about to be sent; it is sent again as it is. No row if the cursor is elsewhere by now.
UPDATE sinks SET place = $4, sent_up_to = $5 WHERE name = $1 AND revision = $2 AND place = $3 RETURNING 1

-- name: advance
-- Everything up to $4 is delivered; $5 tells whether something was sent, and $6 what the destination has said of it, which stays until
-- something else is to be said. No row if the cursor is elsewhere by now.
UPDATE sinks SET place = $4, sent_up_to = NULL, failures = 0,
    last_error = CASE WHEN $6::text IS NOT NULL THEN $6 WHEN failures = 0 THEN last_error END,
    last_error_at = CASE WHEN $6::text IS NOT NULL THEN now() WHEN failures = 0 THEN last_error_at END,
    delivered_at = CASE WHEN $5 THEN now() ELSE delivered_at END
WHERE name = $1 AND revision = $2 AND place = $3 RETURNING 1

-- name: fail
-- A portion was not delivered, or there is none that could be.
UPDATE sinks SET failures = failures + 1, last_error = $2, last_error_at = now() WHERE name = $1

-- name: states
-- Every sink, with how many events it has yet to be asked about, and for how many seconds the first of them has been in the log.
SELECT s.name, s.type, s.address, s.place, s.paused, s.created_at, s.delivered_at, s.failures, s.last_error, s.last_error_at,
    coalesce((
        SELECT sum(e.size - CASE WHEN l.log_id = s.place >> 48 THEN least(s.place & 281474976710655, e.size) ELSE 0 END)
        FROM logs l CROSS JOIN LATERAL (
            SELECT first_index + greatest(count, 1) AS size FROM log_flushes f
            WHERE f.log_id = l.log_id AND first_index >= -1 ORDER BY first_index DESC LIMIT 1
        ) e WHERE l.log_id >= s.place >> 48
    ), 0)::bigint AS lag_events,
    coalesce((
        SELECT extract(epoch FROM greatest(now() - f.flushed_at, '0')) FROM log_flushes f
        WHERE (f.log_id, f.first_index) = (
            SELECT log_id, first_index FROM log_flushes n
            WHERE n.log_id = s.place >> 48 AND n.first_index <= s.place & 281474976710655 ORDER BY first_index DESC LIMIT 1
        ) AND f.first_index + greatest(f.count, 1) > s.place & 281474976710655
    ), 0)::float8 AS lag_seconds
FROM sinks s ORDER BY s.name

-- name: pause
-- Stops a sink, or lets it go on. No row if there is none.
UPDATE sinks SET paused = $2 WHERE name = $1 RETURNING 1

-- name: rewind
-- Moves a cursor. No row if there is none.
UPDATE sinks SET place = $2, sent_up_to = NULL, failures = 0, last_error = NULL, last_error_at = NULL,
    revision = greatest(revision + 1, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint)
WHERE name = $1 RETURNING 1

-- name: remove
-- Forgets a sink.
DELETE FROM sinks WHERE name = $1 RETURNING 1
