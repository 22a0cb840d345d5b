-- Counts of sealed events that follow the log (docs/decisions/0036). Each statement that changes counts reads and writes everything
-- in one snapshot; the lock is taken by a statement before it.

-- name: try_lock
-- One process at a time counts; the lock ends with its transaction.
SELECT pg_try_advisory_xact_lock(hashtextextended('datastorage.rollup', 0))

-- name: work
-- What there is to do: whether counts have to be discarded, whether a month has none, whether one is being built, and whether
-- something was written, deleted or changed.
SELECT
    NOT is_same_log OR EXISTS (
        SELECT FROM rollup_months m
        WHERE NOT EXISTS (SELECT FROM rollup_tables t WHERE t.month = m.month AND t.identity = m.identity)
    ) AS discard,
    EXISTS (
        SELECT FROM rollup_tables t
        WHERE NOT EXISTS (SELECT FROM rollup_months m WHERE m.month = t.month) AND {can_be_counted}
    ) OR EXISTS (
        SELECT FROM rollup_changes c WHERE NOT EXISTS (SELECT FROM rollup_months m WHERE m.month = c.month)
    ) AS begin,
    EXISTS (SELECT FROM rollup_months WHERE building IS NOT NULL) AS build,
    EXISTS (SELECT FROM log_flushes f WHERE f.log_id = 0 AND f.first_index = position) OR EXISTS (SELECT FROM rollup_changes) AS follow
FROM rollup_progress WHERE log_id = 0 AND NOT EXISTS (SELECT FROM logs WHERE log_id > 0)
UNION ALL SELECT false, false, false, false WHERE EXISTS (SELECT FROM logs WHERE log_id > 0) -- it can count one log only

-- name: lock_rollup
-- Nobody reports flushes as lost until this transaction ends, so that it does not overwrite the report. NULL while somebody does.
SELECT true FROM rollups WHERE log_id = 0 FOR UPDATE SKIP LOCKED

-- name: discard
-- Discards the counts of months that are gone or have another identity; if the log has lost what was counted, all.
WITH lost AS (
    UPDATE rollups r SET position = 0, tail = NULL, tail_xmin = NULL
    FROM rollup_progress p
    WHERE r.log_id = 0 AND p.log_id = 0 AND NOT p.is_same_log
    RETURNING r.log_id
), discarded AS (
    DELETE FROM rollup_months m
    WHERE EXISTS (SELECT FROM lost)
        OR NOT EXISTS (SELECT FROM rollup_tables t WHERE t.month = m.month AND t.identity = m.identity)
    RETURNING month
)
DELETE FROM rollup_counts WHERE month IN (SELECT month FROM discarded)

-- name: discard_month
-- Discards the counts of one month.
WITH discarded AS (DELETE FROM rollup_months WHERE month = $1 RETURNING month)
DELETE FROM rollup_counts WHERE month IN (SELECT month FROM discarded)

-- name: restart
-- The roll-up of a log whose row was deleted.
INSERT INTO rollups (log_id, position, tail_xmin) VALUES (0, 1, 'unknown') ON CONFLICT DO NOTHING

-- name: begin
-- Begins the counts of months that have none. What was changed in them before this snapshot is of no interest, nor are counts that
-- somebody left who deleted rows of rollup_months.
WITH left_over AS (
    DELETE FROM rollup_counts c WHERE NOT EXISTS (SELECT FROM rollup_months m WHERE m.month = c.month)
), begun AS (
    INSERT INTO rollup_months (month, first_day, identity, building)
    SELECT t.month, t.first_day, t.identity, 0 FROM rollup_tables t
    WHERE NOT EXISTS (SELECT FROM rollup_months m WHERE m.month = t.month) AND {can_be_counted}
)
DELETE FROM rollup_changes c WHERE NOT EXISTS (SELECT FROM rollup_months m WHERE m.month = c.month)

-- name: to_build
-- The newest month that is being built.
SELECT month, first_day, (first_day + interval '1 month')::date AS next_day, building
FROM rollup_months WHERE building IS NOT NULL ORDER BY first_day DESC LIMIT 1

-- name: build
-- Counts the next portion of the month $1, whose days are from $2 up to, not including, $3, from position $4 on. $5 rows are a portion;
-- with fewer than that the month has caught up.
WITH portion AS MATERIALIZED (
    SELECT log_index, event_timestamp, event_type, event_category, event_outcome, severity
    FROM audit_events
    WHERE event_date >= $2 AND event_date < $3 AND log_index >= $4
        AND log_index < (SELECT position FROM rollups WHERE log_id = 0)
    ORDER BY log_index FETCH FIRST $5 ROWS WITH TIES
), counted AS (
    SELECT $1::oid AS month, event_timestamp, event_type, event_category, event_outcome, severity, 1 AS events FROM portion
), reached AS (
    UPDATE rollup_months SET building = (SELECT CASE WHEN count(*) >= $5 THEN max(log_index) + 1 END FROM portion)
    WHERE month = $1
    RETURNING coalesce(building, (SELECT position FROM rollups WHERE log_id = 0)) AS position
), in_rows AS (
    DELETE FROM rollup_changes c USING reached r WHERE c.month = $1 AND c.log_index >= $4 AND c.log_index < r.position
), {add_counts}
SELECT count(*) FROM portion

