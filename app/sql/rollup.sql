-- Counts of sealed events that follow the logs (docs/decisions/0036 and 0051). Each statement that changes counts reads and writes everything
-- in one snapshot; the lock is taken by a statement before it.

-- name: try_lock
-- One process at a time counts; the lock ends with its transaction.
SELECT pg_try_advisory_xact_lock(hashtextextended('datastorage.rollup', 0))

-- name: work
-- What there is to do: whether counts have to be discarded, whether a month has none, whether one is being built, and in which logs
-- something was written, deleted or changed, or is left of a closed one.
SELECT
    EXISTS (SELECT FROM rollup_log_progress WHERE is_same_log IS NOT TRUE) OR EXISTS (
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
    (
        SELECT array_agg(log_id ORDER BY log_id) FROM rollup_logs r
        WHERE EXISTS (SELECT FROM log_flushes f WHERE f.log_id = r.log_id AND f.first_index = r.position)
            OR (position < {position_max} AND log_id < (SELECT max(log_id) FROM logs))
            OR EXISTS (SELECT FROM rollup_changes)
    ) AS follow

-- name: lock_rollup
-- Nobody reports flushes as lost until this transaction ends, so that it does not overwrite the report. False while somebody does.
SELECT count(*) = (SELECT count(*) FROM rollup_logs) FROM (SELECT FROM rollup_logs FOR UPDATE SKIP LOCKED) locked

-- name: discard
-- Discards the counts of months that are gone or have another identity; if a log has lost what was counted, or there is another one, all.
WITH lost AS MATERIALIZED (
    SELECT FROM rollup_log_progress WHERE is_same_log IS NOT TRUE LIMIT 1
), gone AS (
    DELETE FROM rollup_logs r WHERE NOT EXISTS (SELECT FROM logs l WHERE l.log_id = r.log_id)
), begun AS (
    INSERT INTO rollup_logs (log_id, position) SELECT log_id, 0 FROM logs WHERE EXISTS (SELECT FROM lost)
    ON CONFLICT (log_id) DO UPDATE SET position = 0, tail = NULL, tail_xmin = NULL
), discarded AS (
    DELETE FROM rollup_months m
    WHERE EXISTS (SELECT FROM lost)
        OR NOT EXISTS (SELECT FROM rollup_tables t WHERE t.month = m.month AND t.identity = m.identity)
    RETURNING month
), {discard_counts}
SELECT

-- name: discard_month
-- Discards the counts of one month.
WITH discarded AS (
    DELETE FROM rollup_months WHERE month = $1 RETURNING month
), {discard_counts}
SELECT

-- name: begin
-- Begins the counts of months that have none. What was changed in them before this snapshot is of no interest, nor are counts that
-- somebody left who deleted rows of rollup_months.
WITH left_over AS (
    DELETE FROM rollup_counts c WHERE NOT EXISTS (SELECT FROM rollup_months m WHERE m.month = c.month)
), left_over_scopes AS (
    DELETE FROM rollup_scopes c WHERE NOT EXISTS (SELECT FROM rollup_months m WHERE m.month = c.month)
), left_over_marginals AS (
    DELETE FROM rollup_marginals c WHERE NOT EXISTS (SELECT FROM rollup_months m WHERE m.month = c.month)
), begun AS (
    INSERT INTO rollup_months (month, first_day, identity, building)
    SELECT t.month, t.first_day, t.identity, 0 FROM rollup_tables t
    WHERE NOT EXISTS (SELECT FROM rollup_months m WHERE m.month = t.month) AND {can_be_counted}
)
DELETE FROM rollup_changes c WHERE NOT EXISTS (SELECT FROM rollup_months m WHERE m.month = c.month)

-- name: to_build
-- The newest month that is being built, and the log and the position where that goes on.
SELECT month, first_day, (first_day + interval '1 month')::date AS next_day, building_log, building
FROM rollup_months WHERE building IS NOT NULL ORDER BY first_day DESC LIMIT 1

-- name: build
-- CASE: what the planner expects of the log would mislead it. Counts the next portion of the month $1, whose days are from $2 up to, not including, $3, in the log $4 from position $5 on. $6 rows
-- are a portion; with fewer than that the month has caught up with that log, and with the last log altogether.
WITH portion AS MATERIALIZED (
    SELECT log_index, {counted_columns}
    FROM audit_events c
    WHERE event_date >= $2 AND event_date < $3 AND log_index >= $5 AND CASE WHEN {log_of_row} = $4 THEN true ELSE false END
        AND log_index < (SELECT position FROM rollup_logs WHERE log_id = $4)
    ORDER BY log_index FETCH FIRST $6 ROWS WITH TIES
), counted AS (
    SELECT $1::oid AS month, {counted_columns}, 1 AS events FROM portion
), size AS (
    SELECT count(*) >= $6 AS is_full, max(log_index) + 1 AS next FROM portion
), next_log AS (
    SELECT min(log_id) AS log_id FROM rollup_logs WHERE log_id > $4
), reached AS (
    UPDATE rollup_months SET
        building = CASE WHEN s.is_full THEN s.next WHEN n.log_id IS NOT NULL THEN 0 END,
        building_log = CASE WHEN s.is_full OR n.log_id IS NULL THEN $4 ELSE n.log_id END
    FROM size s, next_log n
    WHERE month = $1
    RETURNING CASE WHEN s.is_full THEN s.next ELSE (SELECT position FROM rollup_logs WHERE log_id = $4) END AS position
), in_rows AS (
    DELETE FROM rollup_changes c USING reached r
    WHERE c.month = $1 AND {log_of_row} = $4 AND c.log_index >= $5 AND c.log_index < r.position
), {add_counts}
SELECT count(*) FROM portion

-- name: follow
-- Counts the next portion of the log $2, whole flushes with $1 events or a little more, and adds what was changed at positions before it.
-- A flush beyond a gap is not followed, whatever position it claims; but of a closed log all rows are counted in the end. Returns whether
-- there may be more.
WITH RECURSIVE following AS (
    (
        SELECT first_index, greatest(count, 1) AS count, xmin::text AS tail_xmin, 0::bigint AS before
        FROM log_flushes
        WHERE log_id = $2 AND first_index = (SELECT position FROM rollup_log_progress WHERE log_id = $2 AND is_same_log)
    )
    UNION ALL
    SELECT f.*, p.before + p.count FROM following p CROSS JOIN LATERAL (
        SELECT first_index, greatest(count, 1) AS count, xmin::text AS tail_xmin FROM log_flushes
        WHERE log_id = $2 AND first_index = p.first_index + p.count LIMIT 1
    ) f WHERE p.before + p.count < $1
), of_closed AS MATERIALIZED (
    SELECT coalesce((
            SELECT log_index FROM audit_events c WHERE log_index > r.position AND CASE WHEN {log_of_row} = $2 THEN true ELSE false END
            ORDER BY log_index OFFSET $1 LIMIT 1
        ), {position_max}) AS position, tail, tail_xmin
    FROM rollup_logs r
    WHERE log_id = $2 AND log_id < (SELECT max(log_id) FROM logs) AND position < {position_max}
        AND NOT EXISTS (SELECT FROM following)
), reached AS MATERIALIZED (
    (SELECT first_index + count AS position, first_index AS tail, tail_xmin FROM following ORDER BY first_index DESC LIMIT 1)
    UNION ALL SELECT * FROM of_closed
), portion AS MATERIALIZED (
    SELECT tableoid AS month, log_index, {counted_columns}
    FROM audit_events c
    WHERE log_index >= (SELECT position FROM rollup_logs WHERE log_id = $2) AND log_index < (SELECT position FROM reached)
        AND CASE WHEN {log_of_row} = $2 THEN true ELSE false END
), followed AS (
    UPDATE rollup_logs l SET position = r.position, tail = r.tail, tail_xmin = r.tail_xmin FROM reached r WHERE log_id = $2
    RETURNING l.position
), before AS MATERIALIZED (
    SELECT m.month, m.building IS NULL OR m.building_log > $2 AS is_current,
        CASE WHEN m.building IS NULL OR m.building_log > $2 THEN r.position WHEN m.building_log = $2 THEN m.building ELSE 0 END AS position
    FROM rollup_months m, rollup_logs r WHERE r.log_id = $2
), in_rows AS (
    DELETE FROM rollup_changes c USING before b, followed f
    WHERE c.month = b.month AND b.is_current AND {log_of_row} = $2 AND c.log_index >= b.position AND c.log_index < f.position
), of_no_log AS (
    DELETE FROM rollup_changes c WHERE {log_of_row} > (SELECT max(log_id) FROM logs)
), changed AS (
    DELETE FROM rollup_changes c USING before b WHERE c.month = b.month AND {log_of_row} = $2 AND c.log_index < b.position RETURNING c.*
), counted AS (
    SELECT p.month, {counted_columns}, 1 AS events FROM portion p JOIN before b ON b.month = p.month AND b.is_current
    UNION ALL
    SELECT month, {counted_columns}, events FROM changed
), {add_counts}
SELECT coalesce(max(before + count), 0) >= $1 OR EXISTS (SELECT FROM of_closed) FROM following

-- name: uncounted
-- Tables whose rows cannot be counted: they have lost triggers, or have other names or other days than those that this service gives.
SELECT array_agg(month::regclass::text) FROM rollup_tables t WHERE {can_be_counted} IS NOT TRUE

-- name: check_timeout
-- While a process checks, nobody counts: no more than some ten thousand events may wait for it.
SET LOCAL statement_timeout = '15s'

-- name: discard_timeout
SET LOCAL statement_timeout = '10min'

-- name: difference
-- How many rows there are more than the counts say; no row while some months are not counted. Read from indexes of positions alone.
SELECT (SELECT count(*) FROM audit_events WHERE log_index >= 0 AND log_index < r.position)
    - CASE WHEN {has_later_logs} THEN (
        SELECT count(*) FROM audit_events WHERE log_id > 0 AND log_index >= 0 AND log_index < r.position
    ) ELSE 0 END + CASE WHEN {has_later_logs} THEN (
        SELECT count(*) FROM rollup_logs l JOIN audit_events e ON e.log_id = l.log_id AND e.log_index < l.position
        WHERE e.log_id > 0 AND e.log_index >= 0
    ) ELSE 0 END - (
        SELECT coalesce(sum(events), 0) FROM rollup_counts
        WHERE span = 'm' AND month IN (SELECT month FROM rollup_tables)
    ) - (
        SELECT coalesce(sum(events), 0) FROM rollup_changes c
        WHERE log_index < (SELECT position FROM rollup_logs l WHERE l.log_id = {log_of_row}) AND month IN (SELECT month FROM rollup_tables)
    )
FROM rollup_logs r
WHERE log_id = 0 AND NOT EXISTS (
    SELECT FROM rollup_tables t WHERE NOT EXISTS (
        SELECT FROM rollup_months m WHERE m.month = t.month AND m.identity = t.identity AND m.building IS NULL)
)

-- name: difference_of_month
-- The month after $1 that has all its counts, and how many rows it has more than they say.
WITH one AS (
    SELECT month, first_day, (first_day + interval '1 month')::date AS next_day
    FROM rollup_months
    WHERE building IS NULL AND first_day > $1 ORDER BY first_day LIMIT 1
)
SELECT month, first_day, (
        SELECT count(*) FROM audit_events c
        WHERE c.event_date >= one.first_day AND c.event_date < one.next_day
            AND c.log_index >= 0 AND c.log_index < (SELECT position FROM rollup_logs l WHERE l.log_id = {log_of_row})
    ) - (
        SELECT coalesce(sum(c.events), 0) FROM rollup_counts c WHERE c.month = one.month AND c.span = 'm'
    ) - (
        SELECT coalesce(sum(c.events), 0) FROM rollup_changes c
        WHERE c.month = one.month AND c.log_index < (SELECT position FROM rollup_logs l WHERE l.log_id = {log_of_row})
    ) AS difference
FROM one

-- name: months_with_other_scopes
-- Months whose counts by cluster and namespace have other events as left out than those by type: a release before that of the receiver of
-- Kubernetes has counted its events as shown. And those whose sums by one member alone are not the sums of these.
SELECT month, first_day FROM rollup_months m
WHERE building IS NULL AND (
    SELECT coalesce(sum(events), 0) FROM rollup_counts c
    WHERE c.month = m.month AND span = 'm' AND (event_category = 'kubernetes' OR event_type LIKE 'kubernetes.audit.%'
        OR (event_category = 'security' AND event_type LIKE 'datastorage.%' AND event_type <> 'datastorage.ratelimit.denied'))
) <> (
    SELECT coalesce(sum(events), 0) FROM rollup_scopes c WHERE c.month = m.month AND span = 'm' AND is_self_event
) OR building IS NULL AND EXISTS (
    SELECT FROM unnest('{event_outcome,event_category,event_type,severity,cluster_id,namespace}'::text[]) dimension
    WHERE (SELECT coalesce(sum(events), 0) FROM rollup_marginals c WHERE c.dimension = dimension.dimension AND span = 'm' AND c.month = m.month)
        <> (SELECT coalesce(sum(events), 0) FROM rollup_counts c WHERE c.month = m.month AND span = 'm')
)