-- name: follow
-- Counts the next portion of the log, whole flushes with $1 events or a little more, and adds what was changed at positions before it.
-- A flush beyond a gap is not followed, whatever position it claims. Returns whether there may be more.
WITH RECURSIVE following AS (
    (
        SELECT first_index, greatest(count, 1) AS count, xmin::text AS tail_xmin, 0::bigint AS before
        FROM log_flushes
        WHERE log_id = 0 AND first_index = (SELECT position FROM rollup_progress WHERE log_id = 0 AND is_same_log)
    )
    UNION ALL
    SELECT f.*, p.before + p.count FROM following p CROSS JOIN LATERAL (
        SELECT first_index, greatest(count, 1) AS count, xmin::text AS tail_xmin FROM log_flushes
        WHERE log_id = 0 AND first_index = p.first_index + p.count LIMIT 1
    ) f WHERE p.before + p.count < $1
), reached AS MATERIALIZED (
    SELECT first_index + count AS position, first_index AS tail, tail_xmin FROM following ORDER BY first_index DESC LIMIT 1
), portion AS MATERIALIZED (
    SELECT tableoid AS month, log_index, event_timestamp, event_type, event_category, event_outcome, severity
    FROM audit_events
    WHERE log_index >= (SELECT position FROM rollups WHERE log_id = 0) AND log_index < (SELECT position FROM reached)
), followed AS (
    UPDATE rollups SET position = r.position, tail = r.tail, tail_xmin = r.tail_xmin FROM reached r WHERE log_id = 0
    RETURNING rollups.position
), before AS MATERIALIZED (
    SELECT m.month, coalesce(m.building, r.position) AS position, m.building IS NULL AS is_current
    FROM rollup_months m, rollups r WHERE r.log_id = 0
), in_rows AS (
    DELETE FROM rollup_changes c USING before b, followed f
    WHERE c.month = b.month AND b.is_current AND c.log_index >= b.position AND c.log_index < f.position
), changed AS (
    DELETE FROM rollup_changes c USING before b WHERE c.month = b.month AND c.log_index < b.position RETURNING c.*
), counted AS (
    SELECT p.month, event_timestamp, event_type, event_category, event_outcome, severity, 1 AS events
    FROM portion p JOIN before b ON b.month = p.month AND b.is_current
    UNION ALL
    SELECT month, event_timestamp, event_type, event_category, event_outcome, severity, events FROM changed
), {add_counts}
SELECT coalesce(max(before + count), 0) >= $1 FROM following

-- name: uncounted
-- Tables whose rows cannot be counted: they have lost triggers, or have other names or other days than those that this service gives.
SELECT array_agg(month::regclass::text) FROM rollup_tables t WHERE {can_be_counted} IS NOT TRUE

-- name: check_timeout
-- While a process checks, nobody counts: no more than some ten thousand events may wait for it.
SET LOCAL statement_timeout = '15s'

-- name: discard_timeout
SET LOCAL statement_timeout = '10min'

-- name: difference
-- How many rows there are more than the counts say; no row while some months are not counted. Read from the index of positions alone.
SELECT (SELECT count(*) FROM audit_events WHERE log_index >= 0 AND log_index < r.position) - (
        SELECT coalesce(sum(events), 0) FROM rollup_counts
        WHERE span = 'm' AND month IN (SELECT month FROM rollup_tables)
    ) - (
        SELECT coalesce(sum(events), 0) FROM rollup_changes
        WHERE log_index < r.position AND month IN (SELECT month FROM rollup_tables)
    )
FROM rollups r
WHERE log_id = 0 AND NOT EXISTS (
    SELECT FROM rollup_tables t WHERE NOT EXISTS (
        SELECT FROM rollup_months m WHERE m.month = t.month AND m.identity = t.identity AND m.building IS NULL)
)

-- name: difference_of_month
-- The month after $1 that has all its counts, and how many rows it has more than they say.
WITH one AS (
    SELECT month, first_day, (first_day + interval '1 month')::date AS next_day, position
    FROM rollup_months, rollups
    WHERE log_id = 0 AND building IS NULL AND first_day > $1 ORDER BY first_day LIMIT 1
)
SELECT month, first_day, (
        SELECT count(*) FROM audit_events e
        WHERE e.event_date >= one.first_day AND e.event_date < one.next_day
            AND e.log_index >= 0 AND e.log_index < one.position
    ) - (
        SELECT coalesce(sum(c.events), 0) FROM rollup_counts c WHERE c.month = one.month AND c.span = 'm'
    ) - (
        SELECT coalesce(sum(c.events), 0) FROM rollup_changes c WHERE c.month = one.month AND c.log_index < one.position
    ) AS difference
FROM one
